//! Packets but for their addresses.

use std::net::Ipv4Addr;

use etherparse::IpNumber;
use proptest::prelude::*;
use proptest::sample::select;

use crate::fixtures::Packet;
use crate::fixtures::world::BINDINGS;

/// A packet but for its addresses.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    protocol: u8,
    payload: Vec<u8>,
    checksum: Checksum,
    options: Vec<u8>,
    ttl: u8,
    /// Flags and fragment offset.
    fragment: u16,
    tos: u8,
    identification: u16,
}

/// What stands in a transport's checksum field.
#[derive(Clone, Debug)]
enum Checksum {
    Right,
    Value(u16),
    /// A value that a translation of that binding turns into zero, or from zero.
    Edge(usize, bool),
}

impl Checksum {
    fn value(&self) -> Option<u16> {
        let sum = |address: Ipv4Addr| {
            let [a, b, c, d] = address.octets();
            u32::from(u16::from_be_bytes([a, b])) + u32::from(u16::from_be_bytes([c, d]))
        };
        match *self {
            Self::Right => None,
            Self::Value(value) => Some(value),
            Self::Edge(binding, sign) => {
                let (a, b) = (sum(BINDINGS[binding].public_ip), sum(BINDINGS[binding].private_ip));
                let (a, b) = if sign { (a, b) } else { (b, a) };
                u16::try_from((a + 2 * 0xffff - b) % 0xffff).ok()
            }
        }
    }
}

prop_compose! {
    pub(super) fn contents()(
        protocol in prop_oneof![4 => Just(6u8), 4 => Just(17), 3 => Just(1), 1 => Just(33), 1 => Just(136), 1 => select(vec![51u8, 50, 47, 4, 58, 132]), 1 => any::<u8>()],
        payload in payloads(),
        checksum in prop_oneof![
            6 => Just(Checksum::Right),
            1 => Just(Checksum::Value(0)),
            1 => Just(Checksum::Value(0xffff)),
            1 => any::<u16>().prop_map(Checksum::Value),
            1 => (0..BINDINGS.len(), any::<bool>()).prop_map(|(binding, sign)| Checksum::Edge(binding, sign)),
        ],
        options in options(),
        ttl in prop_oneof![6 => Just(64u8), 1 => Just(255), 1 => Just(2), 1 => Just(1), 1 => Just(0), 1 => any::<u8>()],
        fragment in prop_oneof![
            8 => Just(0u16), 2 => Just(0x4000), 2 => Just(0x2000), 1 => Just(1), 1 => Just(0x2002), 1 => Just(0x8000), 1 => any::<u16>(),
        ],
        tos: u8,
        identification: u16,
    ) -> Contents {
        Contents { protocol, payload, checksum, options, ttl, fragment, tos, identification }
    }
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        2 => 0usize..24,
        8 => 20usize..100,
        // Around the MTU of 1500 bytes.
        1 => 1470usize..1500,
        1 => 1000usize..2600,
        // In more than one buffer.
        1 => prop_oneof![9 => Just(50usize), 1 => 3000usize..9000],
    ];
    let icmp_type = select(vec![0u8, 8, 13, 14, 3, 11, 12, 4, 5, 255]);
    (length, any::<[u8; 24]>(), icmp_type, any::<u8>()).prop_map(|(length, head, icmp_type, fill)| {
        let mut payload = vec![fill; length];
        let head_len = length.min(head.len());
        payload[..head_len].copy_from_slice(&head[..head_len]);
        if fill & 1 == 0 && length > 0 {
            payload[0] = icmp_type;
        }
        payload
    })
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let listed: Vec<Vec<u8>> = vec![
        vec![0x94, 4, 0, 0],
        vec![1, 1, 1, 1],
        [&[7, 39, 4][..], &[0; 37]].concat(),
        vec![0x83, 7, 4, 1, 2, 3, 4, 0],
        vec![1, 0x89, 7, 4, 1, 2, 3, 4],
        vec![0, 0x83, 7, 4],
        vec![7, 3, 4],
        vec![68, 1, 0, 0],
        vec![1, 1, 1, 7],
        vec![7, 5, 4, 0],
    ];
    let padded = |mut options: Vec<u8>| {
        options.resize(options.len().next_multiple_of(4), 0);
        options
    };
    prop_oneof![
        8 => Just(Vec::new()),
        3 => select(listed).prop_map(padded),
        1 => prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(7), any::<u8>()], 1..=40).prop_map(padded),
    ]
}

impl Contents {
    pub(super) fn packet(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
        let protocol = IpNumber(self.protocol);
        let offset = match self.protocol {
            1 => Some(2),
            6 => Some(16),
            17 | 33 | 136 => Some(6),
            _ => None,
        };
        let offset = offset.filter(|offset| offset + 2 <= self.payload.len());
        let mut packet = match offset {
            Some(2) => Packet::icmp(source, destination, self.payload.clone()),
            Some(offset) => Packet::covered(protocol, offset, source, destination, self.payload.clone()),
            None => Packet::new(protocol, source, destination, self.payload.clone()),
        };
        if let (Some(offset), Some(value)) = (offset, self.checksum.value()) {
            packet.payload[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
        }
        packet.reserved = self.fragment & 0x8000 != 0;
        packet.fragment(self.fragment & 0x1fff, self.fragment & 0x2000 != 0).options(&self.options).with(
            |ip| {
                ip.dont_fragment = self.fragment & 0x4000 != 0;
                ip.time_to_live = self.ttl;
                ip.identification = self.identification;
                ip.dscp = (self.tos >> 2).try_into().expect("6 bits");
                ip.ecn = (self.tos & 3).try_into().expect("2 bits");
            },
        )
    }

    /// A packet that connection tracking takes for a flow of its own, and the same as it may come back in a quote.
    pub(super) fn tracked(mut self, tag: u16) -> (Self, Self) {
        let long = self.payload.len().max(20);
        self.payload.resize(long, 0x5a);
        let length = u16::try_from(long).expect("short");
        match self.protocol {
            // An echo request. Without ports, all packets between two hosts are one flow.
            1 => self.payload[..6].copy_from_slice(&[[8, 0], [0, 0], tag.to_be_bytes()].concat()),
            // A SYN without options.
            6 => {
                self.payload[..4].copy_from_slice(&[tag.to_be_bytes(), [0, 80]].concat());
                self.payload[12..14].copy_from_slice(&[0x50, 2]);
            }
            17 => {
                self.payload[..6]
                    .copy_from_slice(&[tag.to_be_bytes(), [0, 80], length.to_be_bytes()].concat());
            }
            _ => self.protocol = 253,
        }
        let plain =
            Self { checksum: Checksum::Right, options: Vec::new(), ttl: 64, fragment: 0, ..self.clone() };
        (plain, self)
    }

    /// Of a packet that is quoted, the bytes.
    pub(super) fn quoted(&self, source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> Vec<u8> {
        let mut bytes = self.packet(source, destination).bytes();
        bytes.truncate(length);
        bytes
    }
}
