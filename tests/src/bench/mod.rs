//! Measures eipnat against its peers on this machine: packets a second, as a share of what a bare XDP redirect carries, and all else
//! that users feel.
//!
//! All devices stand side by side and are sent packets by turns of some milliseconds, since a machine's speed drifts. Ratios are
//! taken within a round. Generator, device and sink share one CPU, so that their costs add up without queues between them.

mod check;
mod control;
mod cores;
mod device;
mod drops;
mod figures;
mod flood;
mod line;
mod path;
mod program;
mod report;
mod round_trip;
mod tcp;
mod throughput;
mod works;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::figures::Section;
use self::report::Report;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// For a minute or two, and with fewer EIPs.
    pub quick: bool,
    /// The directory that the report goes to.
    pub output: PathBuf,
    /// The parts of it to measure; all if there is none.
    pub only: Vec<Part>,
    /// How often to measure all of it.
    pub runs: u32,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Packets a second of all devices, as shares of the bare redirect's
    Throughput,
    /// Packets to unbound EIPs, as shares of a bare XDP drop
    Drops,
    /// Nanoseconds a packet in eipnat's XDP program
    Program,
    /// UDP back and forth between real sockets
    RoundTrip,
    /// iperf3 with one stream and with eight
    Tcp,
    /// What a flood leaves of another EIP's flow
    Flood,
    /// Counters that CPUs share, and that they do not
    Cores,
    /// What the daemon takes for attaching, importing, listing and being restarted
    Control,
}

/// Measures, prints tables and writes the report.
///
/// # Errors
/// When a device cannot be set up, or one does not translate rightly. What was measured of the other parts is reported all the same.
pub fn run(options: &Options) -> Result<()> {
    let mut report = Report::new(options.quick, options.runs);
    let mut failed = Vec::new();
    for run in 1..=options.runs {
        say(&format!("run {run} of {}", options.runs));
        report.add(check::measure()?);
        for part in Part::value_variants() {
            if !options.only.is_empty() && !options.only.contains(part) {
                continue;
            }
            if let Err(error) = measure(*part, options.quick, &mut report) {
                say(&format!("{part:?} fails: {error:#}"));
                failed.push(format!("{part:?} in run {run}: {error:#}"));
            }
        }
    }
    report.print();
    report.write(&options.output)?;
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn measure(part: Part, quick: bool, report: &mut Report) -> Result<()> {
    let section: Section = match part {
        Part::Throughput => {
            let (rows, times) = throughput::measure(quick)?;
            report.add_rows(rows);
            times
        }
        Part::Drops => drops::measure(quick)?,
        Part::Program => program::measure(quick)?,
        Part::RoundTrip => round_trip::measure(quick)?,
        Part::Tcp => tcp::measure(quick)?,
        Part::Flood => flood::measure(quick)?,
        Part::Cores => cores::measure()?,
        Part::Control => control::measure(quick)?,
    };
    report.add(section);
    Ok(())
}

/// Tells whoever waits what is being done.
fn say(what: &str) {
    println!("bench: {what}");
}

/// Does the work on one CPU; processes that are started meanwhile stay there as well.
fn on_one_cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let all = sched_getaffinity(None)?;
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one)?;
    let done = work();
    sched_setaffinity(None, &all)?;
    done
}

/// Bytes that a process has, of this kind (`VmRSS`, or `VmHWM` for the most that it ever had).
fn resident(pid: u32, kind: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    bytes_of(&status, kind).with_context(|| format!("no {kind} of process {pid}"))
}

fn bytes_of(status: &str, kind: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn memory_of_a_process_is_read() {
        let status = "Name:\teipnat\nVmHWM:\t  2048 kB\nVmRSS:\t    12 kB\n";
        assert_eq!(bytes_of(status, "VmRSS"), Some(12 * 1024));
        assert_eq!(bytes_of(status, "VmHWM"), Some(2048 * 1024));
        assert_eq!(bytes_of("MemFree: 1 kB\nSlab:   3 kB\nSReclaimable: 2 kB\n", "Slab"), Some(3 * 1024));
        // A zombie has none.
        assert_eq!(bytes_of("Name:\teipnat\n", "VmRSS"), None);
    }
}
