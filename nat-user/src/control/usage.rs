//! The bill, kept up while time passes.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use log::warn;

use super::Control;
use crate::config;
use crate::dataplane::xdp::LastCounts;
use crate::dataplane::{Binding, Dataplane};
use crate::model::{Carried, Change, Closing, Eip, Name, Record, Spec};
use crate::store::{self, Cursor, Noted, Query, Remembered, Store};
use crate::usage::{self, Entries, Ledger, Open, Payer, seconds};

/// How often everything is written down that the meters show: often enough for every byte to be on disk within ten seconds,
/// unless the disk is slow or there are millions of meters.
const FLUSH: Duration = Duration::from_secs(8);

/// Records are only removed after so many rounds that came one after another within this time: a clock that is wrong for a
/// while must not cost bills.
const STEADY_ROUNDS: u32 = 360;
const STEADY_STEP: Duration = Duration::from_mins(1);

/// How often records are removed in a round, [`AT_ONCE`] at a time.
const FORGET_BATCHES: u32 = 8;

/// How many meters are looked at without letting others have their turn.
const PART: u32 = 4096;

/// How many EIPs are read at a time: each time waits for its turn.
const READ_AT_ONCE: usize = 16 * 1024;

/// How many records are removed, or read, at a time.
const AT_ONCE: u32 = 4096;

/// The ledger, and what it is kept by.
#[derive(Debug)]
pub(super) struct Bill {
    pub(super) ledger: Ledger,
    /// Of which meters it speaks.
    meters: [u8; 16],
    config: config::Usage,
    /// When it is to be written the next time.
    due: SystemTime,
    round: Round,
    /// When the last round began that has written everything; before the first one, when the daemon did.
    flushed: SystemTime,
    /// How many rounds have followed each other as they should by the clock.
    steady: u32,
    /// When bindings of EIPs ended, of late.
    ended: HashMap<Ipv4Addr, SystemTime>,
    /// What the start has come to, as long as it cannot be written.
    pending: Option<(Option<Change>, Entries)>,
}

/// A pass over all meters.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: SystemTime,
    has_failed: bool,
}

/// Whom records are asked for that are under way, and how far the others were read.
pub(super) type Page = (Vec<usage::Record>, Option<Cursor>);

/// An EIP, its account, and what it has carried.
pub(super) type Metered = (Ipv4Addr, Name, Carried);

impl Bill {
    /// Takes the ledger up that a store remembers. The datapath has the meters as an earlier daemon has left them, and what
    /// is not desired counts no more; `stood`: whether a binding that is desired stood before.
    pub(super) fn take_up(
        store: &mut Store,
        dataplane: &dyn Dataplane,
        stood: impl Fn(&Binding) -> bool,
        config: config::Usage,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let remembered = store.take_remembered();
        let ledger = ledger_of(&remembered, config, now);
        let Remembered { meters, at, open, readings, .. } = remembered;
        let mut bill = Self {
            ledger,
            meters: dataplane.meters_id(),
            config,
            due: now,
            round: Round { began: now, has_failed: false },
            flushed: now,
            steady: 0,
            ended: HashMap::new(),
            pending: None,
        };
        let (mut entries, mut change) = (Entries::default(), None);
        if meters == bill.meters {
            let goes_on = |meter: u32| match store.model().bindings().get(meter) {
                Some(binding) => stood(&binding),
                // Its counter stands still until it is read for the last time.
                None => store.model().closing_on(meter).is_some(),
            };
            let open = payers(open);
            let known: BTreeSet<u32> =
                open.keys().copied().chain(readings.iter().map(|(meter, _)| *meter)).collect();
            let is_its = |meter: &u32| {
                let payer = open.get(meter);
                goes_on(*meter) && payer.is_none_or(|payer| payer_of(store, *meter).as_ref() == Some(payer))
            };
            // An older state was put back. What has been counted since was counted for whom it was before.
            let others: Vec<u32> = known.into_iter().filter(|meter| !is_its(meter)).collect();
            for (&meter, reading) in others.iter().zip(dataplane.last_readings(&others)?) {
                if let Some(payer) = open.get(&meter) {
                    bill.ledger.end(&mut entries, meter, reading.into(), now, payer, !goes_on(meter));
                } else {
                    bill.ledger.begin(&mut entries, meter, now);
                }
            }
        } else {
            bill.ledger.end_all(&mut entries, at, open);
            if meters.is_empty() {
                bill.leave_out(&mut entries, store, dataplane)?;
            } else {
                // Prometheus takes a counter that goes back for one that has begun at zero, so it had better.
                change = Some(store.model().plan_anew());
                let at = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
                warn!(
                    "the counters have begun anew, as after a restart of the machine: what was carried between {at}, when \
                     the ledger was written last, and their end is on no bill"
                );
            }
        }
        bill.pending = Some((change, entries));
        if let Err(error) = bill.catch_up(store, now) {
            // A full disk is no reason not to forward; it is tried again.
            warn!("the bill cannot be written: {error:#}");
        }
        Ok(bill)
    }

