//! The translator against a slow reference that builds every expected packet from scratch.

use std::collections::BTreeMap;

use nat_common::verdict::{Punt, Reject};
use proptest::prelude::*;
use tests::fixtures::{self, Expect, HostNode};
use tests::reference::expected;
use tests::reference::generate::{Case, any_case, noise, plain_case, seed, stream};

/// The reference itself against the fixtures, whose expected packets are written out by hand.
#[test]
fn agrees_with_the_fixtures() {
    let failures: Vec<String> = fixtures::all()
        .iter()
        .filter_map(|fixture| fixture.compare(&expected(fixture.on, &fixture.frame)).err())
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let outcome = HostNode::default().send(case.on, &case.frame).map_err(TestCaseError::fail)?;
    let expected = expected(case.on, &case.frame);
    prop_assert!(outcome == expected, "\n expected {expected}\n but got  {outcome}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(50_000) })]

    #[test]
    fn any_packet(case in any_case()) {
        check(&case)?;
    }

    #[test]
    fn plain_packets(case in plain_case()) {
        check(&case)?;
    }

    #[test]
    fn noise_that_is_looked_at(case in noise()) {
        check(&case)?;
    }
}

/// The generators reach every outcome that a packet can have; otherwise the properties would prove little.
#[test]
fn generators_reach_every_outcome() {
    let mut seen = BTreeMap::new();
    for case in stream(seed(1), any_case()).take(50_000) {
        let name = match expected(case.on, &case.frame) {
            Expect::Forward(..) => "forward".to_owned(),
            Expect::Punt(punt, ..) => format!("punt {}", punt.name()),
            Expect::Pass => "pass".to_owned(),
            Expect::Drop(reject) => format!("drop {}", reject.name()),
        };
        *seen.entry(name).or_insert(0) += 1;
    }
    // Only a broken node drops for these reasons, or one with a slow path.
    let never = [
        "forwarding_disabled",
        "fib_error",
        "port_unknown",
        "slow_path_limited",
        "neighbour_unresolved",
        "slow_path_full",
    ];
    let drops = Reject::ALL.iter().map(|reject| reject.name());
    let missing: Vec<_> =
        drops.filter(|name| !never.contains(name) && !seen.contains_key(&format!("drop {name}"))).collect();
    assert!(missing.is_empty(), "{missing:?} are never reached: {seen:#?}");
    let punts = Punt::ALL.iter().filter(|punt| **punt != Punt::Arp);
    let punts = punts.map(|punt| format!("punt {}", punt.name()));
    for name in punts.chain(["forward".to_owned(), "pass".to_owned()]) {
        assert!(seen.get(&name).is_some_and(|&times| times > 100), "{name} is rare: {seen:#?}");
    }
}

/// The flag that has no meaning comes and leaves, in packets and in what errors quote of them.
#[test]
fn the_reserved_flag_is_generated() {
    let is_forwarded = |case: &Case| matches!(expected(case.on, &case.frame), Expect::Forward(..));
    let (mut outer, mut quoted) = (0, 0);
    for case in stream(seed(1), any_case()).take(20_000).filter(is_forwarded) {
        let flag = |at: usize| case.frame.get(at).is_some_and(|byte| byte & 0x80 != 0);
        let payload = 14 + usize::from(case.frame[14] & 15) * 4;
        let is_error = case.frame[23] == 1 && matches!(case.frame.get(payload), Some(3 | 11 | 12));
        outer += u32::from(flag(20));
        quoted += u32::from(is_error && flag(payload + 8 + 6));
    }
    assert!(outer > 100 && quoted > 100, "{outer} packets with it are forwarded, and {quoted} quotes");
}

/// Noise gets past the checks of headers, but does not only please.
#[test]
fn noise_is_forwarded_as_well_as_dropped() {
    let (mut forwarded, mut errors) = (0, 0);
    for case in stream(seed(1), noise()).take(20_000) {
        match expected(case.on, &case.frame) {
            Expect::Forward(..) => forwarded += 1,
            Expect::Drop(Reject::IcmpQuote | Reject::IcmpUnmatched) => errors += 1,
            _ => {}
        }
    }
    assert!((2_000..15_000).contains(&forwarded), "{forwarded} of 20,000 are forwarded");
    assert!(errors > 100, "{errors} of 20,000 are looked through for what they quote");
}
