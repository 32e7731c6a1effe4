//! The datapath's end.

use std::collections::BTreeMap;
use std::path::Path;

use log::debug;
use nat_common::abi::Meter;

use super::bpffs::{self, PinLock};
use super::findings::Findings;
use super::generations::{self, Generation, Sums};
use super::{checks, ports, quiesce, sysctls};
#[cfg(doc)]
use crate::dataplane::Dataplane;
use crate::dataplane::Owners;

/// Detaches the program from its interfaces, puts their sysctls back and removes everything under `pin_path`. A
/// daemon that runs on it is asked to end first. Fine if there is nothing. When no packet is counted any more, `settle` may
/// read the counters for the last time.
///
/// # Errors
/// If the daemon does not end, or something cannot be removed.
pub fn unload(
    pin_path: &Path,
    settle: impl FnOnce(&LastCounts<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    checks::root()?;
    if !bpffs::is_bpffs(pin_path) {
        debug!("nothing is pinned at {}", pin_path.display());
        return Ok(());
    }
    let _lock = PinLock::take_from_daemon(pin_path)?;
    remove(pin_path, 0, settle)
}

/// What a datapath has counted whose program is off.
#[derive(Debug)]
pub struct LastCounts<'a>(&'a [&'a Generation]);

impl LastCounts<'_> {
    /// What its meters are told from others by: [`Dataplane::meters_id`]; `None` if there are none.
    #[must_use]
    pub fn meters_id(&self) -> Option<[u8; 16]> {
        self.0.last().map(|generation| generation.node.id)
    }

    /// What each meter shows that counts for whom it is to count.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn meters(&self, owners: &Owners<'_>) -> anyhow::Result<BTreeMap<u32, Meter>> {
        let first = self.0.iter().rposition(|generation| generation.is_current()).unwrap_or(0);
        let mut sums = Sums::default();
        self.0[first..].iter().try_for_each(|generation| generation.add_to(&mut sums, owners))?;
        Ok(sums.meters)
    }
}

/// Takes the datapath under `pin_path` apart. What cannot be undone is no reason to leave the rest; it is told in the end.
/// The caller holds the lock.
pub(super) fn remove(
    pin_path: &Path,
    directories_made: u8,
    settle: impl FnOnce(&LastCounts<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut findings = Findings::default();
    generations::restore_pins(pin_path, &mut findings);
    let generations = Generation::all(pin_path).unwrap_or_else(|error| {
        findings.fail(error);
        Vec::new()
    });
    let open: Vec<&Generation> = generations.iter().filter(|generation| generation.is_open()).collect();
    let mut told = BTreeMap::new();
    for generation in open.iter().rev() {
        findings.check(generation.ports().map(|ports| told.extend(ports)));
    }
    ports::detach_all(pin_path, &told, &mut findings);
    if let Err(error) = quiesce().and_then(|()| settle(&LastCounts(&open))) {
        // The program is off. What it has counted is there for another try.
        findings.fail(error);
        return findings.ended();
    }
    if let Some(first) = open.first() {
        let node = first.node;
        findings.check(sysctls::set_all_send_redirects(node.all_send_redirects_before).map(drop));
        findings.check(sysctls::restore_ip_no_pmtu_disc(node.ip_no_pmtu_disc_before));
    }
    let made = open.iter().map(|generation| generation.node.directories_made).max();
    for generation in &generations {
        findings.check(generation.discard());
    }
    findings.check(bpffs::remove(pin_path, directories_made.max(made.unwrap_or(0))));
    findings.ended()
}