    /// Writes down what the start has come to, if that is still to be done: before anything else is.
    pub(super) fn catch_up(&mut self, store: &mut Store, now: SystemTime) -> anyhow::Result<()> {
        let Some((change, entries)) = self.pending.take() else { return Ok(()) };
        let noted = self.noted(&entries, now);
        let written = match &change {
            Some(change) => store.commit_with(change.clone(), Some(&noted)).map(drop),
            None if entries.is_empty() => Ok(()),
            None => store.note(&noted),
        };
        match written {
            Ok(()) => self.ledger.apply(entries),
            Err(error) => {
                self.pending = Some((change, entries));
                return Err(error);
            }
        }
        Ok(())
    }

    /// A new ledger begins with what is carried from now on: the rest may be on another one, which was taken away.
    fn leave_out(
        &self,
        entries: &mut Entries,
        store: &Store,
        dataplane: &dyn Dataplane,
    ) -> anyhow::Result<()> {
        let meters: Vec<u32> = store.model().bindings().iter().map(|binding| binding.meter).collect();
        let before = entries.readings.len();
        for (meter, reading) in meters.iter().zip(dataplane.last_readings(&meters)?) {
            self.ledger.leave_out(entries, *meter, reading.into());
        }
        if entries.readings.len() > before {
            warn!("the ledger is new: what the counters show already is not on it");
        }
        Ok(())
    }

    /// Writes entries down, and then shows them.
    pub(super) fn note(
        &mut self,
        store: &mut Store,
        entries: Entries,
        now: SystemTime,
    ) -> anyhow::Result<()> {
        if !entries.is_empty() {
            store.note(&self.noted(&entries, now))?;
        }
        self.ledger.apply(entries);
        Ok(())
    }

    pub(super) fn note_end(&mut self, address: Ipv4Addr, now: SystemTime) {
        self.ended.insert(address, now);
    }

    pub(super) fn noted<'a>(&'a self, entries: &'a Entries, now: SystemTime) -> Noted<'a> {
        Noted { entries, ledger: &self.ledger, meters: &self.meters, at: seconds(now) }
    }
}

/// Puts what the counters of a datapath have come to on the bill, before they are taken away: of the store in `directory`, if
/// there is one.
///
/// # Errors
/// If the counters cannot be read, or the store not be written.
pub fn settle(directory: &Path, counts: &LastCounts<'_>) -> anyhow::Result<()> {
    let Some(id) = counts.meters_id().filter(|_| store::exists(directory)) else { return Ok(()) };
    let unsettled = "the counters stay for another try, since what they show last cannot be put on the bill";
    let mut store = Store::open(directory, Spec::default(), u32::MAX).context(unsettled)?;
    let remembered = store.take_remembered();
    if remembered.meters != id {
        return Ok(());
    }
    let now = SystemTime::now();
    // Its intervals do not matter: every record ends here.
    let ledger = ledger_of(&remembered, config::Usage::default(), now);
    let open = payers(remembered.open);
    let mut entries = Entries::default();
    for (meter, reading) in counts.meters(&super::owners(store.model())).context(unsettled)? {
        // Who has the record; the state may be an older one.
        if let Some(payer) = open.get(&meter).cloned().or_else(|| payer_of(&store, meter)) {
            ledger.end(&mut entries, meter, reading.into(), now, &payer, true);
        }
    }
    entries.begin_anew();
    let change = store.model().plan_anew();
    let noted = Noted { entries: &entries, ledger: &ledger, meters: &[], at: seconds(now) };
    store.commit_with(change, Some(&noted)).map(drop).context(unsettled)
}

/// The ledger as it was closed.
fn ledger_of(remembered: &Remembered, config: config::Usage, now: SystemTime) -> Ledger {
    let mut ledger = Ledger::new(config.interval, now);
    let open = remembered.open.iter().map(|(meter, open, _)| (*meter, *open));
    ledger.take_up(
        remembered.serial,
        open,
        remembered.readings.iter().copied(),
        remembered.accounts.iter().cloned(),
    );
    ledger
}

