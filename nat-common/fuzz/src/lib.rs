//! What the fuzzers ask of the translator and of the slow path's rings, for any bytes whatever. Each function takes a fuzzer's input and panics if
//! something is wrong.
//!
//! An input's first byte says which checksums are computed anew before the packet is tried (`MEND`). A fuzzer that
//! had to guess checksums would hardly ever get behind one. The rest is up to the target, with a frame at its end.
//!
//! Run one from the root of the repository:
//!
//! ```text
//! cargo run --manifest-path nat-common/fuzz/Cargo.toml --example seeds
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir nat-common/fuzz --sanitizer none pipeline -- -max_total_time=60
//! ```
//!
//! `RUSTC_BOOTSTRAP=1` lets a stable toolchain take cargo-fuzz's flags; `cargo +nightly fuzz` does without. No
//! sanitizer: there is no `unsafe` in nat-common for one to watch, and slices check their bounds. A crash becomes a
//! named fixture in `tests/src/fixtures`.

mod slowpath;

use etherparse::checksum::Sum16BitWords;
use nat_common::frame::Frame;
use nat_common::parse::{Covered, Ipv4, Quote, Transport};
use nat_common::translate::{self, Addresses};
use nat_common::verdict::Egress;
use tests::fixtures::world::{Link, VM1, VM2, X};
use tests::fixtures::{self, HostNode, mend_header, mend_message, mend_quote};
use tests::reference;

/// A checksum that an input can ask for, and how it is computed in an IPv4 packet.
type Mend = (u8, fn(&mut [u8]));

/// What the bits of an input's first byte ask for, in this order: a message's sum covers the header that it quotes.
const MEND: [Mend; 3] = [(0x80, mend_header), (0x40, mend_quote), (0x20, mend_message)];

/// All of them.
const ALL: u8 = 0xe0;

/// Bytes before the frame in [`translate`]'s input, behind the first: four addresses.
const ADDRESSES: usize = 16;

/// The frame, mended as the input's first byte says.
fn mended(flags: u8, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_owned();
    if let Some(packet) = frame.get_mut(14..) {
        for (_, mend) in MEND.iter().filter(|(flag, _)| flags & flag != 0) {
            mend(packet);
        }
    }
    frame
}

/// Where the fuzzers begin: target, name, input.
#[must_use]
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let addresses =
        [VM1.private_ip, X, VM2.public_ip, VM1.public_ip].map(|address| address.octets()).concat();
    let inputs = |fixture: fixtures::Fixture| {
        let frame = fixture.frame.as_slice();
        // What is changed in a packet with right checksums shall come to more than a wrong one.
        let flags = [if mended(ALL, frame) == frame { ALL } else { 0 }];
        let link = [flags[0] | fixture.on as u8];
        [
            ("parse", fixture.name, [&flags, frame].concat()),
            ("translate", fixture.name, [&flags, addresses.as_slice(), frame].concat()),
            ("pipeline", fixture.name, [&link, frame].concat()),
        ]
    };
    fixtures::all().into_iter().flat_map(inputs).collect()
}

/// Parsing changes nothing, and what it reports lies within the packet.
///
/// # Panics
/// If that is not so.
pub fn parse(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let data = mended(flags, data);
    let mut frame = data.clone();
    if let Some((ip, transport)) = parsed(&mut frame) {
        let end = ip.end();
        assert!(ip.at == 14 && ip.payload >= ip.at + 20 && ip.payload <= end && end <= data.len());
        let inside = |covered: &Covered, header: &Ipv4| {
            assert!(covered.at >= header.payload && covered.at + 2 <= end);
        };
        match &transport {
            Transport::Opaque => {}
            Transport::Covered(covered) => inside(covered, &ip),
            Transport::IcmpError(quote) => {
                assert!(quote.ip.at >= ip.payload + 8 && quote.ip.payload <= end);
                if let Some(covered) = &quote.covered {
                    inside(covered, &quote.ip);
                }
            }
        }
    }
    let _ = frame.as_mut_slice().check_options(34, data.len());
    assert_eq!(frame, data, "parsing has written");
}

fn parsed(frame: &mut [u8]) -> Option<(Ipv4, Transport)> {
    let ip = Ipv4::parse(frame).ok()?;
    let transport = Transport::parse(frame, &ip).ok()?;
    Some((ip, transport))
}

