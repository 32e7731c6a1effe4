//! The datapath outlives the daemon, the next daemon takes over, and `unload` takes everything off.

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use tests::lab::{
    Bed, Capture, Config, Daemon, EIP1, INTERNET, INTERNET_DEVICE, Lab, Sender, Setup, Topology, VM1,
    eipnat_binary, ping, pins,
};

fn answered(bed: &Bed, what: &str) -> Result<()> {
    let lab = &bed.lab;
    for (from, to) in [(&lab.internet, EIP1), (&lab.vm1, INTERNET)] {
        let pings = ping(from, to, 3, &[])?;
        assert_eq!(pings.received, 3, "{to} from {} {what}", from.name());
    }
    Ok(())
}

#[test]
fn sigterm_leaves_traffic_flowing() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        answered(bed, "with the daemon")?;
        let programs = bed.lab.programs()?;
        bed.daemon.stop()?;
        assert!(!bed.daemon.config().socket().exists(), "the socket is still there");
        answered(bed, "without the daemon")?;
        assert_eq!(bed.lab.programs()?, programs);
        Ok(())
    })
}

#[test]
fn sigint_ends_the_daemon_like_sigterm() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let pid = Pid::from_raw(bed.daemon.pid().cast_signed()).expect("a process id is not 0");
        kill_process(pid, Signal::INT)?;
        bed.daemon.wait()?;
        answered(bed, "without the daemon")
    })
}

#[test]
fn the_next_daemon_takes_over() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let before = (bed.daemon.json(&["eip", "list"])?, bed.daemon.json(&["status"])?);
        answered(bed, "before restarts")?;
        for _ in 0..2 {
            let carried = bed.daemon.meter(EIP1)?;
            bed.restart()?;
            assert_eq!(bed.lab.programs()?.len(), 2);
            assert_eq!((bed.daemon.json(&["eip", "list"])?, bed.daemon.json(&["status"])?), before);
            assert_eq!(bed.daemon.meter(EIP1)?, carried, "counters go on");
            answered(bed, "after a restart")?;
        }
        Ok(())
    })
}

#[test]
fn the_same_program_stays_unless_another_is_asked_for() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let programs = bed.lab.programs()?;
        bed.restart()?;
        assert_eq!(bed.lab.programs()?, programs, "the same program");
        answered(bed, "after a restart")?;
        bed.daemon.stop()?;
        let config = Config { arguments: vec!["--replace-program".into()], ..bed.daemon.config().clone() };
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
        let replaced = bed.lab.programs()?;
        assert!(replaced.len() == 2 && replaced != programs, "{replaced:?}, before {programs:?}");
        answered(bed, "after a replacement")
    })
}

#[test]
fn after_a_reboot_everything_comes_back_from_the_store() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.daemon.ok(&["vm", "create", "web", "--private-ip", "10.0.0.12"])?;
        let before = (bed.daemon.json(&["eip", "list"])?, bed.daemon.json(&["vm", "list"])?);
        answered(bed, "before")?;
        let carried = bed.daemon.meter(EIP1)?;
        // What a reboot takes: the daemon, its programs and its pins.
        bed.daemon.stop()?;
        bed.daemon.unload()?;
        assert_eq!(ping(&bed.lab.internet, EIP1, 1, &[])?.received, 0);
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, bed.daemon.config().clone())?;
        assert_eq!((bed.daemon.json(&["eip", "list"])?, bed.daemon.json(&["vm", "list"])?), before);
        answered(bed, "after")?;
        assert!(bed.daemon.meter(EIP1)?.in_packets < carried.in_packets + 4, "a new datapath counts anew");
        Ok(())
    })
}

#[test]
fn unload_asks_a_running_daemon_to_end_first() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        assert_eq!(bed.lab.programs()?.len(), 2);
        assert!(!pins(bed.daemon.config())?.is_empty());
        bed.daemon.unload()?;
        bed.daemon.wait()?;
        bed.check_unloaded()?;
        let pings = ping(&bed.lab.internet, EIP1, 1, &[])?;
        assert_eq!(pings.received, 0, "nothing translates any more");
        Ok(())
    })
}

#[test]
fn unload_puts_back_what_the_daemon_changed_and_may_be_repeated() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    lab.node.sysctl("net/ipv4/conf/dn0/forwarding", "1")?;
    let forwarding = |device: &str| lab.node.read_sysctl(&format!("net/ipv4/conf/{device}/forwarding"));
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
    assert_eq!((forwarding("up0")?, forwarding("dn0")?), ("1".to_owned(), "1".to_owned()));
    assert_eq!(lab.node.read_sysctl("net/ipv4/ip_forward")?, "0", "of its own interfaces only");
    daemon.stop()?;
    for _ in 0..2 {
        daemon.unload()?;
        assert_eq!(lab.programs()?, []);
        assert_eq!(pins(daemon.config())?, Vec::<String>::new());
        assert_eq!((forwarding("up0")?, forwarding("dn0")?), ("0".to_owned(), "1".to_owned()));
    }
    // And from the beginning again.
    daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
    daemon.bind(EIP1, VM1)?;
    let pings = ping(&lab.internet, EIP1, 1, &[])?;
    assert_eq!(pings.received, 1);
    daemon.stop()?;
    daemon.unload()?;
    lab.remove()
}

#[test]
fn a_bpffs_that_is_there_already_is_used() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let mut config = Config::of(&lab);
    let bpffs = lab.file("bpffs");
    std::fs::create_dir(&bpffs)?;
    rustix::mount::mount("bpf", &bpffs, "bpf", rustix::mount::MountFlags::empty(), None)?;
    // The pin path is a directory in it.
    config.pin_path = bpffs.join("eipnat");
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config.clone())?;
    assert!(!pins(&config)?.is_empty());
    daemon.bind(EIP1, VM1)?;
    daemon.stop()?;
    let pings = ping(&lab.internet, EIP1, 1, &[])?;
    assert_eq!(pings.received, 1);
    daemon.unload()?;
    assert_eq!(lab.programs()?, []);
    assert_eq!(pins(&config)?, Vec::<String>::new());
    lab.remove()
}

#[test]
fn no_private_address_gets_out_from_the_start_to_the_unload() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let capture = Capture::start(&lab.internet, INTERNET_DEVICE, "net 10.0.0.0/8", lab.file("wan.pcap"))?;
    let sender = Sender::start(&lab.vm1, (INTERNET, 7000), 5000, 64)?;
    let mut sent_before = 0;
    for _ in 0..3 {
        let mut daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
        daemon.bind(EIP1, VM1)?;
        daemon.ok(&["eip", "detach", &EIP1.to_string()])?;
        daemon.stop()?;
        daemon.unload()?;
        assert!(sender.next() > sent_before + 100, "nothing was sent");
        sent_before = sender.next();
    }
    sender.stop()?;
    let leaked = capture.stop()?;
    assert!(leaked.is_empty(), "{} packets, the first {:?}", leaked.len(), leaked.first());
    lab.remove()
}

#[test]
fn unload_has_detached_when_it_returns() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    for round in 1..=5 {
        let mut daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
        daemon.stop()?;
        daemon.unload()?;
        assert_eq!(lab.programs()?, [], "round {round}");
    }
    lab.remove()
}
