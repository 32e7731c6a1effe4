use std::net::Ipv4Addr;

use super::*;
use crate::testing::TestDaemon;

fn json(daemon: &TestDaemon, args: &str) -> Explanation {
    serde_json::from_str(&daemon.done(&format!("-o json explain {args}"))).unwrap()
}

fn bound() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.done("vm create web-1 --private-ip 10.0.0.2 --account acme");
    daemon.done("eip allocate --address 203.0.113.1 --account acme");
    daemon.done("eip attach 203.0.113.1 web-1");
    daemon
}

#[test]
fn the_way_in_is_told_step_by_step() {
    let daemon = bound();
    let told = json(&daemon, "--on up0 --src 198.51.100.9 --dst 203.0.113.1 --proto udp --dport 53");
    assert_eq!(told.packet, "udp 198.51.100.9:40000 > 203.0.113.1:53, ttl 64, 28 bytes");
    assert_eq!((told.verdict.as_str(), told.reason, told.contradiction), ("forward", None, None));
    assert_eq!(
        told.steps.iter().map(|step| step.found.as_str()).collect::<Vec<_>>(),
        [
            "it is an uplink, MAC 02:00:00:00:00:01",
            "nothing: neither of a pool, nor its own, nor in the VMs' network",
            "192.0.2.2",
            "yes: 203.0.113.1 stands for 10.0.0.2 (VM web-1), an EIP of account acme",
            "no",
            "by dn0 to the next hop 10.0.0.2 at 02:00:00:00:01:02",
            "it is a downlink, MAC 02:00:00:00:00:02",
        ]
    );
    let leaves = told.leaves.unwrap();
    assert_eq!(leaves.packet, "udp 198.51.100.9:40000 > 10.0.0.2:53, ttl 63, 28 bytes");
    assert_eq!(
        (leaves.by.as_deref(), leaves.next_hop),
        (Some("dn0"), Some(Ipv4Addr::new(10, 0, 0, 2).into()))
    );
    let changed: Vec<_> = leaves.changes.iter().map(|change| change.field.as_str()).collect();
    assert_eq!(
        changed,
        ["destination MAC", "source MAC", "TTL", "IP checksum", "destination", "UDP checksum"]
    );
    assert_eq!(told.billed.len(), 1);
    assert_eq!((told.billed[0].account.as_deref(), told.billed[0].bytes), (Some("acme"), 28));
    let table = daemon.done("explain --on up0 --src 198.51.100.9 --dst 203.0.113.1 --proto udp --dport 53");
    assert!(table.contains("\nverdict    forward\n"), "{table}");
}

#[test]
fn a_drop_is_told_with_its_remedy() {
    let daemon = bound();
    let table = daemon.done("explain --on up0 --src 198.51.100.9 --dst 203.0.113.2 --proto tcp");
    assert!(table.contains("\nverdict     drop eip_unbound\n"), "{table}");
    assert!(
        table.contains("The destination is a public address of ours that is attached to nothing.\n"),
        "{table}"
    );
    assert!(table.contains("Attach the address, or ignore the scan.\n"), "{table}");
    let told = json(&daemon, "--on dn0 --src 10.0.0.9 --dst 198.51.100.9 --proto icmp");
    assert_eq!((told.reason.as_deref(), told.leaves), (Some("source_unbound"), None));
    // Too short for IPv4: 14 bytes of Ethernet alone.
    let told = json(&daemon, "--on up0 --hex 020000000001020000000009:0800");
    assert_eq!(told.reason.as_deref(), Some("frame_truncated"));
}

#[test]
fn a_contradiction_is_told() {
    let daemon = bound();
    daemon.dataplane.state().trace.contradicts = true;
    let told = json(&daemon, "--on up0 --src 198.51.100.9 --dst 203.0.113.1 --proto udp");
    assert_eq!(told.verdict, "pass");
    let said = told.contradiction.unwrap();
    assert!(
        said.starts_with("the steps lead to forward, but the running program's verdict is pass"),
        "{said}"
    );
    assert_eq!(told.billed, [], "a bill of the steps'");
}

#[test]
fn a_verdict_that_the_program_does_not_carry_out_is_told() {
    let daemon = bound();
    daemon.dataplane.state().trace.does_otherwise = true;
    let told = json(&daemon, "--on up0 --src 198.51.100.9 --dst 203.0.113.1 --proto udp");
    let said = told.contradiction.unwrap();
    assert!(said.starts_with("the running program's verdict is forward, but it does otherwise"), "{said}");
}

#[test]
fn a_frame_that_is_longer_than_a_request_may_be_is_told_how_long_it_may_be() {
    let daemon = TestDaemon::start();
    let (code, _, said) = daemon.eipnat(&format!("explain --on up0 --hex {}", "00".repeat(40_000)));
    assert_eq!(code, 1);
    assert_eq!(said, "error: a frame of 40000 bytes cannot be tried; it has 14 to 16384\n");
}

#[test]
fn a_question_that_makes_no_sense_is_refused() {
    let daemon = TestDaemon::start();
    for (args, said) in [
        (
            "--on eth7 --src 1.1.1.1 --dst 203.0.113.1 --proto udp",
            "eipnat does not run on eth7; it does on up0, dn0",
        ),
        ("--on up0 --hex 0g", "the frame: 'g' at place 2 is no hexadecimal digit"),
        ("--on up0 --hex 00", "a frame of 1 bytes cannot be tried; it has 14 to 16384"),
        (
            "--on up0 --src 1.1.1.1 --dst 203.0.113.1 --proto 50 --sport 1",
            "the packet: only tcp and udp have ports",
        ),
        ("--src 1.1.1.1 --dst 203.0.113.1 --proto udp", "which interface does it come by? name it with --on"),
    ] {
        assert_eq!(
            daemon.eipnat(&format!("explain {args}")),
            (1, String::new(), format!("error: {said}\n")),
            "{args}"
        );
    }
    for args in
        ["explain --on up0", "explain --on up0 --hex 00 --src 1.1.1.1", "explain --on up0 --src 1.1.1.1"]
    {
        assert_eq!(daemon.eipnat(args).0, 2, "{args}");
    }
}
