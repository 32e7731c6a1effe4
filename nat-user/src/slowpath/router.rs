//! What becomes of a packet in the slow path. Here is no socket, no clock and no thread: [`Around`] it is asked and told.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use log::warn;
use nat_common::abi::slowpath::Tally;
use nat_common::abi::{Addr, Mac};
use nat_common::parse::Ipv4;
use nat_common::pipeline::{self, Direction, Node, Query, Route};
use nat_common::translate::{self, Addresses};
use nat_common::verdict::{Egress, Errand, Punt, Reject, Verdict};
use nat_common::wire::ethernet;

use super::arp::{Arp, Reaction};
use super::fragment::fragment;
use super::icmp::{self, Cause};
use super::judge::{Cut, Judge, judge};
use super::limits::Limits;
use super::waiting::{Added, Neighbour, Waiting};
use crate::dataplane::trial::Way;

/// What the fast path and the kernel know, and where they are told. What it [bills](Node::bill) has left.
pub trait Kernel: Node + Send {
    /// The way out, with the next hop's address and what it takes at most.
    fn way(&mut self, query: &Query) -> Way;
    /// Counts.
    fn count(&mut self, tally: Tally);
    /// Remembers that a packet was dropped which concerns a public address.
    fn remember_drop(&mut self, address: Addr, is_bound: bool, reason: Reject);
}

/// The node's interfaces.
pub trait Wire {
    /// Sends a frame. Answers whether the interface takes it.
    fn send(&mut self, ifindex: u32, frame: &[u8]) -> bool;
    /// The node's own address that an error comes from which goes back by an interface to that receiver.
    fn own_address(&mut self, ifindex: u32, to: Addr) -> Option<Addr>;
    /// Whether a MAC address is one of the node's.
    fn is_own(&self, mac: Mac) -> bool;
    /// Has a neighbour's MAC address asked for.
    fn resolve(&mut self, neighbour: Neighbour);
}

/// All that a packet's fate depends on besides its bytes, and all that can be done with it.
pub struct Around<'a> {
    /// Bindings, routes and counters.
    pub kernel: &'a mut dyn Kernel,
    /// Interfaces.
    pub wire: &'a mut dyn Wire,
}

/// A packet as it came to the fast path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Index of the interface that it came by.
    pub ifindex: u32,
    /// What the fast path has sent it for.
    pub errand: Errand,
    /// How many bytes its frame had.
    pub size: usize,
    /// Its frame; it may have been cut.
    pub bytes: Vec<u8>,
}

/// Something that waits for a neighbour.
#[derive(Debug)]
enum Waiter {
    /// A packet as it came: what becomes of it is decided anew, for its binding may have gone since.
    Packet(Packet),
    /// An answer of our own, and the interface by which what it answers came.
    Answer(u32, Vec<u8>),
}

/// What stands between packets.
#[derive(Debug)]
pub struct Router {
    waiting: Waiting<Waiter>,
    limits: Limits,
    /// Neighbours that have answered, but whose interface has no room for all that waits.
    stalled: BTreeSet<Neighbour>,
    /// Who else claims EIPs.
    pub arp: Arp,
    /// Of the last error.
    id: u16,
}

/// What has become of something that was to leave.
#[derive(Clone, Copy)]
enum Fate {
    /// It has left.
    Sent,
    /// It has to wait.
    Waits(Neighbour),
    /// The interface takes no more just now.
    Later,
    /// It is dropped, and its sender told if there is a cause.
    Dropped(Reject, Option<Cause>),
    /// It was ARP, and is done with.
    Done,
}

