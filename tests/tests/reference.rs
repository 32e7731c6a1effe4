//! The translator against a slow reference that builds every expected packet from scratch.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tests::fixtures::{self, Expect, HostNode};
use tests::reference::expected;
use tests::reference::generate::{Case, any_case, plain_case, seed, stream};

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
    // Only a broken node drops for these reasons.
    let never = ["forwarding_disabled", "fib_error", "port_unknown"];
    let drops = nat_common::verdict::Reject::ALL.iter().map(|reject| reject.name());
    let missing: Vec<_> =
        drops.filter(|name| !never.contains(name) && !seen.contains_key(&format!("drop {name}"))).collect();
    assert!(missing.is_empty(), "{missing:?} are never reached: {seen:#?}");
    for name in ["forward", "punt neighbour", "punt fragment", "pass"] {
        assert!(seen.get(name).is_some_and(|&times| times > 100), "{name} is rare: {seen:#?}");
    }
}
