//! The lab itself: its network carries traffic, and nothing of it stays.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tests::lab::{
    Capture, INTERNET, INTERNET_DEVICE, Lab, NODE_DOWN, NODE_UP, Sender, Sink, Topology, VM2, WebServer,
    download, ping,
};

fn neighbours_reach_each_other(topology: Topology) -> Result<()> {
    let lab = Lab::new(topology)?;
    for (from, to) in [(&lab.internet, NODE_UP), (&lab.vm1, NODE_DOWN), (&lab.vm1, VM2)] {
        let pings = ping(from, to, 3, &[])?;
        assert_eq!((pings.sent, pings.received), (3, 3), "from {} to {to}", from.name());
    }
    let server = WebServer::start(&lab.vm2)?;
    download(&lab.vm1, VM2, 1_000_000)?;
    assert_eq!(server.clients().len(), 1);
    lab.remove()
}

#[test]
fn two_armed_neighbours_reach_each_other() -> Result<()> {
    neighbours_reach_each_other(Topology::TwoArmed)
}

#[test]
fn one_armed_neighbours_reach_each_other() -> Result<()> {
    neighbours_reach_each_other(Topology::OneArmed)
}

#[test]
fn a_capture_shows_every_packet_as_it_was_on_the_wire() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    lab.capture_exactly()?;
    let _server = WebServer::start(&lab.internet)?;
    let capture = Capture::start(&lab.internet, INTERNET_DEVICE, "ip", lab.file("wan.pcap"))?;
    download(&lab.node, INTERNET, 1_000_000)?;
    let sink = Sink::start(&lab.internet, 7000)?;
    let sender = Sender::start(&lab.node, (INTERNET, 7000), 5000, 100)?;
    sender.send_more(1000)?;
    let sent = sender.stop()?;
    let received = sink.stop()?;
    assert!(received.iter().map(|packet| packet.number).eq(0..sent), "{} of {sent} came", received.len());
    let packets = capture.stop()?;
    let numbered =
        packets.iter().filter(|packet| packet.protocol == 17 && packet.total_len == 128).count() as u64;
    assert_eq!(numbered, sent);
    let largest = packets.iter().map(|packet| packet.total_len).max();
    assert_eq!(largest, Some(1500), "the sender's segments are on the wire one by one");
    lab.remove()
}

#[test]
fn dropping_a_lab_takes_everything_away() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let mut sleep = lab.vm1.spawn(command, lab.file("sleep.log"))?;
    let footprint = lab.footprint()?;
    ensure!(footprint.present()?.len() >= 6, "five namespaces, a process and a directory");
    drop(lab);
    assert_eq!(footprint.remains()?, Vec::<String>::new());
    assert!(!sleep.wait(Duration::ZERO)?.success(), "killed with the lab");
    Ok(())
}

/// Starts `eipnat-lab up` and returns it with the names of its namespaces.
fn start_lab_process() -> Result<(Child, Vec<String>)> {
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_eipnat-lab")).arg("up").stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut names = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if line.starts_with("The lab is up") {
            break;
        }
        names.extend(
            line.split(['=', ' ']).find(|word| word.starts_with("/run/netns/")).map(ToOwned::to_owned),
        );
    }
    assert_eq!(names.len(), 4);
    assert!(names.iter().all(|name| std::fs::exists(name).unwrap_or(false)), "{names:?}");
    Ok((child, names))
}

fn still_there(names: &[String]) -> Vec<&String> {
    names.iter().filter(|name| std::fs::exists(name).unwrap_or(true)).collect()
}

#[test]
fn sigterm_takes_everything_away() -> Result<()> {
    for (signal, times) in [(Signal::TERM, 1), (Signal::INT, 2)] {
        let (mut child, names) = start_lab_process()?;
        for _ in 0..times {
            // The second one may find the process gone.
            let _ = kill_process(Pid::from_child(&child), signal);
        }
        child.wait()?;
        assert!(still_there(&names).is_empty(), "{names:?} after {signal:?}");
    }
    Ok(())
}

#[test]
fn leftovers_of_a_killed_lab_are_swept_up_and_a_living_one_is_not() -> Result<()> {
    let living = Lab::new(Topology::TwoArmed)?;
    let (mut child, names) = start_lab_process()?;
    child.kill()?;
    child.wait()?;
    let swept = Command::new(env!("CARGO_BIN_EXE_eipnat-lab")).arg("sweep").status()?;
    assert!(swept.success());
    assert!(still_there(&names).is_empty(), "{names:?}");
    let pings = ping(&living.vm1, VM2, 1, &[])?;
    assert_eq!(pings.received, 1);
    living.remove()
}
