//! What has to be right before a start changes anything.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use aya::util::KernelVersion;
use ipnet::Ipv4Net;
use rustix::thread::{CapabilitySet, MembarrierCommand, capabilities, membarrier_query};

use super::interfaces::{self, Interface};
use crate::config::{self, KeyError};
use crate::model::PoolSpec;

/// Oldest kernel that is tested; what the program needs of the kernel has been there since.
const OLDEST_KERNEL: (u8, u8) = (6, 1);

/// Not the user but what it may do: root in a container is not enough.
pub(super) fn root() -> anyhow::Result<()> {
    let may = capabilities(None).context("cannot read this process's capabilities")?.effective;
    if may.contains(CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN) {
        Ok(())
    } else {
        bail!("BPF programs and interfaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN; run it with sudo")
    }
}

/// Whether kernel and rights suffice.
pub(super) fn machine() -> anyhow::Result<()> {
    root()?;
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

/// A pool must not hold what the node itself answers to, or the node would be cut off.
pub(super) fn pools(pools: &[PoolSpec], interfaces: &[Interface]) -> anyhow::Result<()> {
    for interface in interfaces {
        for address in interface.addresses.iter().map(Ipv4Net::addr) {
            refuse(pools, address, || format!("this node's own, on {}", interface.name))?;
        }
    }
    Ok(())
}

/// Nor what the node sends packets by. That can only be where a pool is in an uplink's own network.
pub(super) fn gateways(
    pools: &[PoolSpec],
    config: &config::Datapath,
    interfaces: &[Interface],
) -> anyhow::Result<()> {
    let uplinks = interfaces.iter().filter(|interface| config.uplinks.contains(&interface.name));
    let networks: Vec<Ipv4Net> = uplinks.flat_map(|uplink| &uplink.addresses).copied().collect();
    let is_near = |cidr: &Ipv4Net| {
        networks.iter().any(|network| network.contains(&cidr.network()) || cidr.contains(&network.network()))
    };
    if pools.iter().flat_map(|pool| &pool.cidrs).any(is_near) {
        for gateway in interfaces::gateways()? {
            refuse(pools, gateway, || "a gateway of this node's routes".to_owned())?;
        }
    }
    Ok(())
}

/// Refuses an address that would be given out.
fn refuse(pools: &[PoolSpec], address: Ipv4Addr, whose: impl Fn() -> String) -> anyhow::Result<()> {
    let is_given_out = |pool: &PoolSpec| pool.contains(address) && !pool.reserve.contains(&address);
    match pools.iter().position(is_given_out) {
        None => Ok(()),
        Some(index) => {
            let what = format!("{address} is {}; add it to reserve", whose());
            Err(KeyError::new(format!("pool[{index}].cidrs"), what).into())
        }
    }
}
