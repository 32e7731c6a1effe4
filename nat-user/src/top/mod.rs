//! What EIPs carry just now: the difference of two readings of their meters, a moment apart.
//!
//! The first reading is kept, 40 bytes an EIP; the second is compared with it as it comes, and of its rates only those
//! are kept that are asked for. So a node with a million EIPs answers with a screenful.

mod rates;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nat_common::abi::Meter;
use tokio::time::sleep_until;

use crate::api::types::{PacketRates, Rates, Stats, Status, Top, TopRow};
use crate::control::{self, Attached, Control, Shared};
use crate::model::{Eip, Model, Name};
pub use rates::Ranking;
use rates::{Baseline, Ranked, Reading, Tally, per_second};

/// How many EIPs are looked at before others have a turn at the control plane.
const AT_ONCE: usize = 16 * 1024;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Question {
    /// How far the two readings are apart, if reading does not take longer.
    pub interval: Duration,
    /// Which EIPs are answered.
    pub ranking: Ranking,
    /// Of which ones.
    pub filter: Filter,
}

/// Which EIPs are of interest.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    account: Option<Name>,
    text: Option<Text>,
}

#[derive(Clone, Debug)]
enum Text {
    /// EIPs of this network.
    Net(Ipv4Net),
    /// How an address begins, or a part of a name.
    Part(String),
}

impl Filter {
    /// EIPs of an account, or of any; and with a text those of which an address begins with it or is in it, where it is a
    /// network, or the name of whose VM or account contains it.
    #[must_use]
    pub fn new(account: Option<Name>, text: Option<&str>) -> Self {
        let text = text.map(str::trim).filter(|text| !text.is_empty());
        let text = text.map(|text| match text.parse() {
            Ok(net) => Text::Net(net),
            Err(_) => Text::Part(text.to_ascii_lowercase()),
        });
        Self { account, text }
    }

    fn matches(&self, model: &Model, eip: &Eip) -> bool {
        let Some(attached) = eip.attached else { return false };
        let addresses = [eip.address, attached.private_ip];
        let text_matches = || match &self.text {
            None => true,
            Some(Text::Net(net)) => addresses.iter().any(|address| net.contains(address)),
            Some(Text::Part(part)) => {
                let vm = model.vm_at(attached.private_ip).map(|vm| &vm.name);
                let mut names = [Some(&eip.account), vm].into_iter().flatten();
                names.any(|name| name.as_str().contains(part))
                    || addresses.iter().any(|address| address.to_string().starts_with(part))
            }
        };
        self.account.as_ref().is_none_or(|account| eip.account == *account) && text_matches()
    }
}

/// Reads all meters twice, and answers the EIPs that were asked for, by their rates between the two.
///
/// An EIP that was attached in between, or whose address changed hands, is taken as one that had carried nothing before.
///
/// # Errors
/// If the datapath cannot be read.
pub async fn measure(control: &Shared, question: Question) -> anyhow::Result<Top> {
    let Question { interval, ranking, filter } = question;
    let began = Instant::now();
    let counted_before = Counted::take(control).await?;
    let mut readings = Vec::new();
    for some in attached(control).await?.chunks(AT_ONCE) {
        readings.push(control::call(control, |control| Reading::take(control, some)).await??);
    }
    sleep_until((began + interval).into()).await;

    let mut tally = Tally::new(Baseline::new(began, readings), ranking);
    for some in attached(control).await?.chunks(AT_ONCE) {
        let read = |control: &mut Control| {
            let read = Reading::take(control, some)?;
            let matches = |(one, _): &(Attached, Meter)| {
                control.model().eip(one.eip).is_ok_and(|eip| filter.matches(control.model(), eip))
            };
            let matches = read.meters.iter().map(matches).collect();
            anyhow::Ok((read, matches))
        };
        let (read, matches): (Reading, Vec<bool>) = control::call(control, read).await??;
        tally.add(&read, &matches);
    }
    let counted = Counted::take(control).await?;
    let ranked = tally.end();
    control::call(control, |control| answer(control, ranked, &counted_before, &counted)).await
}

/// Every EIP that is attached, by meter: so the readings run through the datapath's memory in order.
async fn attached(control: &Shared) -> anyhow::Result<Vec<Attached>> {
    let (mut all, mut next) = (Vec::new(), Some(Ipv4Addr::UNSPECIFIED));
    while let Some(from) = next {
        let (some, after) = control::call(control, |control| control.attached_from(from, AT_ONCE)).await?;
        all.extend(some);
        next = after;
    }
    all.sort_unstable_by_key(|one| one.meter);
    Ok(all)
}

/// Names what is to be answered, as it is now.
fn answer(control: &Control, ranked: Ranked, before: &Counted, after: &Counted) -> Top {
    let model = control.model();
    let row = |(eip, rates): (Ipv4Addr, Rates)| {
        // Gone since it was read, perhaps.
        let eip = model.eip(eip).ok()?;
        let private_ip = eip.attached?.private_ip;
        let vm = model.vm_at(private_ip).map(|vm| vm.name.clone());
        Some(TopRow { eip: eip.address, private_ip, vm, account: eip.account.clone(), rates })
    };
    let elapsed = after.at.saturating_duration_since(before.at);
    Top {
        status: Status::of(control),
        interval_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        eips: ranked.eips,
        total: ranked.total,
        matching: ranked.matching,
        rows: ranked.rows.into_iter().filter_map(row).collect(),
        packets: packets(&before.stats, &after.stats, elapsed),
    }
}

/// The node's counters at a moment.
struct Counted {
    at: Instant,
    stats: Stats,
}

impl Counted {
    async fn take(control: &Shared) -> anyhow::Result<Self> {
        let take = |control: &mut Control| {
            let at = Instant::now();
            anyhow::Ok(Self { at, stats: Stats::of(&control.verdicts()?, &control.slow_path()?) })
        };
        control::call(control, take).await?
    }
}

fn packets(before: &Stats, after: &Stats, elapsed: Duration) -> PacketRates {
    let rate = |before: u64, after: u64| per_second(after.saturating_sub(before), elapsed);
    let by_reason = |before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>| {
        let moved = after.iter().map(|(reason, after)| {
            (reason.clone(), rate(before.get(reason).copied().unwrap_or_default(), *after))
        });
        moved.filter(|(_, rate)| *rate > 0.0).collect()
    };
    let (was, is) = (before.verdicts, after.verdicts);
    PacketRates {
        forward: rate(was.forward, is.forward),
        pass: rate(was.pass, is.pass),
        punt: rate(was.punt, is.punt),
        drop: rate(was.drop, is.drop),
        punts: by_reason(&before.punts, &after.punts),
        drops: by_reason(&before.drops, &after.drops),
    }
}

#[cfg(test)]
mod tests;
