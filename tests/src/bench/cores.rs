//! What it costs to count a packet where CPUs share the counter, and where each has its own: on one CPU, and on two at once.

use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use rustix::thread::{CpuSet, sched_setaffinity};
use yardsticks::{COUNTS, FRAME_LEN};

use super::report::quantile;
use crate::lab::YARDSTICKS;

/// How often the kernel runs the program at a time.
const REPEAT: u32 = 100_000;

/// How often that is measured.
const ROUNDS: u32 = 15;

/// What one way to count costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) name: &'static str,
    /// Nanoseconds for the bytes and the packets of one packet, on one CPU.
    pub(super) alone: f64,
    /// The same where another CPU counts at the same time, on the same EIP.
    pub(super) together: f64,
}

/// Measures both ways.
pub(super) fn measure() -> Result<Vec<Cost>> {
    let empty = median(&run("count_none", &[0])?);
    ["count_own", "count_shared"]
        .into_iter()
        .map(|name| {
            let cost = |cpus: &[usize]| -> Result<f64> {
                Ok((median(&run(name, cpus)?) - empty) / f64::from(COUNTS))
            };
            let name = if name == "count_own" { "a lane for each CPU" } else { "shared, atomic" };
            Ok(Cost { name, alone: cost(&[0])?, together: cost(&[0, 1])? })
        })
        .collect()
}

fn median(times: &[f64]) -> f64 {
    quantile(times, 0.5)
}

/// Nanoseconds of a run, on each of the CPUs at the same time.
fn run(name: &str, cpus: &[usize]) -> Result<Vec<f64>> {
    let mut ebpf = Ebpf::load(YARDSTICKS)?;
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load()?;
    let program: &SchedClassifier = program;
    let barrier = Barrier::new(cpus.len());
    thread::scope(|scope| {
        let threads: Vec<_> =
            cpus.iter().map(|cpu| scope.spawn(|| on_cpu(program, *cpu, &barrier))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a thread has panicked"))??);
        }
        Ok(all)
    })
}

fn on_cpu(program: &SchedClassifier, cpu: usize, barrier: &Barrier) -> Result<Vec<f64>> {
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).with_context(|| format!("there is no CPU {cpu}"))?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        barrier.wait();
        let options =
            TestRunOptions { data_in: Some(&[0; FRAME_LEN]), repeat: REPEAT, ..TestRunOptions::new() };
        let run = program.test_run(options)?;
        times.push(run.duration.as_secs_f64() * 1e9);
    }
    Ok(times)
}
