//! The program's reports of packets.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use nat_common::abi::trace::{EVERYTHING, Event, Settings};
use nat_common::abi::{Addr, map};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::front;
use super::maps::{failed, found, take};
use super::numbers::Numbers;
use crate::dataplane::trace::{Report, Tracer, Wanted};

/// For how long the program goes on without being asked again, in nanoseconds. So long a daemon's trace outlives it.
const TERM: u64 = 5_000_000_000;

/// The maps that the trace needs.
pub(super) struct XdpTracer {
    settings: Numbers,
    traced: HashMap<MapData, Addr, u32>,
    events: RingBuf<MapData>,
    left_out: PerCpuArray<MapData, u64>,
}

impl XdpTracer {
    /// Takes them out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self {
            settings: front::trace(front::of(ebpf)?)?,
            traced: take(ebpf, map::TRACED)?,
            events: take(ebpf, map::EVENTS)?,
            left_out: take(ebpf, map::LEFT_OUT)?,
        })
    }

    fn set(&self, settings: Settings) {
        let [until, how]: [u64; 2] = bytemuck::cast(settings);
        self.settings.write(1, how);
        self.settings.write(0, until);
    }

    fn trace(&mut self, wanted: &BTreeSet<Addr>) -> anyhow::Result<()> {
        let standing = self.traced.keys().collect::<Result<BTreeSet<_>, _>>();
        let standing = standing.with_context(|| failed(map::TRACED))?;
        for addr in standing.difference(wanted) {
            found(self.traced.remove(addr)).with_context(|| failed(map::TRACED))?;
        }
        for addr in wanted.difference(&standing) {
            self.traced.insert(addr, 1, 0).with_context(|| failed(map::TRACED))?;
        }
        Ok(())
    }
}

impl Tracer for XdpTracer {
    fn report(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        let addresses = match &wanted.addresses {
            Some(addresses) => addresses.iter().map(std::net::Ipv4Addr::octets).collect(),
            None => BTreeSet::from([EVERYTHING]),
        };
        self.trace(&addresses)?;
        self.set(Settings { until: self.now() + TERM, rate: wanted.rate, snap: wanted.snap });
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.set(Settings::default());
        self.trace(&BTreeSet::new())
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        let patience =
            Timespec { tv_sec: patience.as_secs().try_into()?, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&patience)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("the program's reports cannot be waited for"),
        }
    }

    fn next(&mut self) -> Option<Report> {
        loop {
            let item = self.events.next()?;
            // One that is too short is not the program's.
            let Some((event, frame)) = item.split_at_checked(size_of::<Event>()) else { continue };
            let event: Event = bytemuck::pod_read_unaligned(event);
            let frame = frame.get(..event.captured as usize).unwrap_or(frame);
            return Some(Report { event, frame: frame.to_vec() });
        }
    }

    fn left_out(&mut self) -> anyhow::Result<u64> {
        let cpus = self.left_out.get(&0, 0).with_context(|| failed(map::LEFT_OUT))?;
        Ok(cpus.iter().sum())
    }

    fn now(&self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
    }
}
