//! The control plane in one piece: a command goes through the model, the store and the datapath, in this order.

mod attached;
mod turns;
mod usage;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use log::{error, info, warn};
use nat_common::abi::Meter;

pub use self::turns::{Shared, call};
use self::usage::Bill;
pub use self::usage::settle;
use crate::config::{self, KeyError};
use crate::dataplane::{AddressDrops, Binding, Dataplane, Half, Mended, Owner, Port, Verdicts, slow_path};
use crate::explain;
use crate::model::{Carried, Change, Closing, Command, ImportError, Line, Model, Record, Refusal, Subject};
use crate::reconcile::{self, Patrol, Survey};
use crate::store::Store;
use crate::usage::Entries;
pub use attached::Attached;

/// How many waiting VMs get their public IP before others have a turn.
const SERVED_AT_ONCE: u32 = 16;

/// Desired and actual state, and what keeps them the same.
pub struct Control {
    store: Store,
    dataplane: Box<dyn Dataplane>,
    /// Why the datapath may not do what the store says, if so.
    fault: Option<String>,
    /// What the datapath stands on and cannot be mended from here.
    drift: Vec<String>,
    /// How often something was mended that the datapath stands on.
    repairs: u64,
    /// When it was the last time, and what.
    last_repair: Option<(SystemTime, String)>,
    /// Looks for bindings in the datapath that somebody else has changed.
    patrol: Patrol,
    bill: Bill,
}

