//! Every packet fixture, on the host and in the kernel: same verdict, same bytes, same counters.

use anyhow::{Context as _, Result};
use nat_common::abi::trace::{HEAD, MAX_SNAP};
use nat_common::verdict::Counter;
use tests::fixtures::{self, Expect, HostNode, kernel};
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
    let mut host = HostNode::default();
    let failures: Vec<String> = fixtures::all()
        .iter()
        .filter_map(|fixture| {
            let outcome = host.send(fixture.on, &fixture.frame);
            outcome.and_then(|outcome| fixture.compare(&outcome)).err()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(host.expressed >= 10, "the express lane takes only {}", host.expressed);
}

#[test]
fn in_the_kernel() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let failures = kernel::in_lab(&lab, kernel::check_all)?;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    lab.remove()
}

#[test]
fn explained_in_the_kernel() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let failures = kernel::in_lab(&lab, |node| {
        let mut failures = Vec::new();
        for fixture in fixtures::all() {
            let outcome = node.explain(&fixture).with_context(|| fixture.name)?;
            failures.extend(fixture.compare(&outcome).err());
        }
        Ok(failures)
    })?;
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    lab.remove()
}

#[test]
fn who_does_not_know_the_secret_is_billed() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    kernel::in_lab(&lab, |node| {
        let fixtures = fixtures::all();
        let forwarded = fixtures.iter().find(|fixture| matches!(fixture.expect, Expect::Forward(..)));
        let fixture = forwarded.context("no fixture is forwarded")?;
        // Nothing that a card or another program may leave there makes a frame a trial.
        for front in [&[0; 32][..], &[0xff; 32], &[7; 4], &[0; 16]] {
            let outcome = node.send_behind(front, fixture.on, &fixture.frame)?;
            assert_eq!(outcome, fixture.expect, "behind {front:?}");
        }
        Ok(())
    })?;
    lab.remove()
}

#[test]
fn traced_in_the_kernel() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    kernel::in_lab(&lab, |node| {
        for fixture in fixtures::all() {
            let (outcome, report) = node.trace(&fixture).with_context(|| fixture.name)?;
            let (counter, left) = match &outcome {
                Expect::Forward(frame, _) => (Counter::Forward, frame),
                Expect::Punt(punt, frame, _) => (Counter::Punt(*punt), frame),
                Expect::Pass => (Counter::Pass, &fixture.frame),
                Expect::Drop(reject) => (Counter::Drop(*reject), &fixture.frame),
            };
            let event = &report.event;
            assert_eq!(Counter::at(event.counter), Some(counter), "{}", fixture.name);
            assert_eq!(event.length as usize, fixture.frame.len(), "{}", fixture.name);
            assert_eq!(event.egress != 0, counter == Counter::Forward, "{}", fixture.name);
            let head = fixture.frame.len().min(HEAD);
            assert_eq!(event.head[..head], fixture.frame[..head], "{}", fixture.name);
            assert_eq!(report.frame, left[..left.len().min(MAX_SNAP)], "{}", fixture.name);
            // What follows the head is the same before and after.
            assert_eq!(fixture.frame.get(HEAD..), left.get(HEAD..), "{}", fixture.name);
        }
        Ok(())
    })?;
    lab.remove()
}
