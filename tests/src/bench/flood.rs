//! What a flood leaves of somebody else's flow.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use yardsticks::Plan;

use super::device::{Kind, PLAN};
use super::figures::{Figure, Section, Target, float};
use super::line::attach;
use super::path::{Path, VM, WAN};
use super::{bytes_of, resident, say};
use crate::lab::{Generator, Ground, Sender, Sink, YARDSTICKS};

const KINDS: [Kind; 4] = [Kind::Redirect, Kind::Eipnat, Kind::Stateless, Kind::Tracking];

/// The flow's packets a second, and its port.
const RATE: u32 = 1000;
const PORT: u16 = 7000;

/// Which addresses the flood comes from.
const SOURCES: Ipv4Addr = Ipv4Addr::new(100, 0, 0, 0);
/// 2^24 of them, each of which the flood comes from once.
const SPOOFED: u32 = 0x00ff_ffff;
/// 2^18, as many as the kernel has room for connections, over and over. Of what the generator varies, its higher bits vary sooner.
const CLIENTS: u32 = 0x00ff_ffc0;

/// Numbers of EIPs: one that is bound, not the flow's, and one that is not.
const BOUND: u32 = 11;
const UNBOUND: u32 = 1 << 19;

/// What the flood is.
#[derive(Clone, Copy)]
struct Flood {
    case: &'static str,
    to: u32,
    ttl: u8,
    /// Which bits of its sources vary.
    sources: u32,
    /// What the VM's end does with it, of the yardsticks' programs.
    receiver: &'static str,
}

const FLOODS: [Flood; 4] = [
    Flood { case: "to a bound EIP", to: BOUND, ttl: 64, sources: SPOOFED, receiver: "sieve" },
    Flood { case: "to an unbound EIP", to: UNBOUND, ttl: 64, sources: SPOOFED, receiver: "sieve" },
    Flood { case: "TTL 1, to a bound EIP", to: BOUND, ttl: 1, sources: SPOOFED, receiver: "sieve" },
    Flood { case: "that is answered", to: BOUND, ttl: 64, sources: CLIENTS, receiver: "answer" },
];

impl Flood {
    /// Whether its packets are answered, as those of clients are.
    fn is_answered(self) -> bool {
        self.receiver == "answer"
    }
}

/// For how long the flood has run when the flow begins, and how long that goes on.
#[derive(Clone, Copy)]
struct Times {
    head_start: Duration,
    /// Where it is answered: a connection of UDP is not forgotten to make room for others when packets have gone both ways for more
    /// than two seconds (kernel: `nf_conntrack_udp_packet()`).
    head_start_if_answered: Duration,
    flow: Duration,
}

/// What came of a flow, and what the flood has cost.
struct Outcome {
    /// The share of the flow that has arrived.
    share: f64,
    /// The flood's packets a second.
    flood: f64,
    /// How many of them have been answered.
    answered: f64,
    /// Connections that the kernel tracks at the end.
    tracked: Option<f64>,
    /// By how many bytes the daemon and the kernel's slabs have grown.
    daemon_grown: Option<f64>,
    kernel_grown: f64,
}

pub(super) fn measure(quick: bool) -> Result<Section> {
    // The full run's head start is long enough to fill the kernel's table of connections, 262,144 of them by default.
    let (rounds, times) = if quick {
        let head_start = Duration::from_millis(500);
        (1, Times { head_start, head_start_if_answered: head_start, flow: Duration::from_secs(1) })
    } else {
        let (head_start, head_start_if_answered) = (Duration::from_secs(2), Duration::from_secs(12));
        (3, Times { head_start, head_start_if_answered, flow: Duration::from_secs(4) })
    };
    let mut figures = Vec::new();
    // A quick one is over before a connection is there for good.
    for flood in FLOODS.into_iter().filter(|flood| !(quick && flood.is_answered())) {
        say(&format!("a flood {}", flood.case));
        let mut outcomes = KINDS.map(|_| Vec::new());
        for _ in 0..rounds {
            for (kind, outcomes) in KINDS.iter().zip(&mut outcomes) {
                let outcome = one(*kind, flood, times);
                outcomes.push(outcome.with_context(|| format!("a flood {}, {}", flood.case, kind.name()))?);
            }
        }
        for (kind, outcomes_of) in KINDS.iter().zip(&outcomes) {
            figures.extend(figures_of(*kind, flood.case, outcomes_of, &outcomes[0]));
        }
    }
    Ok(Section { name: "flood", title: "A flood beside another EIP's flow of new clients", figures })
}

