//! The express lane: what the pipeline would decide on an ordinary packet, in the fewest steps.
//!
//! Ordinary is a TCP or UDP packet without IP options, not a fragment, not marked (DSCP), between a binding and somebody of whom
//! nothing is known, whose next hop has been asked for before. **Invariant:** it never decides otherwise than
//! [`process`](crate::pipeline::process) would; where it cannot be sure, it leaves the packet to that, untouched.

use crate::abi::express::{Adjacency, InboundEntry, Seat};
use crate::abi::{Addr, Outbound, Port};
use crate::checksum::{self, Delta, Zero};
use crate::frame::Frame;
use crate::pipeline::Direction;
use crate::wire::ipv4::{self, protocol};
use crate::wire::{ethernet, tcp, udp};

/// All that a packet's fate depends on besides its bytes, as far as it is known without asking.
pub trait Known {
    /// The interface with that index; `None`: another one sits in its place.
    fn seat(&mut self, ifindex: u32) -> Option<Seat>;
    /// Whether nothing is known of an address: it is not bound in tenant 0, in no pool, not the node's own, in no network
    /// inside, and may be an end of a packet.
    fn is_stranger(&mut self, addr: Addr) -> bool;
    /// What is known of an address as a public one of tenant 0.
    fn inbound(&mut self, public_ip: Addr) -> Public;
    /// The binding of a private address of tenant 0.
    fn outbound(&mut self, private_ip: Addr) -> Option<Outbound>;
    /// The next hop to a stranger, and for whom it is [marked](Adjacency::mark).
    fn next_hop(&mut self, destination: Addr) -> Option<(Addr, Adjacency)>;
    /// The generation of next hops that holds; 0 if none does.
    fn generation(&mut self) -> u32;
    /// Adds a forwarded packet to a meter.
    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16);
}

/// What is known of a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Public {
    /// It may be bound: then the entry has the VM's address, and else none.
    Entry(InboundEntry),
    /// It is in a pool, and not bound.
    Vacant,
    /// Nothing.
    Unknown,
}

/// What the express lane has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The packet is rewritten and billed, and leaves by that interface.
    Forward(u32),
    /// The packet is for that address, which is in a pool and not bound: it is dropped.
    Unbound(Addr),
    /// The pipeline has to judge it.
    Unknown,
}

/// The headers that are looked at: those of Ethernet, of IPv4 without options, and eight bytes.
const HEAD: usize = UDP + udp::HEADER_LEN;
const IP: usize = ethernet::HEADER_LEN;
const TTL: usize = IP + ipv4::TTL;
const SOURCE: usize = IP + ipv4::ADDRESSES;
const DESTINATION: usize = SOURCE + 4;
const UDP: usize = IP + ipv4::MIN_HEADER_LEN;

/// In a header's first word: version, length and DSCP...
const PLAIN_MASK: u32 = 0xff00_0000 | (DSCP as u32) << 16;
/// ...are 4, five words, and none.
const PLAIN: u32 = 0x4500_0000;
/// In its second byte: what routes may depend on.
pub(crate) const DSCP: u8 = 0xfc;
/// In its second word: MF and the offset.
const FRAGMENT: u32 = 0x3fff;

/// Rewrites an ordinary packet that came by the interface `ifindex`.
#[inline(always)]
pub fn process<F: Frame + ?Sized, K: Known>(frame: &mut F, ifindex: u32, known: &mut K) -> Outcome {
    attempt(frame, ifindex, known).unwrap_or(Outcome::Unknown)
}

/// What an ordinary packet's headers say.
struct Ordinary {
    /// IPv4 total length, in bytes.
    length: u16,
    /// TTL, protocol and checksum, as they stand in the header's third word.
    hop: u32,
    source: Addr,
    destination: Addr,
}

/// Its way: its new address, and where it goes.
struct Leg {
    direction: Direction,
    old: Addr,
    new: Addr,
    meter: u32,
    adjacency: Adjacency,
    /// For whom that is marked.
    whose: Addr,
}

