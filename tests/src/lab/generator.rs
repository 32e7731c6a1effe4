//! Packets as fast as they can be made: a BPF program on live frames (`BPF_PROG_TEST_RUN`), which the kernel's own stack never
//! sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use yardsticks::FRAME_LEN;
pub use yardsticks::Plan;

use super::Namespace;

/// The programs that are measured by, compiled by the build script.
pub static YARDSTICKS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/yardsticks"));

/// Frames of one call. Each call makes the kernel wait for all CPUs, some ten milliseconds; but while it runs, nobody else gets
/// that done.
const AT_ONCE: u32 = 20_000;

/// Frames that the kernel runs the program on before it sends them; 64 at least, and at most 256.
const BATCH: u32 = 64;

/// A flood that is under way.
#[derive(Debug)]
pub struct Generator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Generator {
    /// Begins to send by a device of a host, whose index is written into the plan.
    ///
    /// # Errors
    /// When the program cannot be loaded, or there is no such device.
    pub fn start(namespace: &Namespace, device: &str, plan: Plan) -> Result<Self> {
        let index = namespace.interface_index(device)?;
        let mut ebpf = Ebpf::load(YARDSTICKS)?;
        let words: [u8; size_of::<Plan>()] = bytemuck::cast(Plan { ifindex: index, ..plan });
        let mut plans: Array<_, [u8; size_of::<Plan>()]> =
            ebpf.map_mut("PLAN").context("no map PLAN")?.try_into()?;
        plans.set(0, words, 0)?;
        let program: &mut Xdp = ebpf.program_mut("generate").context("no program")?.try_into()?;
        program.load()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, namespace) = (Arc::clone(&stop), namespace.clone());
        let thread = thread::spawn(move || namespace.run(|| generate(&mut ebpf, &stopped))?);
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it, and answers how many frames it has made.
    ///
    /// # Errors
    /// When the kernel has refused to run the program.
    pub fn stop(mut self) -> Result<u64> {
        self.end().context("it has ended before")?
    }

    fn end(&mut self) -> Option<Result<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or_else(|_| Err(anyhow!("the generator has panicked"))))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // Whoever drops it has something worse to tell.
        let _ = self.end();
    }
}

fn generate(ebpf: &mut Ebpf, stop: &AtomicBool) -> Result<u64> {
    let program: &mut Xdp = ebpf.program_mut("generate").context("no program")?.try_into()?;
    let frame = [0; FRAME_LEN];
    while !stop.load(Ordering::Relaxed) {
        let run = program.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: AT_ONCE,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        run.context("no live frames")?;
    }
    let made: PerCpuArray<&MapData, u64> = ebpf.map("MADE").context("no map MADE")?.try_into()?;
    Ok(made.get(&0, 0)?.iter().sum())
}
