//! Frames that come by the interfaces of the world: whole, plausible, nasty and broken ones.

use std::net::Ipv4Addr;

use etherparse::IpNumber;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::fixtures::Packet;
use crate::fixtures::world::{
    BINDINGS, BLACKHOLE, GATEWAY, GATEWAY_MAC, INNER_ROUTER, LOST, Link, NEUTRAL, OTHER_PRIVATE, ROUTER,
    SILENT, STRANGER, UNBOUND, VM1, VM2, X,
};

/// A frame, and the interface that it comes by.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    /// The interface.
    pub on: Link,
    /// The frame.
    pub frame: Vec<u8>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex = self.frame.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        write!(f, "on {:?}: {hex}", self.on)
    }
}

/// An endless, repeatable stream of cases for those who have no use for shrinking.
pub fn stream<T>(seed: u64, strategy: impl Strategy<Value = T>) -> impl Iterator<Item = T> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    std::iter::repeat_with(move || strategy.new_tree(&mut runner).expect("nothing is filtered out").current())
}

/// The seed of a run: the environment's `EIPNAT_SEED`, else the one given.
///
/// # Panics
/// If `EIPNAT_SEED` is not a number.
#[must_use]
pub fn seed(default: u64) -> u64 {
    std::env::var("EIPNAT_SEED").map_or(default, |seed| seed.parse().expect("EIPNAT_SEED: a number"))
}

/// Any frame of them all.
pub fn any_case() -> impl Strategy<Value = Case> {
    let packet = prop_oneof![5 => datagrams(), 4 => errors()];
    (packet, framing(), prop_oneof![3 => Just(Vec::new()), 1 => mutations()])
        .prop_map(|((on, packet), framing, mutations)| framing.apply(on, &packet, &mutations))
}

/// Frames that are well-formed, to one who can be reached: nearly all of them are forwarded.
pub fn plain_case() -> impl Strategy<Value = Case> {
    (plain_ends(), contents()).prop_map(|((on, source, destination), contents)| {
        let frame = contents.packet(source, destination).frame(GATEWAY_MAC, on.mac());
        Case { on, frame }
    })
}

fn publics() -> Vec<Ipv4Addr> {
    BINDINGS.iter().map(|bound| bound.public_ip).collect()
}

fn privates() -> Vec<Ipv4Addr> {
    BINDINGS.iter().map(|bound| bound.private_ip).collect()
}

/// Hosts and routers on the internet.
fn outside() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![4 => select(vec![X, ROUTER, GATEWAY]), 1 => any::<[u8; 3]>().prop_map(|[a, b, c]| Ipv4Addr::new(20 + a % 80, b, c, 9))]
}

/// Everything that is special in some way.
fn special() -> impl Strategy<Value = Ipv4Addr> {
    let mut all = [publics(), privates()].concat();
    all.extend([X, STRANGER, UNBOUND, INNER_ROUTER, BLACKHOLE, OTHER_PRIVATE, GATEWAY]);
    all.extend(Link::ALL.map(Link::address));
    all.extend(
        [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [169, 254, 169, 254],
            [224, 0, 0, 5],
            [239, 255, 0, 1],
            [240, 0, 0, 1],
            [255, 255, 255, 255],
            [192, 0, 2, 0],
            [192, 0, 2, 77],
            [192, 0, 2, 255],
            [10, 0, 0, 0],
            [10, 0, 255, 255],
            [10, 9, 0, 9],
            [10, 9, 0, 255],
            [172, 16, 0, 1],
            [223, 255, 255, 255],
        ]
        .map(Ipv4Addr::from),
    );
    select(all)
}

fn any_end() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![4 => special(), 1 => any::<[u8; 4]>().prop_map(Ipv4Addr::from)]
}

/// Interface, source and destination of a packet that has a way through.
fn plain_ends() -> impl Strategy<Value = (Link, Ipv4Addr, Ipv4Addr)> {
    let known = [VM1, VM2, NEUTRAL];
    let into = (select(vec![Link::Up, Link::Arm]), outside(), select(known.map(|vm| vm.public_ip).to_vec()));
    let down = || select(vec![Link::Down, Link::Arm]);
    let out = (down(), select([VM1, VM2, NEUTRAL, SILENT, LOST].map(|vm| vm.private_ip).to_vec()), outside());
    let hairpin = (
        down(),
        select(known.map(|vm| vm.private_ip).to_vec()),
        select(known.map(|vm| vm.public_ip).to_vec()),
    );
    prop_oneof![3 => into, 3 => out, 1 => hairpin]
}

fn any_ends() -> impl Strategy<Value = (Link, Ipv4Addr, Ipv4Addr)> {
    prop_oneof![
        3 => plain_ends(),
        1 => (select(Link::ALL.to_vec()), any_end(), any_end()),
        1 => (plain_ends(), any_end()).prop_map(|((on, _, destination), source)| (on, source, destination)),
        1 => (plain_ends(), any_end()).prop_map(|((on, source, _), destination)| (on, source, destination)),
    ]
}

