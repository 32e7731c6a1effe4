//! What the fast path leaves to the slow path: unknown neighbours, fragmentation, and answers; under floods, too.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::{
    Bed, Capture, EIP_SPARE, EIP1, EIP2, FAR, Generator, INTERNET, INTERNET_DEVICE, NODE_DOWN, NODE_UP, POOL,
    Plan, Sender, Setup, Side, Sink, VM_DEVICE, WebServer, download, ping,
};

const PORT: u16 = 7000;

/// The narrow link's MTU.
const NARROW: u16 = 1300;

/// What the slow path says of a reason.
fn slow_path(bed: &Bed, reason: &str, what: &str) -> Result<u64> {
    let stats = bed.daemon.json(&["stats"])?;
    let count = stats["slow_path"]["reasons"][reason][what].as_u64();
    count.with_context(|| format!("no {what} of {reason} in {stats}"))
}

/// Waits until something is as it has to be.
fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not after ten seconds: {what}");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Makes the node forget every MAC address.
fn forget_neighbours(bed: &Bed) -> Result<()> {
    bed.lab.node.ip(&["neigh flush all".to_owned()])
}

/// How many frames the kernel may hold back of those that it has taken out of a ring and not filled.
const HELD_BACK: u64 = 64;

/// Asserts that no frame is missing: all are accounted for, the kernel has as many to receive into as at first, and those
/// stand in its rings indeed.
fn no_frame_is_missing(bed: &Bed, before: &Value) -> Result<()> {
    wait_until("every frame is where it was", || {
        let now = bed.daemon.json(&["stats"])?;
        for socket in now["slow_path"]["sockets"].as_array().context("no sockets")? {
            let number = |part: &str, of: &str| {
                socket[part][of].as_u64().with_context(|| format!("{part}.{of}: {socket}"))
            };
            let in_rings = number("rings", "fill")? + number("rings", "receive")?;
            let receiving = number("frames", "receiving")?;
            ensure!(number("frames", "strays")? == 0, "{socket}");
            if in_rings > receiving || in_rings + HELD_BACK < receiving {
                return Ok(false);
            }
        }
        let frames = |stats: &Value| -> Vec<Value> {
            let sockets = stats["slow_path"]["sockets"].as_array().cloned().unwrap_or_default();
            sockets.iter().map(|socket| socket["frames"].clone()).collect()
        };
        Ok(!frames(&now).is_empty() && frames(&now) == frames(before))
    })
}

#[test]
fn each_interface_has_a_socket_on_each_of_its_queues() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let stats = bed.daemon.json(&["stats"])?;
        let sockets = stats["slow_path"]["sockets"].as_array().context("no sockets")?;
        for interface in ["up0", "dn0"] {
            let own: Vec<_> = sockets.iter().filter(|socket| socket["interface"] == interface).collect();
            ensure!(!own.is_empty() && own.iter().all(|socket| socket["mode"] == "copy"), "{stats}");
        }
        Ok(())
    })
}

/// Packets for a neighbour that has not been heard of wait for it, in their order, and all of them leave, in either
/// direction. Each is billed once.
#[test]
fn packets_to_an_unknown_neighbour_wait_and_none_is_lost() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        for (from, at, to, eip) in
            [(&lab.internet, &lab.vm1, EIP1, EIP1), (&lab.vm2, &lab.internet, INTERNET, EIP2)]
        {
            let sink = Sink::start(at, PORT)?;
            let (before, carried) = (bed.daemon.meter(eip)?, slow_path(bed, "neighbour", "carried")?);
            let sender = Sender::start(from, (to, PORT), 2000, 100)?;
            for _ in 0..5 {
                forget_neighbours(bed)?;
                sender.send_more(200)?;
            }
            let sent = sender.stop()?;
            let received: Vec<u64> = sink.stop()?.iter().map(|packet| packet.number).collect();
            ensure!(received.len() as u64 == sent, "{} of {sent} have arrived", received.len());
            let carried = slow_path(bed, "neighbour", "carried")? - carried;
            ensure!(carried >= 5, "{carried} packets have gone by the slow path");
            let meter = bed.daemon.meter(eip)?;
            let billed = meter.in_packets + meter.out_packets - before.in_packets - before.out_packets;
            ensure!(billed == sent, "{billed} of {sent} are billed");
        }
        Ok(())
    })
}

