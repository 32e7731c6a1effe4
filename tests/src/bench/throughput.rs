//! Packets a second of all devices.

use anyhow::Result;

use super::device::{Device, Kind};
use super::figures::{Figure, Section, Target};
use super::line::Direction;
use super::report::Row;
use super::{on_one_cpu, say, works};
use crate::lab::Ground;

/// How many EIPs there are; in place of a million as many as the next power of two has.
pub(super) const COUNTS: [u32; 3] = [1, 1 << 16, 1_000_000];

/// Frames of one turn.
pub(super) const TURN: u32 = 16 * 1024;

/// What a device carries is told by rows, and by how many times eipnat is faster than nftables without connections.
pub(super) fn measure(quick: bool) -> Result<(Vec<Row>, Section)> {
    let (counts, rounds) = if quick { (&COUNTS[..2], 15) } else { (&COUNTS[..], 60) };
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for count in counts {
        let ground = Ground::new()?;
        let (internet, vms) = (works::host(&ground, "internet")?, works::host(&ground, "vms")?);
        let mut devices = Vec::new();
        for kind in Kind::ALL {
            say(&format!("{} with {count} EIPs", kind.name()));
            devices.push(Device::new(*kind, &ground, &internet, &vms, *count)?);
        }
        for direction in Direction::BOTH {
            let of_count = on_one_cpu(|| by_turns(&mut devices, direction, *count, rounds))?;
            figures.extend(times(&of_count, direction, *count));
            rows.extend(of_count);
        }
    }
    let title = "Times what nftables carries without connections";
    Ok((rows, Section { name: "times", title, figures }))
}

/// How many times what nftables carries without connections eipnat does.
fn times(rows: &[Row], direction: Direction, count: u32) -> Option<Figure> {
    let of = |kind: Kind| rows.iter().find(|row| row.device == kind.name());
    let (eipnat, nftables) = (of(Kind::Eipnat)?, of(Kind::Stateless)?);
    let times: Vec<_> =
        eipnat.rates.iter().zip(&nftables.rates).map(|(mine, theirs)| mine / theirs).collect();
    let case = format!("{count} EIPs, {}", direction.name());
    let figure = Figure::of(Kind::Eipnat.name(), case, "times nftables, stateless", "", &times);
    Some(match (count, direction) {
        (0x1_0000, Direction::In) => figure.target(Target::AtLeast(3.8)),
        (1_000_000, Direction::In) => figure.target(Target::AtLeast(3.0)),
        _ => figure,
    })
}

/// Sends to all devices by turns.
fn by_turns(devices: &mut [Device], direction: Direction, count: u32, rounds: u32) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> =
        devices.iter().map(|device| Row::new(device.kind().name(), direction.name(), count)).collect();
    // Nearly every EIP has had a packet first, as after some seconds of such traffic. Eipnat comes last: what it remembers of next hops
    // holds a minute at most, and the rounds take some seconds.
    let (eipnat, others): (Vec<_>, Vec<_>) =
        devices.iter_mut().partition(|device| device.kind() == Kind::Eipnat);
    for device in others.into_iter().chain(eipnat) {
        device.turn(direction, TURN.max(3 * count))?;
    }
    for _ in 0..rounds {
        let rates =
            devices.iter_mut().map(|device| device.turn(direction, TURN)).collect::<Result<Vec<_>>>()?;
        for (row, rate) in rows.iter_mut().zip(&rates) {
            row.add(*rate, rates[0]);
        }
    }
    Ok(rows)
}
