//! What it costs to count a packet where CPUs share the counter, and where each has its own: on one CPU, and on two at once.

use std::sync::Barrier;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::Ebpf;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use yardsticks::{COUNTS, FRAME_LEN};

use super::figures::{Figure, Section, quantile};
use super::say;
use crate::lab::YARDSTICKS;

/// How often the kernel runs the program at a time.
const REPEAT: u32 = 100_000;

/// How often that is measured.
const ROUNDS: u32 = 15;

/// Measures both ways.
pub(super) fn measure() -> Result<Section> {
    say("counters that CPUs share, and that they do not");
    let empty = median(&run("count_none", &[0])?);
    let mut figures = Vec::new();
    for (name, program) in [("a lane for each CPU", "count_own"), ("shared, atomic", "count_shared")] {
        for (case, cpus) in [("one CPU", &[0][..]), ("two CPUs at once", &[0, 1])] {
            let cost = (median(&run(program, cpus)?) - empty) / f64::from(COUNTS);
            figures.push(Figure::new(name, case, "bytes and packets of one packet", "ns", cost));
        }
    }
    Ok(Section { name: "cores", title: "Counters of one EIP: what counting a packet costs", figures })
}

fn median(times: &[f64]) -> f64 {
    quantile(times, 0.5)
}

/// Nanoseconds of a run, on each of the CPUs at the same time.
fn run(name: &str, cpus: &[usize]) -> Result<Vec<f64>> {
    let allowed = sched_getaffinity(None)?;
    // A thread that cannot have its CPU would keep the other one waiting.
    ensure!(cpus.iter().all(|cpu| allowed.is_set(*cpu)), "the CPUs {cpus:?} are not all there");
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