impl Router {
    /// One that makes no more errors than that.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { waiting: Waiting::default(), limits, stalled: BTreeSet::new(), arp: Arp::default(), id: 0 }
    }

    /// Does what the fast path has sent a packet for.
    pub fn handle(&mut self, packet: Packet, now: Instant, around: &mut Around<'_>) {
        around.kernel.count(Tally::Received(packet.errand));
        match packet.errand {
            Errand::Carry(_) => self.carry(packet, now, around),
            Errand::Answer(_) => {
                // It is dropped already, and may have been cut: whatever would become of it now, it does not leave.
                let (verdict, judged) = judge(&packet, around);
                match verdict {
                    Verdict::Drop(reject) if cause(reject, judged.mtu).is_some() => {
                        self.tell(&packet, cause(reject, judged.mtu), now, around);
                    }
                    _ => around.kernel.count(Tally::Unanswered(packet.errand)),
                }
            }
        }
    }

    /// Tries to send what waits for a neighbour.
    pub fn retry(&mut self, neighbour: Neighbour, now: Instant, around: &mut Around<'_>) {
        let mut queue = self.waiting.take(neighbour);
        while let Some((since, waiter)) = queue.pop_front() {
            let fate = match &waiter {
                Waiter::Packet(packet) => self.decide(packet, now, around),
                Waiter::Answer(ingress, answer) => send_answer(*ingress, answer, around),
            };
            match (fate, waiter) {
                (Fate::Waits(again), waiter) if again == neighbour => {
                    // The kernel may have forgotten that it asks.
                    around.wire.resolve(neighbour);
                    queue.push_front((since, waiter));
                    return self.waiting.put_back(neighbour, queue);
                }
                (Fate::Later, waiter) => {
                    queue.push_front((since, waiter));
                    self.stalled.insert(neighbour);
                    return self.waiting.put_back(neighbour, queue);
                }
                (fate, Waiter::Packet(packet)) => self.settle(fate, packet, since, now, around),
                (Fate::Waits(other), waiter) => {
                    self.wait(other, since, waiter, around);
                }
                (_, Waiter::Answer(..)) => {}
            }
        }
    }

    /// The neighbours to try again as soon as there is room.
    pub fn take_stalled(&mut self) -> BTreeSet<Neighbour> {
        std::mem::take(&mut self.stalled)
    }

    /// Whether there are any.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Gives up what has waited for too long.
    pub fn expire(&mut self, now: Instant, around: &mut Around<'_>) {
        for waiter in self.waiting.take_expired(now) {
            if let Waiter::Packet(packet) = waiter {
                Self::drop(&packet, Reject::NeighbourUnresolved, around);
                self.tell(&packet, Some(Cause::HostUnreachable), now, around);
            }
        }
    }

    /// The neighbours that somebody waits for.
    #[must_use]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.waiting.neighbours()
    }

    /// How many packets wait.
    #[must_use]
    pub const fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the first that waits will have waited for long enough.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.waiting.due()
    }

    /// Forgets what was limited a while ago.
    pub fn forget_idle(&mut self) {
        self.limits.forget_idle();
    }

    fn carry(&mut self, packet: Packet, now: Instant, around: &mut Around<'_>) {
        let fate = self.decide(&packet, now, around);
        self.settle(fate, packet, now, now, around);
    }

    /// Does what follows from a packet's fate.
    fn settle(&mut self, fate: Fate, packet: Packet, since: Instant, now: Instant, around: &mut Around<'_>) {
        match fate {
            Fate::Sent => around.kernel.count(Tally::Carried(packet.errand)),
            Fate::Done => {}
            Fate::Later => Self::drop(&packet, Reject::SlowPathFull, around),
            Fate::Waits(neighbour) => {
                self.wait(neighbour, since, Waiter::Packet(packet), around);
            }
            Fate::Dropped(reject, cause) => {
                Self::drop(&packet, reject, around);
                self.tell(&packet, cause, now, around);
            }
        }
    }

    /// Has something wait, and answers whether there was room.
    fn wait(
        &mut self,
        neighbour: Neighbour,
        since: Instant,
        waiter: Waiter,
        around: &mut Around<'_>,
    ) -> bool {
        match self.waiting.add(neighbour, since, waiter) {
            Added::First => around.wire.resolve(neighbour),
            Added::Behind => {}
            Added::Full(waiter) => {
                if let Waiter::Packet(packet) = waiter {
                    Self::drop(&packet, Reject::SlowPathFull, around);
                }
                return false;
            }
        }
        true
    }

    /// Judges a packet like the fast path, and does what that could not.
    fn decide(&mut self, packet: &Packet, now: Instant, around: &mut Around<'_>) -> Fate {
        let (verdict, judged) = judge(packet, around);
        let fate = match verdict {
            Verdict::Forward(egress) => send(around, egress.ifindex, &[judged.frame]),
            Verdict::Finish(_) => finish(packet.ifindex, judged.frame, around),
            Verdict::Punt(Punt::Arp) => return self.answer_arp(packet, now, around),
            Verdict::Drop(reject) => Fate::Dropped(reject, cause(reject, judged.mtu)),
            // It has become the kernel's since, which cannot get it any more.
            Verdict::Pass | Verdict::Punt(_) => Fate::Dropped(Reject::NoRoute, None),
        };
        if matches!(fate, Fate::Sent) {
            for (meter, direction, bytes) in judged.bills {
                around.kernel.bill(meter, direction, bytes);
            }
        }
        fate
    }

    /// Counts and remembers that a packet was dropped.
    fn drop(packet: &Packet, reject: Reject, around: &mut Around<'_>) {
        around.kernel.count(Tally::Dropped(reject));
        let mut frame = packet.bytes.clone();
        for direction in [Direction::In, Direction::Out] {
            let mut node = Judge::new(around.kernel);
            let concerned = pipeline::concerned(
                frame.as_mut_slice(),
                packet.ifindex,
                reject as u32,
                direction,
                &mut node,
            );
            if let Some((address, is_bound)) = concerned {
                around.kernel.remember_drop(address, is_bound, reject);
            }
        }
    }

    /// Tells a packet's sender why it did not get on, if that is to be told.
    fn tell(&mut self, packet: &Packet, cause: Option<Cause>, now: Instant, around: &mut Around<'_>) {
        let Some(cause) = cause else { return };
        let is_answered = self.error(packet, cause, around).is_some_and(|error| {
            match send_answer(packet.ifindex, &error, around) {
                Fate::Waits(neighbour) => {
                    self.wait(neighbour, now, Waiter::Answer(packet.ifindex, error), around)
                }
                fate => matches!(fate, Fate::Sent),
            }
        });
        let tally = if is_answered { Tally::Answered } else { Tally::Unanswered };
        around.kernel.count(tally(packet.errand));
    }

    /// The error about a packet, if there may be one.
    fn error(&mut self, packet: &Packet, cause: Cause, around: &mut Around<'_>) -> Option<Vec<u8>> {
        let mut bytes = packet.bytes.clone();
        let ip = Ipv4::parse(&mut Cut { bytes: &mut bytes, size: packet.size }).ok()?;
        if !icmp::may_be_answered(&packet.bytes, &ip) || !self.limits.admit(ip.source.into(), cause) {
            return None;
        }
        let source = around.wire.own_address(packet.ifindex, ip.source)?;
        self.id = self.id.wrapping_add(1);
        icmp::error(&packet.bytes, &ip, cause, source.into(), self.id).ok()
    }

    fn answer_arp(&mut self, packet: &Packet, now: Instant, around: &mut Around<'_>) -> Fate {
        let Some(own) = around.kernel.port(packet.ifindex).map(|port| port.mac) else { return Fate::Done };
        let Around { kernel, wire } = around;
        let is_node = |mac| wire.is_own(mac);
        match self.arp.react(&packet.bytes, own, is_node, |addr| kernel.inbound(addr).is_some(), now) {
            Reaction::Reply(reply) => {
                let is_sent = around.wire.send(packet.ifindex, &reply);
                let tally = if is_sent { Tally::Answered } else { Tally::Unanswered };
                around.kernel.count(tally(packet.errand));
            }
            Reaction::Conflict { eip, mac, defence } => {
                around.kernel.count(Tally::Conflict);
                if let Some(defence) = defence {
                    warn!(
                        "{} claims to hold {eip}, which is bound here: take the address off that machine",
                        crate::packet::mac(&mac)
                    );
                    if around.wire.send(packet.ifindex, &defence) {
                        around.kernel.count(Tally::Announced);
                    }
                }
            }
            Reaction::None => around.kernel.count(Tally::Unanswered(packet.errand)),
        }
        Fate::Done
    }
}

