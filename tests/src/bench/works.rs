//! The node in the middle: its interfaces, and what forwards on it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use aya::{Ebpf, EbpfLoader};
use yardsticks::Binding;

use super::device::Kind;
use super::line::attach;
use crate::lab::{Config, Daemon, Ground, Namespace, Process, YARDSTICKS, eipnat_binary};

/// EIPs and private addresses begin here, and are counted up; the first twelve bits stay.
pub(super) const EIPS: Ipv4Addr = Ipv4Addr::new(203, 0, 0, 0);
pub(super) const VMS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
pub(super) const MASK: u32 = 0xfff0_0000;

/// The gateway towards the internet, the node there, the node's other end, and the gateway towards the VMs.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(super) const NODE_UP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const NODE_DOWN: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 1);
pub(super) const INNER: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 2);

/// A million of anything is done by then.
const LONG: Duration = Duration::from_mins(10);

/// What forwards on a node: it goes with this.
#[derive(Default)]
pub(super) struct Works {
    /// Eipnat's daemon.
    pub(super) daemon: Option<Daemon>,
    _programs: Vec<Ebpf>,
}

/// A host that says nothing unasked: without IPv6 it neither looks for routers nor tells of groups that it is in.
pub(super) fn host(ground: &Ground, role: &str) -> Result<Namespace> {
    let host = ground.host(role)?;
    for interfaces in ["all", "default"] {
        host.sysctl(&format!("net/ipv6/conf/{interfaces}/disable_ipv6"), "1")?;
    }
    Ok(host)
}

/// A node with a cable to either side, which knows both neighbours for good.
pub(super) fn node(
    kind: Kind,
    ground: &Ground,
    wan: (&Namespace, &str),
    vm: (&Namespace, &str),
) -> Result<Namespace> {
    let node = host(ground, kind.short())?;
    ground.cable(wan, (&node, "up0"))?;
    ground.cable(vm, (&node, "dn0"))?;
    node.ip(&[
        "link set lo up".to_owned(),
        format!("address add {NODE_UP}/24 dev up0"),
        format!("address add {NODE_DOWN}/24 dev dn0"),
        neighbour(GATEWAY, "up0", &mac_text(wan.0, wan.1)?),
        neighbour(INNER, "dn0", &mac_text(vm.0, vm.1)?),
        format!("route add default via {GATEWAY}"),
        format!("route add {VMS}/12 via {INNER}"),
    ])?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    Ok(node)
}

/// A line for `ip`: a neighbour that nobody has to ask for.
pub(super) fn neighbour(address: Ipv4Addr, device: &str, mac: &str) -> String {
    format!("neighbour add {address} dev {device} lladdr {mac} nud permanent")
}

pub(super) fn mac_text(host: &Namespace, device: &str) -> Result<String> {
    let bytes = host.mac_address(device)?.map(|byte| format!("{byte:02x}"));
    Ok(bytes.join(":"))
}

/// Has the node forward as the kind of device does, with so many EIPs.
pub(super) fn work(kind: Kind, ground: &Ground, node: &Namespace, count: u32) -> Result<Works> {
    let programs = match kind {
        Kind::Redirect => {
            let redirect = |from: &str, to: &str| -> Result<Ebpf> {
                let mut ebpf = EbpfLoader::new()
                    .override_global("OUT", &node.interface_index(to)?, true)
                    .load(YARDSTICKS)?;
                attach(&mut ebpf, "redirect", node, from)?;
                Ok(ebpf)
            };
            vec![redirect("up0", "dn0")?, redirect("dn0", "up0")?]
        }
        Kind::Discard => {
            let discard = |from: &str| -> Result<Ebpf> {
                let mut ebpf = Ebpf::load(YARDSTICKS)?;
                attach(&mut ebpf, "discard", node, from)?;
                Ok(ebpf)
            };
            vec![discard("up0")?, discard("dn0")?]
        }
        Kind::Nat => vec![nat(node, "up0", false, count)?, nat(node, "dn0", true, count)?],
        Kind::Eipnat => {
            let count = count.next_power_of_two();
            // A case may bind more.
            let daemon = daemon(ground, node, count.max(1 << 17))?;
            import(&daemon, ground, first(count))?;
            return Ok(Works { daemon: Some(daemon), ..Works::default() });
        }
        Kind::Stateless => return nft(ground, node, &stateless(count)),
        Kind::Tracking => return nft(ground, node, &tracking(count)),
        Kind::Routing => Vec::new(),
    };
    Ok(Works { _programs: programs, daemon: None })
}

/// Each EIP with its private address. Where the number is no power of two, those up to the next one are bound as well, so that the
/// generator need not know.
fn pairs(count: u32) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
    first(count.next_power_of_two())
}

/// So many EIPs, each with its private address.
pub(super) fn first(count: u32) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
    (0..count).map(pair)
}

