//! What is measured: eipnat, its peers, and yardsticks.

use std::any::Any;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use aya::maps::HashMap;
use aya::{Ebpf, EbpfLoader};
use yardsticks::{Binding, Plan};

use super::line::{Direction, Expected, Line, attach};
use crate::lab::{Config, Daemon, Ground, Namespace, YARDSTICKS, eipnat_binary};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sends everything on, and looks at nothing. The first: all others are measured by it.
    Redirect,
    /// The least that a NAT in XDP has to do.
    Nat,
    Eipnat,
    /// nftables, without connection tracking.
    Stateless,
    /// nftables, with it.
    Tracking,
    /// The kernel's routing, without any translation.
    Routing,
}

/// EIPs and private addresses begin here, and are counted up; the first twelve bits stay.
const EIPS: Ipv4Addr = Ipv4Addr::new(203, 0, 0, 0);
const VMS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const MASK: u32 = 0xfff0_0000;

/// Somebody on the internet.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

impl Kind {
    pub(super) const ALL: &'static [Self] =
        &[Self::Redirect, Self::Nat, Self::Eipnat, Self::Stateless, Self::Tracking, Self::Routing];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "bare XDP redirect",
            Self::Nat => "minimal XDP NAT",
            Self::Eipnat => "eipnat",
            Self::Stateless => "nftables, stateless",
            Self::Tracking => "nftables, conntrack",
            Self::Routing => "routing, no NAT",
        }
    }

    const fn short(self) -> &'static str {
        match self {
            Self::Redirect => "red",
            Self::Nat => "nat",
            Self::Eipnat => "eip",
            Self::Stateless => "nfs",
            Self::Tracking => "nft",
            Self::Routing => "rou",
        }
    }
}

/// A device with a line through it each way.
pub(super) struct Device {
    kind: Kind,
    into: Line,
    out: Line,
    /// What forwards: it goes with the device.
    _works: Box<dyn Any>,
}

impl Device {
    pub(super) fn new(
        kind: Kind,
        ground: &Ground,
        internet: &Namespace,
        vms: &Namespace,
        count: u32,
    ) -> Result<Self> {
        let node = ground.host(kind.short())?;
        let [wan, vm, dummy_in, dummy_out] =
            ["w", "v", "g", "h"].map(|letter| format!("{letter}{}", kind.short()));
        ground.cable((internet, &wan), (&node, "up0"))?;
        ground.cable((vms, &vm), (&node, "dn0"))?;
        ground.cable((internet, &dummy_in), (&node, "x0"))?;
        ground.cable((vms, &dummy_out), (&node, "y0"))?;
        node.ip(&[
            "link set lo up".to_owned(),
            "address add 198.51.100.2/24 dev up0".to_owned(),
            "address add 10.255.255.1/24 dev dn0".to_owned(),
            format!("neighbour add 198.51.100.1 dev up0 lladdr {} nud permanent", mac_text(internet, &wan)?),
            format!("neighbour add 10.255.255.2 dev dn0 lladdr {} nud permanent", mac_text(vms, &vm)?),
            "route add default via 198.51.100.1".to_owned(),
            format!("route add {VMS}/12 via 10.255.255.2"),
        ])?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        let works = work(kind, ground, &node, count)?;
        let mask = count.next_power_of_two() - 1;
        let is_translated = !matches!(kind, Kind::Redirect | Kind::Routing);
        let (eips, vms_first) = (u32::from(EIPS), u32::from(VMS));
        let plan = |from: &str| -> Result<Plan> {
            Ok(Plan {
                ifindex: 0,
                source: CLIENT.into(),
                source_mask: 0,
                destination: CLIENT.into(),
                destination_mask: 0,
                mac: node.mac_address(from)?,
                port_mask: 0,
                ttl: 64,
                padding: [0; 3],
            })
        };
        let destination = if kind == Kind::Routing { vms_first } else { eips };
        let into = Line::new(
            (internet, &wan),
            &dummy_in,
            (vms, &vm),
            Plan { destination, destination_mask: mask, ..plan("up0")? },
            Expected {
                is_source: false,
                prefix: if is_translated { vms_first } else { destination },
                mask: MASK,
            },
        )?;
        let out = Line::new(
            (vms, &vm),
            &dummy_out,
            (internet, &wan),
            Plan { source: vms_first, source_mask: mask, ..plan("dn0")? },
            Expected { is_source: true, prefix: if is_translated { eips } else { vms_first }, mask: MASK },
        )?;
        Ok(Self { kind, into, out, _works: works })
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Packets a second that came rightly in one turn.
    pub(super) fn turn(&mut self, direction: Direction, frames: u32) -> Result<f64> {
        let line = match direction {
            Direction::In => &mut self.into,
            Direction::Out => &mut self.out,
        };
        let turn = line.turn(frames);
        let (came, taken) = turn.with_context(|| format!("{}, {}", self.kind.name(), direction.name()))?;
        ensure!(came > 0, "{} carries nothing {}", self.kind.name(), direction.name());
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let came = came as f64;
        Ok(came / taken.as_secs_f64())
    }
}

fn mac_text(host: &Namespace, device: &str) -> Result<String> {
    let bytes = host.mac_address(device)?.map(|byte| format!("{byte:02x}"));
    Ok(bytes.join(":"))
}

/// Each EIP with its private address. Where the number is no power of two, those up to the next one are bound as well, so that the
/// generator need not know.
fn pairs(count: u32) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
    (0..count.next_power_of_two())
        .map(|n| (Ipv4Addr::from(u32::from(EIPS) + n), Ipv4Addr::from(u32::from(VMS) + n)))
}

