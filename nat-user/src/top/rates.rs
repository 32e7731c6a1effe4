//! From two readings of the meters to the rates between them. Pure: every instant is passed in.

use std::cmp::Ordering;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nat_common::abi::Meter;

use crate::api::types::{Rates, SortBy};
use crate::control::{Attached, Control};
use crate::model::Carried;

/// What some meters showed at a moment, by their index.
pub(super) struct Reading {
    pub(super) at: Instant,
    pub(super) meters: Vec<(Attached, Meter)>,
}

impl Reading {
    /// Reads the meters of these EIPs as far as they still have them.
    pub(super) fn take(control: &Control, these: &[Attached]) -> anyhow::Result<Self> {
        Ok(Self { at: Instant::now(), meters: control.metered_of(these)? })
    }
}

/// The first readings, in the order of the meters, as is asked for them.
pub(super) struct Baseline {
    began: Instant,
    readings: Vec<Reading>,
    /// Reading, and place in it, from which on meters have not been asked for.
    next: (usize, usize),
}

impl Baseline {
    pub(super) const fn new(began: Instant, readings: Vec<Reading>) -> Self {
        Self { began, readings, next: (0, 0) }
    }

    /// What a meter showed for this EIP, and when; it had carried nothing if it had another meter or none.
    fn of(&mut self, attached: Attached) -> (Instant, Meter) {
        while let Some(reading) = self.readings.get(self.next.0) {
            let Some((other, meter)) = reading.meters.get(self.next.1) else {
                self.next = (self.next.0 + 1, 0);
                continue;
            };
            match other.meter.cmp(&attached.meter) {
                Ordering::Less => self.next.1 += 1,
                Ordering::Equal if *other == attached => return (reading.at, *meter),
                Ordering::Equal | Ordering::Greater => break,
            }
        }
        (self.began, Meter::default())
    }
}

/// Which EIPs are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Ranking {
    /// By what.
    pub sort: SortBy,
    /// Whether the last ones come first.
    pub reverse: bool,
    /// How many.
    pub limit: usize,
}

impl Ranking {
    /// Who comes first. Equal ones stand by address, so that they do not change places from one view to the next.
    #[must_use]
    pub fn compare(&self, left: (Ipv4Addr, &Rates), right: (Ipv4Addr, &Rates)) -> Ordering {
        let by_rate = self.sort.rate(right.1).total_cmp(&self.sort.rate(left.1));
        let by_address = left.0.cmp(&right.0);
        match (self.reverse, self.sort) {
            (false, _) => by_rate.then(by_address),
            (true, SortBy::Eip) => by_address.reverse(),
            (true, _) => by_rate.reverse().then(by_address),
        }
    }
}

/// The rates of many EIPs, of which only the wanted ones are kept.
pub(super) struct Tally {
    before: Baseline,
    ranking: Ranking,
    ranked: Ranked,
}

/// What has come of a [`Tally`].
#[derive(Debug, Default)]
pub(super) struct Ranked {
    /// How many EIPs are attached.
    pub(super) eips: usize,
    /// All of them together.
    pub(super) total: Rates,
    /// How many of them are of interest.
    pub(super) matching: usize,
    /// Those of them that are wanted, in order.
    pub(super) rows: Vec<(Ipv4Addr, Rates)>,
}

impl Tally {
    pub(super) fn new(before: Baseline, ranking: Ranking) -> Self {
        Self { before, ranking, ranked: Ranked::default() }
    }

    /// Adds a second reading; its meters come after those of the one before it. `matches` says which EIPs are of interest.
    pub(super) fn add(&mut self, after: &Reading, matches: &[bool]) {
        for ((attached, meter), matches) in after.meters.iter().zip(matches) {
            let (at, before) = self.before.of(*attached);
            let rates = between(&before, meter, after.at.saturating_duration_since(at));
            self.ranked.eips += 1;
            self.ranked.total = self.ranked.total.plus(&rates);
            if *matches {
                self.ranked.matching += 1;
                self.ranked.rows.push((attached.eip, rates));
            }
            // Now and then, or each one would be sorted in; never more than twice as many are kept as are wanted.
            if self.ranked.rows.len() > 2 * self.ranking.limit {
                self.prune();
            }
        }
    }

    pub(super) fn end(mut self) -> Ranked {
        self.prune();
        self.ranked
    }

    fn prune(&mut self) {
        let ranking = self.ranking;
        self.ranked
            .rows
            .sort_unstable_by(|left, right| ranking.compare((left.0, &left.1), (right.0, &right.1)));
        self.ranked.rows.truncate(ranking.limit);
    }
}

/// The rates between two readings of a meter. One that shows less than before was set to zero in between, for the EIP
/// was attached anew.
fn between(before: &Meter, after: &Meter, elapsed: Duration) -> Rates {
    let (was, is) = (Carried::from(*before), Carried::from(*after));
    let moved = if is.is_at_least(was) { is.minus(was) } else { is };
    let rate = |count| per_second(count, elapsed);
    Rates {
        in_bps: 8.0 * rate(moved.in_bytes),
        in_pps: rate(moved.in_packets),
        out_bps: 8.0 * rate(moved.out_bytes),
        out_pps: rate(moved.out_packets),
    }
}

/// How many of them came in a second; none in no time.
#[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
pub(super) fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

#[cfg(test)]
mod tests;
