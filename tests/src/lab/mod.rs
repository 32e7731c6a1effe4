//! A network in network namespaces: an internet host, a NAT node, a switch and two VMs.
//!
//! Every lab has names of its own, so any number of them run side by side. All of it goes when the [`Lab`] is
//! dropped, on a panic, on SIGINT and SIGTERM; what a SIGKILL left is swept up by the next lab.

mod bed;
mod capture;
mod chain;
mod daemon;
mod facility;
mod generator;
mod meter;
mod namespace;
mod process;
mod prometheus;
mod raw;
mod screen;
mod site;
mod traffic;
mod udp;
mod web;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

pub use bed::{Bed, Setup, pins};
pub use capture::{Capture, Packet, meters_on_the_wire};
pub use chain::{Chain, INNER_ROUTER, Side};
pub use daemon::{
    Config, Daemon, METRICS, beside_this_program, datapath, default_pool, eipnat_binary, refused, run_eipnat,
};
pub use facility::may_lack;
pub use generator::{Generator, Plan, YARDSTICKS};
pub use meter::Meter;
pub use namespace::Namespace;
pub use process::Process;
pub use prometheus::Prometheus;
pub use raw::{Flow, exchange_raw};
pub use screen::Screen;
pub use site::{Footprint, signalled, sweep, take_first_signal};
pub use traffic::{Iperf, IperfReport, Pings, Probe, curl, download, ping, traceroute};
pub use udp::{Received, Sender, Sink};
pub use web::{WebServer, content};

/// The internet host, which is also the node's gateway.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A second address of the internet host, which the node reaches by its gateway only.
pub const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The node's own address towards the internet.
pub const NODE_UP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The node's own address towards the VMs: their gateway.
pub const NODE_DOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// A second node's address towards the internet.
pub const SECOND_UP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// A second node's address towards the VMs.
pub const SECOND_DOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The private address of the first VM.
pub const VM1: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// The private address of the second VM.
pub const VM2: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
/// The pool; the internet host routes it to the node.
pub const POOL: &str = "203.0.113.0/24";
/// An address of the pool, by custom the first VM's.
pub const EIP1: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// An address of the pool, by custom the second VM's.
pub const EIP2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// An address of the pool that no test attaches.
pub const EIP_SPARE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);

/// The internet host's interface.
pub const INTERNET_DEVICE: &str = "wan";
/// The VMs' interfaces.
pub const VM_DEVICE: &str = "eth0";

/// How the node is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// internet – up0, node, dn0 – switch – VMs.
    TwoArmed,
    /// Internet, VMs and the node's one interface `up0` on the same switch.
    OneArmed,
}

impl Topology {
    /// The node's uplink and downlink.
    #[must_use]
    pub fn ports(self) -> (&'static str, &'static str) {
        match self {
            Self::TwoArmed => ("up0", "dn0"),
            Self::OneArmed => ("up0", "up0"),
        }
    }
}

/// Room for hosts, without any yet. Dropping it takes all of them away, processes inside included.
#[derive(Debug)]
pub struct Ground(Arc<site::Site>);

impl Ground {
    /// Makes room.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> Result<Self> {
        Ok(Self(site::Site::claim()?))
    }

    /// One more host, without any connection yet.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn host(&self, role: &str) -> Result<Namespace> {
        make_host(&self.0, role)
    }

    /// A cable between two hosts.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn cable(&self, left: (&Namespace, &str), right: (&Namespace, &str)) -> Result<()> {
        cable(left.0, left.1, None, right.0, right.1)
    }

    /// A path for a file that goes with the hosts.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.dir().join(name)
    }
}

/// The network. Dropping it takes everything away, processes inside included.
#[derive(Debug)]
pub struct Lab {
    /// The internet host: [`INTERNET`] and [`FAR`], routes [`POOL`] to the node.
    pub internet: Namespace,
    /// The NAT node.
    pub node: Namespace,
    /// The bridge, nothing else.
    pub switch: Namespace,
    /// The VM with [`VM1`].
    pub vm1: Namespace,
    /// The VM with [`VM2`].
    pub vm2: Namespace,
    /// How the node is connected.
    pub topology: Topology,
    site: Arc<site::Site>,
}

