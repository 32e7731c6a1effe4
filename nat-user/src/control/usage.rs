//! The bill, kept up while time passes.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use log::warn;

use super::Control;
use crate::config;
use crate::dataplane::Dataplane;
use crate::dataplane::xdp::LastCounts;
use crate::model::{Carried, Change, Closing, Eip, Name, Record, Spec};
use crate::store::{self, Cursor, Noted, Query, Remembered, Store};
use crate::usage::{self, Entries, Ledger, Payer, seconds};

/// How often everything is written down that the meters show.
const FLUSH: Duration = Duration::from_secs(10);

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
    /// When everything had been written the last time.
    flushed: Option<SystemTime>,
    /// When bindings of EIPs ended, of late.
    ended: HashMap<Ipv4Addr, SystemTime>,
}

/// Whom records are asked for that are under way, and how far the others were read.
pub(super) type Page = (Vec<usage::Record>, Option<Cursor>);

/// An EIP, its account, and what it has carried.
pub(super) type Metered = (Ipv4Addr, Name, Carried);

impl Bill {
    /// Takes the ledger up that a store remembers. The datapath has the meters as an earlier daemon has left them.
    pub(super) fn take_up(
        store: &mut Store,
        dataplane: &dyn Dataplane,
        config: config::Usage,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let Remembered { meters, at, open, readings, accounts } = store.take_remembered();
        let mut ledger = Ledger::new(config.interval, now);
        ledger.take_up(open.iter().map(|(meter, open, _)| (*meter, *open)), readings, accounts);
        let mut bill = Self {
            ledger,
            meters: dataplane.meters_id(),
            config,
            due: now,
            flushed: None,
            ended: HashMap::new(),
        };
        let mut entries = Entries::default();
        if meters == bill.meters {
            for (meter, _, payer) in open {
                if payer_of(store, meter).as_ref() != Some(&payer) {
                    // A backup of the state was put back. What has been counted since was counted for whom it was before.
                    let reading = read(dataplane, &[meter])?[0];
                    bill.ledger.end(&mut entries, meter, reading, now, &payer, false);
                }
            }
        } else {
            bill.ledger.end_all(&mut entries, at, open);
            if meters.is_empty() {
                bill.leave_out(&mut entries, store, dataplane)?;
            } else {
                // Prometheus takes a counter that goes back for one that has begun at zero, so it had better.
                store.commit(store.model().plan_anew())?;
                let at = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
                warn!(
                    "the counters have begun anew, as after a restart of the machine: what was carried between {at}, when \
                     the ledger was written last, and their end is on no bill"
                );
            }
        }
        bill.note(store, entries, now)?;
        Ok(bill)
    }

    /// A new ledger begins with what is carried from now on: the rest may be on another one, which was taken away.
    fn leave_out(
        &self,
        entries: &mut Entries,
        store: &Store,
        dataplane: &dyn Dataplane,
    ) -> anyhow::Result<()> {
        let meters: Vec<u32> = store.model().metered(0..store.model().meters_used()).collect();
        let before = entries.readings.len();
        for (meter, reading) in meters.iter().zip(read(dataplane, &meters)?) {
            self.ledger.leave_out(entries, *meter, reading);
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
    let unsettled = "what was carried since the ledger was written last is on no bill";
    let mut store = Store::open(directory, Spec::default(), u32::MAX).context(unsettled)?;
    let Remembered { meters, open, readings, accounts, .. } = store.take_remembered();
    if meters != id {
        return Ok(());
    }
    let now = SystemTime::now();
    // Its intervals do not matter: every record ends here.
    let mut ledger = Ledger::new(config::Usage::default().interval, now);
    ledger.take_up(open.iter().map(|(meter, open, _)| (*meter, *open)), readings, accounts);
    let mut entries = Entries::default();
    for (meter, reading) in counts.meters(&super::owners(store.model())).context(unsettled)? {
        if let Some(payer) = payer_of(&store, meter) {
            ledger.end(&mut entries, meter, reading.into(), now, &payer, true);
        }
    }
    entries.begin_anew();
    let change = store.model().plan_anew();
    let noted = Noted { entries: &entries, ledger: &ledger, meters: &[], at: seconds(now) };
    store.commit_with(change, Some(&noted)).map(drop).context(unsettled)
}

fn payer_of(store: &Store, meter: u32) -> Option<Payer> {
    let closing = || store.model().closing().find(|closing| closing.meter == meter).map(payer_of_closing);
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
        let seconds = self.bill.config.interval.as_secs();
        let next = Duration::from_secs((usage::seconds(now) / seconds + 1) * seconds);
        self.bill.due = (now + FLUSH).min(SystemTime::UNIX_EPOCH + next);
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
        let is_last = part + 1 >= self.flush_parts();
        let flushed =
            self.try_flush(part, now).and_then(|()| if is_last { self.forget_records(now) } else { Ok(()) });
        match flushed {
            Ok(()) if is_last => self.bill.flushed = Some(now),
            Ok(()) => {}
            Err(error) => warn!("the bill cannot be written, and is tried again: {error:#}"),
        }
    }

    fn try_flush(&mut self, part: u32, now: SystemTime) -> anyhow::Result<()> {
        let meters: Vec<u32> = self.model().metered(part * PART..(part + 1) * PART).collect();
        let mut entries = Entries::default();
        for (meter, reading) in meters.iter().copied().zip(read(&*self.dataplane, &meters)?) {
            let payer = || self.model().payer(meter);
            self.bill.ledger.account(&mut entries, meter, reading, now, payer);
        }
        self.bill.note(&mut self.store, entries, now)
    }

    /// Removes records that are too old; more of them the next time.
    fn forget_records(&mut self, now: SystemTime) -> anyhow::Result<()> {
        self.bill.ended.retain(|_, ended| *ended + config::MAX_ACTIVE_WINDOW >= now);
        let before = now.checked_sub(self.bill.config.retention).map_or(0, seconds);
        self.store.forget_records(before, AT_ONCE).map(drop)
    }

    /// When the bill was written the last time, everything that the meters showed.
    #[must_use]
    pub const fn flushed(&self) -> Option<SystemTime> {
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
            let carried = eip.carried?.and(live).and(closing.unwrap_or_default());
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
        let cursor = self.store.records_from(query)?;
        let model = self.model();
        let meters: Vec<u32> = match query.eip {
            Some(eip) => model.meter_of(eip).into_iter().collect(),
            None => model.metered(0..model.meters_used()).collect(),
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
