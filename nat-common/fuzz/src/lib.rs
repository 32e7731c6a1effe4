//! What the fuzzers ask of the translator, for any bytes whatever. Each function takes a fuzzer's input and panics if
//! something is wrong.
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

use etherparse::checksum::Sum16BitWords;
use nat_common::frame::Frame;
use nat_common::parse::{Covered, Ipv4, Quote, Transport};
use nat_common::translate::{self, Addresses};
use nat_common::verdict::Egress;
use tests::fixtures::world::{Link, VM1, VM2, X};
use tests::fixtures::{self, HostNode};
use tests::reference;

/// Bytes before the frame in [`translate`]'s input: four addresses.
const ADDRESSES: usize = 16;

/// Where the fuzzers begin: target, name, input.
#[must_use]
pub fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let addresses =
        [VM1.private_ip, X, VM2.public_ip, VM1.public_ip].map(|address| address.octets()).concat();
    let inputs = |fixture: fixtures::Fixture| {
        let link = [fixture.on as u8];
        [
            ("parse", fixture.name, fixture.frame.clone()),
            ("translate", fixture.name, [&addresses, fixture.frame.as_slice()].concat()),
            ("pipeline", fixture.name, [&link, fixture.frame.as_slice()].concat()),
        ]
    };
    fixtures::all().into_iter().flat_map(inputs).collect()
}

/// Parsing changes nothing, and what it reports lies within the packet.
///
/// # Panics
/// If that is not so.
pub fn parse(data: &[u8]) {
    let mut frame = data.to_vec();
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
    let Some((addresses, before)) = data.split_at_checked(ADDRESSES) else { return };
    let address = |index: usize| addresses[index * 4..index * 4 + 4].try_into().expect("4 bytes");
    let new = Addresses { source: address(0), destination: address(1) };
    let quoted = Addresses { source: address(2), destination: address(3) };
    let mut after = before.to_vec();
    let Some((ip, transport)) = parsed(&mut after) else { return };
    translate::readdress(after.as_mut_slice(), &ip, &transport, new, quoted).expect("it has been parsed");

    let header = ip.at + 10..ip.at + 20;
    let mut may_change = vec![header];
    check_header(&after, &ip, new);
    match &transport {
        Transport::Opaque => {}
        Transport::Covered(covered) => {
            may_change.push(covered.at..covered.at + 2);
            check_transport(before, &after, &ip, covered, ip.end());
        }
        Transport::IcmpError(Quote { ip: inner, covered }) => {
            may_change.extend([ip.payload + 2..ip.payload + 4, inner.at + 10..inner.at + 20]);
            check_header(&after, inner, quoted);
            assert_eq!(class(&after[ip.payload..ip.end()]), 0, "ICMP checksum");
            if let Some(covered) = covered {
                may_change.push(covered.at..covered.at + 2);
                check_transport(before, &after, inner, covered, ip.end());
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

/// The whole pipeline does what the slow reference does, in the world of the fixtures.
///
/// # Panics
/// If it does not.
pub fn pipeline(data: &[u8]) {
    let Some((&link, frame)) = data.split_first() else { return };
    let on = Link::ALL[usize::from(link) % Link::ALL.len()];
    match HostNode::default().send(on, frame) {
        Ok(outcome) => {
            let expected = reference::expected(on, frame);
            assert!(outcome == expected, "expected {expected}\nbut got {outcome}");
        }
        Err(error) => panic!("{error}"),
    }
}
