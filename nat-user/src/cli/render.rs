//! Tables for people: one line a thing, columns that also cut and grep well.

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{DecimalBytes, HumanCount};
use nat_common::verdict::Reject;

use crate::api::types::{Counters, Eip, EipState, Pool, Stats, Status};

pub(super) fn status(status: &Status) -> String {
    let mut facts = vec![
        ["ready".to_owned(), if status.ready { "yes" } else { "no" }.to_owned()],
        ["revision".to_owned(), status.revision.to_string()],
        ["bindings".to_owned(), HumanCount(status.bindings as u64).to_string()],
    ];
    facts.extend(status.problems.iter().map(|problem| ["problem".to_owned(), problem.clone()]));
    let interfaces = status.interfaces.iter();
    let interfaces = interfaces.map(|port| [port.name.clone(), port.role.to_string(), port.mode.to_string()]);
    format!(
        "{}\n{}",
        table(None, facts, &[]),
        table(Some(["INTERFACE", "ROLE", "XDP MODE"]), interfaces, &[])
    )
}

pub(super) fn eips(eips: &[Eip]) -> String {
    let rows = eips.iter().map(|eip| {
        [
            eip.eip.to_string(),
            state(eip.state).to_owned(),
            or_dash(eip.private_ip.as_ref()),
            or_dash(eip.vm.as_ref()),
            eip.account.to_string(),
            eip.pool.to_string(),
        ]
    });
    table(Some(["EIP", "STATE", "PRIVATE IP", "VM", "ACCOUNT", "POOL"]), rows, &[])
}

pub(super) fn eip(eip: &Eip, counters: &Counters) -> String {
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
    table(None, facts, &[])
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

/// Verdicts, and the reasons that dropped something; with explanations every reason.
pub(super) fn stats(stats: &Stats, explain: bool) -> String {
    let verdicts = stats
        .verdicts
        .named()
        .map(|(verdict, packets)| [verdict.to_owned(), HumanCount(packets).to_string()]);
    let verdicts = table(Some(["VERDICT", "PACKETS"]), verdicts, &[1]);
    let mut drops: Vec<(&String, u64)> = stats
        .drops
        .iter()
        .map(|(reason, packets)| (reason, *packets))
        .filter(|(_, n)| explain || *n > 0)
        .collect();
    drops.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
    let drops = drops.into_iter().map(|(reason, packets)| (reason.clone(), HumanCount(packets).to_string()));
    if explain {
        let rows = drops.map(|(reason, packets)| {
            let known = Reject::ALL.iter().find(|known| known.name() == reason);
            let text = known.map_or(String::new(), |known| format!("{} {}", known.meaning(), known.remedy()));
            [reason, packets, text]
        });
        format!("{verdicts}\n{}", table(Some(["DROP REASON", "PACKETS", "MEANING AND REMEDY"]), rows, &[1]))
    } else if drops.len() > 0 {
        let rows = drops.map(|(reason, packets)| [reason, packets]);
        format!("{verdicts}\n{}", table(Some(["DROP REASON", "PACKETS"]), rows, &[1]))
    } else {
        verdicts
    }
}

/// A table without rules; `right` are the columns of numbers.
fn table<const N: usize>(
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
