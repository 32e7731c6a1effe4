//! Thousands of generated packets through `BPF_PROG_TEST_RUN`: verdict, bytes and meters are those of the translator
//! on the host, for every one of them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use proptest::prelude::*;
use tests::fixtures::{HostNode, kernel};
use tests::lab::{Lab, Topology};
use tests::reference::generate::{any_case, noise, plain_case, seed, stream};

/// How long packets are sent.
const TIME: Duration = Duration::from_secs(15);

/// Fewest packets that tell anything.
const ENOUGH: usize = 5_000;

/// `EIPNAT_SEED` repeats a run, `EIPNAT_FUZZ_SECONDS` makes it longer.
#[test]
fn kernel_and_host_agree() -> Result<()> {
    let seed = seed(std::time::UNIX_EPOCH.elapsed()?.as_secs());
    let time = match std::env::var("EIPNAT_FUZZ_SECONDS") {
        Ok(seconds) => Duration::from_secs(seconds.parse()?),
        Err(_) => TIME,
    };
    println!("EIPNAT_SEED={seed} repeats this run");
    let lab = Lab::new(Topology::TwoArmed)?;
    let sent = kernel::in_lab(&lab, |node| {
        let cases = stream(seed, prop_oneof![6 => any_case(), 1 => plain_case(), 1 => noise()]);
        let end = Instant::now() + time;
        let mut host = HostNode::default();
        let mut sent = 0;
        for case in cases.take_while(|_| Instant::now() < end) {
            let expected = host.send(case.on, &case.frame).map_err(anyhow::Error::msg)?;
            match node.send(case.on, &case.frame) {
                Ok(outcome) if outcome == expected => sent += 1,
                outcome => bail!(
                    "EIPNAT_SEED={seed}, packet {sent}: {case:?}\n on the host   {expected}\n in the kernel {}",
                    outcome.map_or_else(|error| format!("{error:#}"), |outcome| outcome.to_string()),
                ),
            }
        }
        Ok(sent)
    })?;
    println!("{sent} packets");
    ensure!(sent >= ENOUGH || time < TIME, "only {sent} packets in {time:?}");
    lab.remove()
}
