//! What a flood leaves of somebody else's flow.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use yardsticks::Plan;

use super::device::{Kind, PLAN};
use super::figures::{Figure, Section, Target, float};
use super::line::attach;
use super::path::{Path, VM, WAN};
use super::{resident, say};
use crate::lab::{Generator, Ground, Sender, Sink, YARDSTICKS};

const KINDS: [Kind; 4] = [Kind::Redirect, Kind::Eipnat, Kind::Stateless, Kind::Tracking];

/// The flow's packets a second, and its port.
const RATE: u32 = 1000;
const PORT: u16 = 7000;

/// Which addresses the flood comes from: 2^24 of them.
const SOURCES: Ipv4Addr = Ipv4Addr::new(100, 0, 0, 0);
const SOURCE_MASK: u32 = 0x00ff_ffff;

/// Numbers of EIPs: one that is bound, not the flow's, and one that is not.
const BOUND: u32 = 11;
const UNBOUND: u32 = 1 << 19;

/// What the flood is.
#[derive(Clone, Copy)]
struct Flood {
    case: &'static str,
    to: u32,
    ttl: u8,
}

const FLOODS: [Flood; 3] = [
    Flood { case: "to a bound EIP", to: BOUND, ttl: 64 },
    Flood { case: "to an unbound EIP", to: UNBOUND, ttl: 64 },
    Flood { case: "TTL 1, to a bound EIP", to: BOUND, ttl: 1 },
];

/// For how long the flood has run when the flow begins, and how long that goes on.
#[derive(Clone, Copy)]
struct Times {
    head_start: Duration,
    flow: Duration,
}

/// What came of a flow, and what the flood has cost.
struct Outcome {
    share: f64,
    flood: f64,
    memory: Option<(&'static str, &'static str, f64)>,
    grown: Option<f64>,
}

pub(super) fn measure(quick: bool) -> Result<Section> {
    // The full run's head start is long enough to fill the kernel's table of connections, 262,144 of them by default.
    let (rounds, times) = if quick {
        (1, Times { head_start: Duration::from_millis(500), flow: Duration::from_secs(1) })
    } else {
        (3, Times { head_start: Duration::from_secs(2), flow: Duration::from_secs(4) })
    };
    let mut figures = Vec::new();
    for flood in FLOODS {
        say(&format!("a flood {}", flood.case));
        let mut outcomes = KINDS.map(|_| Vec::new());
        for _ in 0..rounds {
            for (kind, outcomes) in KINDS.iter().zip(&mut outcomes) {
                let outcome = one(*kind, flood, times);
                outcomes.push(outcome.with_context(|| format!("a flood {}, {}", flood.case, kind.name()))?);
            }
        }
        let bare = shares(&outcomes[0]);
        for (kind, outcomes) in KINDS.iter().zip(&outcomes) {
            let mine = shares(outcomes);
            let name = kind.name();
            let share = Figure::of(name, flood.case, "share of the flow that arrives", "", &mine);
            // Where the bare redirect loses packets, it is the machine that does.
            let is_aimed = *kind == Kind::Eipnat && bare.iter().all(|share| *share >= 0.999);
            figures.push(if is_aimed { share.target(Target::AtLeast(0.999)) } else { share });
            let rates: Vec<_> = outcomes.iter().map(|outcome| outcome.flood).collect();
            figures.push(Figure::of(name, flood.case, "flood", "packets/s", &rates));
            if let Some((what, unit, _)) = outcomes[0].memory {
                let values: Vec<_> = outcomes.iter().filter_map(|outcome| Some(outcome.memory?.2)).collect();
                figures.push(Figure::of(name, flood.case, what, unit, &values));
            }
            let grown: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.grown).collect();
            if !grown.is_empty() {
                figures.push(Figure::of(name, flood.case, "memory grown by", "MB", &grown));
            }
        }
    }
    Ok(Section {
        name: "flood",
        title: "A flood from 2^24 spoofed sources beside another EIP's flow",
        figures,
    })
}

fn shares(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().map(|outcome| outcome.share).collect()
}

/// Floods a device that nobody has used before, and sends a flow through it meanwhile.
fn one(kind: Kind, flood: Flood, times: Times) -> Result<Outcome> {
    let ground = Ground::new()?;
    let path = Path::new(kind, &ground)?;
    // The flood's own receiver would be another machine: here it is not to cost the flow's receiver more than can be helped.
    let mut sieve = Ebpf::load(YARDSTICKS)?;
    attach(&mut sieve, "sieve", &path.vm, VM)?;
    let before = memory(&path)?;
    let plan = Plan {
        source: SOURCES.into(),
        source_mask: SOURCE_MASK,
        destination: path.address(flood.to).into(),
        mac: path.gateway,
        ttl: flood.ttl,
        ..PLAN
    };
    let start = std::time::Instant::now();
    let generator = Generator::start(&path.client, WAN, plan)?;
    std::thread::sleep(times.head_start);
    let sink = Sink::start_at(&path.vm, Path::own(), PORT)?;
    let sender = Sender::start(&path.client, (path.target(), PORT), RATE, 32)?;
    std::thread::sleep(times.flow);
    let sent = sender.stop()?;
    let flooded = generator.stop()?;
    let taken = start.elapsed();
    let came = sink.stop()?.len();
    ensure!(sent > 0, "nothing was sent");
    let tracked = (kind == Kind::Tracking).then(|| -> Result<f64> {
        Ok(path.node.read_sysctl("net/netfilter/nf_conntrack_count")?.parse::<f64>()?)
    });
    let memory_now = memory(&path)?;
    Ok(Outcome {
        share: float(u64::try_from(came)?) / float(sent),
        flood: float(flooded) / taken.as_secs_f64(),
        memory: match tracked {
            Some(count) => Some(("connections tracked", "", count?)),
            None => path.daemon().and(memory_now).map(|bytes| ("RSS of the daemon", "MB", bytes / 1e6)),
        },
        grown: memory_now.zip(before).map(|(now, before)| (now - before) / 1e6),
    })
}

/// Bytes that the device keeps: the daemon's RSS, or what the kernel has for tracked connections.
fn memory(path: &Path) -> Result<Option<f64>> {
    if let Some(daemon) = path.daemon() {
        return Ok(Some(float(resident(daemon.pid(), "VmRSS")?)));
    }
    if path.kind != Kind::Tracking {
        return Ok(None);
    }
    Ok(slab(&fs::read_to_string("/proc/slabinfo")?, "nf_conntrack").map(float))
}

/// Bytes of a slab's objects, out of /proc/slabinfo.
fn slab(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then_some(words)
    })?;
    // name <active_objs> <num_objs> <objsize>
    let objects: u64 = words.nth(1)?.parse().ok()?;
    let size: u64 = words.next()?.parse().ok()?;
    Some(objects * size)
}

#[cfg(test)]
mod tests {
    use super::slab;

    #[test]
    fn slabs_are_read() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    nf_conntrack_expect 0 0 208 39 2\nnf_conntrack 100 128 256 16 1 : tunables 0 0 0\n";
        assert_eq!(slab(text, "nf_conntrack"), Some(128 * 256));
        assert_eq!(slab(text, "nf_connt"), None);
        assert_eq!(slab("nf_conntrack x", "nf_conntrack"), None);
    }
}
