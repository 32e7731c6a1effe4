//! Tables for people: one line a thing, columns that also cut and grep well.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::iter;

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{DecimalBytes, HumanCount};
use nat_common::verdict::{Punt, Reject};

use crate::api::types::{
    AddressDrops, Counters, Eip, EipState, Pool, Repairs, SlowPath, Stats, Status, UsageRow, Vm,
};

pub(super) fn status(status: &Status) -> String {
    let mut facts = vec![
        ["ready".to_owned(), if status.ready { "yes" } else { "no" }.to_owned()],
        ["revision".to_owned(), status.revision.to_string()],
        ["bindings".to_owned(), HumanCount(status.bindings as u64).to_string()],
    ];
    facts.extend(status.problems.iter().map(|problem| ["problem".to_owned(), problem.clone()]));
    facts.extend(status.repairs.iter().flat_map(|Repairs { count, last_at, last }| {
        [
            ["repairs".to_owned(), HumanCount(*count).to_string()],
            ["last repair".to_owned(), format!("{last_at}: {last}")],
        ]
    }));
    let interfaces = status.interfaces.iter();
    let interfaces = interfaces.map(|port| [port.name.clone(), port.role.to_string(), port.mode.to_string()]);
    format!(
        "{}\n{}",
        table(None, facts, &[]),
        table(Some(["INTERFACE", "ROLE", "XDP MODE"]), interfaces, &[])
    )
}

/// EIPs, some at a time.
pub(super) fn eips() -> impl FnMut(&[Eip]) -> String {
    let mut lines = Lines::under(["EIP", "STATE", "PRIVATE IP", "VM", "ACCOUNT", "POOL"]);
    move |eips| {
        lines.more(eips.iter().map(|eip| {
            [
                eip.eip.to_string(),
                state(eip.state).to_owned(),
                or_dash(eip.private_ip.as_ref()),
                or_dash(eip.vm.as_ref()),
                eip.account.to_string(),
                eip.pool.to_string(),
            ]
        }))
    }
}

/// Public addresses that carried something, and what they came to in all.
pub(super) fn usage(rows: &[UsageRow]) -> String {
    let number = |count: u64| HumanCount(count).to_string();
    let numbers = |row: &UsageRow| [row.in_bytes, row.in_packets, row.out_bytes, row.out_packets];
    let cells = rows.iter().map(|row| {
        let [in_bytes, in_packets, out_bytes, out_packets] = numbers(row).map(number);
        let (from, to) = (row.from.to_string(), row.to.to_string());
        let (eip, account, vm) = (row.eip.to_string(), row.account.to_string(), or_dash(row.vm.as_ref()));
        [eip, account, vm, from, to, in_bytes, in_packets, out_bytes, out_packets]
    });
    let total = rows.iter().map(numbers).fold([0; 4], |mut total, numbers| {
        total.iter_mut().zip(numbers).for_each(|(total, number)| *total += number);
        total
    });
    let [in_bytes, in_packets, out_bytes, out_packets] = total.map(number);
    let [none, dash] = [String::new(), "total".to_owned()];
    let total =
        [dash, none.clone(), none.clone(), none.clone(), none, in_bytes, in_packets, out_bytes, out_packets];
    let header = ["EIP", "ACCOUNT", "VM", "FROM", "TO", "IN BYTES", "IN PACKETS", "OUT BYTES", "OUT PACKETS"];
    table(Some(header), cells.chain((rows.len() > 1).then_some(total)), &[5, 6, 7, 8])
}