/// What came of a flood, beside what came of it with the bare redirect.
fn figures_of(kind: Kind, case: &str, outcomes: &[Outcome], bare: &[Outcome]) -> Vec<Figure> {
    let is_eipnat = kind == Kind::Eipnat;
    let figure = |what, unit, of: &dyn Fn(&Outcome, &Outcome) -> Option<f64>| {
        let values: Vec<_> = outcomes.iter().zip(bare).filter_map(|(mine, bare)| of(mine, bare)).collect();
        (!values.is_empty()).then(|| Figure::of(kind.name(), case, what, unit, &values))
    };
    let aim = |figure: Option<Figure>, target| figure.map(|figure| figure.target(target));
    let of_bare = |mine: &Outcome, bare: &Outcome| is_eipnat.then_some(mine.share / bare.share);
    let daemon = |mine: &Outcome, _: &Outcome| Some(mine.daemon_grown? / 1e6);
    [
        figure("share of the flow that arrives", "", &|mine, _| Some(mine.share)),
        // What the bare redirect loses, the machine does.
        aim(figure("share of what the bare redirect leaves of it", "", &of_bare), Target::AtLeast(0.999)),
        figure("flood", "packets/s", &|mine, _| Some(mine.flood)),
        figure("answers", "packets/s", &|mine, _| (mine.answered > 0.0).then_some(mine.answered)),
        figure("connections tracked", "", &|mine, _| mine.tracked),
        aim(figure("the daemon's memory grows by", "MB", &daemon), Target::AtMost(1.0)),
        figure("the kernel's memory grows by", "MB", &|mine, _| Some(mine.kernel_grown / 1e6)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Floods a device that nobody has used before, and sends a flow through it meanwhile.
fn one(kind: Kind, flood: Flood, times: Times) -> Result<Outcome> {
    let ground = Ground::new()?;
    let path = Path::new(kind, &ground)?;
    // The flood's ends would be other machines: here they are not to cost the flow's more than can be helped.
    let [mut sieve, mut receiver] = [Ebpf::load(YARDSTICKS)?, Ebpf::load(YARDSTICKS)?];
    attach(&mut sieve, "sieve", &path.client, WAN)?;
    attach(&mut receiver, flood.receiver, &path.vm, VM)?;
    // Without a program a veth takes nothing that an XDP program at its other end sends.
    let is_plain = matches!(kind, Kind::Stateless | Kind::Tracking);
    let mut node = (flood.is_answered() && is_plain).then(|| Ebpf::load(YARDSTICKS)).transpose()?;
    if let Some(node) = &mut node {
        attach(node, "pass", &path.node, "dn0")?;
    }
    let before = (daemon_memory(&path)?, kernel_memory()?);
    let plan = Plan {
        source: SOURCES.into(),
        source_mask: flood.sources,
        destination: path.address(flood.to).into(),
        mac: path.gateway,
        ttl: flood.ttl,
        ..PLAN
    };
    let start = std::time::Instant::now();
    let generator = Generator::start(&path.client, WAN, plan)?;
    std::thread::sleep(if flood.is_answered() { times.head_start_if_answered } else { times.head_start });
    let sink = Sink::start_at(&path.vm, Path::own(), PORT)?;
    let sender = Sender::start_anew(&path.client, (path.target(), PORT), RATE, 32);
    std::thread::sleep(times.flow);
    let sent = sender.stop()?;
    let flooded = generator.stop()?;
    let answered = answered(&sieve)?;
    let taken = start.elapsed();
    let came = sink.stop()?.len();
    ensure!(sent > 0, "nothing was sent");
    ensure!(flood.is_answered() == (answered > 0), "{answered} packets of the flood were answered");
    let tracked = (kind == Kind::Tracking).then(|| -> Result<f64> {
        Ok(path.node.read_sysctl("net/netfilter/nf_conntrack_count")?.parse::<f64>()?)
    });
    Ok(Outcome {
        share: float(u64::try_from(came)?) / float(sent),
        flood: float(flooded) / taken.as_secs_f64(),
        answered: float(answered) / taken.as_secs_f64(),
        tracked: tracked.transpose()?,
        daemon_grown: daemon_memory(&path)?.zip(before.0).map(|(now, before)| now - before),
        kernel_grown: kernel_memory()? - before.1,
    })
}

/// How many answers the sieve at the client has dropped.
fn answered(sieve: &Ebpf) -> Result<u64> {
    let came: PerCpuArray<&MapData, [u64; 2]> = sieve.map("CAME").context("no map CAME")?.try_into()?;
    Ok(came.get(&0, 0)?.iter().map(|[answers, _]| answers).sum())
}

/// Bytes that the daemon has in memory, if there is one.
fn daemon_memory(path: &Path) -> Result<Option<f64>> {
    path.daemon().map(|daemon| Ok(float(resident(daemon.pid(), "VmRSS")?))).transpose()
}

/// Bytes of all slabs: whatever the kernel remembers of packets stands there.
fn kernel_memory() -> Result<f64> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    Ok(float(bytes_of(&memory, "Slab").context("/proc/meminfo tells of no slabs")?))
}
