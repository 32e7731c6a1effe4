//! The bill: what each public address has carried, for whom and when.
//!
//! A meter of the datapath only grows while a binding lasts. The [`Ledger`] remembers how much of it is accounted for, its
//! *reading*, and at which reading the record began that is under way, its *base*. What a record comes to is the difference,
//! so a byte is in exactly one record, whenever the daemon dies: the meters go on without it, and readings, bases and
//! records are written in one transaction with the command that ends a record.
//!
//! **Invariant:** nothing in here does I/O or looks at a clock. What is to be remembered is put together as [`Entries`], the
//! store writes these down, and only then [`Ledger::apply`] shows them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use crate::model::{Carried, Name};

/// Seconds since 1970, UTC.
pub type Seconds = u64;

/// By how much a record may end late and still end with its interval. Whatever is later was not looked at in time, and is
/// in a record that says so.
const ON_TIME: Seconds = 60;

/// Seconds since 1970 of a time; those of an earlier one are 0.
#[must_use]
pub fn seconds(time: SystemTime) -> Seconds {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// On whose account traffic goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payer {
    /// The public address.
    pub address: Ipv4Addr,
    /// Who pays.
    pub account: Name,
    /// The VM that the address stood for, if it had a name.
    pub vm: Option<Name>,
}

/// What was carried for somebody from one time to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// For whom.
    pub payer: Payer,
    /// From when on.
    pub begin: Seconds,
    /// Until when.
    pub end: Seconds,
    /// How much.
    pub carried: Carried,
}

/// The beginning of a record that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// When it began.
    pub begin: Seconds,
    /// What the meter showed then.
    pub base: Carried,
}

/// What is to be remembered, all of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Records that have ended.
    pub records: Vec<Record>,
    /// The record that is under way on each of these meters from now on, if any.
    pub open: BTreeMap<u32, Option<(Open, Payer)>>,
    /// How much of each of these meters is accounted for.
    pub readings: BTreeMap<u32, Carried>,
    /// What these accounts have carried more.
    pub accounts: BTreeMap<Name, Carried>,
    /// Since when each of these meters counts for whom it counts: not to be written down.
    since: Vec<(u32, Seconds)>,
    /// When it was looked at meters whose readings are among this.
    at: Seconds,
    /// The meters have begun anew.
    is_anew: bool,
}

impl Entries {
    /// The meters go, or have gone: others begin at zero.
    pub const fn begin_anew(&mut self) {
        self.is_anew = true;
    }

    /// Whether the meters have begun anew: what was counted before is on the bill, and no longer shown.
    #[must_use]
    pub const fn is_anew(&self) -> bool {
        self.is_anew
    }

    /// Whether there is nothing to write down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.open.is_empty() && self.readings.is_empty() && !self.is_anew
    }
}

/// What is known of a meter.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    reading: Carried,
    open: Option<Open>,
    since: Seconds,
    /// When it was last seen to have counted something.
    active: Seconds,
}

/// What is kept of a [`Slot`]. There are millions, many of which have counted nothing.
#[derive(Clone, Debug)]
struct Kept {
    since: Seconds,
    counted: Option<Box<Counted>>,
}

/// What is known of a meter that has counted something.
#[derive(Clone, Copy, Debug)]
struct Counted {
    reading: Carried,
    open: Option<Open>,
    active: Seconds,
}

/// How far every meter is accounted for.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Length of an interval, in seconds.
    interval: Seconds,
    /// Since when meters are looked at of which nothing else is known.
    started: Seconds,
    /// When all meters were looked at the last time.
    looked: Seconds,
    /// How often entries were written.
    serial: u64,
    slots: Vec<Kept>,
    accounts: BTreeMap<Name, Carried>,
}

impl Ledger {
    /// One that knows of nothing yet. Intervals begin at whole multiples of `interval` since 1970, UTC.
    #[must_use]
    pub fn new(interval: Duration, now: SystemTime) -> Self {
        let started = seconds(now);
        Self {
            interval: interval.as_secs().max(1),
            started,
            looked: started,
            serial: 0,
            slots: Vec::new(),
            accounts: BTreeMap::new(),
        }
    }

    /// Takes up what it was closed with.
    pub fn take_up(
        &mut self,
        serial: u64,
        open: impl IntoIterator<Item = (u32, Open)>,
        readings: impl IntoIterator<Item = (u32, Carried)>,
        accounts: impl IntoIterator<Item = (Name, Carried)>,
    ) {
        self.serial = serial;
        for (meter, open) in open {
            self.set(meter, |slot| slot.open = Some(open));
        }
        for (meter, reading) in readings {
            self.set(meter, |slot| slot.reading = reading);
        }
        self.accounts.extend(accounts);
    }