fn work(kind: Kind, ground: &Ground, node: &Namespace, count: u32) -> Result<Box<dyn Any>> {
    match kind {
        Kind::Redirect => {
            let redirect = |from: &str, to: &str| -> Result<Ebpf> {
                let mut ebpf = EbpfLoader::new()
                    .override_global("OUT", &node.interface_index(to)?, true)
                    .load(YARDSTICKS)?;
                attach(&mut ebpf, "redirect", node, from)?;
                Ok(ebpf)
            };
            Ok(Box::new([redirect("up0", "dn0")?, redirect("dn0", "up0")?]))
        }
        Kind::Nat => Ok(Box::new([nat(node, "up0", false, count)?, nat(node, "dn0", true, count)?])),
        Kind::Eipnat => Ok(Box::new(daemon(ground, node, count)?)),
        Kind::Stateless => Ok(Box::new(nft(ground, node, &stateless(count))?)),
        Kind::Tracking => Ok(Box::new(nft(ground, node, &tracking(count))?)),
        Kind::Routing => Ok(Box::new(())),
    }
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

fn daemon(ground: &Ground, node: &Namespace, count: u32) -> Result<Daemon> {
    let dir = ground.file("eipnat");
    std::fs::create_dir(&dir)?;
    let config = Config {
        uplinks: vec!["up0".to_owned()],
        downlinks: vec!["dn0".to_owned()],
        mode: "native".to_owned(),
        max_bindings: count.next_power_of_two(),
        cidrs: vec![format!("{EIPS}/12")],
        reuse_delay: 60,
        arguments: Vec::new(),
        pin_path: ground.file("bpf"),
        dir,
    };
    let daemon = Daemon::start_on(node, &eipnat_binary()?, config)?;
    let file = ground.file("eips.csv");
    let mut lines = String::new();
    for (eip, vm) in pairs(count) {
        writeln!(lines, "{eip},{vm}")?;
    }
    std::fs::write(&file, lines)?;
    daemon.ok(&["eip", "import", &file.to_string_lossy()])?;
    Ok(daemon)
}

fn nft(ground: &Ground, node: &Namespace, rules: &str) -> Result<()> {
    let file = ground.file("rules.nft");
    std::fs::write(&file, rules)?;
    node.succeed("nft", &["-f", &file.to_string_lossy()])?;
    Ok(())
}

/// A map of nftables, from EIPs to private addresses or back.
fn map(name: &str, count: u32, is_back: bool) -> String {
    let mut text = format!("map {name} {{ type ipv4_addr : ipv4_addr; elements = {{ ");
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