/// Who has the record that is under way on each meter.
fn payers(open: Vec<(u32, Open, Payer)>) -> HashMap<u32, Payer> {
    open.into_iter().map(|(meter, _, payer)| (meter, payer)).collect()
}

fn payer_of(store: &Store, meter: u32) -> Option<Payer> {
    let closing = || store.model().closing_on(meter).map(payer_of_closing);
    store.model().payer(meter).or_else(closing)
}

pub(super) fn payer_of_closing(closing: &Closing) -> Payer {
    Payer { address: closing.address, account: closing.account.clone(), vm: closing.vm.clone() }
}

fn read(dataplane: &dyn Dataplane, meters: &[u32]) -> anyhow::Result<Vec<Carried>> {
    Ok(dataplane.meters(meters)?.into_iter().map(Carried::from).collect())
}

impl Control {
    /// Commits a change with what it means for the bill: new meters begin, and where a VM gets its name while its address is
    /// bound, the record of that splits.
    pub(super) fn commit(&mut self, change: Change, now: SystemTime) -> anyhow::Result<u64> {
        self.bill.catch_up(&mut self.store, now)?;
        let mut entries = Entries::default();
        for meter in change.new_meters() {
            self.bill.ledger.begin(&mut entries, meter, now);
        }
        for edit in change.edits() {
            let (None, Some(Record::Vm(vm))) = (&edit.before, &edit.after) else { continue };
            let eip = self.model().eip_of(vm.private_ip);
            let Some(meter) = eip.and_then(|eip| eip.attached).map(|attached| attached.meter) else {
                continue;
            };
            if let Some(payer) = self.model().payer(meter) {
                let reading = read(&*self.dataplane, &[meter])?[0];
                self.bill.ledger.end(&mut entries, meter, reading, now, &payer, false);
            }
        }
        self.commit_with(change, entries, now)
    }

    /// Commits a change and entries of the ledger, both or neither.
    pub(super) fn commit_with(
        &mut self,
        change: Change,
        entries: Entries,
        now: SystemTime,
    ) -> anyhow::Result<u64> {
        let noted = self.bill.noted(&entries, now);
        let revision = self.store.commit_with(change, Some(&noted))?;
        self.bill.ledger.apply(entries);
        Ok(revision)
    }

    /// In how many parts the bill is to be written, if it is time: see [`Control::flush`].
    pub(super) fn flushes(&mut self, now: SystemTime) -> u32 {
        // A clock that was set back must not put it off.
        let is_due = now >= self.bill.due || self.bill.due > now + FLUSH;
        if !is_due {
            return 0;
        }
        self.bill.due = (now + FLUSH).min(self.bill.ledger.interval_end(now));
        self.flush_parts()
    }

    /// In how many parts the bill is written.
    #[must_use]
    pub fn flush_parts(&self) -> u32 {
        // One at least, so that it is known when there was nothing to write.
        self.model().meters_used().div_ceil(PART).max(1)
    }

    /// Writes a part of the bill: what some meters show.
    pub fn flush(&mut self, part: u32, now: SystemTime) {
        if part == 0 {
            self.bill.round = Round { began: now, has_failed: false };
        }
        if let Err(error) = self.try_flush(part, now) {
            warn!("the bill cannot be written, and is tried again: {error:#}");
            self.bill.round.has_failed = true;
        }
        if part + 1 < self.flush_parts() {
            return;
        }
        self.bill.ended.retain(|_, ended| *ended + config::MAX_ACTIVE_WINDOW >= now);
        let Round { began, has_failed } = self.bill.round;
        if !has_failed {
            let step = began.duration_since(self.bill.flushed);
            let is_steady = step.is_ok_and(|step| step <= STEADY_STEP);
            self.bill.steady = if is_steady { self.bill.steady.saturating_add(1) } else { 0 };
            self.bill.flushed = began;
            self.bill.ledger.looked(began);
        }
        if self.bill.steady >= STEADY_ROUNDS
            && let Err(error) = self.forget_records(now)
        {
            warn!("records that are too old cannot be removed, and stay: {error:#}");
        }
    }

