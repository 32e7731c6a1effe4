//! The kernel's FIB, asked by the very function of the packet path.

use std::net::Ipv6Addr;

use anyhow::{Context as _, anyhow};
use aya::Ebpf;
use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use bytemuck::Zeroable as _;
use nat_common::abi::trial::{FibAnswer, FibQuestion};
use nat_common::pipeline::Query;

use crate::dataplane::trial::Way;

/// The program that asks, compiled by the build script. It is attached to nothing.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/eipnat-fib"));

/// Its name in the object.
const PROGRAM: &str = "eipnat_fib";

/// The loaded program.
pub(super) struct Fib(Ebpf);

impl Fib {
    /// Loads it.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut fib = Self(Ebpf::load(OBJECT).context("the program that asks the FIB cannot be read")?);
        let program =
            fib.0.program_mut(PROGRAM).with_context(|| format!("the object has no program {PROGRAM}"))?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load().context("the program that asks the FIB cannot be loaded")?;
        Ok(fib)
    }

    /// The way that the kernel would send a packet.
    pub(super) fn ask(&self, query: &Query) -> anyhow::Result<Way> {
        let question = FibQuestion {
            source: query.addresses.source,
            destination: query.addresses.destination,
            total_len: query.total_len,
            tos: query.tos,
            protocol: query.protocol,
            ifindex: query.ifindex,
            ..FibQuestion::zeroed()
        };
        let program = self.0.program(PROGRAM).context("the program that asks the FIB is gone")?;
        let program: &SchedClassifier = program.try_into()?;
        let mut answer = [0; size_of::<FibAnswer>()];
        let asked = program.test_run(TestRunOptions {
            data_in: Some(bytemuck::bytes_of(&question)),
            data_out: Some(&mut answer),
            ..TestRunOptions::new()
        });
        asked.map_err(|error: ProgramError| anyhow!(error).context("the kernel's FIB cannot be asked"))?;
        let answer: FibAnswer = bytemuck::cast(answer);
        let route = answer.route().context("the kernel's FIB was not asked")?;
        let next_hop = Ipv6Addr::from(answer.next_hop).to_canonical();
        let mtu = u16::try_from(answer.mtu).unwrap_or(u16::MAX);
        Ok(Way { route, next_hop: (!next_hop.is_unspecified()).then_some(next_hop), mtu })
    }
}
