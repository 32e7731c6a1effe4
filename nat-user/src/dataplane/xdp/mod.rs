//! The datapath proper: the XDP program on the node's interfaces, and its BPF maps. All of it is pinned, so that it
//! outlives the daemon.

mod bpffs;
mod interfaces;
mod links;
mod log;
mod maps;
mod netlink;
mod object;
mod offloads;
mod ports;
mod sysctls;

use std::net::Ipv4Addr;
use std::path::Path;

use ::log::debug;
use anyhow::{Context as _, bail};
use aya::util::KernelVersion;
use aya_log::EbpfLogger;
use nat_common::abi::{ABI_VERSION, MAX_POOL_CIDRS, Meter, Node};
use rustix::thread::{CapabilitySet, MembarrierCommand, capabilities, membarrier, membarrier_query};

use self::bpffs::PinLock;
use self::interfaces::Interface;
use self::maps::Maps;
use super::{Binding, Dataplane, Half, Port, Role, Verdicts};
use crate::config::{self, KeyError};
use crate::model::PoolSpec;

/// Oldest kernel that is tested; what the program needs of the kernel has been there since.
const OLDEST_KERNEL: (u8, u8) = (6, 1);

/// The logger that carries the program's log into the daemon's.
pub type ProgramLogger = EbpfLogger<log::Names>;

/// The XDP program on the node's interfaces, with its maps.
pub struct XdpDataplane {
    maps: Maps,
    ports: Vec<Port>,
    logger: Option<ProgramLogger>,
    /// Keeps every other daemon off the pins.
    _lock: PinLock,
}

impl XdpDataplane {
    /// Loads the program and attaches it. What an earlier daemon left under the pin path is adopted: its maps stay,
    /// and its program is replaced atomically while traffic flows.
    ///
    /// # Errors
    /// [`KeyError`] where another configuration would mend it. What was not there before is not left behind.
    pub fn start(config: &config::Datapath, pools: &[PoolSpec]) -> anyhow::Result<Self> {
        check_machine()?;
        let interfaces = Interface::all()?;
        check_pools(pools, &interfaces)?;
        let wanted = wanted_ports(config, &interfaces)?;
        bpffs::prepare(&config.pin_path)?;
        let lock = PinLock::take(&config.pin_path)?;
        let standing = object::standing(config)?;
        if standing.is_none() {
            bpffs::remove_pins(&config.pin_path)?;
        }
        let node = Node {
            abi_version: ABI_VERSION,
            public_ip: config
                .public_ip
                .or_else(|| first_address(config, &interfaces))
                .map_or([0; 4], |address| address.octets()),
            all_send_redirects_before: match standing {
                Some(node) => node.all_send_redirects_before,
                None => sysctls::all_send_redirects()?,
            },
            padding: [0; 3],
        };
        match Self::load(config, pools, node, standing.is_some(), &interfaces, &wanted) {
            Ok((maps, ports, logger)) => Ok(Self { maps, ports, logger, _lock: lock }),
            Err(error) if standing.is_some() => Err(error),
            Err(error) => match remove(&config.pin_path) {
                Ok(()) => Err(error),
                Err(second) => Err(error.context(format!("and cleaning up failed: {second:#}"))),
            },
        }
    }

    fn load(
        config: &config::Datapath,
        pools: &[PoolSpec],
        node: Node,
        adopts: bool,
        interfaces: &[Interface],
        wanted: &[(&Interface, Role)],
    ) -> anyhow::Result<(Maps, Vec<Port>, Option<ProgramLogger>)> {
        let mut ebpf = object::load(config)?;
        let mut maps = Maps::take(&mut ebpf, config.max_bindings)?;
        if !adopts {
            // From here on these are maps that another start can take over, and unload can undo.
            maps.set_node(node)?;
        }
        let ports = ports::attach(&mut ebpf, &mut maps, config, interfaces, wanted)?;
        sysctls::set_all_send_redirects(0)?;
        maps.set_pools(pools)?;
        maps.set_node(node)?;
        object::pin_program(&mut ebpf, &config.pin_path)?;
        let logger = object::logger(&mut ebpf);
        Ok((maps, ports, logger))
    }

    /// The program's log, once.
    pub fn take_logger(&mut self) -> Option<ProgramLogger> {
        self.logger.take()
    }
}

/// Detaches the program from its interfaces, puts their sysctls back and removes everything under `pin_path`. A
/// daemon that runs on it is asked to end first. Fine if there is nothing.
///
/// # Errors
/// If the daemon does not end, or something cannot be removed.
pub fn unload(pin_path: &Path) -> anyhow::Result<()> {
    check_root()?;
    if !bpffs::is_bpffs(pin_path) {
        debug!("nothing is pinned at {}", pin_path.display());
        return Ok(());
    }
    let _lock = PinLock::take_from_daemon(pin_path)?;
    remove(pin_path)
}

