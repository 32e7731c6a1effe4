//! Trials: the running program and the kernel's FIB, by `BPF_PROG_TEST_RUN`.

use anyhow::{Context as _, anyhow, ensure};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp};
use nat_common::abi::trial::{LENGTH, Outcome, Ticket};
use nat_common::abi::{self, Addr, AddressKind};
use nat_common::pipeline::Query;
use nat_common::verdict::Counter;
use rustix::io::Errno;

use super::fib::Fib;
use super::{XdpDataplane, interfaces};
use crate::dataplane::trial::{Trial, Trials, Way};

// kernel: enum xdp_action
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// The queue that trials come by.
const TRIAL_QUEUE: u32 = 0;

/// How much longer a frame may become; the program makes none longer.
const ROOM: usize = 256;

impl Trials for XdpDataplane {
    fn interface(&self, name: &str) -> anyhow::Result<Option<u32>> {
        if !self.ports.list().iter().any(|port| port.name == name) {
            return Ok(None);
        }
        interfaces::index(name).map(Some).with_context(|| format!("interface {name} is gone"))
    }

    fn interface_name(&self, ifindex: u32) -> Option<String> {
        interfaces::name(ifindex)
    }

    fn port(&self, ifindex: u32) -> anyhow::Result<Option<abi::Port>> {
        self.maps.port(ifindex)
    }

    fn kind(&self, addr: Addr) -> anyhow::Result<AddressKind> {
        self.maps.kind(addr)
    }

    fn public_ip(&self) -> anyhow::Result<Addr> {
        Ok(self.maps.node()?.public_ip)
    }

    fn route(&mut self, query: &Query) -> anyhow::Result<Way> {
        if self.fib.is_none() {
            self.fib = Some(Fib::load()?);
        }
        self.fib.as_ref().context("the program that asks the FIB is not loaded")?.ask(query)
    }

    fn is_slow_path_on(&self, ifindex: u32) -> bool {
        self.slow_path.as_ref().is_some_and(|slow_path| slow_path.serves(ifindex, TRIAL_QUEUE))
    }

    fn try_out(&mut self, ifindex: u32, frame: &[u8]) -> anyhow::Result<Trial> {
        let ticket = Ticket { id: self.maps.node()?.id, padding: [0; 16] };
        let given = [bytemuck::bytes_of(&ticket), frame].concat();
        let (action, mut taken) = test_run(self.ports.program_on(ifindex)?, ifindex, LENGTH, &given)?;
        ensure!(taken.len() >= LENGTH, "the program has cut off what stands in front of a frame");
        let frame = taken.split_off(LENGTH);
        let outcome: Outcome =
            bytemuck::try_pod_read_unaligned(&taken).map_err(|error| anyhow!("{error}"))?;
        ensure!(outcome.magic == Outcome::MAGIC, "the program has not seen that this was a trial");
        let counter = Counter::at(outcome.counter)
            .with_context(|| format!("the program has counted by {}, which is unknown", outcome.counter))?;
        // What is forwarded to an interface that the map of ways out does not hold is dropped.
        let is_carried_out = matches!(
            (counter, action),
            (Counter::Forward, XDP_REDIRECT)
                | (Counter::Punt(_), XDP_PASS | XDP_REDIRECT)
                | (Counter::Pass, XDP_PASS)
                | (Counter::Drop(_), XDP_DROP)
        );
        Ok(Trial { counter, egress: (outcome.egress != 0).then_some(outcome.egress), is_carried_out, frame })
    }
}

/// Runs a program on bytes as if they had come by an interface, the first `front` of them in front of the frame, and answers
/// what it returns and what it has made of them.
fn test_run(program: &mut Xdp, ifindex: u32, front: usize, bytes: &[u8]) -> anyhow::Result<(u32, Vec<u8>)> {
    let mut out = vec![0; bytes.len() + ROOM];
    // kernel: struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let context = [u32::try_from(front)?, u32::try_from(bytes.len())?, 0, ifindex, TRIAL_QUEUE, 0];
    let done = program.test_run(TestRunOptions {
        data_in: Some(bytes),
        data_out: Some(&mut out),
        ctx_in: Some(bytemuck::cast_slice(&context)),
        ..TestRunOptions::new()
    });
    let done = done.map_err(|error| match error {
        ProgramError::SyscallError(error)
            if error.io_error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
        {
            anyhow!("the kernel takes no trial of {} bytes on interface {ifindex}", bytes.len() - front)
        }
        error => anyhow!(error).context("the kernel refuses a trial"),
    })?;
    out.truncate(done.data_size_out as usize);
    Ok((done.return_value, out))
}
