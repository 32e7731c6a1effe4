//! Packets for people.

use crate::cli::render::table;
use crate::explain::{Billed, Explanation};
use crate::packet::Change;
use crate::trace::Packet;

/// A packet in a line: when, which way, between which interfaces, its addresses before and after, and what became of it.
pub(super) fn packet(packet: &Packet) -> String {
    // Of `2026-01-31T12:00:00.123456Z`, what differs from line to line.
    let time =
        packet.time.split_once('T').map_or(packet.time.as_str(), |(_, time)| time).trim_end_matches('Z');
    let direction = packet.direction.as_deref().unwrap_or("-");
    let interfaces = format!("{} > {}", packet.on, packet.to.as_deref().unwrap_or("-"));
    let way = match (&packet.before, &packet.after) {
        (Some(before), Some(after)) if before != after => format!("{} => {}", before.way(), after.way()),
        (Some(before), _) => before.way(),
        (None, _) => String::new(),
    };
    let protocol = packet.protocol.as_deref().unwrap_or("no IPv4");
    format!(
        "{time} {direction:<7} {interfaces:<12} {protocol} {way} {} B {}",
        packet.length,
        packet.outcome()
    )
}

/// An explanation, step by step.
pub(super) fn explanation(told: &Explanation) -> String {
    let role = told.role.map_or_else(String::new, |role| format!(" ({role})"));
    let mut facts = vec![
        ["packet".to_owned(), told.packet.clone()],
        ["comes by".to_owned(), format!("{}{role}", told.on)],
    ];
    let reason = told.reason.as_deref().map_or_else(String::new, |reason| format!(" {reason}"));
    facts.push(["verdict".to_owned(), format!("{}{reason}", told.verdict)]);
    facts.push(["meaning".to_owned(), told.meaning.clone()]);
    facts.extend(told.remedy.iter().map(|remedy| ["what to do".to_owned(), remedy.clone()]));
    facts.extend(told.billed.iter().map(|Billed { address, account, direction, bytes }| {
        let account = account.as_ref().map_or_else(String::new, |account| format!(" (account {account})"));
        ["billed to".to_owned(), format!("{address}{account}: {bytes} bytes {direction}")]
    }));
    if let Some(leaves) = &told.leaves {
        let by = leaves.by.as_deref().unwrap_or("the kernel's own stack");
        let hop = leaves.next_hop.map_or_else(String::new, |hop| format!(", to the next hop {hop}"));
        facts.push(["leaves by".to_owned(), format!("{by}{hop}")]);
        facts.push(["leaves as".to_owned(), leaves.packet.clone()]);
    }
    facts.extend(told.contradiction.iter().map(|what| ["beware".to_owned(), what.clone()]));
    let steps = told.steps.iter().map(|step| [step.asked.clone(), step.found.clone()]);
    let mut parts = vec![table(None, facts, &[]), table(Some(["ASKED ON THE WAY", "FOUND"]), steps, &[])];
    if let Some(leaves) = &told.leaves {
        let changes = leaves
            .changes
            .iter()
            .map(|Change { field, before, after }| [field.clone(), before.clone(), after.clone()]);
        parts.push(table(Some(["CHANGED", "BEFORE", "AFTER"]), changes, &[]));
        parts.push(dump(&leaves.frame));
    }
    parts.join("\n")
}

/// A frame in hexadecimal digits, 16 bytes a line.
fn dump(digits: &str) -> String {
    let line = |(at, line): (usize, &[u8])| {
        let words: Vec<_> = line.chunks(4).map(String::from_utf8_lossy).collect();
        format!("{:04x}  {}", at * 16, words.join(" "))
    };
    digits.as_bytes().chunks(32).enumerate().map(line).collect::<Vec<_>>().join("\n") + "\n"
}
