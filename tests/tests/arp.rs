//! EIPs of the uplink's own network: a plain host beside the node reaches them without any route.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::lab::{
    Config, Daemon, INTERNET, INTERNET_DEVICE, Lab, Namespace, SECOND_DOWN, Topology, VM1, eipnat_binary,
    ping,
};

/// The pool, in the network that the internet host and the node are in.
const POOL: &str = "198.51.100.64/26";
const EIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 70);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 71);

fn start(lab: &Lab, node: &Namespace, name: &str) -> Result<Daemon> {
    let mut config = Config::of(lab);
    config.cidrs = vec![POOL.to_owned()];
    config.dir = lab.file(name);
    config.pin_path = lab.file(&format!("bpf-{name}"));
    std::fs::create_dir(&config.dir)?;
    Daemon::start_on(node, &eipnat_binary()?, config)
}

/// A node's MAC address on its uplink.
fn mac(node: &Namespace, topology: Topology) -> Result<String> {
    let links: serde_json::Value =
        serde_json::from_str(&node.succeed("ip", &["-j", "link", "show", topology.ports().0])?)?;
    Ok(links[0]["address"].as_str().context("no address")?.to_owned())
}

/// The MAC address that a host knows of an address.
fn known(host: &Namespace, address: Ipv4Addr) -> Result<Option<String>> {
    let neighbours: serde_json::Value =
        serde_json::from_str(&host.succeed("ip", &["-j", "neigh", "show", &address.to_string()])?)?;
    Ok(neighbours[0]["lladdr"].as_str().map(str::to_owned))
}

/// Asks by ARP like people do, and answers what arping says.
fn arping(host: &Namespace, options: &[&str], address: Ipv4Addr) -> Result<String> {
    let mut command = std::process::Command::new("arping");
    command.args(["-i", INTERNET_DEVICE, "-c", "1", "-w", "1"]).args(options).arg(address.to_string());
    Ok(String::from_utf8_lossy(&host.output(command)?.stdout).into_owned())
}

#[test]
fn a_neighbour_reaches_eips_of_its_own_network() -> Result<()> {
    for topology in [Topology::TwoArmed, Topology::OneArmed] {
        let lab = Lab::new(topology)?;
        let daemon = start(&lab, &lab.node, "first")?;
        daemon.bind(EIP, VM1)?;
        let node_mac = mac(&lab.node, topology)?;
        for options in [&[][..], &["-0"]] {
            let said = arping(&lab.internet, options, EIP)?;
            ensure!(said.contains(&node_mac), "{topology:?}: {said}");
        }
        let pings = ping(&lab.internet, EIP, 10, &[])?;
        ensure!(pings.received == 10, "{topology:?}: {pings:?}");
        let pings = ping(&lab.vm1, INTERNET, 10, &[])?;
        ensure!(pings.received == 10, "{topology:?}: {pings:?}");
        ensure!(known(&lab.internet, EIP)? == Some(node_mac), "{topology:?}");
        // One that is held, but stands for nothing, and one of the pool that nobody holds.
        daemon.ok(&["eip", "allocate", "--address", &OTHER.to_string()])?;
        for address in [OTHER, Ipv4Addr::new(198, 51, 100, 99)] {
            let said = arping(&lab.internet, &[], address)?;
            ensure!(said.contains("0 packets received"), "{topology:?}: {said}");
        }
        // A VM answers for its own address, and nobody else does.
        if topology == Topology::OneArmed {
            let said = arping(&lab.internet, &["-S", &INTERNET.to_string()], VM1)?;
            ensure!(!said.contains(&mac(&lab.node, topology)?), "{said}");
        }
        daemon.ok(&["eip", "detach", &EIP.to_string()])?;
        let said = arping(&lab.internet, &[], EIP)?;
        ensure!(said.contains("0 packets received"), "{topology:?}: {said}");
    }
    Ok(())
}

