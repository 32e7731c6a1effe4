//! Frames that come by the interfaces of the world: whole, plausible, nasty and broken ones.

mod contents;
mod framing;
mod noise;

use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use self::contents::contents;
use self::framing::{framing, mutations};
pub use self::noise::noise;
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
///
/// # Panics
/// If the strategy filters out too much.
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
