//! What has to be right before a start changes anything.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use aya::util::KernelVersion;
use ipnet::Ipv4Net;
use rustix::thread::{CapabilitySet, MembarrierCommand, capabilities, membarrier_query};

use super::interfaces::Interface;
use crate::config::KeyError;
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

/// A pool must not hold what the node itself answers to, or the node would be cut off; nor what it sends packets by.
pub(super) fn pools(
    pools: &[PoolSpec],
    interfaces: &[Interface],
    gateways: &[Ipv4Addr],
) -> anyhow::Result<()> {
    for (index, pool) in pools.iter().enumerate() {
        let is_given_out = |address: &Ipv4Addr| pool.contains(*address) && !pool.reserve.contains(address);
        let refused = |what: String| {
            let what = format!("{what}; add it to reserve");
            Err(KeyError::new(format!("pool[{index}].cidrs"), what).into())
        };
        for interface in interfaces {
            if let Some(address) = interface.addresses.iter().map(Ipv4Net::addr).find(is_given_out) {
                return refused(format!("{address} is this node's own, on {}", interface.name));
            }
        }
        if let Some(gateway) = gateways.iter().find(|gateway| is_given_out(gateway)) {
            return refused(format!("{gateway} is a gateway of this node's routes"));
        }
    }
    Ok(())
}
