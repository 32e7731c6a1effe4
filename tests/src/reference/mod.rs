//! A slow translator, to compare the real one with: it takes a packet apart with etherparse, decides as
//! docs/rfc-compliance.md says, and builds the expected packet from scratch. It shares no code with nat-common but the
//! names of the verdicts.

mod datagram;
#[cfg(feature = "lab")]
pub mod generate;

use std::net::Ipv4Addr;

use etherparse::{EtherType, Ethernet2Header, IpNumber};
use nat_common::verdict::{Punt, Reject};

use self::datagram::{Content, Datagram};
use crate::fixtures::world::{self, BINDINGS, Bound, Link, PUBLIC_IP, Way};
use crate::fixtures::{Charge, Expect};

/// What has to become of a frame that comes by the interface `on`.
#[must_use]
pub fn expected(on: Link, frame: &[u8]) -> Expect {
    let Ok((ethernet, behind)) = Ethernet2Header::from_slice(frame) else {
        return Expect::Drop(Reject::FrameTruncated);
    };
    if ethernet.destination[0] & 1 == 1 {
        return Expect::Pass;
    }
    match ethernet.ether_type {
        EtherType::IPV4 => {}
        // The kernel would look behind a tag that names no VLAN.
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING => match behind {
            [high, low, ..] if (high & 15, low) == (0, &0) => return Expect::Drop(Reject::PriorityTag),
            [_, _, ..] => return Expect::Pass,
            _ => return Expect::Drop(Reject::FrameTruncated),
        },
        _ => return Expect::Pass,
    }
    let packet =
        Datagram::read(behind).and_then(|packet| admit(on, ethernet.destination == on.mac(), packet));
    let packet = match packet {
        Ok(packet) => packet,
        Err(reject) => return Expect::Drop(reject),
    };
    let padding = &behind[usize::from(packet.header.total_len)..];
    let ours = public(packet.destination()).is_some();
    match carry(on, &ethernet, &packet, padding.len()) {
        Ok(carried) => carried.expect(&ethernet, padding),
        // The node's own traffic is the kernel's to judge, unless it is to be sent on as it is.
        Err(_) if !ours && !world::is_pooled(packet.destination()) && is_local(packet.destination()) => {
            match packet.check_options() {
                Err(Reject::SourceRoute) => Expect::Drop(Reject::SourceRoute),
                _ => Expect::Pass,
            }
        }
        Err(reject) => Expect::Drop(reject),
    }
}

/// What is dropped before anything is looked up: addresses that no packet may have (RFC 1812 §5.3.7), and our own
/// ones from outside.
fn admit(on: Link, is_for_us: bool, packet: Datagram) -> Result<Datagram, Reject> {
    let impossible = |address: Ipv4Addr| {
        address.octets()[0] == 0
            || address.is_loopback()
            || address.is_multicast()
            || address.octets()[0] >= 240
    };
    if impossible(packet.source()) {
        return Err(Reject::SourceMartian);
    }
    if impossible(packet.destination()) {
        return Err(Reject::DestinationMartian);
    }
    let source = packet.source();
    let is_own = world::is_pooled(source) || world::is_own(source) || source == PUBLIC_IP;
    if is_for_us && on.faces_internet() && (is_own || !on.faces_vms() && world::is_inside(source)) {
        return Err(Reject::SpoofedSource);
    }
    Ok(packet)
}

/// The binding of a public address, and its meter.
fn public(address: Ipv4Addr) -> Option<(u32, Bound)> {
    (0..).zip(BINDINGS).find(|(_, bound)| bound.public_ip == address)
}

/// The binding of a private address as seen on an interface, and its meter.
fn private(on: Link, address: Ipv4Addr) -> Option<(u32, Bound)> {
    (0..).zip(BINDINGS).find(|(_, bound)| on.faces_vms() && bound.private_ip == address)
}

fn is_local(destination: Ipv4Addr) -> bool {
    world::way(destination, 0) == Way::NotForwarded
}

/// A packet on its way out.
struct Carried {
    packet: Datagram,
    way: Leaves,
    charges: Vec<Charge>,
}

enum Leaves {
    By { source: [u8; 6], destination: [u8; 6] },
    Punted(Punt),
}

impl Carried {
    fn expect(mut self, came: &Ethernet2Header, padding: &[u8]) -> Expect {
        let frame = |ethernet: &Ethernet2Header, packet: &Datagram| {
            [&ethernet.to_bytes()[..], &packet.bytes(), padding].concat()
        };
        match self.way {
            Leaves::Punted(punt) => Expect::Punt(punt, frame(came, &self.packet), self.charges),
            Leaves::By { source, destination } => {
                self.packet.header.time_to_live -= 1;
                let ethernet = Ethernet2Header { source, destination, ether_type: EtherType::IPV4 };
                Expect::Forward(frame(&ethernet, &self.packet), self.charges)
            }
        }
    }
}

