use std::fs;

use nat_common::verdict::Counter;
use tempfile::TempDir;

use super::*;
use crate::packet::to_hex;
use crate::trace::{Address, Frames};

/// A classic pcap whose header says that `snap` bytes of each frame were kept, with frames as they were and what was kept.
fn pcap(snap: u32, frames: &[(u32, &[u8])]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, snap, 1] {
        file.extend(u32::to_le_bytes(word));
    }
    for (original, kept) in frames {
        for word in [1, 2, u32::try_from(kept.len()).unwrap(), *original] {
            file.extend(word.to_le_bytes());
        }
        file.extend(*kept);
    }
    file
}

/// What is found in a file of these bytes.
fn found(bytes: &[u8], number: u64) -> Result<Recorded, String> {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, bytes).unwrap();
    frame(&file, number).map_err(|error| format!("{error:#}"))
}

#[test]
fn a_whole_frame_is_found_in_a_pcap_of_cut_ones() {
    let file = pcap(96, &[(1514, &[1; 96]), (60, &[2; 60])]);
    assert_eq!(found(&file, 2).unwrap().frame, [2; 60]);
    let said = "the frame had 1514 bytes, of which 96 were captured; capture whole frames (tcpdump -s 0)";
    assert_eq!(found(&file, 1).unwrap_err(), said);
    // Some write that no limit is known.
    assert_eq!(found(&pcap(0, &[(60, &[3; 60])]), 1).unwrap().frame, [3; 60]);
}

/// A packet between two addresses, as it came and, where it left, as it left.
fn packet(counter: Counter, direction: &str, before: [&str; 2], after: Option<[&str; 2]>) -> Packet {
    let address = |[source, destination]: [&str; 2]| Address {
        source: source.parse().unwrap(),
        source_port: None,
        destination: destination.parse().unwrap(),
        destination_port: None,
    };
    Packet {
        time: "2026-01-31T12:00:00.123456Z".to_owned(),
        direction: Some(direction.to_owned()),
        on: "up0".to_owned(),
        to: None,
        protocol: None,
        length: 60,
        before: Some(address(before)),
        after: after.map(address),
        verdict: counter.verdict().to_owned(),
        reason: counter.reason().map(str::to_owned),
        frames: None,
    }
}

#[test]
fn a_frame_that_left_is_not_taken_for_one_that_came() {
    let mut file = Vec::new();
    let mut recorder = Recorder::new(&mut file, 96).unwrap();
    let frames = Frames { length: 60, before: to_hex(&[1; 60]), after: Some(to_hex(&[2; 60])) };
    let way = ["198.51.100.9", "203.0.113.1"];
    recorder
        .write(&Packet { frames: Some(frames), ..packet(Counter::Forward, "in", way, Some(way)) })
        .unwrap();
    let came = found(&file, 1).unwrap();
    assert_eq!((came.frame, came.interface.as_deref()), (vec![1; 60], Some("up0")));
    let said = "frame 2 is one that left; in a capture of eipnat's the one before it is how it came";
    assert_eq!(found(&file, 2).unwrap_err(), said);
}

#[test]
fn a_comment_names_public_addresses_that_are_such_and_no_other() {
    let (x, eip, vm, other, other_vm) =
        ("198.51.100.9", "203.0.113.1", "10.0.0.2", "203.0.113.2", "10.0.0.3");
    let (forward, unbound) = (Counter::Forward, Counter::Drop(Reject::EipUnbound));
    for (counter, direction, before, after, said) in [
        (forward, "in", [x, eip], Some([x, vm]), "forward; in; public address 203.0.113.1"),
        (forward, "out", [vm, x], Some([eip, x]), "forward; out; public address 203.0.113.1"),
        (
            forward,
            "hairpin",
            [vm, other],
            Some([eip, other_vm]),
            "forward; hairpin; public address 203.0.113.1; public address 203.0.113.2",
        ),
        (unbound, "in", [x, other], None, "drop eip_unbound; in; public address 203.0.113.2"),
        (unbound, "out", [vm, other], None, "drop eip_unbound; out; public address 203.0.113.2"),
        // SSH to the node, somebody else's, and what has no binding.
        (Counter::Pass, "in", [x, "192.0.2.2"], None, "pass; in"),
        (Counter::Drop(Reject::Transit), "in", [x, "8.8.8.8"], None, "drop transit; in"),
        (Counter::Drop(Reject::SourceUnbound), "out", [vm, x], None, "drop source_unbound; out"),
    ] {
        assert_eq!(comment(&packet(counter, direction, before, after)), said);
    }
}