/// What a packet's sender is to be told.
const fn cause(reject: Reject, mtu: u16) -> Option<Cause> {
    match reject {
        Reject::TtlExpired => Some(Cause::TimeExceeded),
        Reject::MtuExceeded => Some(Cause::FragmentationNeeded { mtu }),
        _ => None,
    }
}

/// Sends an answer of the node's own, whose MAC addresses are still to be written.
fn send_answer(ingress: u32, answer: &[u8], around: &mut Around<'_>) -> Fate {
    let mut answer = answer.to_vec();
    let ip = match Ipv4::parse(answer.as_mut_slice()) {
        Ok(ip) => ip,
        Err(reject) => return Fate::Dropped(reject, None),
    };
    match leads_to(&around.kernel.way(&query(&ip, ingress))) {
        Ok(Ok(egress)) => {
            if let Some(macs) = answer.first_chunk_mut() {
                ethernet::Header(macs).readdress(egress.destination, egress.source);
            }
            send(around, egress.ifindex, &[answer])
        }
        Ok(Err(neighbour)) => Fate::Waits(neighbour),
        Err(reject) => Fate::Dropped(reject, None),
    }
}

/// Sends a packet on that has its new addresses, like any router.
fn finish(ingress: u32, mut frame: Vec<u8>, around: &mut Around<'_>) -> Fate {
    let ip = match Ipv4::parse(frame.as_mut_slice()) {
        Ok(ip) => ip,
        Err(reject) => return Fate::Dropped(reject, None),
    };
    frame.truncate(ip.end());
    let query = query(&ip, ingress);
    let mut way = around.kernel.way(&query);
    let mtu = (way.route == Route::TooBig).then_some(way.mtu);
    if mtu.is_some() {
        way = around.kernel.way(&Query { total_len: 0, ..query });
    }
    let egress = match leads_to(&way) {
        Ok(Ok(egress)) => egress,
        Ok(Err(neighbour)) => return Fate::Waits(neighbour),
        Err(reject) => return Fate::Dropped(reject, None),
    };
    if let Err(reject) = translate::forward(frame.as_mut_slice(), &ip, &egress) {
        return Fate::Dropped(reject, None);
    }
    let frames = match mtu {
        None => vec![frame],
        Some(mtu) => match fragment(&frame, &ip, mtu) {
            Some(fragments) => fragments,
            None => return Fate::Dropped(Reject::FibError, None),
        },
    };
    send(around, egress.ifindex, &frames)
}