/// A packet but for its addresses.
#[derive(Clone, Debug)]
struct Contents {
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
    fn contents()(
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
    fn packet(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
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
    fn tracked(mut self, tag: u16) -> (Self, Self) {
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
    fn quoted(&self, source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> Vec<u8> {
        let mut bytes = self.packet(source, destination).bytes();
        bytes.truncate(length);
        bytes
    }
}

fn datagrams() -> impl Strategy<Value = (Link, Packet)> {
    (any_ends(), contents())
        .prop_map(|((on, source, destination), contents)| (on, contents.packet(source, destination)))
}

/// How a router quotes.
#[derive(Clone, Debug)]
struct Complaint {
    kind: u8,
    code: u8,
    rest: [u8; 4],
    /// Bytes of the packet.
    length: usize,
    /// Whether its checksum comes out as zero, and is written as 0xffff.
    ones: bool,
    /// Words to which the quote is padded, and the extension behind them (RFC 4884).
    extension: Option<(u8, Vec<u8>)>,
}

prop_compose! {
    fn complaint()(
        kind in prop_oneof![12 => select(vec![3u8, 11, 12]), 1 => select(vec![4u8, 5])],
        code in 0u8..6,
        rest in prop_oneof![Just([0, 0, 0, 0]), Just([0, 0, 5, 0x14]), any::<[u8; 4]>()],
        length in prop_oneof![2 => Just(28usize), 4 => 20usize..100, 1 => 0usize..2000, 1 => Just(548)],
        extension in prop_oneof![
            3 => Just(None),
            1 => (prop_oneof![Just(32u8), 0u8..40], prop::collection::vec(any::<u8>(), 0..20)).prop_map(Some),
        ],
        ones in prop::bool::weighted(0.1),
    ) -> Complaint {
        Complaint { kind, code, rest, length, ones, extension }
    }
}

impl Complaint {
    fn packet(&self, from: Ipv4Addr, to: Ipv4Addr, mut quoted: Vec<u8>) -> Packet {
        let mut rest = self.rest;
        if let Some((words, extension)) = &self.extension {
            quoted.resize(usize::from(*words) * 4, 0);
            quoted.extend(extension);
            rest[1] = *words;
        } else if self.kind != 3 {
            rest[1] = 0;
        }
        if self.ones {
            rest[2..].fill(0);
            let zero = Packet::error(from, to, [self.kind, self.code], rest, &quoted);
            rest[2..].copy_from_slice(&zero.payload[2..4]);
        }
        let mut packet = Packet::error(from, to, [self.kind, self.code], rest, &quoted);
        if self.ones {
            packet.payload[2..4].fill(0xff);
        }
        packet
    }
}

/// ICMP errors: from outside, from VMs and routers inside, through a hairpin, and from and to anybody.
fn errors() -> impl Strategy<Value = (Link, Packet)> {
    let vm = || select(BINDINGS.to_vec());
    let inside = || select([privates(), vec![INNER_ROUTER, STRANGER]].concat());
    let ends = prop_oneof![
        // interface, who complains, to whom, and what of: source and destination
        3 => (select(vec![Link::Up, Link::Arm]), outside(), vm(), outside())
            .prop_map(|(on, router, vm, to)| (on, router, vm.public_ip, vm.public_ip, to)),
        3 => (select(vec![Link::Down, Link::Arm]), inside(), outside(), vm())
            .prop_map(|(on, router, from, vm)| (on, router, from, from, vm.private_ip)),
        2 => (select(vec![Link::Down, Link::Arm]), inside(), vm(), vm())
            .prop_map(|(on, router, from, to)| (on, router, from.public_ip, from.public_ip, to.private_ip)),
        1 => (select(Link::ALL.to_vec()), any_end(), any_end(), any_end())
            .prop_map(|(on, router, from, to)| (on, router, from, from, to)),
        1 => (select(Link::ALL.to_vec()), any_end(), any_end(), any_end(), any_end())
            .prop_map(|(on, router, to, from, quoted)| (on, router, to, from, quoted)),
    ];
    (ends, contents(), complaint()).prop_map(|((on, router, to, from, quoted), contents, complaint)| {
        let quoted = contents.quoted(from, quoted, complaint.length);
        (on, complaint.packet(router, to, quoted))
    })
}

/// A flow between addresses that are bound, and an ICMP error about it.
#[derive(Clone, Debug)]
pub struct Complained {
    /// The flow's first packet.
    pub opening: Case,
    /// The error that quotes it, as it was translated.
    pub error: Case,
}

/// Flows with their errors; those with different `tag`s are different flows.
pub fn complained(tag: u16) -> impl Strategy<Value = Complained> {
    let vm = || select(vec![VM1, VM2, NEUTRAL]);
    let far = || select(vec![X, ROUTER]);
    (vm(), vm(), far(), far(), contents(), complaint(), 0..5).prop_map(
        move |(vm, other, far, router, contents, mut complaint, kind)| {
            let (opening, quoted) = contents.tracked(tag);
            if complaint.extension.is_some() {
                // Padding in place of ports would name another flow.
                complaint.length = complaint.length.max(68);
            }
            let (e, p) = (vm.public_ip, vm.private_ip);
            let case = |on: Link, packet: &Packet| Case { on, frame: packet.frame(GATEWAY_MAC, on.mac()) };
            let error = |on, from, to, source, destination| {
                case(on, &complaint.packet(from, to, quoted.quoted(source, destination, complaint.length)))
            };
            let (opening, error) = match kind {
                0 | 1 => (case(Link::Down, &opening.packet(p, far)), error(Link::Up, router, e, e, far)),
                2 => (case(Link::Up, &opening.packet(far, e)), error(Link::Down, p, far, far, p)),
                3 => (case(Link::Up, &opening.packet(far, e)), error(Link::Down, INNER_ROUTER, far, far, p)),
                _ => (
                    case(Link::Down, &opening.packet(p, other.public_ip)),
                    error(Link::Down, other.private_ip, e, e, other.private_ip),
                ),
            };
            Complained { opening, error }
        },
    )
}

/// How a packet comes in its frame.
#[derive(Clone, Debug)]
struct Framing {
    destination: Option<[u8; 6]>,
    ethertype: u16,
    /// A VLAN tag's type and value.
    tag: Option<(u16, u16)>,
    padding: usize,
    cut: usize,
    /// Whether the header's checksum comes out as zero, and is written as 0xffff.
    ones: bool,
    /// Whether a mutated packet gets its header checksum, and an ICMP message its own, computed again.
    mend: bool,
}

prop_compose! {
    fn framing()(
        destination in prop_oneof![
            20 => Just(None), 1 => Just(Some([0xff; 6])), 1 => Just(Some([2, 9, 9, 9, 9, 9])), 1 => Just(Some([1, 0, 0x5e, 0, 0, 1])),
        ],
        ethertype in prop_oneof![40 => Just(0x0800u16), 1 => Just(0x86dd), 1 => Just(0x8100), 1 => any::<u16>()],
        tag in prop_oneof![
            40 => Just(None),
            1 => (select(vec![0x8100u16, 0x88a8]), select(vec![0u16, 0xe000, 1, 0x0fff])).prop_map(Some),
        ],
        padding in prop_oneof![3 => Just(0usize), 1 => 1usize..40],
        cut in prop_oneof![20 => Just(0usize), 1 => 0usize..60],
        ones in prop::bool::weighted(0.05),
        mend in prop::bool::weighted(0.8),
    ) -> Framing {
        Framing { destination, ethertype, tag, padding, cut, ones, mend }
    }
}

fn mutations() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec((any::<Index>(), any::<u8>()), 1..4)
}

impl Framing {
    fn apply(&self, on: Link, packet: &Packet, mutations: &[(Index, u8)]) -> Case {
        let mut bytes = packet.bytes();
        for (index, flip) in mutations {
            // Most of what matters stands in front.
            let reach = if flip & 1 == 0 { bytes.len() } else { bytes.len().min(64) };
            bytes[index.index(reach)] ^= flip;
        }
        if self.mend && !mutations.is_empty() {
            mend(&mut bytes);
        }
        if self.ones && bytes.len() >= 20 {
            bytes[4..6].fill(0);
            mend(&mut bytes);
            bytes.copy_within(10..12, 4);
            bytes[10..12].fill(0xff);
        }
        let header = etherparse::Ethernet2Header {
            source: GATEWAY_MAC,
            destination: self.destination.unwrap_or(on.mac()),
            ether_type: etherparse::EtherType(self.ethertype),
        };
        let mut frame = [&header.to_bytes()[..], &bytes].concat();
        if let Some((kind, value)) = self.tag {
            frame.splice(12..12, [kind.to_be_bytes(), value.to_be_bytes()].concat());
        }
        frame.resize(frame.len() + self.padding, 0xee);
        // The kernel takes no frame without an Ethernet header.
        frame.truncate((frame.len().saturating_sub(self.cut)).max(14));
        Case { on, frame }
    }
}

/// Computes the checksums of the IPv4 header and of an ICMP message again, as far as lengths allow.
fn mend(bytes: &mut [u8]) {
    let sum = |bytes: &[u8]| {
        etherparse::checksum::Sum16BitWords::new().add_slice(bytes).ones_complement().to_be().to_be_bytes()
    };
    let header_len = usize::from(bytes[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]])).min(bytes.len());
    if header_len < 20 || header_len > bytes.len() {
        return;
    }
    bytes[10..12].fill(0);
    let checksum = sum(&bytes[..header_len]);
    bytes[10..12].copy_from_slice(&checksum);
    if bytes[9] != 1 || total < header_len + 8 {
        return;
    }
    if total >= header_len + 28 && usize::from(bytes[header_len + 8] & 15) == 5 {
        bytes[header_len + 18..header_len + 20].fill(0);
        let checksum = sum(&bytes[header_len + 8..header_len + 28]);
        bytes[header_len + 18..header_len + 20].copy_from_slice(&checksum);
    }
    bytes[header_len + 2..header_len + 4].fill(0);
    let checksum = sum(&bytes[header_len..total]);
    bytes[header_len + 2..header_len + 4].copy_from_slice(&checksum);
}