    /// What every account has carried since the meters began at zero, as far as it is accounted for.
    #[must_use]
    pub const fn accounts(&self) -> &BTreeMap<Name, Carried> {
        &self.accounts
    }

    /// Whether a meter has counted anything since a time, as far as it was looked at.
    #[must_use]
    pub fn is_active(&self, meter: u32, since: SystemTime) -> bool {
        self.slot(meter).active >= seconds(since)
    }

    /// All meters have been looked at, from then on.
    pub fn looked(&mut self, at: SystemTime) {
        self.looked = seconds(at);
    }

    /// How often entries were written: the next ones must follow these, and no others.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// When the interval of a time ends.
    #[must_use]
    pub fn interval_end(&self, time: SystemTime) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.interval_of(seconds(time)) + self.interval)
    }

    /// How much of a meter is accounted for.
    #[must_use]
    pub fn reading(&self, meter: u32) -> Carried {
        self.slot(meter).reading
    }

    /// A meter begins to count from zero, for somebody else than before.
    pub fn begin(&self, entries: &mut Entries, meter: u32, now: SystemTime) {
        entries.since.push((meter, seconds(now)));
        if self.reading(meter) != Carried::default() {
            entries.readings.insert(meter, Carried::default());
        }
        if self.slot(meter).open.is_some() {
            entries.open.insert(meter, None);
        }
    }

    /// What a meter shows is not to be on this bill.
    pub fn leave_out(&self, entries: &mut Entries, meter: u32, reading: Carried) {
        if reading != self.reading(meter) {
            entries.readings.insert(meter, reading);
        }
    }

    /// A meter was read that counts for `payer`.
    pub fn account(
        &self,
        entries: &mut Entries,
        meter: u32,
        reading: Carried,
        now: SystemTime,
        payer: impl FnOnce() -> Option<Payer>,
    ) {
        let (slot, now) = (self.slot(meter), seconds(now));
        if reading == slot.reading && slot.open.is_none() {
            return;
        }
        let Some(payer) = payer() else { return };
        if !reading.is_at_least(slot.reading) {
            // Somebody else has set it to zero. What it showed last counts, and what it shows now.
            if let Some(open) = slot.open {
                entries.end(&payer, open, self.end_of(open, now), slot.reading);
            }
            entries.count(meter, &payer, Carried::default(), reading, now);
            entries.readings.insert(meter, reading);
            let open = Open { begin: now, base: Carried::default() };
            entries.open.insert(meter, Some((open, payer)));
            return;
        }
        entries.count(meter, &payer, slot.reading, reading, now);
        let begun = Open { begin: self.beginning(slot, now), base: slot.reading };
        let open = slot.open.unwrap_or(begun);
        if self.is_over(open, now) {
            // Also one that has only been seen now: it came after the last look.
            let end = self.end_of(open, now);
            entries.end(&payer, open, end, reading);
            entries.since.push((meter, end));
            if slot.open.is_some() {
                entries.open.insert(meter, None);
            }
        } else if slot.open.is_none() {
            entries.open.insert(meter, Some((open, payer)));
        }
    }

    /// The record on a meter ends, since it counts for somebody else from now on. It goes on from this reading, or from
    /// zero for its next owner where the binding `is_over`.
    pub fn end(
        &self,
        entries: &mut Entries,
        meter: u32,
        reading: Carried,
        now: SystemTime,
        payer: &Payer,
        is_over: bool,
    ) {
        let (slot, now) = (self.slot(meter), seconds(now));
        let has_gone_back = !reading.is_at_least(slot.reading);
        if let Some(open) = slot.open.filter(|_| has_gone_back) {
            // Somebody else has set it to zero. What it showed last counts, and what it shows now.
            entries.end(payer, open, self.end_of(open, now), slot.reading);
        }
        if has_gone_back {
            let open = Open { begin: self.beginning(slot, now), base: Carried::default() };
            entries.end(payer, open, self.end_of(open, now), reading);
        } else if let Some(open) = self.open(meter, reading, now) {
            entries.end(payer, open, self.end_of(open, now), reading);
        }
        let before = if has_gone_back { Carried::default() } else { slot.reading };
        if slot.open.is_some() {
            entries.open.insert(meter, None);
        }
        entries.count(meter, payer, before, reading, now);
        let reading = if is_over { Carried::default() } else { reading };
        if reading == slot.reading {
            entries.readings.remove(&meter);
        } else {
            entries.readings.insert(meter, reading);
        }
        entries.since.push((meter, now));
    }

    /// The record that is under way on a meter, as it would stand if it ended now.
    #[must_use]
    pub fn under_way(&self, meter: u32, reading: Carried, now: SystemTime, payer: Payer) -> Option<Record> {
        let now = seconds(now);
        let open = self.open(meter, reading, now)?;
        let (end, carried) = (self.end_of(open, now), reading.minus(open.base));
        Some(Record { payer, begin: open.begin, end, carried })
    }

    /// All records end that are under way, at the time of what is accounted for: the meters are gone.
    pub fn end_all(
        &self,
        entries: &mut Entries,
        end: Seconds,
        open: impl IntoIterator<Item = (u32, Open, Payer)>,
    ) {
        entries.is_anew = true;
        for (meter, open, payer) in open {
            entries.end(&payer, open, end.max(open.begin), self.reading(meter));
            entries.open.insert(meter, None);
        }
        let counted = (0..).zip(&self.slots).filter(|(_, slot)| slot.counted.is_some());
        for (meter, _) in counted.filter(|(meter, _)| self.reading(*meter) != Carried::default()) {
            entries.readings.insert(meter, Carried::default());
        }
    }

    /// Remembers.
    pub fn apply(&mut self, entries: Entries) {
        self.serial += u64::from(!entries.is_empty());
        for (meter, open) in entries.open {
            self.set(meter, |slot| slot.open = open.map(|(open, _)| open));
        }
        for (meter, reading) in entries.readings {
            self.set(meter, |slot| (slot.reading, slot.active) = (reading, entries.at));
        }
        if entries.is_anew {
            self.accounts.clear();
        }
        for (account, more) in entries.accounts {
            let sum = self.accounts.entry(account).or_default();
            *sum = sum.and(more);
        }
        for (meter, since) in entries.since {
            self.set(meter, |slot| slot.since = since);
        }
    }

    /// The record under way on a meter, or the one that its reading begins.
    fn open(&self, meter: u32, reading: Carried, now: Seconds) -> Option<Open> {
        let slot = self.slot(meter);
        let begins = reading != slot.reading && reading.is_at_least(slot.reading);
        let new = || begins.then(|| Open { begin: self.beginning(slot, now), base: slot.reading });
        slot.open.or_else(new)
    }

    /// When a record began whose first packet has been seen now: it has come since the last look.
    fn beginning(&self, slot: Slot, now: Seconds) -> Seconds {
        self.interval_of(self.looked.min(now)).max(slot.since).min(now)
    }

    fn is_over(&self, open: Open, now: Seconds) -> bool {
        self.interval_of(open.begin) < self.interval_of(now)
    }

    /// When a record ends that is looked at now.
    fn end_of(&self, open: Open, now: Seconds) -> Seconds {
        let limit = self.interval_of(open.begin) + self.interval;
        let is_on_time = self.looked <= limit && now >= limit && now - limit <= ON_TIME;
        if is_on_time { limit } else { now.max(open.begin) }
    }

    /// When the interval of a time began.
    const fn interval_of(&self, time: Seconds) -> Seconds {
        time - time % self.interval
    }

    fn slot(&self, meter: u32) -> Slot {
        let kept = self.slots.get(meter as usize);
        let slot = Slot { since: kept.map_or(self.started, |kept| kept.since), ..Slot::default() };
        match kept.and_then(|kept| kept.counted.as_deref().copied()) {
            None => slot,
            Some(Counted { reading, open, active }) => Slot { reading, open, active, ..slot },
        }
    }

    fn set(&mut self, meter: u32, change: impl FnOnce(&mut Slot)) {
        let (mut slot, place) = (self.slot(meter), meter as usize);
        change(&mut slot);
        if self.slots.len() <= place {
            self.slots.resize(place + 1, Kept { since: self.started, counted: None });
        }
        let Slot { reading, open, since, active } = slot;
        let kept = &mut self.slots[place];
        kept.since = since;
        let counts = reading != Carried::default() || open.is_some() || active > 0;
        match kept.counted.as_deref_mut().filter(|_| counts) {
            Some(counted) => *counted = Counted { reading, open, active },
            None => kept.counted = counts.then(|| Box::new(Counted { reading, open, active })),
        }
    }
}

impl Entries {
    /// A meter has come to another reading.
    fn count(&mut self, meter: u32, payer: &Payer, before: Carried, reading: Carried, now: Seconds) {
        if reading == before {
            return;
        }
        let more = reading.minus(before);
        match self.accounts.get_mut(&payer.account) {
            Some(sum) => *sum = sum.and(more),
            None => drop(self.accounts.insert(payer.account.clone(), more)),
        }
        self.readings.insert(meter, reading);
        self.at = now;
    }

    fn end(&mut self, payer: &Payer, open: Open, end: Seconds, reading: Carried) {
        let carried = reading.minus(open.base);
        if carried != Carried::default() {
            self.records.push(Record { payer: payer.clone(), begin: open.begin, end, carried });
        }
    }
}
