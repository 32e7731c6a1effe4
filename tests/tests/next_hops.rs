//! Next hops that the program remembers follow routes, neighbours and rules within a second, whether the daemon runs or hangs.

use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::maps::{Array, Map};
use nat_common::abi::express::{Adjacency, ENTRIES, Front, InboundEntry, NextHop, Routing};
use nat_common::abi::map;
use rustix::process::{Pid, Signal, kill_process};
use tests::lab::{
    Bed, EIP1, FAR, INTERNET, INTERNET_DEVICE, Namespace, Sender, Setup, Sink, VM_DEVICE, VM1, ping,
};

/// Within that the program follows (the design says).
const FOLLOWS: Duration = Duration::from_secs(1);

const PORT: u16 = 4000;

/// A way that packets go.
#[derive(Clone, Copy)]
struct Way<'a> {
    from: &'a Namespace,
    to: Ipv4Addr,
    at: &'a Namespace,
    sink: Ipv4Addr,
}

impl Way<'_> {
    /// Whether packets arrive, all or none, from a second after a change on; while packets flow before it and all along, so that
    /// the next hop is known, and the old one is used as long as can be.
    fn carries_after(self, change: impl FnOnce() -> Result<()>) -> Result<bool> {
        let sink = Sink::start_at(self.at, self.sink, PORT)?;
        let sender = Sender::start(self.from, (self.to, PORT), 500, 32)?;
        sender.send_more(100)?;
        change()?;
        sleep(FOLLOWS);
        let (from, before) = (sender.next() + 1, sender.next());
        sender.send_more(200)?;
        let sent = sender.stop()?;
        let came = sink.stop()?.iter().filter(|packet| packet.number >= from).count() as u64;
        ensure!(sent > before + 200, "only {sent} packets were sent");
        ensure!(came == 0 || came == sent - from, "{came} of {} packets came", sent - from);
        Ok(came > 0)
    }
}

/// A second address of the other end's interface.
const OTHER_MAC: &str = "02:00:00:00:77:01";

/// How many next hops the program remembers, in the entries of public addresses and by destination, of the present generation.
fn remembered(bed: &Bed) -> Result<[usize; 2]> {
    let generation = bed.front::<Routing>(offset_of!(Front, routing))?.generation;
    let is_present = |adjacency: Adjacency| adjacency.generation == generation;
    let blocks: Array<_, [u8; BLOCK]> = Map::Array(bed.map(map::INBOUND_BLOCKS)?).try_into()?;
    let mut inbound = 0;
    for block in blocks.iter() {
        let entries = block?;
        let entries =
            entries.chunks_exact(size_of::<InboundEntry>()).map(bytemuck::pod_read_unaligned::<InboundEntry>);
        inbound += entries.filter(|entry| is_present(entry.adjacency)).count();
    }
    let hops: Array<_, [u8; size_of::<NextHop>()]> = Map::Array(bed.map(map::NEXT_HOPS)?).try_into()?;
    let mut outbound = 0;
    for hop in hops.iter() {
        outbound += usize::from(is_present(bytemuck::pod_read_unaligned::<NextHop>(&hop?).adjacency));
    }
    Ok([inbound, outbound])
}

const BLOCK: usize = size_of::<InboundEntry>() * ENTRIES;

#[test]
fn next_hops_are_remembered() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ensure!(remembered(bed)? == [0, 0]);
        ensure!(ping(&bed.lab.internet, EIP1, 3, &[])?.received == 3);
        let [inbound, outbound] = remembered(bed)?;
        ensure!(inbound == 1 && outbound >= 1, "{inbound} and {outbound}");
        // With a rule, none is.
        bed.lab.node.ip(&["rule add from 192.0.2.77 lookup main priority 77"])?;
        sleep(FOLLOWS);
        ensure!(ping(&bed.lab.internet, EIP1, 3, &[])?.received == 3);
        ensure!(remembered(bed)? == [0, 0]);
        bed.lab.node.ip(&["rule del priority 77"])?;
        sleep(FOLLOWS);
        ensure!(ping(&bed.lab.internet, EIP1, 3, &[])?.received == 3);
        ensure!(remembered(bed)?[0] == 1);
        Ok(())
    })
}

