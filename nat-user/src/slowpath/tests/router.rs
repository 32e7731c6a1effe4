use std::time::Duration;

use etherparse::{Icmpv4Type, NetSlice, SlicedPacket, TransportSlice};

use super::*;

/// Source and destination, ICMP type and code, the MTU field, and the quoted packet.
fn error(frame: &[u8]) -> (Ipv4Addr, Ipv4Addr, [u8; 2], u16, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) = (&packet.net, &packet.transport)
    else {
        panic!("no ICMP: {frame:02x?}");
    };
    let header = ip.header();
    assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(_) | Icmpv4Type::TimeExceeded(_)));
    assert_eq!(
        nat_common::checksum::fold(
            nat_common::checksum::sum(&mut frame.to_vec()[..], 34, frame.len()).unwrap()
        ),
        0xffff
    );
    assert!(header.total_len() <= 576 && header.ttl() > 1);
    let bytes = icmp.slice();
    (
        header.source_addr(),
        header.destination_addr(),
        [bytes[0], bytes[1]],
        u16::from_be_bytes([bytes[6], bytes[7]]),
        bytes[8..].to_vec(),
    )
}

/// G2, G3, G4.
#[test]
fn who_sends_what_has_no_hops_left_is_told_so_with_the_packet_as_it_was_sent() {
    for (ifindex, mac, from, to, node) in [(DOWN, DOWN_MAC, VM, X, NODE_DOWN), (UP, UP_MAC, X, EIP, NODE_UP)]
    {
        let mut bench = Bench::new(100);
        let frame = udp(mac, from, to, 1, 1000);
        bench.handle(ifindex, Errand::Answer(Reject::TtlExpired), frame.clone());
        let sent = bench.sent();
        let [(by, answer)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((*by, &answer[..6]), (ifindex, &PEER_MAC[..]));
        assert_eq!(error(answer), (node, from, [11, 0], 0, frame[14..14 + 548].to_vec()));
        assert_eq!(bench.count(Tally::Answered(Errand::Answer(Reject::TtlExpired))), 1);
        assert!(bench.model.bills.is_empty());
    }
}

/// G5.
#[test]
fn what_must_not_be_fragmented_is_answered_with_the_next_hops_mtu() {
    let mut bench = Bench::new(100);
    bench.model.mtu = 1300;
    let mut frame = udp(DOWN_MAC, VM, X, 64, 1400);
    set_df(&mut frame, true);
    bench.handle(DOWN, Errand::Answer(Reject::MtuExceeded), frame.clone());
    let sent = bench.sent();
    assert_eq!(error(&sent[0].1), (NODE_DOWN, VM, [3, 4], 1300, frame[14..14 + 548].to_vec()));
}

/// A jumbo frame comes cut, and must not leave like that, whatever would become of it now.
#[test]
fn what_came_to_be_answered_never_leaves() {
    let mut bench = Bench::new(100);
    let mut frame = udp(DOWN_MAC, VM, X, 64, 1400);
    set_df(&mut frame, true);
    let size = frame.len();
    frame.truncate(600);
    let packet = Packet { ifindex: DOWN, errand: Errand::Answer(Reject::MtuExceeded), size, bytes: frame };
    bench.around(|router, now, around| router.handle(packet, now, around));
    assert!(bench.sent().is_empty() && bench.model.bills.is_empty());
}

/// G1.
#[test]
fn errors_and_later_fragments_are_not_answered() {
    let mut later = udp(DOWN_MAC, VM, X, 1, 100);
    later[20..22].copy_from_slice(&10_u16.to_be_bytes());
    mend_header(&mut later);
    let mut icmp = Vec::new();
    PacketBuilder::ethernet2(PEER_MAC, DOWN_MAC)
        .ipv4(VM.octets(), X.octets(), 1)
        .icmpv4(Icmpv4Type::Unknown { type_u8: 12, code_u8: 0, bytes5to8: [0; 4] })
        .write(&mut icmp, &udp(DOWN_MAC, X, VM, 60, 8)[14..])
        .unwrap();
    let mut unknown = icmp.clone();
    unknown[34] = 200;
    for frame in [later, icmp, unknown] {
        let mut bench = Bench::new(100);
        bench.handle(DOWN, Errand::Answer(Reject::TtlExpired), frame);
        assert!(bench.sent().is_empty());
        assert_eq!(bench.count(Tally::Unanswered(Errand::Answer(Reject::TtlExpired))), 1);
    }
}

/// G6.
#[test]
fn one_destination_gets_no_more_errors_than_it_may() {
    let mut bench = Bench::new(3);
    for _ in 0..10 {
        bench.handle(DOWN, Errand::Answer(Reject::TtlExpired), udp(DOWN_MAC, VM, X, 1, 10));
    }
    bench.handle(UP, Errand::Answer(Reject::TtlExpired), udp(UP_MAC, X, EIP, 1, 10));
    assert_eq!(bench.sent().len(), 4);
    // Path MTU discovery goes on beside a flood of what has no hops left.
    bench.model.mtu = 600;
    let mut large = udp(DOWN_MAC, VM, X, 64, 700);
    set_df(&mut large, true);
    bench.handle(DOWN, Errand::Answer(Reject::MtuExceeded), large);
    assert_eq!(bench.sent().len(), 1);
    assert_eq!(bench.count(Tally::Unanswered(Errand::Answer(Reject::TtlExpired))), 7);
}

#[test]
fn packets_wait_for_a_neighbour_and_leave_in_their_order() {
    let mut bench = Bench::new(100);
    bench.model.knows_vm = false;
    for payload in 0..5 {
        bench.carry(UP, Punt::Neighbour, udp(UP_MAC, X, EIP, 64, payload));
    }
    assert_eq!((bench.router.waiting(), bench.line.asked.as_slice()), (5, &[(DOWN, VM.into())][..]));
    assert!(
        bench.sent().is_empty() && bench.model.bills.is_empty(),
        "nobody is billed for what has not left"
    );
    bench.retry();
    assert_eq!(
        (bench.router.waiting(), bench.line.asked.len()),
        (5, 2),
        "it still waits, and is asked for again"
    );
    bench.model.knows_vm = true;
    bench.retry();
    let sent = bench.sent();
    let payloads: Vec<usize> = sent.iter().map(|(_, frame)| frame.len() - 42).collect();
    assert_eq!((payloads, bench.router.waiting()), (vec![0, 1, 2, 3, 4], 0));
    let (by, frame) = &sent[4];
    assert_eq!((*by, &frame[..6], &frame[6..12], frame[22]), (DOWN, &PEER_MAC[..], &DOWN_MAC[..], 63));
    assert_eq!((&frame[26..30], &frame[30..34]), (&X.octets()[..], &VM.octets()[..]));
    assert_eq!(bench.model.bills[4], (Direction::In, 32));
    assert_eq!(bench.count(Tally::Carried(Errand::Carry(Punt::Neighbour))), 5);
}

#[test]
fn what_waits_is_not_carried_after_its_binding_has_ended() {
    let mut bench = Bench::new(100);
    bench.model.knows_vm = false;
    bench.carry(UP, Punt::Neighbour, udp(UP_MAC, X, EIP, 64, 1));
    bench.model.is_bound = false;
    bench.model.knows_vm = true;
    bench.retry();
    assert!(bench.sent().is_empty() && bench.model.bills.is_empty());
    assert_eq!(bench.count(Tally::Dropped(Reject::EipUnbound)), 1);
}

#[test]
fn after_a_second_the_sender_is_told_that_the_host_is_unreachable() {
    let mut bench = Bench::new(100);
    bench.model.knows_vm = false;
    let frame = udp(UP_MAC, X, EIP, 64, 10);
    bench.carry(UP, Punt::Neighbour, frame.clone());
    bench.now += Duration::from_millis(999);
    bench.expire();
    assert_eq!(bench.router.waiting(), 1);
    bench.now += Duration::from_millis(1);
    bench.expire();
    let sent = bench.sent();
    assert_eq!(error(&sent[0].1), (NODE_UP, X, [3, 1], 0, frame[14..].to_vec()));
    assert_eq!((bench.router.waiting(), bench.router.due()), (0, None));
    assert_eq!(bench.model.drops, [(EIP, Reject::NeighbourUnresolved)]);
}

#[test]
fn an_answer_waits_for_its_neighbour_too_and_is_not_answered() {
    let mut bench = Bench::new(100);
    bench.model.knows_gateway = false;
    bench.handle(UP, Errand::Answer(Reject::TtlExpired), udp(UP_MAC, X, EIP, 1, 10));
    assert_eq!((bench.router.waiting(), bench.line.asked.as_slice()), (1, &[(UP, GATEWAY.into())][..]));
    bench.model.knows_gateway = true;
    bench.retry();
    assert_eq!(bench.sent().len(), 1);
    bench.model.knows_gateway = false;
    bench.handle(UP, Errand::Answer(Reject::TtlExpired), udp(UP_MAC, X, EIP, 1, 10));
    bench.now += Duration::from_secs(1);
    bench.expire();
    assert_eq!((bench.sent().len(), bench.router.waiting()), (0, 0));
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let mut bench = Bench::new(100);
    bench.model.knows_vm = false;
    for _ in 0..super::super::waiting::MAX_FOR_ONE + 3 {
        bench.carry(UP, Punt::Neighbour, udp(UP_MAC, X, EIP, 64, 1));
    }
    assert_eq!(bench.router.waiting(), super::super::waiting::MAX_FOR_ONE);
    assert_eq!(bench.count(Tally::Dropped(Reject::SlowPathFull)), 3);
}

#[test]
fn a_large_packet_leaves_in_fragments_and_is_billed_once() {
    let mut bench = Bench::new(100);
    bench.model.mtu = 600;
    let frame = udp(DOWN_MAC, VM, X, 64, 1400);
    bench.carry(DOWN, Punt::Fragment, frame);
    let sent = bench.sent();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|(by, frame)| *by == UP && frame.len() <= 614 && frame[22] == 63));
    assert_eq!(bench.model.bills, [(Direction::Out, 1428)]);
}

