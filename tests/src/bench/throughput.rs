//! Packets a second of all devices.

use anyhow::Result;

use super::device::{Device, Kind};
use super::line::Direction;
use super::report::Row;
use super::{on_one_cpu, say};
use crate::lab::Ground;

/// How many EIPs there are.
const COUNTS: [u32; 3] = [1, 1 << 16, 1_000_000];

/// Frames of one turn.
pub(super) const TURN: u32 = 16 * 1024;

pub(super) fn measure(quick: bool) -> Result<Vec<Row>> {
    let (counts, rounds) = if quick { (&COUNTS[..2], 15) } else { (&COUNTS[..], 60) };
    let mut rows = Vec::new();
    for count in counts {
        let ground = Ground::new()?;
        let (internet, vms) = (ground.host("internet")?, ground.host("vms")?);
        let mut devices = Vec::new();
        for kind in Kind::ALL {
            say(&format!("{} with {count} EIPs", kind.name()));
            devices.push(Device::new(*kind, &ground, &internet, &vms, *count)?);
        }
        for direction in Direction::BOTH {
            rows.extend(on_one_cpu(|| by_turns(&mut devices, direction, *count, rounds))?);
        }
    }
    Ok(rows)
}

/// Sends to all devices by turns.
fn by_turns(devices: &mut [Device], direction: Direction, count: u32, rounds: u32) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> =
        devices.iter().map(|device| Row::new(device.kind().name(), direction.name(), count)).collect();
    for round in 0..=rounds {
        // The first round fills caches: nearly every EIP has had a packet then, as after some seconds of such traffic.
        let frames = if round == 0 { TURN.max(3 * count) } else { TURN };
        let rates =
            devices.iter_mut().map(|device| device.turn(direction, frames)).collect::<Result<Vec<_>>>()?;
        if round > 0 {
            for (row, rate) in rows.iter_mut().zip(&rates) {
                row.add(*rate, rates[0]);
            }
        }
    }
    Ok(rows)
}
