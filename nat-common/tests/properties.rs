//! Properties of the whole pipeline, for any bytes: it never panics, what is not forwarded is untouched, and what is
//! forwarded has only changed where a NAT may change it, with checksums as right or wrong as they were.

use std::cell::Cell;

use nat_common::abi::{Addr, AddressKind, Inbound, Mac, Outbound, OutboundKey, Port};
use nat_common::pipeline::{Direction, Node, Query, Route, process};
use nat_common::verdict::{Egress, Verdict};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const NODE_MAC: Mac = [2, 0, 0, 0, 0, 1];
const EIP: Addr = [203, 0, 113, 10];
const VM: Addr = [10, 0, 0, 10];
const X: Addr = [198, 51, 100, 7];

/// One binding; interface 1 faces the internet, 2 the VMs, 3 both. Routes go where `route` says.
struct OneBinding {
    route: Route,
    billed: u32,
}

impl Node for OneBinding {
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        let role = u8::try_from(ifindex).ok().filter(|role| (1..=3).contains(role))?;
        Some(Port { role, mac: NODE_MAC, ..Port::default() })
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        (public_ip == EIP).then_some(Inbound { private_ip: VM, tenant: 0, meter: 0 })
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        (key.private_ip == VM && key.tenant == 0).then_some(Outbound { eip: EIP, meter: 0 })
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        if addr[..3] == EIP[..3] { AddressKind::Pooled } else { AddressKind::Other }
    }

    fn public_ip(&mut self) -> Addr {
        [192, 0, 2, 2]
    }

    fn route(&mut self, _: &Query) -> Route {
        self.route
    }

    fn bill(&mut self, _: u32, _: Direction, _: u16) {
        self.billed += 1;
    }
}

fn any_route() -> impl Strategy<Value = Route> {
    let via = Route::Via(Egress { ifindex: 3, destination: [4; 6], source: NODE_MAC });
    prop_oneof![
        8 => Just(via),
        1 => Just(Route::Unresolved(3)),
        1 => Just(Route::NotForwarded),
        1 => Just(Route::Disabled),
        1 => Just(Route::TooBig),
        1 => Just(Route::Unreachable),
    ]
}

fn any_addr() -> impl Strategy<Value = Addr> {
    prop_oneof![Just(EIP), Just(VM), Just(X), any::<Addr>()]
}

/// RFC 1071 sum, folded.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice")
}

fn set_checksum(bytes: &mut [u8], at: usize, pseudo: u32) {
    bytes[at..at + 2].fill(0);
    let checksum = !fold(sum(bytes) + pseudo);
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What the pseudo-header of a packet adds.
fn pseudo(packet: &[u8], header_len: usize) -> u32 {
    sum(&packet[12..20]) + u32::from(packet[9]) + u32::try_from(packet.len() - header_len).expect("short")
}

/// Where a transport that covers the addresses has its checksum.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        6 => Some(16),
        17 | 33 | 136 => Some(6),
        _ => None,
    }
}

prop_compose! {
    /// A well-formed packet, checksums included.
    fn packet()(
        source in any_addr(),
        destination in any_addr(),
        protocol in prop_oneof![Just(6u8), Just(17), Just(1), Just(33), Just(136), any::<u8>()],
        ttl in prop_oneof![Just(64u8), any::<u8>()],
        fragment in prop_oneof![6 => Just(0u16), 1 => Just(0x2000), 1 => Just(0x4000), 1 => any::<u16>()],
        options in prop_oneof![4 => Just(0usize), 1 => 0usize..=10],
        payload in prop::collection::vec(any::<u8>(), 0..120),
        tos: u8,
    ) -> Vec<u8> {
        let header_len = 20 + options * 4;
        let mut packet = vec![1; header_len];
        packet[0] = 0x40 | u8::try_from(header_len / 4).expect("15 at most");
        packet[1] = tos;
        packet[2..4].copy_from_slice(&u16::try_from(header_len + payload.len()).expect("short").to_be_bytes());
        packet[4..6].fill(7);
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[8] = ttl;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        set_checksum(&mut packet, 10, 0);
        packet.extend(&payload);
        if let Some(offset) = checksum_offset(protocol).filter(|offset| offset + 2 <= payload.len()) {
            let pseudo = pseudo(&packet, header_len);
            set_checksum(&mut packet[header_len..], offset, pseudo);
        }
        packet
    }
}

/// An ICMP error about `quoted`, cut to `length`.
fn error(source: Addr, destination: Addr, quoted: &[u8], length: usize) -> Vec<u8> {
    let mut message = vec![3, 1, 0, 0, 0, 0, 0, 0];
    message.extend(&quoted[..length.min(quoted.len())]);
    set_checksum(&mut message, 2, 0);
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 1, 0, 0];
    packet.extend(source.iter().chain(&destination));
    packet[2..4].copy_from_slice(&u16::try_from(20 + message.len()).expect("short").to_be_bytes());
    set_checksum(&mut packet, 10, 0);
    packet.extend(message);
    packet
}

prop_compose! {
    fn any_packet()(
        inner in packet(),
        kind in 0..3,
        router in any_addr(),
        length in 0usize..150,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        nasty: bool,
    ) -> Vec<u8> {
        let mut packet = match kind {
            // To the one who sent what is quoted, as it ought to be.
            0 => error(router, inner[12..16].try_into().expect("4 bytes"), &inner, length),
            _ => inner,
        };
        if nasty {
            for (index, byte) in flips {
                let index = index.index(packet.len());
                packet[index] ^= byte;
            }
        }
        packet
    }
}

fn frame(packet: &[u8], padding: usize) -> Vec<u8> {
    let mut frame = [&NODE_MAC[..], &[6; 6], &[8, 0]].concat();
    frame.extend(packet);
    frame.resize(frame.len() + padding, 0xee);
    frame
}

