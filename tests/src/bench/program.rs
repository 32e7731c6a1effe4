//! How long eipnat's program itself takes, as the kernel's own statistics of BPF tell.

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use serde_json::Value;

use super::device::{Device, Kind};
use super::figures::{Figure, Section, float};
use super::line::Direction;
use super::throughput::{COUNTS, TURN};
use super::{on_one_cpu, say, works};
use crate::lab::Ground;

pub(super) fn measure(quick: bool) -> Result<Section> {
    say("time in eipnat's program");
    let (counts, rounds) = if quick { (&COUNTS[..2], 10) } else { (&COUNTS[..], 40) };
    // Like the sysctl `kernel.bpf_stats_enabled`, but it ends with the process at the latest.
    let _statistics = enable_stats(Stats::RunTime)?;
    let mut figures = Vec::new();
    for &count in counts {
        let ground = Ground::new()?;
        let (internet, vms) = (works::host(&ground, "internet")?, works::host(&ground, "vms")?);
        let mut empty = Device::new(Kind::Discard, &ground, &internet, &vms, count)?;
        let mut eipnat = Device::new(Kind::Eipnat, &ground, &internet, &vms, count)?;
        for direction in Direction::BOTH {
            let programs = [program(&empty, direction)?, program(&eipnat, direction)?];
            let mut times = [Vec::new(), Vec::new(), Vec::new()];
            on_one_cpu(|| {
                // Caches are filled first, and next hops learned.
                eipnat.line(direction).turn(TURN.max(3 * count))?;
                for _ in 0..rounds {
                    let bare = turn(&mut empty, direction, programs[0])?;
                    let whole = turn(&mut eipnat, direction, programs[1])?;
                    for (times, time) in times.iter_mut().zip([bare, whole, whole - bare]) {
                        times.push(time);
                    }
                }
                Ok(())
            })?;
            let case = format!("{count} EIPs, {}", direction.name());
            let [bare, whole, own] = times;
            figures.push(Figure::of("empty program", &case, "time a packet", "ns", &bare));
            figures.push(Figure::of(Kind::Eipnat.name(), &case, "time a packet", "ns", &whole));
            figures.push(Figure::of(Kind::Eipnat.name(), &case, "less the empty program's", "ns", &own));
        }
    }
    Ok(Section { name: "program", title: "Time in the XDP program", figures })
}

/// Nanoseconds a packet that the device's program has taken in one turn.
fn turn(device: &mut Device, direction: Direction, program: u32) -> Result<f64> {
    let before = info(program)?;
    device.line(direction).turn(TURN)?;
    let after = info(program)?;
    let runs = after.run_count() - before.run_count();
    ensure!(runs >= u64::from(TURN), "{} has run {runs} times on {TURN} packets", device.kind().name());
    let taken = u64::try_from(after.run_time().saturating_sub(before.run_time()).as_nanos())?;
    Ok(float(taken) / float(runs))
}

/// The program that packets meet, as the kernel numbers it.
fn program(device: &Device, direction: Direction) -> Result<u32> {
    let port = match direction {
        Direction::In => "up0",
        Direction::Out => "dn0",
    };
    let links = device.node().succeed("ip", &["-j", "link", "show", port])?;
    let links: Value = serde_json::from_str(&links)?;
    let id = links[0].pointer("/xdp/prog/id").and_then(Value::as_u64);
    Ok(u32::try_from(id.with_context(|| format!("no XDP program on {port}"))?)?)
}

fn info(id: u32) -> Result<ProgramInfo> {
    // Others may go while the list is read.
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id).with_context(|| format!("no BPF program {id}"))
}