#[test]
fn a_trailer_is_taken_off() {
    let mut bench = Bench::new(100);
    let mut frame = udp(DOWN_MAC, VM, X, 64, 100);
    let length = frame.len();
    frame.extend([0xee; 30]);
    bench.carry(DOWN, Punt::Trailer, frame);
    assert_eq!(bench.sent()[0].1.len(), length);
}

/// A burst that waited may be more than an interface takes at once.
#[test]
fn what_finds_no_room_after_waiting_waits_on() {
    let mut bench = Bench::new(100);
    bench.model.knows_vm = false;
    for payload in 0..3 {
        bench.carry(UP, Punt::Neighbour, udp(UP_MAC, X, EIP, 64, payload));
    }
    bench.model.knows_vm = true;
    bench.line.is_full = true;
    bench.retry();
    assert!(bench.router.is_stalled() && bench.router.waiting() == 3 && bench.model.bills.is_empty());
    bench.line.is_full = false;
    assert_eq!(bench.router.take_stalled().len(), 1);
    bench.retry();
    assert_eq!((bench.sent().len(), bench.router.waiting(), bench.model.bills.len()), (3, 0, 3));
}

#[test]
fn what_an_interface_does_not_take_is_dropped_and_not_billed() {
    let mut bench = Bench::new(100);
    bench.line.is_full = true;
    bench.carry(UP, Punt::Neighbour, udp(UP_MAC, X, EIP, 64, 1));
    assert_eq!(bench.count(Tally::Dropped(Reject::SlowPathFull)), 1);
    assert!(bench.model.bills.is_empty());
}