impl Lab {
    /// Makes a lab.
    ///
    /// # Errors
    /// Without root, or when the kernel or the machine lacks something; nothing is left then.
    pub fn new(topology: Topology) -> Result<Self> {
        let site = site::Site::claim()?;
        let [internet, node, switch, vm1, vm2] =
            ["internet", "node", "switch", "vm1", "vm2"].map(|role| make_host(&site, role));
        let (internet, node, switch, vm1, vm2) = (internet?, node?, switch?, vm1?, vm2?);
        let lab = Self { internet, node, switch, vm1, vm2, topology, site };
        lab.connect().context("cannot set up the lab's network")?;
        Ok(lab)
    }

    /// A directory for the lab's files; goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.site.dir()
    }

    /// A path in [`Self::dir`].
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Takes the lab away.
    ///
    /// # Errors
    /// When something cannot be taken away.
    pub fn remove(self) -> Result<()> {
        self.site.undo()
    }

    /// What there is of the lab just now, BPF programs on the node's interfaces included.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn footprint(&self) -> Result<Footprint> {
        self.site.footprint(self.programs()?.into_iter().map(|(_, id)| id).collect())
    }

    /// The XDP programs on the node's interfaces: interface and program id, as the kernel tells.
    ///
    /// # Errors
    /// When `ip` cannot be asked.
    pub fn programs(&self) -> Result<Vec<(String, u32)>> {
        let links: serde_json::Value =
            serde_json::from_str(&self.node.succeed("ip", &["-j", "link", "show"])?)?;
        let links = links.as_array().context("ip -j link show gives no list")?;
        let program = |link: &serde_json::Value| {
            // `xdp.prog` is one program, `xdp.attached` several.
            let id = link.pointer("/xdp/prog/id").or_else(|| link.pointer("/xdp/attached/0/prog/id"))?;
            Some((link["ifname"].as_str()?.to_owned(), u32::try_from(id.as_u64()?).ok()?))
        };
        Ok(links.iter().filter_map(program).collect())
    }

    /// Turns off the merging of received TCP segments on the internet host, so that a capture there shows
    /// packets as they were on the wire. It costs throughput.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn capture_exactly(&self) -> Result<()> {
        // Not `gro off`: that would take NAPI away, and with it everything redirected to this interface.
        self.internet.ip(&[format!("link set dev {INTERNET_DEVICE} gro_max_size 1")])
    }

    fn connect(&self) -> Result<()> {
        self.switch.ip(&[
            "link set lo up",
            "link add br0 type bridge mcast_snooping 0",
            "link set br0 up",
        ])?;
        let (uplink, downlink) = self.topology.ports();
        if self.topology == Topology::TwoArmed {
            cable(&self.internet, INTERNET_DEVICE, None, &self.node, uplink)?;
            self.plug_downlink(None)?;
        } else {
            self.plug(&self.internet, INTERNET_DEVICE, "internet")?;
            self.plug(&self.node, uplink, "node")?;
        }
        self.plug(&self.vm1, VM_DEVICE, "vm1")?;
        self.plug(&self.vm2, VM_DEVICE, "vm2")?;
        self.internet.ip(&[
            "link set lo up".into(),
            format!("address add {FAR}/32 dev lo"),
            format!("address add {INTERNET}/24 dev {INTERNET_DEVICE}"),
            format!("route add {POOL} via {NODE_UP}"),
        ])?;
        self.node.ip(&[
            "link set lo up".into(),
            format!("address add {NODE_UP}/24 dev {uplink}"),
            format!("address replace {NODE_DOWN}/24 dev {downlink}"),
            format!("route add default via {INTERNET}"),
        ])?;
        for (vm, address) in [(&self.vm1, VM1), (&self.vm2, VM2)] {
            vm.ip(&[
                "link set lo up".into(),
                format!("address add {address}/24 dev {VM_DEVICE}"),
                format!("route add default via {NODE_DOWN}"),
            ])?;
        }
        Ok(())
    }

    /// Takes the node's downlink of a two-armed lab away, as if the card had been pulled.
    ///
    /// # Errors
    /// When it is not there.
    pub fn unplug_downlink(&self) -> Result<()> {
        self.node.ip(&[format!("link del {}", self.topology.ports().1)])
    }

    /// Brings the node's downlink of a two-armed lab, each time a new one, with this interface index or any.
    ///
    /// # Errors
    /// When it is there already, or the index is taken.
    pub fn plug_downlink(&self, index: Option<u32>) -> Result<()> {
        let (_, downlink) = self.topology.ports();
        self.plug_as(&self.node, downlink, index, "node")?;
        self.node.ip(&[format!("address add {NODE_DOWN}/24 dev {downlink}")])
    }

    /// A second node of a one-armed lab, with other addresses.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub fn second_node(&self) -> Result<Namespace> {
        let node = self.add_host("node2")?;
        let (uplink, downlink) = self.topology.ports();
        self.plug(&node, uplink, "node2")?;
        node.ip(&[
            "link set lo up".into(),
            format!("address add {SECOND_UP}/24 dev {uplink}"),
            format!("address add {SECOND_DOWN}/24 dev {downlink}"),
            format!("route add default via {INTERNET}"),
        ])?;
        Ok(node)
    }

    /// One more host, without any connection yet; it goes with the lab.
    fn add_host(&self, role: &str) -> Result<Namespace> {
        make_host(&self.site, role)
    }

    /// A cable from a host to a port of the switch.
    fn plug(&self, host: &Namespace, device: &str, port: &str) -> Result<()> {
        self.plug_as(host, device, None, port)
    }

    fn plug_as(&self, host: &Namespace, device: &str, index: Option<u32>, port: &str) -> Result<()> {
        cable(host, device, index, &self.switch, port)?;
        self.switch.ip(&[format!("link set {port} master br0")])
    }

    /// Addresses, routes, neighbours and link counters of every host, for whoever has to find out what went wrong.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for host in [&self.internet, &self.node, &self.switch, &self.vm1, &self.vm2] {
            for args in [&["-br", "address"][..], &["route"], &["neigh"]] {
                let shown = host.succeed("ip", args).unwrap_or_else(|error| format!("{error:#}"));
                text = format!("{text}--- {}: ip {}\n{shown}", host.name(), args.join(" "));
            }
        }
        let links =
            self.node.succeed("ip", &["-s", "-s", "link"]).unwrap_or_else(|error| format!("{error:#}"));
        text + "--- the node's links\n" + &links
    }
}