/// A VM that is off: who asks for it is told, the reason is counted, and nobody is billed.
#[test]
fn a_neighbour_that_does_not_answer_is_unreachable() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.lab.vm1.ip(&[format!("link set {VM_DEVICE} down")])?;
        forget_neighbours(bed)?;
        let before = bed.daemon.meter(EIP1)?;
        let capture =
            Capture::start(&bed.lab.internet, INTERNET_DEVICE, "icmp[0] == 3", bed.lab.file("wan.pcap"))?;
        let pings = ping(&bed.lab.internet, EIP1, 3, &["-W", "3"])?;
        ensure!(pings.received == 0, "{pings:?}");
        let told = capture.stop()?;
        ensure!(
            told.len() == 3
                && told.iter().all(|packet| packet.source == NODE_UP
                    && packet.icmp().is_some_and(|(kind, _)| kind == [3, 1])
                    && packet.addresses()[2..] == [INTERNET, EIP1]),
            "{told:?}"
        );
        ensure!(bed.daemon.drops("neighbour_unresolved")? == 3, "{}", bed.daemon.ok(&["stats"])?);
        let shown = bed.daemon.ok(&["eip", "show", &EIP1.to_string()])?;
        ensure!(shown.contains("neighbour_unresolved"), "{shown}");
        ensure!(bed.daemon.meter(EIP1)? == before, "somebody is billed for what did not arrive");
        Ok(())
    })
}

/// Makes the link on one side of the node narrow, as both of its ends see it, while TCP at the far end goes on to announce
/// segments as large as before: so it is the node that finds packets too large.
fn narrow(bed: &Bed, side: Side) -> Result<()> {
    let lab = &bed.lab;
    let (far, device, node_device, route) = match side {
        Side::Outside => (&lab.internet, INTERNET_DEVICE, "up0", format!("{POOL} via {NODE_UP}")),
        Side::Inside => (&lab.vm1, VM_DEVICE, "dn0", format!("default via {NODE_DOWN}")),
    };
    far.ip(&[format!("link set {device} mtu {NARROW}"), format!("route replace {route} advmss 1460")])?;
    lab.node.ip(&[format!("link set {node_device} mtu {NARROW}")])
}

/// Large packets that may be fragmented arrive in fragments, and are billed once; those that must not be are answered.
fn a_narrow_link(side: Side) -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        narrow(bed, side)?;
        let (from, to, server, client, target) = match side {
            Side::Outside => (&lab.vm1, INTERNET, &lab.vm1, &lab.internet, EIP1),
            Side::Inside => (&lab.internet, EIP1, &lab.internet, &lab.vm1, INTERNET),
        };
        let before = bed.daemon.meter(EIP1)?;
        let pings = ping(from, to, 5, &["-s", "1400", "-M", "dont"])?;
        ensure!(pings.received == 5, "{pings:?}");
        ensure!(slow_path(bed, "fragment", "carried")? == 5, "{}", bed.daemon.ok(&["stats"])?);
        // What leaves in fragments is one packet on the bill; what comes in fragments is as many as have come.
        let meter = bed.daemon.meter(EIP1)?;
        let billed = match side {
            Side::Outside => meter.out_bytes - before.out_bytes,
            Side::Inside => meter.in_bytes - before.in_bytes,
        };
        ensure!(billed == 5 * 1428, "{billed} bytes are billed for five packets of 1,428");
        // Real TCP finds the way's MTU.
        let server = WebServer::start(server)?;
        download(client, target, 2_000_000)?;
        drop(server);
        ensure!(slow_path(bed, "mtu_exceeded", "answered")? > 0, "nobody was told");
        let route = from.succeed("ip", &["route", "get", &to.to_string()])?;
        ensure!(route.contains(&format!("mtu {NARROW}")), "the sender was told of another MTU: {route}");
        Ok(())
    })
}