/// Says that an EIP is here. Answers whether the interface has taken it.
#[must_use]
pub fn announce(eip: Ipv4Addr, ifindex: u32, mac: Mac, around: &mut Around<'_>) -> bool {
    let is_sent = around.wire.send(ifindex, &super::arp::announcement(mac, eip));
    if is_sent {
        around.kernel.count(Tally::Announced);
    }
    is_sent
}

/// Sends all frames of a packet, or as many as the interface takes.
fn send(around: &mut Around<'_>, ifindex: u32, frames: &[Vec<u8>]) -> Fate {
    if frames.iter().all(|frame| around.wire.send(ifindex, frame)) { Fate::Sent } else { Fate::Later }
}

fn query(ip: &Ipv4, ingress: u32) -> Query {
    Query {
        ifindex: ingress,
        addresses: Addresses::of(ip),
        tos: ip.tos,
        protocol: ip.protocol,
        total_len: ip.total_len,
    }
}

/// The way out, or the neighbour that has to be asked for, or why there is none.
fn leads_to(way: &Way) -> Result<Result<Egress, Neighbour>, Reject> {
    match (way.route, way.next_hop) {
        (Route::Via(egress), _) => Ok(Ok(egress)),
        (Route::Unresolved(ifindex), Some(next_hop)) => Ok(Err((ifindex, next_hop))),
        (Route::Unresolved(_), None) => Err(Reject::NeighbourUnresolved),
        (Route::NotForwarded | Route::Unreachable, _) => Err(Reject::NoRoute),
        (Route::Disabled, _) => Err(Reject::ForwardingDisabled),
        (Route::TooBig | Route::Failed, _) => Err(Reject::FibError),
    }
}