/// What is to be done until the next tick, a part at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounds {
    /// How many times to [`Control::patrol`].
    pub looks: usize,
    /// How many parts of the bill to [`Control::flush`].
    pub parts: u32,
}

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A line of an import cannot be; nothing has changed.
    #[error(transparent)]
    Line(#[from] ImportError),
    /// Something broke.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl Control {
    /// Brings the datapath to the desired state.
    ///
    /// # Errors
    /// If the datapath cannot be read or written, or serves bindings of which a new store knows nothing.
    pub fn start(
        mut store: Store,
        mut dataplane: Box<dyn Dataplane>,
        usage: config::Usage,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        if store.revision() == 0 && dataplane.serves()? {
            let what = "the store is new, but the datapath serves bindings; put a backup in its place with `eipnat store \
                        restore FILE`, or run `eipnat unload` to begin with nothing";
            return Err(KeyError::new("store.path", what).into());
        }
        let mut survey = Survey::of(&mut *dataplane, store.model().bindings())?;
        // In this order: nobody counts any more who should not, then it is read what he came to, and then another one may.
        survey.remove_foreign(&mut *dataplane)?;
        let earlier = dataplane.earlier()?;
        let stood = |binding: &Binding| survey.stood(binding) || earlier.contains(binding);
        let bill = Bill::take_up(&mut store, &*dataplane, stood, usage, now)?;
        reset_foreign_meters(&mut *dataplane, &store, &survey)?;
        let inserted = survey.insert_missing(&mut *dataplane, store.model().bindings())?;
        let steps = survey.foreign().len() + inserted;
        if steps > 0 {
            info!("the datapath differed from the desired state: {steps} steps to mend it");
        }
        drop((survey, earlier));
        dataplane.activate(&owners(store.model()))?;
        let mut control = Self {
            store,
            dataplane,
            fault: None,
            drift: Vec::new(),
            repairs: 0,
            last_repair: None,
            patrol: Patrol::default(),
            bill,
        };
        if let Err(error) = control.close_meters(now) {
            // A full disk is no reason not to forward; it is tried again.
            warn!("{error:#}");
        }
        control.mend();
        Ok(control)
    }

    /// Carries a command out. When it returns, the change is on disk and in force for every packet.
    ///
    /// # Errors
    /// If it is refused, or the datapath fails; then the error says whether it was committed.
    pub fn execute(&mut self, command: &Command, now: SystemTime) -> Result<Subject, Error> {
        // Whoever waits has been there first.
        self.serve_waiting(now);
        let change = self.store.model().plan(command, now)?;
        self.carry_out(change, now)
    }

    /// Carries an import out, whole or not at all, and answers what it did.
    ///
    /// # Errors
    /// As [`Control::execute`].
    pub fn import(&mut self, lines: &[Line], now: SystemTime) -> Result<String, Error> {
        self.serve_waiting(now);
        let change = self.store.model().plan_import(lines, now)?;
        let what = change.to_string();
        self.carry_out(change, now)?;
        Ok(what)
    }

    fn carry_out(&mut self, change: Change, now: SystemTime) -> Result<Subject, Error> {
        for meter in change.new_meters() {
            // Still nobody's, so nothing is lost if the commit fails; after it a crash could bill old traffic.
            self.dataplane.reset_meter(meter).context("a counter cannot be reset; nothing has changed")?;
            self.patrol.forget(meter);
        }
        let held = change.edits().iter().filter_map(|edit| match (&edit.before, &edit.after) {
            (None, Some(Record::Eip(eip))) => Some(eip.address),
            _ => None,
        });
        let held: HashSet<Ipv4Addr> = held.collect();
        if !held.is_empty() {
            // What was dropped before is not the new holders'.
            self.dataplane.forget_drops(&held)?;
        }
        let subject = change.subject.clone();
        let (before, after) = change.bindings();
        let (before, after): (Vec<_>, Vec<_>) = (before.collect(), after.collect());
        if !change.is_nothing() {
            let what = change.to_string();
            let revision = self.commit(change, now)?;
            info!("revision {revision}: {what}");
        }
        let settled = match self.fault {
            None => reconcile::change(&mut *self.dataplane, before, after),
            Some(_) => self.settle_everything(),
        };
        self.note(settled).map_err(|problem| anyhow!("accepted, but not in force yet: {problem}"))?;
        if let Err(error) = self.close_meters(now) {
            // The command is done; what they show is counted until then, and it is tried again.
            warn!("{error:#}");
        }
        Ok(subject)
    }

    /// Reads the meters for the last time whose bindings have ended. The datapath follows the store, so nothing counts
    /// on them any more.
    fn close_meters(&mut self, now: SystemTime) -> anyhow::Result<()> {
        self.bill.catch_up(&mut self.store, now)?;
        let closing: Vec<Closing> = self.model().closing().cloned().collect();
        if closing.is_empty() {
            return Ok(());
        }
        let meters: Vec<u32> = closing.iter().map(|closing| closing.meter).collect();
        let read: Vec<(Closing, Meter)> = closing.into_iter().zip(self.dataplane.meters(&meters)?).collect();
        let mut entries = Entries::default();
        for (closing, reading) in &read {
            let (reading, payer) = (Carried::from(*reading), usage::payer_of_closing(closing));
            self.bill.ledger.end(&mut entries, closing.meter, reading, now, &payer, true);
            self.bill.note_end(closing.address, now);
        }
        let change = self.model().plan_close(&read);
        self.commit_with(change, entries, now).context("counters cannot be written down yet")?;
        Ok(())
    }

    /// Gives public IPs to VMs that wait for one, as far as there are any.
    fn serve_waiting(&mut self, now: SystemTime) {
        for _ in 0..SERVED_AT_ONCE {
            let Some(change) = self.model().plan_waiting(now) else { return };
            if let Err(error) = self.carry_out(change, now) {
                return warn!("a VM goes on waiting for its public IP: {error}");
            }
        }
    }

    /// What time brings: what the datapath stands on is mended, what failed is tried again, meters are closed, waiting VMs
    /// are served. Answers what is to be done before the next one.
    pub fn tick(&mut self, now: SystemTime) -> Rounds {
        self.mend();
        if self.fault.is_some() {
            let settled = self.settle_everything();
            if self.note(settled).is_err() {
                return Rounds { looks: 0, parts: self.flushes(now) };
            }
            info!("the datapath does again what revision {} says", self.store.revision());
        }
        if let Err(error) = self.close_meters(now) {
            warn!("{error:#}");
        }
        self.serve_waiting(now);
        Rounds { looks: self.patrol.looks(self.store.model()), parts: self.flushes(now) }
    }

    /// Looks at some of the bindings in the datapath, and puts right what somebody else has changed.
    pub fn patrol(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let looked = self.patrol.look(&*self.dataplane, self.store.model());
        let wrong = looked.as_ref().map_or(&[][..], Vec::as_slice);
        if looked.is_ok() && wrong.is_empty() {
            return;
        }
        let what = format!("bindings that somebody else has changed: {}", some_of(wrong));
        let settled = looked.and_then(|wrong| self.put_right(wrong));
        if self.note(settled).is_ok() {
            self.repaired(&what, SystemTime::now());
        }
    }

    /// Brings what stands at the addresses of these bindings to the desired state.
    fn put_right(&mut self, wrong: Vec<Binding>) -> anyhow::Result<()> {
        let publics: HashSet<Ipv4Addr> = wrong.iter().map(|binding| binding.public_ip).collect();
        let privates: HashSet<Ipv4Addr> = wrong.iter().map(|binding| binding.private_ip).collect();
        let is_touched = |b: &Binding| publics.contains(&b.public_ip) || privates.contains(&b.private_ip);
        let desired = self.store.model().bindings().iter().filter(is_touched).collect();
        reconcile::change(&mut *self.dataplane, wrong, desired)
    }

    fn settle_everything(&mut self) -> anyhow::Result<()> {
        reconcile::everything(&mut *self.dataplane, self.store.model().bindings())
    }

    fn repaired(&mut self, what: &str, now: SystemTime) {
        warn!("repaired: {what}");
        self.repairs += 1;
        self.last_repair = Some((now, what.to_owned()));
    }

    fn mend(&mut self) {
        let Mended { repaired, problems } = self.dataplane.mend().unwrap_or_else(|error| Mended {
            problems: vec![format!("the datapath cannot be looked at: {error:#}")],
            ..Mended::default()
        });
        for what in &repaired {
            self.repaired(what, SystemTime::now());
        }
        for problem in problems.iter().filter(|problem| !self.drift.contains(problem)) {
            error!("{problem}");
        }
        for problem in self.drift.iter().filter(|problem| !problems.contains(problem)) {
            info!("no longer: {problem}");
        }
        self.drift = problems;
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

    /// Everything on account of which the datapath may not do what the store says.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.fault.iter().chain(&self.drift).cloned().collect()
    }

    /// How the slow path does.
    ///
    /// # Errors
    /// If its counters cannot be read.
    pub fn slow_path(&self) -> anyhow::Result<slow_path::Report> {
        self.dataplane.slow_path()
    }

    /// How often something was mended that the datapath stands on.
    #[must_use]
    pub const fn repairs(&self) -> u64 {
        self.repairs
    }

    /// When something was mended the last time, and what.
    #[must_use]
    pub fn last_repair(&self) -> Option<&(SystemTime, String)> {
        self.last_repair.as_ref()
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

    /// The drops that are remembered of a public address.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn drops(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>> {
        self.dataplane.drops(address)
    }

    /// What one EIP has carried.
    ///
    /// # Errors
    /// If it is none, or the datapath cannot be read.
    pub fn carried(&self, address: Ipv4Addr) -> Result<Carried, Error> {
        let eip = self.model().eip(address)?;
        let live = self.dataplane.meters(eip.attached.map(|attached| attached.meter).as_slice())?;
        let live = live.into_iter().next().unwrap_or_default();
        let unclosed = self.unclosed()?.get(&address).copied().unwrap_or_default();
        Ok(eip.carried.get().unwrap_or_default().plus(live).and(unclosed))
    }

    /// What meters show that are still to be closed, by address.
    fn unclosed(&self) -> anyhow::Result<HashMap<Ipv4Addr, Carried>> {
        let closing: Vec<&Closing> = self.model().closing().filter(|closing| closing.of_eip).collect();
        let meters: Vec<u32> = closing.iter().map(|closing| closing.meter).collect();
        let meters = self.dataplane.meters(&meters)?;
        let mut all = HashMap::<_, Carried>::new();
        for (closing, meter) in closing.iter().zip(meters) {
            let carried = all.entry(closing.address).or_default();
            *carried = carried.plus(meter);
        }
        Ok(all)
    }

    /// What would become of a packet, and why.
    ///
    /// # Errors
    /// If the question makes no sense, or the datapath cannot be asked.
    pub fn explain(&mut self, question: &explain::Question) -> Result<explain::Explanation, explain::Error> {
        explain::explain(&mut *self.dataplane, self.store.model(), question)
    }

    /// The addresses that a public address shows itself by: its own and, if it is bound, the private one.
    ///
    /// # Errors
    /// If nobody has it.
    pub fn shown_by(&self, public_ip: Ipv4Addr) -> Result<Vec<Ipv4Addr>, Error> {
        let bound = self.dataplane.inbound(public_ip)?;
        if bound.is_none() {
            self.model().eip(public_ip)?;
        }
        Ok([Some(public_ip), bound.map(|binding| binding.private_ip)].into_iter().flatten().collect())
    }

    /// A copy of the store.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn backup(&mut self) -> anyhow::Result<Vec<u8>> {
        self.store.backup()
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

/// Sets the meters to zero that have counted for another binding than the store says, or for none: after a restore.
fn reset_foreign_meters(dataplane: &mut dyn Dataplane, store: &Store, survey: &Survey) -> anyhow::Result<()> {
    for binding in store.model().bindings().iter().filter(|binding| !survey.stood(binding)) {
        dataplane.reset_meter(binding.meter)?;
    }
    let closing: HashMap<u32, Ipv4Addr> =
        store.model().closing().map(|closing| (closing.meter, closing.address)).collect();
    for binding in survey.foreign().iter().map(Half::binding) {
        if closing.get(&binding.meter).is_some_and(|address| *address != binding.public_ip) {
            dataplane.reset_meter(binding.meter)?;
        }
    }
    Ok(())
}

/// Whom each meter counts for.
fn owners(model: &Model) -> impl Fn(u32) -> Option<Owner> {
    |meter| {
        let closing = || model.closing_on(meter).map(|closing| Owner::Closing(closing.address));
        model.bindings().get(meter).map(Owner::Binding).or_else(closing)
    }
}

/// The first few of many bindings, for people.
fn some_of(bindings: &[Binding]) -> String {
    const SHOWN: usize = 3;
    let pair = |binding: &Binding| format!("{} = {}", binding.public_ip, binding.private_ip);
    let some = bindings.iter().take(SHOWN).map(pair).collect::<Vec<_>>().join(", ");
    match bindings.len().saturating_sub(SHOWN) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
