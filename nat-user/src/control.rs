//! The control plane in one piece: a command goes through the model, the store and the datapath, in this order.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use log::{error, info};
use nat_common::abi::Meter;

use crate::dataplane::{Dataplane, Port, Verdicts};
use crate::model::{Command, Eip, Model, PoolSpec, Refusal};
use crate::reconcile;
use crate::store::Store;

/// Desired and actual state, and what keeps them the same.
pub struct Control {
    store: Store,
    dataplane: Box<dyn Dataplane>,
    /// Why the datapath may not do what the store says, if so.
    fault: Option<String>,
}

/// A [`Control`] that many requests share. Its calls write to maps and wait for the kernel, so they belong on a
/// thread that may block: [`call`].
pub type Shared = Arc<Mutex<Control>>;

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something broke.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Control {
    /// Brings the datapath to the desired state.
    ///
    /// # Errors
    /// If the datapath cannot be read or written.
    pub fn start(pools: Vec<PoolSpec>, mut dataplane: Box<dyn Dataplane>) -> anyhow::Result<Self> {
        let store = Store::new(Model::new(pools, dataplane.capacity()));
        let steps = reconcile::everything(&mut *dataplane, store.model().bindings())?;
        if !steps.is_empty() {
            info!("the datapath differed from the desired state: {} steps to mend it", steps.len());
        }
        Ok(Self { store, dataplane, fault: None })
    }

    /// Carries a command out. When it returns, the change is committed and in force for every packet.
    ///
    /// # Errors
    /// If it is refused, or the datapath fails; then the error says whether it was committed.
    pub fn execute(&mut self, command: &Command, now: SystemTime) -> Result<Eip, Error> {
        let change = self.store.model().plan(command, now)?;
        let (eip, (before, after)) = (change.eip().clone(), change.bindings());
        if let Some(meter) = change.new_meter() {
            // Still nobody's, so nothing is lost if the commit fails; after it a crash could bill old traffic.
            self.dataplane.reset_meter(meter).context("a counter cannot be reset; nothing has changed")?;
        }
        if !change.is_nothing() {
            let what = change.to_string();
            let revision = self.store.commit(change);
            info!("revision {revision}: {what}");
        }
        let settled = match self.fault {
            None => reconcile::change(&mut *self.dataplane, before, after),
            Some(_) => reconcile::everything(&mut *self.dataplane, self.store.model().bindings()),
        };
        self.note(settled.map(drop))
            .map_err(|problem| anyhow!("accepted, but not in force yet: {problem}"))?;
        Ok(eip)
    }

    /// Tries again where the datapath failed before.
    pub fn repair(&mut self) {
        if self.fault.is_some() {
            let settled = reconcile::everything(&mut *self.dataplane, self.store.model().bindings());
            if self.note(settled.map(drop)).is_ok() {
                info!("the datapath does again what revision {} says", self.store.revision());
            }
        }
    }

    /// The desired state.
    #[must_use]
    pub const fn model(&self) -> &Model {
        self.store.model()
    }

    /// The revision of the desired state.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// Why the datapath may not do what the store says, if so.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The interfaces that the datapath serves.
    #[must_use]
    pub fn ports(&self) -> Vec<Port> {
        self.dataplane.ports()
    }

    /// Packets by outcome.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn verdicts(&self) -> anyhow::Result<Verdicts> {
        self.dataplane.verdicts()
    }

    /// Every EIP that has counters, with what it has carried.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn metered(&self) -> anyhow::Result<Vec<(&Eip, Meter)>> {
        let (eips, meters): (Vec<&Eip>, Vec<u32>) =
            self.model().eips().filter_map(|eip| Some((eip, eip.meter?))).unzip();
        Ok(eips.into_iter().zip(self.dataplane.meters(&meters)?).collect())
    }

    /// What one EIP has carried.
    ///
    /// # Errors
    /// If it is none, or the datapath cannot be read.
    pub fn meter(&self, address: Ipv4Addr) -> Result<Meter, Error> {
        let meter = self.model().eip(address)?.meter;
        Ok(self.dataplane.meters(meter.as_slice())?.pop().unwrap_or_default())
    }

    /// Remembers whether the datapath follows.
    fn note(&mut self, settled: anyhow::Result<()>) -> Result<(), String> {
        self.fault = settled.err().map(|cause| {
            let problem = format!("the datapath lags behind revision {}: {cause:#}", self.store.revision());
            error!("{problem}");
            problem
        });
        self.fault.clone().map_or(Ok(()), Err)
    }
}

/// Runs `work` on the control plane, on a thread that may block.
///
/// # Errors
/// If `work` panicked, or an earlier call did and left the state in doubt.
pub async fn call<T: Send + 'static>(
    control: &Shared,
    work: impl FnOnce(&mut Control) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let control = Arc::clone(control);
    let locked = move || control.lock().map(|mut control| work(&mut control)).ok();
    let done = tokio::task::spawn_blocking(locked).await.ok().flatten();
    done.context("the daemon has hit a bug and its state is in doubt; see its log, and restart it")
}

#[cfg(test)]
mod tests;