pub(super) fn eip(eip: &Eip, counters: &Counters, drops: &[AddressDrops]) -> String {
    let traffic = |bytes, packets| format!("{} in {} packets", DecimalBytes(bytes), HumanCount(packets));
    let facts = [
        ["eip", &eip.eip.to_string()],
        ["state", state(eip.state)],
        ["private ip", &or_dash(eip.private_ip.as_ref())],
        ["vm", &or_dash(eip.vm.as_ref())],
        ["account", &eip.account.to_string()],
        ["pool", &eip.pool.to_string()],
        ["in", &traffic(counters.in_bytes, counters.in_packets)],
        ["out", &traffic(counters.out_bytes, counters.out_packets)],
    ]
    .map(|fact| fact.map(str::to_owned));
    let facts = table(None, facts, &[]);
    if drops.is_empty() {
        return facts;
    }
    let rows = drops
        .iter()
        .map(|drops| [drops.reason.clone(), HumanCount(drops.packets).to_string(), drops.last_at.clone()]);
    format!("{facts}\n{}", table(Some(["DROP REASON", "PACKETS", "LAST AT"]), rows, &[1]))
}

/// VMs, some at a time.
pub(super) fn vms() -> impl FnMut(&[Vm]) -> String {
    let mut lines = Lines::under(["VM", "PRIVATE IP", "PUBLIC IP", "EIP", "ACCOUNT"]);
    move |vms| {
        lines.more(vms.iter().map(|vm| {
            let public_ip = if vm.waiting { "waiting".to_owned() } else { or_dash(vm.public_ip.as_ref()) };
            let private_ip = vm.private_ip.to_string();
            [vm.name.to_string(), private_ip, public_ip, or_dash(vm.eip.as_ref()), vm.account.to_string()]
        }))
    }
}

pub(super) fn pools(pools: &[Pool]) -> String {
    let rows = pools.iter().map(|pool| {
        let cidrs: Vec<String> = pool.cidrs.iter().map(ToString::to_string).collect();
        let [size, allocated, cooling, free] =
            [pool.size, pool.allocated, pool.cooling, pool.free].map(|count| HumanCount(count).to_string());
        [pool.name.to_string(), cidrs.join(","), size, allocated, cooling, free]
    });
    table(Some(["POOL", "CIDRS", "SIZE", "ALLOCATED", "COOLING", "FREE"]), rows, &[2, 3, 4, 5])
}

/// Verdicts, and the reasons that punted or dropped something; with explanations every reason.
pub(super) fn stats(stats: &Stats, explain: bool) -> String {
    let verdicts = stats.verdicts.named();
    let verdicts = counters("VERDICT", &verdicts, explain, |verdict| vec![explain_verdict(verdict)]);
    let punts = by_reason("PUNT REASON", &stats.punts, explain, |name| {
        let reason = Punt::ALL.iter().find(|reason| reason.name() == name);
        reason.map(|reason| [reason.meaning(), reason.remedy()])
    });
    let drops = by_reason("DROP REASON", &stats.drops, explain, |name| {
        let reason = Reject::ALL.iter().find(|reason| reason.name() == name);
        reason.map(|reason| [reason.meaning(), reason.remedy()])
    });
    let slow_path = slow_path(&stats.slow_path);
    [Some(verdicts), punts, drops, slow_path].into_iter().flatten().collect::<Vec<_>>().join("\n")
}

