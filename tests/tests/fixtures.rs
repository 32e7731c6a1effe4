//! Every packet fixture, on the host and in the kernel: same verdict, same bytes, same counters.

use anyhow::Result;
use tests::fixtures::{self, HostNode, kernel};
use tests::lab::{Lab, Topology};

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = fixtures::all().iter().map(|fixture| fixture.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn on_the_host() {
    let failures: Vec<String> = fixtures::all()
        .iter()
        .filter_map(|fixture| {
            let outcome = HostNode::default().send(fixture.on, &fixture.frame);
            outcome.and_then(|outcome| fixture.compare(&outcome)).err()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn in_the_kernel() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let failures = kernel::in_lab(&lab, kernel::check_all)?;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    lab.remove()
}