#[test]
fn destinations_behind_one_gateway_have_one_next_hop_in_common() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let cpus = std::thread::available_parallelism()?.get();
        let many: Vec<_> = (20..60).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
        let ping_all = || -> Result<()> {
            for address in &many {
                ensure!(ping(&bed.lab.vm1, *address, 1, &[])?.received == 1, "{address}");
            }
            Ok(())
        };
        bed.lab
            .internet
            .ip(&many.iter().map(|address| format!("address add {address}/32 dev lo")).collect::<Vec<_>>())?;
        ping_all()?;
        let [_, outbound] = remembered(bed)?;
        ensure!((1..=cpus).contains(&outbound), "{outbound} next hops");
        // Some of those addresses might take another way from now on.
        bed.lab.node.ip(&[format!("route add 192.0.2.32/28 via {INTERNET}")])?;
        sleep(FOLLOWS);
        ping_all()?;
        let [_, outbound] = remembered(bed)?;
        ensure!(outbound >= many.len(), "{outbound} next hops");
        Ok(())
    })
}

fn follow(bed: &Bed) -> Result<()> {
    let lab = &bed.lab;
    // The VM talks to somebody far away, and somebody far away to the VM's EIP.
    lab.internet.ip(&[format!("route replace 203.0.113.0/24 via {} src {FAR}", tests::lab::NODE_UP)])?;
    let out = Way { from: &lab.vm1, to: FAR, at: &lab.internet, sink: FAR };
    let into = Way { from: &lab.internet, to: EIP1, at: &lab.vm1, sink: VM1 };
    let node = |line: String| lab.node.ip(&[line]);
    for (way, host, device, gateway, egress) in
        [(out, &lab.internet, INTERNET_DEVICE, INTERNET, "up0"), (into, &lab.vm1, VM_DEVICE, VM1, "dn0")]
    {
        let destination = if way.to == EIP1 { VM1 } else { way.to };
        ensure!(way.carries_after(|| Ok(()))?, "nothing comes to {destination}");
        // Another card answers for the neighbour.
        let exchanged = way.carries_after(|| {
            host.ip(&[format!("link set {device} address {OTHER_MAC}")])?;
            node(format!("neigh replace {gateway} lladdr {OTHER_MAC} dev {egress} nud reachable"))
        })?;
        ensure!(exchanged, "packets for {destination} go to a MAC address that is nobody's any more");
        // A route that forbids it, and none that does.
        let is_carried = way.carries_after(|| node(format!("route add blackhole {destination}/32")))?;
        ensure!(!is_carried, "packets for {destination} are carried against the route");
        ensure!(
            way.carries_after(|| node(format!("route del blackhole {destination}/32")))?,
            "{destination}"
        );
        // A rule by source, which a next hop by destination knows nothing of.
        let source = if way.to == EIP1 { FAR } else { EIP1 };
        let rule = format!("from {source} to {destination} blackhole priority 100");
        ensure!(!way.carries_after(|| node(format!("rule add {rule}")))?, "carried against the rule");
        ensure!(way.carries_after(|| node(format!("rule del {rule}")))?, "{destination}");
    }
    Ok(())
}

#[test]
fn next_hops_follow_within_a_second() -> Result<()> {
    Bed::run(Setup::default(), |bed| follow(bed))
}

#[test]
fn they_do_where_the_daemon_hangs() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        // Neighbours that are not known are the slow path's to ask for, which hangs, too.
        ensure!(ping(&bed.lab.vm1, FAR, 3, &[])?.received == 3);
        let daemon = i32::try_from(bed.daemon.pid()).ok().and_then(Pid::from_raw);
        let signal = |signal| daemon.map_or(Ok(()), |daemon| kill_process(daemon, signal));
        signal(Signal::STOP)?;
        let followed = follow(bed);
        signal(Signal::CONT)?;
        followed
    })
}

#[test]
fn they_do_where_the_daemon_was_killed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.daemon.kill()?;
        let followed = follow(bed);
        bed.start_again()?;
        followed
    })
}