/// What has come to the slow path, if anything has, and who else claims EIPs.
fn slow_path(slow_path: &SlowPath) -> Option<String> {
    let used = slow_path.reasons.iter().filter(|(_, reason)| reason.sent + reason.limited > 0);
    let rows: Vec<[String; 7]> = used
        .map(|(name, reason)| {
            let [sent, limited, received, carried, answered, unanswered] = [
                reason.sent,
                reason.limited,
                reason.received,
                reason.carried,
                reason.answered,
                reason.unanswered,
            ]
            .map(|count| HumanCount(count).to_string());
            [name.clone(), sent, limited, received, carried, answered, unanswered]
        })
        .collect();
    let header = ["SLOW PATH", "SENT", "LIMITED", "RECEIVED", "CARRIED", "ANSWERED", "UNANSWERED"];
    let packets = (!rows.is_empty()).then(|| table(Some(header), rows, &[1, 2, 3, 4, 5, 6]));
    let claims = slow_path
        .claims
        .iter()
        .map(|claim| [claim.eip.to_string(), claim.mac.clone(), format!("{} s", claim.seconds_ago)]);
    let claims =
        (!slow_path.claims.is_empty()).then(|| table(Some(["EIP", "ALSO CLAIMED BY", "AGO"]), claims, &[]));
    let parts: Vec<String> = [packets, claims].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// The reasons that have counted something, most first; with explanations all of them.
fn by_reason(
    title: &str,
    reasons: &BTreeMap<String, u64>,
    explain: bool,
    text: impl Fn(&str) -> Option<[&'static str; 2]>,
) -> Option<String> {
    let mut reasons: Vec<(&str, u64)> =
        reasons.iter().map(|(reason, packets)| (reason.as_str(), *packets)).collect();
    reasons.retain(|(_, packets)| explain || *packets > 0);
    reasons.sort_by_key(|(_, packets)| Reverse(*packets));
    let table = || counters(title, &reasons, explain, |name| text(name).map_or(vec![], Vec::from));
    (!reasons.is_empty()).then(table)
}

fn counters(
    title: &str,
    counters: &[(&str, u64)],
    explain: bool,
    text: impl Fn(&str) -> Vec<&'static str>,
) -> String {
    let rows = counters.iter().map(|(name, packets)| [(*name).to_owned(), HumanCount(*packets).to_string()]);
    let table = table(Some([title, "PACKETS"]), rows, &[1]);
    if explain { explained(&table, counters.iter().map(|(name, _)| text(name))) } else { table }
}

fn explain_verdict(verdict: &str) -> &'static str {
    match verdict {
        "forward" => "Translated and sent on.",
        "pass" => "Not a public address's: left to the node's own network stack.",
        "punt" => "More than the fast path does: handed on, for one of the reasons below.",
        _ => "Dropped, for one of the reasons below.",
    }
}

/// A table with explanations under its rows.
fn explained(table: &str, texts: impl IntoIterator<Item = Vec<&'static str>>) -> String {
    let mut lines = Vec::new();
    for (row, texts) in table.lines().zip(iter::once(vec![]).chain(texts)) {
        lines.push(row.to_owned());
        lines.extend(texts.into_iter().map(|text| format!("    {text}")));
    }
    lines.join("\n") + "\n"
}

/// A [`table`] of any length, some lines at a time: its columns become wider where a later line wants it.
struct Lines<const N: usize> {
    header: Option<[&'static str; N]>,
    widths: [usize; N],
}

impl<const N: usize> Lines<N> {
    fn under(header: [&'static str; N]) -> Self {
        Self { header: Some(header), widths: [0; N] }
    }

    fn more(&mut self, rows: impl Iterator<Item = [String; N]>) -> String {
        let header = self.header.take().map(|header| header.map(str::to_owned));
        let rows: Vec<[String; N]> = header.into_iter().chain(rows).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                // Names and addresses are ASCII.
                *width = (*width).max(cell.len());
            }
        }
        let mut text = String::new();
        for row in &rows {
            for (width, cell) in self.widths.iter().zip(row) {
                // Writing to a string does not fail.
                let _ = write!(text, "{cell:<width$}  ");
            }
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
        text
    }
}

/// A table without rules; `right` are the columns of numbers.
pub(super) fn table<const N: usize>(
    header: Option<[&str; N]>,
    rows: impl IntoIterator<Item = [String; N]>,
    right: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    if let Some(header) = header {
        table.set_header(header);
    }
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

const fn state(state: EipState) -> &'static str {
    match state {
        EipState::Allocated => "allocated",
        EipState::Attached => "attached",
    }
}

fn or_dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_come_later_may_be_wider() {
        let mut lines = Lines::under(["EIP", "VM", "POOL"]);
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let first = lines.more([row(["203.0.113.1", "-", "p"])].into_iter());
        assert_eq!(first, "EIP          VM  POOL\n203.0.113.1  -   p\n");
        let second =
            lines.more([row(["203.0.113.100", "web-1", "p"]), row(["1.1.1.1", "-", ""])].into_iter());
        assert_eq!(second, "203.0.113.100  web-1  p\n1.1.1.1        -\n");
        assert_eq!(lines.more([].into_iter()), "");
    }
}