    fn try_flush(&mut self, part: u32, now: SystemTime) -> anyhow::Result<()> {
        self.bill.catch_up(&mut self.store, now)?;
        let bindings = self.model().bindings().on(part * PART..(part + 1) * PART);
        let meters: Vec<u32> = bindings.map(|binding| binding.meter).collect();
        let mut entries = Entries::default();
        for (meter, reading) in meters.iter().copied().zip(read(&*self.dataplane, &meters)?) {
            let payer = || self.model().payer(meter);
            self.bill.ledger.account(&mut entries, meter, reading, now, payer);
        }
        self.bill.note(&mut self.store, entries, now)
    }

    /// Removes records that are too old; if there are very many, more of them the next time.
    fn forget_records(&mut self, now: SystemTime) -> anyhow::Result<()> {
        let before = now.checked_sub(self.bill.config.retention).map_or(0, seconds);
        for _ in 0..FORGET_BATCHES {
            if !self.store.forget_records(before, AT_ONCE)? {
                break;
            }
        }
        Ok(())
    }

    /// When the bill had the last time everything that the meters showed; before the first time, when the daemon began.
    #[must_use]
    pub const fn flushed(&self) -> SystemTime {
        self.bill.flushed
    }

    /// What every account has carried since the counters began, as far as the bill was written.
    #[must_use]
    pub const fn accounts(&self) -> &BTreeMap<Name, Carried> {
        self.bill.ledger.accounts()
    }

    /// Some of the EIPs that were ever attached, from an address on, with what they have carried since the counters began;
    /// and where those after them begin. `active_since`: only those that have carried anything since then.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn metered(
        &self,
        from: Ipv4Addr,
        active_since: Option<SystemTime>,
    ) -> anyhow::Result<(Vec<Metered>, Option<Ipv4Addr>)> {
        let mut eips = self.model().eips_from(from);
        let some: Vec<&Eip> = eips.by_ref().take(READ_AT_ONCE).collect();
        let next = eips.next().map(|eip| eip.address);
        let live: Vec<u32> = some.iter().filter_map(|eip| Some(eip.attached?.meter)).collect();
        let mut live = read(&*self.dataplane, &live)?.into_iter();
        let closing = self.unclosed()?;
        let metered = some.into_iter().filter_map(|eip| {
            let live = eip.attached.and_then(|_| live.next()).unwrap_or_default();
            let closing = closing.get(&eip.address).copied();
            let is_active = |since: SystemTime| {
                let is_counting = |meter| {
                    self.bill.ledger.is_active(meter, since) || self.bill.ledger.reading(meter) != live
                };
                eip.attached.is_some_and(|attached| is_counting(attached.meter))
                    || closing.is_some()
                    || self.bill.ended.get(&eip.address).is_some_and(|ended| *ended >= since)
            };
            let carried = eip.carried.get()?.and(live).and(closing.unwrap_or_default());
            active_since.is_none_or(is_active).then(|| (eip.address, eip.account.clone(), carried))
        });
        Ok((metered.collect(), next))
    }

    /// The records under way that are asked for, as they would stand if they ended now, and where those begin that have
    /// ended.
    ///
    /// # Errors
    /// If the ledger or the datapath cannot be read.
    pub fn usage(&self, query: &Query, now: SystemTime) -> anyhow::Result<Page> {
        anyhow::ensure!(
            self.bill.pending.is_none(),
            "the ledger cannot be written, so it is not up to date; see the log"
        );
        let cursor = self.store.records_from(query)?;
        let model = self.model();
        let meters: Vec<u32> = match query.eip {
            Some(eip) => model.meter_of(eip).into_iter().collect(),
            None => model.bindings().iter().map(|binding| binding.meter).collect(),
        };
        let metered = meters.into_iter().filter_map(|meter| Some((meter, model.payer(meter)?)));
        let metered = metered.filter(|(_, payer)| query.is_about(payer));
        let closing = model.closing().map(|closing| (closing.meter, payer_of_closing(closing)));
        let all: Vec<(u32, Payer)> =
            metered.chain(closing.filter(|(_, payer)| query.is_about(payer))).collect();
        let meters: Vec<u32> = all.iter().map(|(meter, _)| *meter).collect();
        let readings = read(&*self.dataplane, &meters)?;
        let records = all
            .into_iter()
            .zip(readings)
            .filter_map(|((meter, payer), reading)| self.bill.ledger.under_way(meter, reading, now, payer));
        Ok((records.filter(|record| query.wants(record)).collect(), Some(cursor)))
    }

    /// Some of the records that have ended, and where those after them begin.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub fn ended_usage(&self, query: &Query, from: Cursor) -> anyhow::Result<Page> {
        self.store.some_records(query, from, AT_ONCE)
    }
}