/// A network namespace with nothing in it.
fn make_host(site: &site::Site, role: &str) -> Result<Namespace> {
    let name = site.namespace(role);
    namespace::host("ip", &["netns", "add", &name])?;
    let host = Namespace::open(name)?;
    // A new namespace takes IPv4 settings over from the machine it is on.
    host.sysctl("net/ipv4/ip_forward", "0")?;
    // A new namespace takes these over from the machine's own.
    host.sysctl("net/ipv4/ip_no_pmtu_disc", "0")?;
    host.sysctl("net/ipv4/conf/all/send_redirects", "1")?;
    host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    host.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
    Ok(host)
}

/// A cable between two hosts.
fn cable(
    left: &Namespace,
    left_device: &str,
    left_index: Option<u32>,
    right: &Namespace,
    right_device: &str,
) -> Result<()> {
    let index = left_index.map(|index| format!("index {index}")).unwrap_or_default();
    let peer = format!("peer name {right_device} netns {}", right.name());
    left.ip(&[format!("link add {left_device} {index} type veth {peer}")])?;
    let ends = [(left, left_device), (right, right_device)];
    for (end, device) in ends {
        // XDP sees what the sender's stack leaves for the hardware to finish: nothing, please. And a veth
        // takes in what XDP redirects to it only with NAPI on, which is what GRO does. The kernel looks for
        // GRO at the other end when a veth comes up, so first both ends have it.
        end.succeed("ethtool", &["-K", device, "tx", "off", "gro", "on"])?;
    }
    for (end, device) in ends {
        end.ip(&[format!("link set {device} up")])?;
    }
    Ok(())
}
