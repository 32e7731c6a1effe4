#![expect(clippy::float_cmp, reason = "all of these come out even")]

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn attached(last: u8, meter: u32) -> Attached {
    Attached { eip: Ipv4Addr::new(203, 0, 113, last), meter }
}

fn meter(in_bytes: u64, in_packets: u64, out_bytes: u64, out_packets: u64) -> Meter {
    Meter { in_bytes, in_packets, out_bytes, out_packets }
}

fn ranking(sort: SortBy, limit: usize) -> Ranking {
    Ranking { sort, reverse: false, limit }
}

/// What comes of two readings, two seconds apart.
fn ranked(before: &[(Attached, Meter)], after: &[(Attached, Meter)], ranking: Ranking) -> Ranked {
    let began = Instant::now();
    let readings = vec![Reading { at: began, meters: before.to_vec() }];
    let mut tally = Tally::new(Baseline::new(began, readings), ranking);
    let after = Reading { at: began + 2 * SECOND, meters: after.to_vec() };
    tally.add(&after, &vec![true; after.meters.len()]);
    tally.end()
}

fn order(ranked: &Ranked) -> Vec<u8> {
    ranked.rows.iter().map(|(eip, _)| eip.octets()[3]).collect()
}

#[test]
fn rates_are_differences_by_the_time_that_passed() {
    let eip = attached(1, 0);
    let ranked = ranked(
        &[(eip, meter(1000, 10, 2000, 20))],
        &[(eip, meter(3000, 14, 2500, 21))],
        ranking(SortBy::Total, 10),
    );
    let rates = Rates { in_bps: 8000.0, in_pps: 2.0, out_bps: 2000.0, out_pps: 0.5 };
    assert_eq!(ranked.rows, [(eip.eip, rates)]);
    assert_eq!((ranked.total, ranked.eips, ranked.matching), (rates, 1, 1));
}

#[test]
fn each_chunk_goes_by_its_own_clock() {
    let began = Instant::now();
    let (first, second) = (attached(1, 3), attached(2, 4));
    let reading = |seconds: u32, eip, bytes| Reading {
        at: began + seconds * SECOND,
        meters: vec![(eip, meter(bytes, 0, 0, 0))],
    };
    let before = vec![reading(0, first, 0), reading(3, second, 0)];
    let mut tally = Tally::new(Baseline::new(began, before), ranking(SortBy::Eip, 10));
    tally.add(&reading(4, first, 1000), &[true]);
    tally.add(&reading(5, second, 1000), &[true]);
    let rates: Vec<f64> = tally.end().rows.iter().map(|(_, rates)| rates.in_bps).collect();
    assert_eq!(rates, [2000.0, 4000.0]);
}

#[test]
fn what_changed_hands_in_between_has_no_absurd_rate() {
    let huge = meter(u64::MAX / 2, u64::MAX / 2, u64::MAX / 2, u64::MAX / 2);
    let before = [
        (attached(1, 0), huge),
        (attached(2, 1), huge),
        (attached(3, 2), huge),
        (attached(9, 4), meter(1, 1, 1, 1)),
    ];
    let after = [
        // Another EIP has the meter.
        (attached(7, 0), meter(100, 1, 0, 0)),
        // The EIP was detached and attached again, and has got the same meter, at zero.
        (attached(2, 1), meter(200, 2, 0, 0)),
        // It was moved to another meter; 2 is nobody's.
        (attached(3, 3), meter(300, 3, 0, 0)),
        (attached(9, 4), meter(401, 5, 1, 1)),
        // New.
        (attached(8, 5), meter(500, 5, 0, 0)),
    ];
    let ranked = ranked(&before, &after, ranking(SortBy::In, 10));
    let rates: Vec<(u8, f64)> =
        ranked.rows.iter().map(|(eip, rates)| (eip.octets()[3], rates.in_bps)).collect();
    assert_eq!(rates, [(8, 2000.0), (9, 1600.0), (3, 1200.0), (2, 800.0), (7, 400.0)]);
    assert_eq!(ranked.total.in_pps, 7.5);
}

#[test]
fn no_time_is_no_rate() {
    assert_eq!(per_second(7, Duration::ZERO), 0.0);
    assert_eq!(between(&Meter::default(), &meter(1, 1, 1, 1), Duration::ZERO), Rates::default());
}

#[test]
fn every_order_puts_its_own_first() {
    let eips = [attached(1, 0), attached(2, 1), attached(3, 2), attached(4, 3)];
    let before = eips.map(|eip| (eip, Meter::default()));
    let meters = [meter(900, 1, 0, 0), meter(0, 0, 950, 2), meter(500, 9, 500, 0), meter(0, 0, 10, 12)];
    let mut after = before;
    for ((_, slot), meter) in after.iter_mut().zip(meters) {
        *slot = meter;
    }
    for (sort, expected) in [
        (SortBy::Total, [3, 2, 1, 4]),
        (SortBy::In, [1, 3, 2, 4]),
        (SortBy::Out, [2, 3, 4, 1]),
        (SortBy::Packets, [4, 3, 2, 1]),
        (SortBy::InPackets, [3, 1, 2, 4]),
        (SortBy::OutPackets, [4, 2, 1, 3]),
        (SortBy::Eip, [1, 2, 3, 4]),
    ] {
        assert_eq!(order(&ranked(&before, &after, ranking(sort, 10))), expected, "{sort:?}");
        let first_two = ranked(&before, &after, ranking(sort, 2));
        assert_eq!(order(&first_two), expected[..2], "{sort:?}");
        assert_eq!((first_two.eips, first_two.matching), (4, 4));
    }
    let reversed = Ranking { sort: SortBy::Eip, reverse: true, limit: 10 };
    assert_eq!(order(&ranked(&before, &after, reversed)), [4, 3, 2, 1]);
    // Equal ones stay in their places.
    let reversed = Ranking { sort: SortBy::In, reverse: true, limit: 10 };
    assert_eq!(order(&ranked(&before, &after, reversed)), [2, 4, 3, 1]);
}

#[test]
fn few_are_kept_of_many() {
    let eips: Vec<Attached> =
        (0..1000).map(|meter| Attached { eip: Ipv4Addr::from(0x0a00_0000 + meter), meter }).collect();
    let before: Vec<_> = eips.iter().map(|eip| (*eip, Meter::default())).collect();
    // The most is somewhere in the middle.
    let after: Vec<_> =
        eips.iter().map(|eip| (*eip, meter(u64::from(eip.meter * 7 % 1000), 1, 0, 0))).collect();
    let ranked = ranked(&before, &after, ranking(SortBy::In, 3));
    let seen: Vec<f64> = ranked.rows.iter().map(|(_, rates)| rates.in_bps / 4.0).collect();
    assert_eq!(seen, [999.0, 998.0, 997.0]);
    assert_eq!((ranked.eips, ranked.total.in_pps), (1000, 500.0));
}

#[test]
fn what_is_of_no_interest_counts_in_the_total_alone() {
    let began = Instant::now();
    let mut tally = Tally::new(Baseline::new(began, Vec::new()), ranking(SortBy::Total, 10));
    let meters = vec![(attached(1, 0), meter(100, 1, 0, 0)), (attached(2, 1), meter(100, 1, 0, 0))];
    tally.add(&Reading { at: began + SECOND, meters }, &[false, true]);
    let ranked = tally.end();
    assert_eq!(order(&ranked), [2]);
    assert_eq!((ranked.eips, ranked.matching, ranked.total.in_bps), (2, 1, 1600.0));
}
