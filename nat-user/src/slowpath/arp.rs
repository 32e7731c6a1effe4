//! ARP for EIPs in an uplink's own network (RFC 826, RFC 5227).

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etherparse::{ArpEthIpv4Packet, ArpOperation};
use nat_common::abi::{Addr, Mac};
use nat_common::wire::arp::{LEN, Packet, REQUEST};
use nat_common::wire::ethernet;

/// How often an EIP is defended at most (RFC 5227 §2.4, `DEFEND_INTERVAL`).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// How many conflicts are remembered. More are not answered.
const MAX_CONFLICTS: usize = 1024;

/// To everybody.
const BROADCAST: Mac = [0xff; 6];

/// Somebody else claims to hold an EIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who it was last.
    pub mac: Mac,
    /// When that was.
    pub last: Instant,
    /// When we last said that it is ours.
    defended: Instant,
}

/// What follows from an ARP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// This frame is sent.
    Reply(Vec<u8>),
    /// Somebody else claims an EIP; the frame says that it is ours, if it is time for that.
    Conflict {
        /// The EIP.
        eip: Ipv4Addr,
        /// Who claims it.
        mac: Mac,
        /// What is sent.
        defence: Option<Vec<u8>>,
    },
    /// Nothing.
    None,
}

/// The conflicts that there were, by EIP.
#[derive(Debug, Default)]
pub struct Arp {
    conflicts: HashMap<Ipv4Addr, Conflict>,
}

impl Arp {
    /// What there is to be done about an ARP frame that has come by an interface with that MAC address; `is_node`: whether
    /// another one is an interface's of this node.
    pub fn react(
        &mut self,
        frame: &[u8],
        own: Mac,
        is_node: impl Fn(Mac) -> bool,
        mut is_ours: impl FnMut(Addr) -> bool,
        now: Instant,
    ) -> Reaction {
        let Some(packet) = frame.get(ethernet::HEADER_LEN..).and_then(|bytes| bytes.first_chunk::<LEN>())
        else {
            return Reaction::None;
        };
        let packet = Packet(packet);
        let (sender, mac) = (packet.sender(), packet.sender_mac());
        if !packet.is_ipv4() || mac == own || is_node(mac) || mac[0] & 1 != 0 {
            return Reaction::None;
        }
        if is_ours(sender) {
            return self.claimed(sender.into(), mac, own, now);
        }
        if packet.operation() == REQUEST && is_ours(packet.target()) {
            return Reaction::Reply(reply(own, packet.target(), mac, sender));
        }
        Reaction::None
    }

    fn claimed(&mut self, eip: Ipv4Addr, mac: Mac, own: Mac, now: Instant) -> Reaction {
        let before = self.conflicts.get(&eip);
        let is_due = before.is_none_or(|before| now.duration_since(before.defended) >= DEFEND_INTERVAL);
        let defended = before.map_or(now, |before| if is_due { now } else { before.defended });
        if before.is_none() && self.conflicts.len() >= MAX_CONFLICTS {
            // Whoever claims so many means no good, and shall not make us speak as often.
            return Reaction::Conflict { eip, mac, defence: None };
        }
        self.conflicts.insert(eip, Conflict { mac, last: now, defended });
        Reaction::Conflict { eip, mac, defence: is_due.then(|| announcement(own, eip)) }
    }

    /// The conflicts that are remembered.
    pub fn conflicts(&self) -> impl Iterator<Item = (Ipv4Addr, Conflict)> + '_ {
        self.conflicts.iter().map(|(eip, conflict)| (*eip, *conflict))
    }

    /// Forgets conflicts that are over.
    pub fn forget(&mut self, older_than: Duration, now: Instant) {
        self.conflicts.retain(|_, conflict| now.duration_since(conflict.last) < older_than);
    }
}

/// Says to all that an EIP is at this MAC address (RFC 5227 §2.3): a request for the address itself, from it.
#[must_use]
pub fn announcement(own: Mac, eip: Ipv4Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: own,
        sender_ipv4: eip.octets(),
        target_mac: [0; 6],
        target_ipv4: eip.octets(),
    };
    frame(BROADCAST, own, &packet)
}

/// Says to one who asks that an address is at this MAC address.
fn reply(own: Mac, eip: Addr, to: Mac, asker: Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: own,
        sender_ipv4: eip,
        target_mac: to,
        target_ipv4: asker,
    };
    frame(to, own, &packet)
}

fn frame(to: Mac, from: Mac, packet: &ArpEthIpv4Packet) -> Vec<u8> {
    [&to[..], &from, &ethernet::TYPE_ARP.to_be_bytes(), &packet.to_bytes()].concat()
}
