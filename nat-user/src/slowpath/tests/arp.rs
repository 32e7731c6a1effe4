use std::time::Duration;

use etherparse::{ArpEthIpv4Packet, ArpOperation};

use super::*;

const OTHER: Mac = [2, 0, 0, 0, 7, 7];
const ARP: Errand = Errand::Carry(Punt::Arp);

fn arp(from: Mac, operation: ArpOperation, spa: Ipv4Addr, tpa: Ipv4Addr) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: from,
        sender_ipv4: spa.octets(),
        target_mac: [0; 6],
        target_ipv4: tpa.octets(),
    };
    [&[0xff; 6][..], &from, &[8, 6], &packet.to_bytes()].concat()
}

/// What was sent: to whom, the operation, and both ends.
type Sent = (Mac, u16, (Mac, Addr), (Mac, Addr));

fn sent(bench: &mut Bench) -> Vec<Sent> {
    let parse = |(by, frame): (u32, Vec<u8>)| {
        assert_eq!((by, &frame[6..14]), (UP, &[&UP_MAC[..], &[8, 6]].concat()[..]));
        let packet = ArpEthIpv4Packet {
            operation: ArpOperation(u16::from_be_bytes([frame[20], frame[21]])),
            sender_mac: frame[22..28].try_into().unwrap(),
            sender_ipv4: frame[28..32].try_into().unwrap(),
            target_mac: frame[32..38].try_into().unwrap(),
            target_ipv4: frame[38..42].try_into().unwrap(),
        };
        assert_eq!(frame[14..], packet.to_bytes());
        (
            frame[..6].try_into().unwrap(),
            packet.operation.0,
            (packet.sender_mac, packet.sender_ipv4),
            (packet.target_mac, packet.target_ipv4),
        )
    };
    bench.sent().into_iter().map(parse).collect()
}

/// G9.
#[test]
fn who_asks_for_an_eip_is_answered_and_so_is_a_probe() {
    for asker in [GATEWAY, Ipv4Addr::UNSPECIFIED] {
        let mut bench = Bench::new(1);
        bench.carry(UP, Punt::Arp, arp(OTHER, ArpOperation::REQUEST, asker, EIP));
        assert_eq!(sent(&mut bench), [(OTHER, 2, (UP_MAC, EIP.octets()), (OTHER, asker.octets()))]);
        assert_eq!(bench.count(Tally::Answered(ARP)), 1);
    }
}

#[test]
fn replies_own_packets_other_addresses_and_noise_are_not_answered() {
    let mut bench = Bench::new(1);
    let mut cut = arp(OTHER, ArpOperation::REQUEST, GATEWAY, EIP);
    cut.truncate(40);
    let mut ipv6 = arp(OTHER, ArpOperation::REQUEST, GATEWAY, EIP);
    ipv6[18] = 16;
    for frame in [
        arp(OTHER, ArpOperation::REPLY, GATEWAY, EIP),
        arp(UP_MAC, ArpOperation::REQUEST, EIP, EIP),
        // The node's other uplink.
        arp(DOWN_MAC, ArpOperation::REQUEST, EIP, EIP),
        arp(OTHER, ArpOperation::REQUEST, GATEWAY, X),
        arp([1; 6], ArpOperation::REQUEST, GATEWAY, EIP),
        cut,
        ipv6,
    ] {
        bench.carry(UP, Punt::Arp, frame);
    }
    assert!(bench.sent().is_empty());
    assert_eq!(bench.count(Tally::Conflict), 0);
}

/// G9 and G10: an announcement is no question, and is contradicted once in ten seconds.
#[test]
fn somebody_elses_claim_is_contradicted_once_in_ten_seconds_and_remembered() {
    let mut bench = Bench::new(1);
    let defence = [([0xff; 6], 1, (UP_MAC, EIP.octets()), ([0; 6], EIP.octets()))];
    for (after, expected) in [(0, true), (1, false), (8, false), (1, true), (1, false)] {
        bench.now += Duration::from_secs(after);
        bench.carry(UP, Punt::Arp, arp(OTHER, ArpOperation::REQUEST, EIP, EIP));
        let sent = sent(&mut bench);
        assert_eq!(sent, if expected { &defence[..] } else { &[] });
    }
    assert_eq!((bench.count(Tally::Conflict), bench.count(Tally::Announced)), (5, 2));
    let conflicts: Vec<_> = bench.router.arp.conflicts().map(|(eip, conflict)| (eip, conflict.mac)).collect();
    assert_eq!(conflicts, [(EIP, OTHER)]);
    bench.router.arp.forget(Duration::from_secs(10), bench.now + Duration::from_secs(11));
    assert_eq!(bench.router.arp.conflicts().count(), 0);
}

#[test]
fn what_is_not_bound_any_more_is_not_answered() {
    let mut bench = Bench::new(1);
    bench.model.is_bound = false;
    bench.carry(UP, Punt::Arp, arp(OTHER, ArpOperation::REQUEST, GATEWAY, EIP));
    assert!(bench.sent().is_empty());
}