/// Takes the datapath under `pin_path` apart. The caller holds the lock.
fn remove(pin_path: &Path) -> anyhow::Result<()> {
    ports::detach_all(pin_path)?;
    bpffs::remove(pin_path)
}

/// Not the user but what it may do: root in a container is not enough.
fn check_root() -> anyhow::Result<()> {
    let may = capabilities(None).context("cannot read this process's capabilities")?.effective;
    if may.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN) {
        Ok(())
    } else {
        bail!("BPF programs and interfaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN; run it with sudo")
    }
}

fn check_machine() -> anyhow::Result<()> {
    check_root()?;
    let (major, minor) = OLDEST_KERNEL;
    let kernel = KernelVersion::current().context("cannot tell the kernel's version")?;
    if kernel < KernelVersion::new(major, minor, 0) {
        bail!("this kernel is older than {major}.{minor}; boot a newer one (Debian 12 has 6.1)");
    }
    if !membarrier_query().contains_command(MembarrierCommand::Global) {
        bail!("this kernel has no membarrier(2) for all CPUs; boot it without nohz_full");
    }
    Ok(())
}

/// A pool must not hold what the node itself answers to, or the node would be cut off; and all of them together must
/// fit into their map.
fn check_pools(pools: &[PoolSpec], interfaces: &[Interface]) -> anyhow::Result<()> {
    for (index, pool) in pools.iter().enumerate() {
        for interface in interfaces {
            let own = |address: &&Ipv4Addr| pool.contains(**address) && !pool.reserve.contains(*address);
            if let Some(address) = interface.addresses.iter().find(own) {
                let what = format!("{address} is this node's own, on {}; add it to reserve", interface.name);
                return Err(KeyError::new(format!("pool[{index}].cidrs"), what).into());
            }
        }
    }
    let entries: usize = pools.iter().map(|pool| pool.cidrs.len() + pool.reserve.len()).sum();
    if entries > MAX_POOL_CIDRS as usize {
        let what = format!("{entries} CIDRs and reserved addresses, {MAX_POOL_CIDRS} at most; merge some");
        return Err(KeyError::new("pool", what).into());
    }
    Ok(())
}

/// The interfaces of the configuration and how they serve.
fn wanted_ports<'a>(
    config: &config::Datapath,
    interfaces: &'a [Interface],
) -> anyhow::Result<Vec<(&'a Interface, Role)>> {
    let mut wanted = Vec::new();
    let uplinks = config.uplinks.iter().map(|name| (name, "datapath.uplinks"));
    let downlinks = config.downlinks.iter().filter(|name| !config.uplinks.contains(name));
    for (name, key) in uplinks.chain(downlinks.map(|name| (name, "datapath.downlinks"))) {
        let interface = interfaces.iter().find(|interface| interface.name == *name).ok_or_else(|| {
            KeyError::new(key, format!("there is no interface {name}; see `ip link` for their names"))
        })?;
        if interface.mac.is_none() {
            return Err(KeyError::new(
                key,
                format!("{name} is no Ethernet interface; name one that has a MAC address"),
            )
            .into());
        }
        wanted.push((interface, role(config, name)));
    }
    Ok(wanted)
}

fn role(config: &config::Datapath, name: &String) -> Role {
    match (config.uplinks.contains(name), config.downlinks.contains(name)) {
        (true, true) => Role::Both,
        (true, false) => Role::Uplink,
        _ => Role::Downlink,
    }
}

/// The node's own public address, if the configuration names none: the first of the first uplink that has one.
fn first_address(config: &config::Datapath, interfaces: &[Interface]) -> Option<Ipv4Addr> {
    let uplinks = config.uplinks.iter().filter_map(|name| interfaces.iter().find(|i| i.name == *name));
    uplinks.flat_map(|interface| &interface.addresses).copied().find(|address| !address.is_link_local())
}

impl Dataplane for XdpDataplane {
    fn halves(&self) -> anyhow::Result<Vec<Half>> {
        self.maps.halves()
    }

    fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        self.maps.inbound(public_ip)
    }

    fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        self.maps.outbound(tenant, private_ip)
    }

    fn insert(&mut self, half: Half) -> anyhow::Result<()> {
        self.maps.insert(half)
    }

    fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        self.maps.remove(half)
    }

    fn quiesce(&mut self) -> anyhow::Result<()> {
        // kernel: MEMBARRIER_CMD_GLOBAL is synchronize_rcu(), and XDP programs run under RCU.
        membarrier(MembarrierCommand::Global).context("cannot wait for the packets under way (membarrier)")
    }

    fn meters(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        self.maps.meters(meters)
    }

    fn reset_meter(&mut self, meter: u32) -> anyhow::Result<()> {
        self.maps.reset_meter(meter)
    }

    fn verdicts(&self) -> anyhow::Result<Verdicts> {
        self.maps.verdicts()
    }

    fn ports(&self) -> Vec<Port> {
        self.ports.clone()
    }

    fn capacity(&self) -> u32 {
        self.maps.capacity()
    }
}
