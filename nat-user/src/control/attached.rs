//! The counters of all EIPs, some of them at a time: commands have their turn in between, and a million of them are
//! not in memory twice.

use std::net::Ipv4Addr;

use nat_common::abi::Meter;

use super::Control;
use crate::model::Eip;

/// An EIP, and the meter that counts for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The public address.
    pub eip: Ipv4Addr,
    /// Index of its meter.
    pub meter: u32,
}

impl Attached {
    fn of(eip: &Eip) -> Option<Self> {
        Some(Self { eip: eip.address, meter: eip.attached?.meter })
    }
}

impl Control {
    /// Those of the `count` EIPs from an address on that are attached; and from where it goes on, if there are more.
    #[must_use]
    pub fn attached_from(&self, from: Ipv4Addr, count: usize) -> (Vec<Attached>, Option<Ipv4Addr>) {
        let mut eips = self.model().eips_from(from);
        let some = eips.by_ref().take(count).filter_map(Attached::of).collect();
        (some, eips.next().map(|eip| eip.address))
    }

    /// What the meters of these EIPs show; those that have another one by now, or none, are left out.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn metered_of(&self, these: &[Attached]) -> anyhow::Result<Vec<(Attached, Meter)>> {
        let is_still_so =
            |one: &&Attached| self.model().eip(one.eip).ok().and_then(Attached::of) == Some(**one);
        let still: Vec<Attached> = these.iter().filter(is_still_so).copied().collect();
        let meters: Vec<u32> = still.iter().map(|one| one.meter).collect();
        Ok(still.into_iter().zip(self.dataplane.meters(&meters)?).collect())
    }
}
