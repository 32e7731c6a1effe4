//! A generator at one end of a device, and a counter at the other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use yardsticks::{FRAME_LEN, Plan};

use crate::lab::{Namespace, YARDSTICKS};

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To EIPs.
    In,
    /// From VMs.
    Out,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::In, Self::Out];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }
}

/// What a frame that has been carried rightly has in the address that is looked at: the source or the destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) is_source: bool,
    pub(super) prefix: u32,
    pub(super) mask: u32,
}

/// The two ends, loaded and attached.
pub(super) struct Line {
    generator: Ebpf,
    counter: Ebpf,
    from: Namespace,
}

/// Frames that the kernel has the program run on at once.
const BATCH: u32 = 64;

impl Line {
    /// From one host's interface to another's. `dummy`: an interface of the first that the generator is attached to, so that the
    /// kernel need not make room for it at each turn.
    pub(super) fn new(
        from: (&Namespace, &str),
        dummy: &str,
        to: (&Namespace, &str),
        plan: Plan,
        expected: Expected,
    ) -> Result<Self> {
        let index = from.0.interface_index(from.1)?;
        let mut generator = Ebpf::load(YARDSTICKS)?;
        let bytes: [u8; size_of::<Plan>()] = bytemuck::cast(Plan { ifindex: index, ..plan });
        let mut plans: Array<_, [u8; size_of::<Plan>()]> =
            generator.map_mut("PLAN").context("no map PLAN")?.try_into()?;
        plans.set(0, bytes, 0)?;
        attach(&mut generator, "generate", from.0, dummy)?;
        let mut counter = EbpfLoader::new()
            .override_global("IS_SOURCE", &u32::from(expected.is_source), true)
            .override_global("PREFIX", &expected.prefix, true)
            .override_global("MASK", &expected.mask, true)
            .load(YARDSTICKS)?;
        attach(&mut counter, "count", to.0, to.1)?;
        Ok(Self { generator, counter, from: from.0.clone() })
    }

    /// From now on sends other packets; by the same interface.
    pub(super) fn aim(&mut self, change: impl FnOnce(Plan) -> Plan) -> Result<()> {
        let mut plans: Array<_, [u8; size_of::<Plan>()]> =
            self.generator.map_mut("PLAN").context("no map PLAN")?.try_into()?;
        let plan: Plan = bytemuck::cast(plans.get(&0, 0)?);
        let bytes: [u8; size_of::<Plan>()] = bytemuck::cast(change(plan));
        plans.set(0, bytes, 0)?;
        Ok(())
    }

    /// Sends so many frames, and answers how many of them have come rightly, and how long it has taken.
    pub(super) fn turn(&mut self, frames: u32) -> Result<(u64, Duration)> {
        let before = self.came()?;
        let program: &mut Xdp = self.generator.program_mut("generate").context("no program")?.try_into()?;
        let run = || {
            let start = Instant::now();
            program.test_run(TestRunOptions {
                data_in: Some(&[0; FRAME_LEN]),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            })?;
            Ok::<_, anyhow::Error>(start.elapsed())
        };
        let taken = self.from.run(run)??;
        // What is still under way on this CPU comes before anything else does.
        let after = self.came()?;
        ensure!(
            after.0 - before.0 == after.1 - before.1,
            "packets have come that are not rightly translated"
        );
        Ok((after.1 - before.1, taken))
    }

    fn came(&self) -> Result<(u64, u64)> {
        let came: PerCpuArray<&MapData, [u64; 2]> =
            self.counter.map("CAME").context("no map CAME")?.try_into()?;
        Ok(came.get(&0, 0)?.iter().fold((0, 0), |(all, right), cpu| (all + cpu[0], right + cpu[1])))
    }
}

/// Attaches one of the yardsticks' programs natively; it goes with the object.
pub(super) fn attach(ebpf: &mut Ebpf, name: &str, host: &Namespace, device: &str) -> Result<()> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
    program.load()?;
    host.run(|| program.attach(device, XdpMode::Driver))?.with_context(|| format!("{name} on {device}"))?;
    Ok(())
}