fn carry(on: Link, ethernet: &Ethernet2Header, packet: &Datagram, padding: usize) -> Result<Carried, Reject> {
    if ethernet.destination != on.mac() {
        return Err(Reject::ForeignMac);
    }
    if packet.source().is_link_local() {
        return Err(Reject::SourceMartian);
    }
    if packet.destination().is_link_local() {
        return Err(Reject::DestinationMartian);
    }
    let (came_from, size) = (packet.source(), Ethernet2Header::LEN + usize::from(packet.header.total_len));
    let (sender, receiver) = (private(on, came_from), public(packet.destination()));
    let packet = translate(on, packet, sender, receiver)?;
    let (source, destination) = (packet.source(), packet.destination());
    if source == destination {
        return Err(Reject::Land);
    }

    // A VM's packets do not come from the internet.
    let is_vm = BINDINGS.iter().any(|bound| bound.private_ip == came_from);
    if sender.is_none() && receiver.is_some() && on.faces_internet() && is_vm {
        return Err(Reject::SpoofedSource);
    }

    let header = &packet.header;
    let way = world::way(destination, header.total_len);
    let leaves = match way {
        Way::NotForwarded | Way::Forbidden => return Err(Reject::NoRoute),
        Way::TooBig if header.dont_fragment => return Err(Reject::MtuExceeded),
        Way::TooBig => Leaves::Punted(Punt::Fragment),
        Way::Unresolved(_) => Leaves::Punted(Punt::Neighbour),
        // More than Ethernet's least size and the room for a tag explain.
        Way::Via(..) if size + padding > 64 && padding > 4 => Leaves::Punted(Punt::Trailer),
        Way::Via(link, mac) => Leaves::By { source: link.mac(), destination: mac },
    };
    if header.time_to_live < 2 {
        return Err(Reject::TtlExpired);
    }
    // A wrong route must not carry private addresses outside, nor back in what is to leave.
    if let Way::Via(by, _) | Way::Unresolved(by) = world::way(destination, 0)
        && !(if receiver.is_some() { by.faces_vms() } else { by.faces_internet() })
    {
        return Err(Reject::WrongEgress);
    }
    // The node's own packets cannot be left to its kernel to forward.
    let is_complaint_of_node = sender.is_none() && source != came_from;
    if is_complaint_of_node && matches!(leaves, Leaves::Punted(_)) {
        return Err(Reject::RouterError);
    }
    let charges = [sender.map(|(meter, _)| Charge::Out(meter)), receiver.map(|(meter, _)| Charge::In(meter))];
    Ok(Carried { packet, way: leaves, charges: charges.into_iter().flatten().collect() })
}

/// The packet with the addresses that the next hop is to see.
fn translate(
    on: Link,
    packet: &Datagram,
    sender: Option<(u32, Bound)>,
    receiver: Option<(u32, Bound)>,
) -> Result<Datagram, Reject> {
    let pooled = world::is_pooled(packet.destination());
    if sender.is_some() && receiver.is_none() && pooled {
        return Err(Reject::EipUnbound);
    }
    let inbound = receiver.is_some() && on.faces_internet();
    let nobody = match (on.faces_internet() && pooled, on.faces_vms()) {
        (true, _) => Reject::EipUnbound,
        (false, true) => Reject::SourceUnbound,
        (false, false) => Reject::Transit,
    };
    let claimed = sender.is_some() || inbound;
    // A router inside has no binding, but may have to complain.
    let may_complain = on.faces_vms() && packet.header.protocol == IpNumber::ICMP;
    if !claimed && !may_complain {
        return Err(nobody);
    }
    packet.check_options()?;
    let destination = receiver.map_or(packet.destination(), |(_, bound)| bound.private_ip);
    let mut translated = packet.clone();
    match packet.content()? {
        Content::Plain if !claimed => return Err(nobody),
        Content::Plain => {
            let source = sender.map_or(packet.source(), |(_, bound)| bound.public_ip);
            translated.readdress(source, destination);
        }
        Content::Error(quote) => {
            // RFC 5508 REQ-4: what is quoted is what the addressee has sent.
            if quote.packet.source() != packet.destination() {
                return Err(Reject::IcmpQuote);
            }
            let quoted = quote.packet.destination();
            // The packet was on its way to a VM: the complaint comes from inside. REQ-5c: by its own public
            // address or the node's.
            let (source, quoted) = match private(on, quoted) {
                Some((_, bound)) => (sender.map_or(PUBLIC_IP, |(_, bound)| bound.public_ip), bound.public_ip),
                None if sender.is_none() && inbound => (packet.source(), quoted),
                None => return Err(Reject::IcmpUnmatched),
            };
            translated.requote(&quote, &quote.readdressed(destination, quoted));
            translated.readdress(source, destination);
        }
    }
    Ok(translated)
}