#[test]
fn a_narrow_uplink() -> Result<()> {
    a_narrow_link(Side::Outside)
}

#[test]
fn a_narrow_downlink() -> Result<()> {
    a_narrow_link(Side::Inside)
}

/// What floods the node from the internet, and the reason that it would have for the slow path.
fn floods(bed: &Bed) -> Result<[(&'static str, Plan); 3]> {
    let plan =
        Plan { mac: bed.lab.node.mac_address("up0")?, destination: EIP1.into(), ttl: 64, ..internet() };
    Ok([
        // No hops left, from sources all over.
        ("ttl_expired", Plan { ttl: 1, ..plan }),
        // VMs that are off: so many bindings are made.
        ("neighbour", Plan { destination: OFF.into(), destination_mask: 15, ..plan }),
        // Nothing for the slow path: only to compare with.
        ("", Plan { destination: EIP_SPARE.into(), ..plan }),
    ])
}

/// Datagrams from sources all over the internet.
fn internet() -> Plan {
    Plan {
        ifindex: 0,
        source: Ipv4Addr::new(20, 0, 0, 0).into(),
        source_mask: 0x00ff_ffff,
        destination: 0,
        destination_mask: 0,
        mac: [0; 6],
        port_mask: u16::MAX,
        ttl: 0,
        padding: [0; 3],
    }
}

/// The first of sixteen EIPs whose VMs are off.
const OFF: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 32);

fn bind_vms_that_are_off(bed: &Bed) -> Result<()> {
    for number in 0..16 {
        let eip = Ipv4Addr::from(u32::from(OFF) + number);
        bed.daemon.bind(eip, Ipv4Addr::new(10, 0, 0, u8::try_from(100 + number)?))?;
    }
    Ok(())
}

/// A flood of live frames of what the slow path would get keeps neither another EIP's traffic from flowing, nor another
/// reason's packets from the slow path; and no frame is lost in it.
#[test]
fn a_flood_starves_nobody() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bind_vms_that_are_off(bed)?;
        let before = bed.daemon.json(&["stats"])?;
        for (reason, plan) in floods(bed)? {
            let begun = Instant::now();
            let generator = Generator::start(&bed.lab.internet, INTERNET_DEVICE, plan)?;
            if !reason.is_empty() {
                wait_until("the flood is limited", || Ok(slow_path(bed, reason, "limited")? > 1000))?;
            }
            // Between VMs, which do not come by the flooded interface.
            let pings = ping(&bed.lab.vm1, EIP2, 100, &[])?;
            // These do. There a veth has room for a few hundred frames, so that some die before the node sees them.
            let others = ping(&bed.lab.internet, EIP2, 100, &["-I", &FAR.to_string()])?;
            let file = bed.lab.file(&format!("vm2-{reason}.pcap"));
            let capture = Capture::start(&bed.lab.vm2, VM_DEVICE, "icmp[0] == 11", file)?;
            ping(&bed.lab.vm2, INTERNET, 20, &["-t", "1"])?;
            let told = capture.stop()?.len();
            let made = generator.stop()?;
            let seconds = begun.elapsed().as_secs_f64();
            println!(
                "flood {reason:?}: {made} frames in {seconds:.1} s; beside it {pings:?}, {others:?}, {told} of 20 told"
            );
            ensure!(made > 50_000, "{reason}: that was no flood: {made}");
            ensure!(pings.received + 1 >= pings.sent, "{reason}: {pings:?}");
            ensure!(others.received * 10 >= others.sent * 7, "{reason}: {others:?}");
            // In a flood of the same kind its answers are limited, too.
            ensure!(told >= 18 || reason == "ttl_expired" && told > 0, "{reason}: {told} of 20 were told");
        }
        // One that has to be asked for is still asked for.
        forget_neighbours(bed)?;
        let pings = ping(&bed.lab.internet, EIP2, 10, &[])?;
        ensure!(pings.received == 10, "after the flood: {pings:?}");
        no_frame_is_missing(bed, &before)
    })
}