/// The EIP of that number, and its private address.
pub(super) fn pair(number: u32) -> (Ipv4Addr, Ipv4Addr) {
    (Ipv4Addr::from(u32::from(EIPS) + number), Ipv4Addr::from(u32::from(VMS) + number))
}

fn nat(node: &Namespace, device: &str, is_source: bool, count: u32) -> Result<Ebpf> {
    let entries = count.next_power_of_two();
    let mut ebpf = EbpfLoader::new()
        .override_global("IS_SOURCE", &u32::from(is_source), true)
        .map_max_entries("BINDINGS", entries)
        .map_max_entries("COUNTERS", entries)
        .load(YARDSTICKS)?;
    let mut bindings: HashMap<_, [u8; 4], [u8; size_of::<Binding>()]> =
        ebpf.map_mut("BINDINGS").context("no map BINDINGS")?.try_into()?;
    for (counter, (eip, vm)) in (0..).zip(pairs(count)) {
        let (from, to) = if is_source { (vm, eip) } else { (eip, vm) };
        let bytes: [u8; size_of::<Binding>()] = bytemuck::cast(Binding { address: to.octets(), counter });
        bindings.insert(from.octets(), bytes, 0)?;
    }
    attach(&mut ebpf, "nat", node, device)?;
    Ok(ebpf)
}

/// Eipnat's daemon with room for so many EIPs, and none yet.
pub(super) fn daemon(ground: &Ground, node: &Namespace, max_bindings: u32) -> Result<Daemon> {
    let dir = ground.file("eipnat");
    std::fs::create_dir(&dir)?;
    let config = Config {
        uplinks: vec!["up0".to_owned()],
        downlinks: vec!["dn0".to_owned()],
        mode: "native".to_owned(),
        max_bindings,
        cidrs: vec![format!("{EIPS}/12")],
        reuse_delay: 60,
        arguments: Vec::new(),
        pin_path: ground.file("bpf"),
        dir,
    };
    Daemon::start_on(node, &eipnat_binary()?, config)
}

/// Attaches EIPs, and answers how long that has taken.
pub(super) fn import(
    daemon: &Daemon,
    ground: &Ground,
    pairs: impl Iterator<Item = (Ipv4Addr, Ipv4Addr)>,
) -> Result<Duration> {
    let file = ground.file("eips.csv");
    let mut lines = String::new();
    for (eip, vm) in pairs {
        writeln!(lines, "{eip},{vm}")?;
    }
    std::fs::write(&file, lines)?;
    let start = Instant::now();
    let mut client = daemon.watch(&["eip", "import", &file.to_string_lossy()], ground.file("import.log"))?;
    ends_well(&mut client)?;
    Ok(start.elapsed())
}

/// Waits for a process that has to succeed, and may take long.
fn ends_well(process: &mut Process) -> Result<()> {
    let status = process.wait(LONG)?;
    ensure!(status.success(), "{}: {status}: {}", process.log_path().display(), process.log());
    Ok(())
}

fn nft(ground: &Ground, node: &Namespace, rules: &str) -> Result<Works> {
    // Or what is for EIPs that nobody has would go back to where it came from.
    node.ip(&[format!("route add blackhole {EIPS}/12")])?;
    let file = ground.file(&format!("{}.nft", node.name()));
    std::fs::write(&file, rules)?;
    let mut command = Command::new("nft");
    command.arg("-f").arg(&file);
    ends_well(&mut node.spawn(command, ground.file(&format!("{}.nft.log", node.name())))?)?;
    Ok(Works::default())
}

/// A map of nftables, from EIPs to private addresses or back.
fn map(name: &str, count: u32, is_back: bool) -> String {
    // Told the size beforehand, nftables takes a table that fits, which is quicker to look up in, and to fill by far.
    let size = count.next_power_of_two();
    let mut text = format!("map {name} {{ type ipv4_addr : ipv4_addr; size {size}; elements = {{ ");
    for (eip, vm) in pairs(count) {
        let (from, to) = if is_back { (vm, eip) } else { (eip, vm) };
        let _ = write!(text, "{from} : {to}, ");
    }
    text + "} }\n"
}

fn stateless(count: u32) -> String {
    format!(
        "table ip bench {{\n{}{}chain pre {{ type filter hook prerouting priority raw\n notrack\n\
         iifname up0 ip daddr set ip daddr map @in\n}}\n\
         chain post {{ type filter hook postrouting priority 0\n oifname up0 ip saddr set ip saddr map @out\n}}\n}}\n",
        map("in", count, false),
        map("out", count, true)
    )
}

fn tracking(count: u32) -> String {
    format!(
        "table ip bench {{\n{}{}chain pre {{ type nat hook prerouting priority dstnat\n\
         iifname up0 dnat to ip daddr map @in\n}}\n\
         chain post {{ type nat hook postrouting priority srcnat\n oifname up0 snat to ip saddr map @out\n}}\n}}\n",
        map("in", count, false),
        map("out", count, true)
    )
}