/// Two announcements, two seconds apart, when an EIP is attached, and none for one that is routed here.
#[test]
fn an_attach_is_announced_twice() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let daemon = start(&lab, &lab.node, "first")?;
    let file = lab.file("arp.txt");
    let mut command = std::process::Command::new("tcpdump");
    command.args(["-i", INTERNET_DEVICE, "-n", "-e", "-tt", "-l", "--immediate-mode", "-Z", "root"]);
    command.arg(format!("arp and arp[14:4] == 0x{:08x}", u32::from(EIP)));
    let mut tcpdump = lab.internet.spawn(command, file)?;
    tcpdump.wait_for("listening on", Duration::from_secs(10))?;
    daemon.bind(EIP, VM1)?;
    std::thread::sleep(Duration::from_secs(5));
    tcpdump.stop(rustix::process::Signal::INT, Duration::from_secs(10))?;
    let seen: Vec<String> =
        tcpdump.log().lines().filter(|line| line.contains("Request who-has")).map(str::to_owned).collect();
    let node_mac = mac(&lab.node, Topology::TwoArmed)?;
    let is_announcement = |line: &String| {
        line.contains(&format!("{node_mac} > ff:ff:ff:ff:ff:ff"))
            && line.contains(&format!("Request who-has {EIP}"))
            && line.contains(&format!("tell {EIP}"))
    };
    ensure!(seen.len() == 2 && seen.iter().all(is_announcement), "{seen:?}");
    let at = |line: &str| -> Result<f64> { Ok(line.split(' ').next().context("no time")?.parse()?) };
    let apart = at(&seen[1])? - at(&seen[0])?;
    ensure!((1.9..3.0).contains(&apart), "{apart} s apart");
    Ok(())
}

/// A node dies, and another one gets its EIP: the neighbour learns of it at once.
#[test]
fn a_second_node_takes_over() -> Result<()> {
    let lab = Lab::new(Topology::OneArmed)?;
    let second = lab.second_node()?;
    let first_daemon = start(&lab, &lab.node, "first")?;
    first_daemon.bind(EIP, VM1)?;
    let pings = ping(&lab.internet, EIP, 5, &[])?;
    ensure!(pings.received == 5, "{pings:?}");
    ensure!(known(&lab.internet, EIP)? == Some(mac(&lab.node, lab.topology)?));
    // Its power is gone, and nothing of it answers any more.
    lab.node.ip(&[format!("link set {} down", lab.topology.ports().0)])?;
    let second_daemon = start(&lab, &second, "second")?;
    lab.vm1.ip(&[format!("route replace default via {SECOND_DOWN}")])?;
    second_daemon.bind(EIP, VM1)?;
    let pings = ping(&lab.internet, EIP, 20, &[])?;
    ensure!(pings.received == 20, "{pings:?}");
    ensure!(known(&lab.internet, EIP)? == Some(mac(&second, lab.topology)?));
    Ok(())
}

/// Another machine claims an EIP: that is contradicted, counted, logged and shown.
#[test]
fn a_conflict_is_contradicted_and_shown() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let daemon = start(&lab, &lab.node, "first")?;
    daemon.bind(EIP, VM1)?;
    let filter = format!("arp and ether src {}", mac(&lab.node, lab.topology)?);
    let mut command = std::process::Command::new("tcpdump");
    command.args(["-i", INTERNET_DEVICE, "-n", "-e", "-l", "--immediate-mode", "-Z", "root"]).arg(filter);
    std::thread::sleep(Duration::from_secs(3));
    let mut tcpdump = lab.internet.spawn(command, lab.file("arp.txt"))?;
    tcpdump.wait_for("listening on", Duration::from_secs(10))?;
    for _ in 0..3 {
        arping(&lab.internet, &["-U", "-S", &EIP.to_string()], EIP)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    tcpdump.stop(rustix::process::Signal::INT, Duration::from_secs(10))?;
    let defence = format!("Request who-has {EIP}");
    let defences = tcpdump.log().lines().filter(|line| line.contains(&defence)).count();
    ensure!(defences == 1, "{}", tcpdump.log());
    let stats = daemon.json(&["stats"])?;
    let claimant = {
        let links: serde_json::Value =
            serde_json::from_str(&lab.internet.succeed("ip", &["-j", "link", "show", INTERNET_DEVICE])?)?;
        links[0]["address"].as_str().context("no address")?.to_owned()
    };
    ensure!(
        stats["slow_path"]["claims"][0]["eip"] == EIP.to_string()
            && stats["slow_path"]["claims"][0]["mac"] == claimant.as_str(),
        "{stats}"
    );
    ensure!(daemon.ok(&["stats"])?.contains(&claimant), "a table without the claim");
    ensure!(daemon.metrics()?.contains("eipnat_arp_conflicts_total 3"), "not counted");
    ensure!(daemon.log().contains(&format!("claims to hold {EIP}")), "not logged");
    let pings = ping(&lab.internet, EIP, 5, &[])?;
    ensure!(pings.received == 5, "{pings:?}");
    Ok(())
}
