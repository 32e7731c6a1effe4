//! Measures eipnat against its peers on this machine: packets a second, as a share of what a bare XDP redirect carries.
//!
//! All devices stand side by side and are sent packets by turns of some milliseconds, since a machine's speed drifts. Ratios are
//! taken within a round. Generator, device and sink share one CPU, so that their costs add up without queues between them.

mod cores;
mod device;
mod line;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::device::{Device, Kind};
use self::line::Direction;
use self::report::{Report, Row};
use crate::lab::Ground;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a minute, and with fewer EIPs.
    pub quick: bool,
    /// The directory that the report goes to.
    pub output: PathBuf,
}

/// How many EIPs there are.
const COUNTS: [u32; 3] = [1, 1 << 16, 1_000_000];

/// Frames of one turn.
const TURN: u32 = 16 * 1024;

/// Measures, prints a table and writes the report.
///
/// # Errors
/// When a device cannot be set up, or one does not translate rightly.
pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::new(options.quick);
    let (counts, rounds) = if options.quick { (&COUNTS[..2], 15) } else { (&COUNTS[..], 60) };
    for count in counts {
        let ground = Ground::new()?;
        let (internet, vms) = (ground.host("internet")?, ground.host("vms")?);
        let mut devices = Vec::new();
        for kind in Kind::ALL {
            println!("bench: {} with {count} EIPs", kind.name());
            devices.push(Device::new(*kind, &ground, &internet, &vms, *count)?);
        }
        for direction in Direction::BOTH {
            report.rows.extend(measure(&mut devices, direction, *count, rounds)?);
        }
    }
    println!("bench: counters on one CPU and on two");
    report.costs = cores::measure()?;
    report.print();
    report.write(&options.output)
}

/// Sends to all devices by turns.
fn measure(devices: &mut [Device], direction: Direction, count: u32, rounds: u32) -> Result<Vec<Row>> {
    // Programs that are started later are not to take it over.
    let all = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one)?;
    let mut rows: Vec<Row> =
        devices.iter().map(|device| Row::new(device.kind().name(), direction.name(), count)).collect();
    for round in 0..=rounds {
        let rates =
            devices.iter_mut().map(|device| device.turn(direction, TURN)).collect::<Result<Vec<_>>>()?;
        // The first round fills caches.
        if round > 0 {
            for (row, rate) in rows.iter_mut().zip(&rates) {
                row.add(*rate, rates[0]);
            }
        }
    }
    sched_setaffinity(None, &all)?;
    Ok(rows)
}
