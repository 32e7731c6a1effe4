//! A datapath in memory, for tests: it forwards nothing, remembers what it was told, and is as particular about the
//! order of writes as the kernel is.

mod trials;

use std::collections::{BTreeMap, HashSet};
use std::mem::discriminant;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{bail, ensure};
use nat_common::abi::Meter;
use nat_common::verdict::{Punt, Reject};

pub use self::trials::Trace;
use super::trace::Tracer;
use super::{
    AddressDrops, Binding, Dataplane, Half, Mended, Mode, Owners, Place, Port, Role, Verdicts, slow_path,
};
use crate::model;

/// A call that changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Dataplane::insert`].
    Insert(Half),
    /// [`Dataplane::remove`] of a half that was there.
    Remove(Half),
    /// [`Dataplane::quiesce`].
    Quiesce,
    /// [`Dataplane::reset_meter`].
    ResetMeter(u32),
}

/// A datapath in memory. A clone is another handle on the same one, so that a test can look on.
#[derive(Clone, Debug)]
pub struct MemoryDataplane(Arc<Mutex<State>>);

/// What stands in a [`MemoryDataplane`].
#[derive(Debug)]
pub struct State {
    /// Inbound halves by public address.
    pub inbound: BTreeMap<Ipv4Addr, Binding>,
    /// Outbound halves by tenant and private address.
    pub outbound: BTreeMap<(u32, Ipv4Addr), Binding>,
    /// How many bindings there is room for.
    capacity: u32,
    /// Counters by meter index.
    pub meters: Vec<Meter>,
    /// What they are told from others by.
    pub meters_id: [u8; 16],
    /// Drops that are remembered, by public address.
    pub drops: BTreeMap<Ipv4Addr, Vec<AddressDrops>>,
    /// Packet counters.
    pub verdicts: Verdicts,
    /// Every change so far, in order.
    pub events: Vec<Event>,
    /// Whether every write fails from now on.
    pub broken: bool,
    /// Whether [`Dataplane::activate`] has been called.
    pub active: bool,
    /// What the next [`Dataplane::mend`] answers. The repairs are answered once, the problems until they are taken out.
    pub drift: Mended,
    /// What it reports.
    pub trace: Trace,
    /// What it says of its slow path.
    pub slow_path: slow_path::Report,
    /// Whether something was removed or replaced since the last [`Dataplane::quiesce`].
    unsettled: bool,
}

impl MemoryDataplane {
    /// A datapath without bindings that has room for `capacity` of them.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let verdicts = Verdicts {
            punts: Punt::ALL.iter().map(|punt| (*punt, 0)).collect(),
            drops: Reject::ALL.iter().map(|reject| (*reject, 0)).collect(),
            ..Verdicts::default()
        };
        Self(Arc::new(Mutex::new(State {
            inbound: BTreeMap::new(),
            outbound: BTreeMap::new(),
            capacity,
            meters: vec![Meter::default(); model::meters(capacity) as usize],
            meters_id: [7; 16],
            drops: BTreeMap::new(),
            verdicts,
            events: Vec::new(),
            broken: false,
            active: false,
            drift: Mended::default(),
            trace: Trace::default(),
            slow_path: slow_path::Report::default(),
            unsettled: false,
        })))
    }

    /// What stands in it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writable(&self) -> anyhow::Result<MutexGuard<'_, State>> {
        let state = self.state();
        ensure!(!state.broken, "the datapath in memory was told to fail");
        Ok(state)
    }
}

impl State {
    /// Every half that stands.
    #[must_use]
    pub fn halves(&self) -> Vec<Half> {
        let inbound = self.inbound.values().copied().map(Half::Inbound);
        inbound.chain(self.outbound.values().copied().map(Half::Outbound)).collect()
    }
}