/// Whether the transport's checksum of a whole packet is right.
fn transport_is_right(packet: &[u8]) -> Option<bool> {
    let header_len = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let packet = &packet[..total];
    checksum_offset(packet[9]).filter(|offset| header_len + offset + 2 <= total)?;
    Some(fold(sum(&packet[header_len..]) + pseudo(packet, header_len)) == 0xffff)
}

prop_compose! {
    /// Bytes that nobody has made sense of, but for what it takes to be looked at: a right Ethernet header, and mostly
    /// an IPv4 header of the right version and length, between addresses that are bound, with a right checksum.
    fn noise()(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        (source, destination) in prop_oneof![
            2 => Just((X, EIP)), 2 => Just((VM, X)), 1 => Just((VM, EIP)), 1 => (any_addr(), any_addr()),
        ],
        [version, addresses, lengths, mended] in prop::array::uniform4(prop::bool::weighted(0.9)),
        protocol in prop_oneof![1 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(6)), 1 => Just(Some(17))],
    ) -> Vec<u8> {
        if bytes.len() >= 20 {
            if version {
                // Half of them without options, and half whole.
                bytes[0] = 0x40 | if bytes[0] & 0x80 == 0 { 5 } else { bytes[0] & 15 };
                if bytes[1] & 1 == 0 {
                    bytes[6..8].fill(0);
                }
            }
            bytes[9] = protocol.unwrap_or(bytes[9]);
            if addresses {
                bytes[12..16].copy_from_slice(&source);
                bytes[16..20].copy_from_slice(&destination);
            }
            if lengths {
                let length = u16::try_from(bytes.len()).expect("short");
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
            }
            let header_len = usize::from(bytes[0] & 15) * 4;
            if let Some(header) = bytes.get_mut(..header_len).filter(|header| mended && header.len() >= 20) {
                set_checksum(header, 10, 0);
            }
        }
        frame(&bytes, 0)
    }
}

/// Runs a frame through the pipeline and checks all that can be told of it without asking another translator.
fn check(before: &[u8], ifindex: u32, route: Route) -> Result<Verdict, TestCaseError> {
    let mut after = before.to_owned();
    let mut node = OneBinding { route, billed: 0 };
    let verdict = process(after.as_mut_slice(), ifindex, &mut node);
    if matches!(verdict, Verdict::Pass | Verdict::Drop(_)) {
        prop_assert_eq!(&after, before, "{:?} changed the packet", verdict);
        prop_assert_eq!(node.billed, 0);
        return Ok(verdict);
    }
    let (old, new) = (&before[14..], &after[14..]);
    let header_len = usize::from(old[0] & 15) * 4;
    prop_assert_eq!(after.len(), before.len());
    prop_assert_eq!(sum(&new[..header_len]), 0xffff, "IP checksum");
    prop_assert_eq!(&new[..8], &old[..8]);
    prop_assert_eq!(&new[20..header_len], &old[20..header_len]);
    let hop = u8::from(matches!(verdict, Verdict::Forward(_)));
    prop_assert_eq!(new[8], old[8] - hop);
    prop_assert_eq!(new[9], old[9]);
    let fragment = u16::from_be_bytes([old[6], old[7]]) & 0x3fff;
    let total = usize::from(u16::from_be_bytes([old[2], old[3]]));
    prop_assert_eq!(&new[total..], &old[total..], "padding");
    if fragment & 0x1fff != 0 {
        prop_assert_eq!(&new[header_len..total], &old[header_len..total], "a later fragment");
    } else if fragment == 0 && old[9] == 1 {
        prop_assert_eq!(sum(&new[header_len..total]), sum(&old[header_len..total]), "ICMP checksum");
    } else if fragment == 0 {
        prop_assert_eq!(transport_is_right(new), transport_is_right(old), "transport checksum");
        // Only the checksum may change in the payload.
        let changed = (header_len..total).filter(|&at| new[at] != old[at]);
        let allowed = checksum_offset(old[9]).map(|offset| header_len + offset);
        for at in changed {
            prop_assert!(allowed.is_some_and(|checksum| at == checksum || at == checksum + 1));
        }
    }
    prop_assert!(node.billed <= 2);
    Ok(verdict)
}

/// Fewest packets, of 20,000, that have to be forwarded. About twice as many are.
const ENOUGH: u32 = 500;

/// Checks any frames of a kind, and that enough of them are forwarded to tell anything.
fn check_all(frames: impl Strategy<Value = Vec<u8>>) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) };
    let forwarded = Cell::new(0);
    let ifindex = prop_oneof![9 => 1u32..4, 1 => 0u32..5];
    let checked = TestRunner::new(config).run(&(frames, ifindex, any_route()), |(frame, ifindex, route)| {
        if let Verdict::Forward(_) = check(&frame, ifindex, route)? {
            forwarded.set(forwarded.get() + 1);
        }
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
    println!("{} are forwarded", forwarded.get());
    assert!(forwarded.get() >= ENOUGH, "only {} are forwarded", forwarded.get());
}

#[test]
fn any_bytes_never_panic() {
    let raw = prop::collection::vec(any::<u8>(), 0..200);
    check_all(prop_oneof![9 => noise(), 1 => raw]);
}

#[test]
fn packets_come_out_right_or_untouched() {
    let cut = prop_oneof![9 => Just(0usize), 1 => 0usize..60];
    let frames = (any_packet(), 0usize..8, cut).prop_map(|(packet, padding, cut)| {
        let mut frame = frame(&packet, padding);
        frame.truncate(frame.len().saturating_sub(cut));
        frame
    });
    check_all(frames);
}