#[inline(always)]
fn attempt<F: Frame + ?Sized, K: Known>(frame: &mut F, ifindex: u32, known: &mut K) -> Option<Outcome> {
    let seat = known.seat(ifindex)?;
    let packet = parse(frame, &seat)?;
    let leg = if seat.role & Port::UPLINK != 0 {
        if !known.is_stranger(packet.source) {
            return None;
        }
        let entry = match known.inbound(packet.destination) {
            Public::Entry(entry) if entry.private_ip != [0; 4] => entry,
            // One-armed, it could be an ICMP error on its way out.
            Public::Vacant if seat.role == Port::UPLINK => return Some(Outcome::Unbound(packet.destination)),
            Public::Entry(_) | Public::Vacant | Public::Unknown => return None,
        };
        Leg {
            direction: Direction::In,
            old: packet.destination,
            new: entry.private_ip,
            meter: entry.meter,
            adjacency: entry.adjacency,
            whose: entry.private_ip,
        }
    } else if seat.role == Port::DOWNLINK {
        let out = known.outbound(packet.source)?;
        if out.eip == [0; 4] || !known.is_stranger(packet.destination) {
            return None;
        }
        let (whose, adjacency) = known.next_hop(packet.destination)?;
        Leg {
            direction: Direction::Out,
            old: packet.source,
            new: out.eip,
            meter: out.meter,
            adjacency,
            whose,
        }
    } else {
        return None;
    };
    let generation = known.generation();
    if generation == 0 || !leg.adjacency.carries(leg.whose, packet.length, generation) {
        return None;
    }
    rewrite(frame, &packet, &leg)?;
    known.bill(leg.meter, leg.direction, packet.length);
    Some(Outcome::Forward(leg.adjacency.ifindex))
}

#[inline(always)]
fn parse<F: Frame + ?Sized>(frame: &mut F, seat: &Seat) -> Option<Ordinary> {
    let size = frame.size();
    let head = frame.at::<HEAD>(0).ok()?;
    let [w0, w1, w2] = [word(head, IP)?, word(head, IP + 4)?, word(head, IP + 8)?];
    let (source, destination) = (*chunk(head, SOURCE)?, *chunk(head, DESTINATION)?);
    let [m0, m1, m2, m3, m4, m5] = seat.mac;
    if *chunk(head, 0)? != [m0, m1, m2, m3]
        || *chunk(head, 4)? != [m4, m5]
        || u16::from_be_bytes(*chunk(head, 12)?) != ethernet::TYPE_IPV4
        || w0 & PLAIN_MASK != PLAIN
        || w1 & FRAGMENT != 0
    {
        return None;
    }
    let [_, _, l0, l1] = w0.to_be_bytes();
    let length = u16::from_be_bytes([l0, l1]);
    let end = IP + usize::from(length);
    let has_trailer = size > ethernet::MAX_PADDED && size > end + ethernet::SLACK;
    let ends = [source, destination].map(u32::from_be_bytes);
    let sum = [w0, w1, w2, ends[0], ends[1]].iter().fold(0, |sum, word| sum + u64::from(*word));
    if w2 < 2 << 24 || end < UDP || size < end || has_trailer || checksum::fold(sum) != 0xffff {
        return None;
    }
    Some(Ordinary { length, hop: w2, source, destination })
}

/// Some bytes, read at once: BPF has few registers, and each byte would take one.
#[inline(always)]
fn chunk<const N: usize>(head: &[u8; HEAD], at: usize) -> Option<&[u8; N]> {
    head.get(at..)?.first_chunk()
}

#[inline(always)]
fn word(head: &[u8; HEAD], at: usize) -> Option<u32> {
    chunk(head, at).map(|bytes| u32::from_be_bytes(*bytes))
}

#[inline(always)]
fn rewrite<F: Frame + ?Sized>(frame: &mut F, packet: &Ordinary, leg: &Leg) -> Option<()> {
    let [ttl, protocol, c0, c1] = packet.hop.to_be_bytes();
    let (at, zero, header_len) = match protocol {
        protocol::TCP => (UDP + tcp::CHECKSUM, Zero::Plain, tcp::MIN_HEADER_LEN),
        protocol::UDP => (UDP + udp::CHECKSUM, Zero::Absent, udp::HEADER_LEN),
        _ => return None,
    };
    if IP + usize::from(packet.length) < UDP + header_len {
        return None;
    }
    let delta = Delta::NONE.addr(leg.old, leg.new);
    // Nothing has been written yet, and from here on nothing can fail.
    let covered = frame.at::<2>(at).ok()?;
    *covered = zero.apply(delta, u16::from_be_bytes(*covered)).to_be_bytes();
    let head = frame.at::<HEAD>(0).ok()?;
    head[..6].copy_from_slice(&leg.adjacency.destination);
    head[6..12].copy_from_slice(&leg.adjacency.source);
    let hop = delta.word(u16::from_be_bytes([ttl, protocol]), u16::from_be_bytes([ttl - 1, protocol]));
    let [c0, c1] = hop.apply(u16::from_be_bytes([c0, c1])).to_be_bytes();
    head[TTL..TTL + 4].copy_from_slice(&[ttl - 1, protocol, c0, c1]);
    if matches!(leg.direction, Direction::In) {
        head[DESTINATION..DESTINATION + 4].copy_from_slice(&leg.new);
    } else {
        head[SOURCE..SOURCE + 4].copy_from_slice(&leg.new);
    }
    Some(())
}