impl Dataplane for MemoryDataplane {
    fn some_halves(&self, place: Place, count: u32) -> anyhow::Result<(Vec<Half>, Option<Place>)> {
        let state = self.state();
        // A place is the address that comes next, so that it stays one when others go.
        let from = Ipv4Addr::from(place.at);
        let (keys, mut halves): (Vec<Ipv4Addr>, Vec<Half>) = if place.is_outbound {
            state.outbound.range((0, from)..).map(|((_, key), value)| (key, Half::Outbound(*value))).unzip()
        } else {
            state.inbound.range(from..).map(|(key, value)| (key, Half::Inbound(*value))).unzip()
        };
        let next = keys.get(count as usize).copied().map(u32::from);
        halves.truncate(count as usize);
        Ok((halves, place.after(next)))
    }

    fn serves(&self) -> anyhow::Result<bool> {
        Ok(!self.state().halves().is_empty())
    }

    fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        Ok(self.state().inbound.get(&public_ip).copied())
    }

    fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        Ok(self.state().outbound.get(&(tenant, private_ip)).copied())
    }

    fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()> {
        let mut state = self.writable()?;
        for &half in halves {
            let is_of_kind = discriminant(&half) == discriminant(&halves[0]);
            ensure!(is_of_kind, "{half:?} written along with halves of the other kind");
            ensure!(!state.unsettled, "{half:?} written while packets may still see what stood in its place");
            let replaced = match half {
                Half::Inbound(binding) => state.inbound.insert(binding.public_ip, binding),
                Half::Outbound(binding) => {
                    state.outbound.insert((binding.tenant, binding.private_ip), binding)
                }
            };
            state.unsettled = replaced.is_some();
            state.events.push(Event::Insert(half));
        }
        Ok(())
    }

    fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        let mut state = self.writable()?;
        let removed = match half {
            Half::Inbound(binding) => state.inbound.remove(&binding.public_ip),
            Half::Outbound(binding) => state.outbound.remove(&(binding.tenant, binding.private_ip)),
        };
        if removed.is_some() {
            state.unsettled = true;
            state.events.push(Event::Remove(half));
        }
        Ok(())
    }

    fn quiesce(&mut self) -> anyhow::Result<()> {
        let mut state = self.writable()?;
        state.unsettled = false;
        state.events.push(Event::Quiesce);
        Ok(())
    }

    fn activate(&mut self, _: &Owners<'_>) -> anyhow::Result<()> {
        self.writable()?.active = true;
        Ok(())
    }

    fn mend(&mut self) -> anyhow::Result<Mended> {
        let mut state = self.writable()?;
        let repaired = std::mem::take(&mut state.drift.repaired);
        Ok(Mended { repaired, problems: state.drift.problems.clone() })
    }

    fn meters(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        let state = self.state();
        let Some(values) = meters.iter().map(|meter| state.meters.get(*meter as usize).copied()).collect()
        else {
            bail!("a meter of {meters:?} is out of range");
        };
        Ok(values)
    }

    fn reset_meter(&mut self, meter: u32) -> anyhow::Result<()> {
        let mut state = self.writable()?;
        let Some(value) = state.meters.get_mut(meter as usize) else {
            bail!("meter {meter} is out of range")
        };
        *value = Meter::default();
        state.events.push(Event::ResetMeter(meter));
        Ok(())
    }

    fn meters_id(&self) -> [u8; 16] {
        self.state().meters_id
    }

    fn drops(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>> {
        Ok(self.state().drops.get(&address).cloned().unwrap_or_default())
    }

    fn forget_drops(&mut self, addresses: &HashSet<Ipv4Addr>) -> anyhow::Result<()> {
        self.state().drops.retain(|address, _| !addresses.contains(address));
        Ok(())
    }

    fn verdicts(&self) -> anyhow::Result<Verdicts> {
        Ok(self.state().verdicts.clone())
    }

    fn slow_path(&self) -> anyhow::Result<slow_path::Report> {
        Ok(self.state().slow_path.clone())
    }

    fn ports(&self) -> Vec<Port> {
        let port = |name: &str, role| Port { name: name.to_owned(), role, mode: Mode::Native };
        vec![port("up0", Role::Uplink), port("dn0", Role::Downlink)]
    }

    fn capacity(&self) -> u32 {
        self.state().capacity
    }
    fn take_tracer(&mut self) -> Option<Box<dyn Tracer>> {
        Some(Box::new(trials::MemoryTracer(self.clone())))
    }
}