/// Translation writes the addresses and the checksums that depend on them, nothing else, and every sum that a
/// checksum is made of stays what it was: right ones right, and wrong ones as wrong.
///
/// # Panics
/// If that is not so.
pub fn translate(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let Some((addresses, before)) = data.split_at_checked(ADDRESSES) else { return };
    let before = mended(flags, before);
    let address = |index: usize| addresses[index * 4..index * 4 + 4].try_into().expect("4 bytes");
    let new = Addresses { source: address(0), destination: address(1) };
    let quoted = Addresses { source: address(2), destination: address(3) };
    let mut after = before.clone();
    let Some((ip, transport)) = parsed(&mut after) else { return };
    translate::readdress(after.as_mut_slice(), &ip, &transport, new, quoted).expect("it has been parsed");

    let header = ip.at + 10..ip.at + 20;
    let mut may_change = vec![header];
    check_header(&after, &ip, new);
    match &transport {
        Transport::Opaque => {}
        Transport::Covered(covered) => {
            may_change.push(covered.at..covered.at + 2);
            check_transport(&before, &after, &ip, covered, ip.end());
        }
        Transport::IcmpError(Quote { ip: inner, covered }) => {
            may_change.extend([ip.payload + 2..ip.payload + 4, inner.at + 10..inner.at + 20]);
            check_header(&after, inner, quoted);
            assert_eq!(class(&after[ip.payload..ip.end()]), 0, "ICMP checksum");
            if let Some(covered) = covered {
                may_change.push(covered.at..covered.at + 2);
                check_transport(&before, &after, inner, covered, ip.end());
            }
        }
    }
    for (at, (old, new)) in before.iter().zip(&after).enumerate() {
        assert!(old == new || may_change.iter().any(|range| range.contains(&at)), "byte {at} was changed");
    }

    if ip.ttl > 1 {
        let egress = Egress { ifindex: 1, destination: [4; 6], source: [2; 6] };
        translate::forward(after.as_mut_slice(), &ip, &egress).expect("it has been parsed");
        assert_eq!(after[..12], [[4; 6], [2; 6]].concat());
        assert_eq!(after[ip.at + 8], ip.ttl - 1);
        check_header(&after, &ip, new);
    }
}

fn check_header(frame: &[u8], ip: &Ipv4, addresses: Addresses) {
    assert_eq!(frame[ip.at + 12..ip.at + 20], [addresses.source, addresses.destination].concat());
    assert_eq!(class(&frame[ip.at..ip.payload]), 0, "header checksum");
}

fn check_transport(before: &[u8], after: &[u8], ip: &Ipv4, covered: &Covered, end: usize) {
    let checksum = |frame: &[u8]| u16::from_be_bytes([frame[covered.at], frame[covered.at + 1]]);
    if ip.protocol == 17 && checksum(before) == 0 {
        assert_eq!(checksum(after), 0, "no checksum stays none");
        return;
    }
    if matches!(ip.protocol, 17 | 136) {
        assert_ne!(checksum(after), 0, "a checksum never becomes none");
    }
    let covers = |frame: &[u8]| class(&[&frame[ip.at + 12..ip.at + 20], &frame[ip.payload..end]].concat());
    assert_eq!(covers(before), covers(after), "transport checksum");
}

/// One's complement of the sum of the words, in one spelling: 0 is right.
fn class(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement() % 0xffff
}

/// The whole pipeline does what the slow reference does, in the world of the fixtures. The first byte's other bits name
/// the interface.
///
/// # Panics
/// If it does not.
pub fn pipeline(data: &[u8]) {
    let Some((&flags, frame)) = data.split_first() else { return };
    let frame = mended(flags, frame);
    let on = Link::ALL[usize::from(flags & !ALL) % Link::ALL.len()];
    match HostNode::default().send(on, &frame) {
        Ok(outcome) => {
            let expected = reference::expected(on, &frame);
            assert!(outcome == expected, "expected {expected}\nbut got {outcome}");
        }
        Err(error) => panic!("{error}"),
    }
}

/// Frames of a socket under any steps of kernel and worker: none is lost, and none has two holders.
///
/// # Panics
/// If one is.
pub fn rings(input: &[u8]) {
    let [count, to_receive, steps @ ..] = input else { return };
    let count = u32::from(count % 20) + 1;
    let mut kernel = slowpath::kernel::Kernel::default();
    let mut frames = slowpath::frames::Frames::new(count, u32::from(*to_receive) % (count + 1));
    for step in steps.chunks_exact(2) {
        slowpath::kernel::Step::of(step[0], step[1]).take(&mut frames, &mut kernel);
        kernel.check(&frames, count).expect("every frame has one holder");
    }
}
