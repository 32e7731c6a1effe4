//! What a start, a restart or an unload meets when something went wrong before it.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nat_user::dataplane::xdp;
use tests::changeover::Changeover;
use tests::lab::{
    Bed, Config, Daemon, EIP1, INTERNET, Lab, Setup, Topology, VM1, eipnat_binary, ping, pins, refused,
    run_eipnat,
};

/// Runs a daemon that is refused, and returns what it says.
fn refused_start(lab: &Lab, config: &Config) -> Result<String> {
    let file = lab.file("refused.toml");
    fs::write(&file, config.to_toml())?;
    refused(&run_eipnat(&lab.node, &eipnat_binary()?, &["run", "--config", &file.to_string_lossy()])?)
}

#[test]
fn an_interface_that_is_gone_stops_neither_the_next_start_nor_unload() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
    lab.node.ip(&[
        "link del dn0",
        "link add dn1 type veth peer name vm9",
        "link set dn1 up",
        "link set vm9 up",
    ])?;
    lab.node.succeed("ethtool", &["-K", "vm9", "gro", "on"])?;
    daemon.stop()?;
    let mut config = Config::of(&lab);
    config.downlinks = vec!["dn1".into()];
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
    assert_eq!(lab.programs()?.len(), 2);
    lab.node.ip(&["link del dn1"])?;
    daemon.stop()?;
    daemon.unload()?;
    assert_eq!(lab.programs()?, []);
    assert_eq!(lab.node.read_sysctl("net/ipv4/conf/up0/forwarding")?, "0");
    lab.remove()
}

#[test]
fn a_refused_restart_leaves_the_datapath_as_it_was() -> Result<()> {
    Bed::run(Setup { mode: "native", ..Setup::default() }, |bed| {
        let programs = bed.lab.programs()?;
        bed.daemon.stop()?;
        // A bridge knows no native XDP.
        bed.lab.node.ip(&["link add br9 type bridge", "link set br9 up"])?;
        let mut more = bed.daemon.config().clone();
        more.uplinks.push("br9".into());
        let mut other_mode = bed.daemon.config().clone();
        other_mode.mode = "generic".into();
        for config in [more, other_mode] {
            let complaint = refused_start(&bed.lab, &config)?;
            ensure!(complaint.contains("datapath.mode"), "{complaint}");
            assert_eq!(bed.lab.programs()?, programs);
            assert_eq!(bed.lab.node.read_sysctl("net/ipv4/conf/br9/forwarding")?, "0");
            assert_eq!(ping(&bed.lab.internet, EIP1, 3, &[])?.received, 3);
            assert_eq!(ping(&bed.lab.vm1, INTERNET, 3, &[])?.received, 3);
        }
        Ok(())
    })
}

#[test]
fn what_a_killed_start_left_is_made_anew() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let file = lab.file("killed.toml");
    fs::write(&file, config.to_toml())?;
    let mut command = Command::new(eipnat_binary()?);
    command.arg("run").arg("--config").arg(&file);
    let process = lab.node.spawn(command, lab.file("killed.log"))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !config.pin_path.join("maps_1/NODE").exists() {
        ensure!(Instant::now() < deadline, "no map is pinned: {}", process.log());
    }
    process.signal(rustix::process::Signal::KILL)?;
    drop(process);
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
    daemon.bind(EIP1, VM1)?;
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);
    daemon.stop()?;
    daemon.unload()?;
    lab.remove()
}

#[test]
fn maps_whose_pins_were_removed_are_found_by_the_program_that_uses_them() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        assert_eq!(ping(&bed.lab.internet, EIP1, 5, &[])?.received, 5);
        let (programs, before) = (bed.lab.programs()?, bed.daemon.meter(EIP1)?);
        bed.daemon.stop()?;
        let maps = bed.daemon.config().pin_path.join("maps_1");
        for name in ["NODE", "PORTS", "COUNTERS", "INBOUND"] {
            fs::remove_file(maps.join(name))?;
        }
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, bed.daemon.config().clone())?;
        assert_eq!(bed.lab.programs()?, programs, "it runs on the same maps");
        assert_eq!(bed.daemon.meter(EIP1)?, before);
        assert!(maps.join("NODE").exists());
        assert_eq!(ping(&bed.lab.internet, EIP1, 5, &[])?.received, 5);
        Ok(())
    })
}

#[test]
fn unload_does_what_it_can_and_tells_the_rest() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.daemon.stop()?;
        let pin_path = bed.daemon.config().pin_path.clone();
        let strange = pin_path.join("maps_1/strange");
        fs::create_dir(&strange)?;
        for name in ["NODE", "METERS"] {
            fs::remove_file(pin_path.join("maps_1").join(name))?;
        }
        let config = bed.lab.file("unload.toml");
        fs::write(&config, bed.daemon.config().to_toml())?;
        let unload = ["unload", "--config", &config.to_string_lossy()];
        let line = refused(&run_eipnat(&bed.lab.node, &eipnat_binary()?, &unload)?)?;
        ensure!(line.starts_with("removed, but for this: ") && line.contains("maps_1"), "{line}");
        assert_eq!(bed.lab.programs()?, []);
        assert_eq!(bed.lab.node.read_sysctl("net/ipv4/conf/dn0/forwarding")?, "0");
        assert_eq!(pins(bed.daemon.config())?, ["maps_1"]);
        assert_eq!(fs::read_dir(pin_path.join("maps_1"))?.count(), 1);
        Ok(fs::remove_dir(strange)?)
    })
}

/// A restored store may have given a meter to another address, and an upgrade carries meters over by their number.
#[test]
fn after_a_restore_and_an_upgrade_nobody_is_billed_for_anothers_traffic() -> Result<()> {
    let this = Changeover { max_bindings: 2, ..Changeover::this_version()? };
    let lab = Lab::new(Topology::TwoArmed)?;
    this.run(&lab)?;
    assert_eq!(ping(&lab.internet, EIP1, 5, &[])?.received, 5);
    let before = this.run(&lab)?;
    assert_eq!((before.meters[0][0], before.meters[1][0]), (5, 0));
    let restored = Changeover { max_bindings: 4, restored: true, ..this }.run(&lab)?;
    assert_eq!(restored.meters, [[0; 4]; 2], "neither is the other's");
    assert_eq!(restored.sent_on, before.sent_on);
    lab.node.run(|| xdp::unload(&Changeover::pin_path(&lab), |_| Ok(())))??;
    lab.remove()
}

#[test]
fn another_programs_socket_is_left_alone() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let theirs = UnixListener::bind(config.socket())?;
    let complaint = refused_start(&lab, &config)?;
    ensure!(complaint.contains("api.socket"), "{complaint}");
    assert!(config.socket().exists());
    drop(theirs);
    assert_eq!(lab.programs()?, []);
    lab.remove()
}

#[test]
fn strict_reverse_path_filtering_does_not_stop_the_first_packet() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    lab.node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    lab.node.sysctl("net/ipv4/conf/dn0/rp_filter", "1")?;
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, Config::of(&lab))?;
    daemon.bind(EIP1, VM1)?;
    lab.node.ip(&["neigh flush all"])?;
    assert_eq!(ping(&lab.vm1, INTERNET, 3, &[])?.received, 3);
    daemon.stop()?;
    daemon.unload()?;
    assert_eq!(lab.node.read_sysctl("net/ipv4/conf/dn0/rp_filter")?, "1");
    assert_eq!(lab.node.read_sysctl("net/ipv4/conf/all/send_redirects")?, "1");
    lab.remove()
}