/// The daemon is killed in the flood: forwarding goes on, unknown neighbours are the kernel's to ask for, and the next daemon
/// takes up its work.
#[test]
fn killed_in_a_flood() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let [(_, plan), ..] = floods(bed)?;
        let generator = Generator::start(&bed.lab.internet, INTERNET_DEVICE, plan)?;
        thread::sleep(Duration::from_millis(300));
        bed.daemon.kill()?;
        let pings = ping(&bed.lab.vm1, EIP2, 50, &[])?;
        ensure!(pings.received + 1 >= pings.sent, "without a daemon: {pings:?}");
        forget_neighbours(bed)?;
        let pings = ping(&bed.lab.vm1, EIP2, 10, &[])?;
        ensure!(pings.received + 1 >= pings.sent, "by the kernel: {pings:?}");
        bed.start_again()?;
        let carried = slow_path(bed, "neighbour", "carried")?;
        forget_neighbours(bed)?;
        let pings = ping(&bed.lab.vm1, EIP2, 10, &[])?;
        ensure!(pings.received + 1 >= pings.sent, "by the next daemon: {pings:?}");
        wait_until("the slow path works again", || Ok(slow_path(bed, "neighbour", "carried")? > carried))?;
        generator.stop()?;
        let before = bed.daemon.json(&["stats"])?;
        let pings = ping(&bed.lab.internet, EIP1, 10, &[])?;
        ensure!(pings.received == 10, "{pings:?}");
        no_frame_is_missing(bed, &before)
    })
}

/// For a while, everything that the slow path does, mixed; then no frame is missing, and nothing waits.
#[test]
fn a_soak_loses_no_frame() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let before = bed.daemon.json(&["stats"])?;
        let lab = &bed.lab;
        narrow(bed, Side::Outside)?;
        let end = Instant::now() + Duration::from_secs(10);
        let (mut rounds, mut sent, mut received) = (0, 0, 0);
        while Instant::now() < end {
            forget_neighbours(bed)?;
            for (from, to, options) in [
                (&lab.vm1, INTERNET, &["-s", "1400", "-M", "dont"][..]),
                (&lab.vm2, INTERNET, &["-s", "3000", "-M", "dont"]),
                (&lab.internet, EIP1, &["-t", "1"]),
                (&lab.vm1, INTERNET, &["-s", "1400", "-M", "do"]),
                (&lab.vm2, EIP1, &[]),
            ] {
                let pings = ping(from, to, 3, options)?;
                if !options.contains(&"1") && !options.contains(&"do") {
                    sent += pings.sent;
                    received += pings.received;
                }
            }
            rounds += 1;
        }
        ensure!(rounds > 3 && sent == received, "{rounds} rounds: {received} of {sent}");
        wait_until("nothing waits", || Ok(bed.daemon.json(&["stats"])?["slow_path"]["waiting"] == 0))?;
        no_frame_is_missing(bed, &before)?;
        let metrics = bed.daemon.metrics()?;
        for name in [
            r#"eipnat_slow_path_packets_total{reason="ttl_expired",outcome="answered"}"#,
            r#"eipnat_slow_path_packets_total{reason="fragment",outcome="carried"}"#,
            r#"eipnat_slow_path_sent_packets_total{interface="dn0",reason="fragment"}"#,
            r#"eipnat_slow_path_frames{interface="up0",holder="receiving"}"#,
            "eipnat_slow_path_waiting_packets 0",
        ] {
            ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
        }
        Ok(())
    })
}
