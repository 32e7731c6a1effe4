//! What the kernel says of the node's interfaces.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Context as _;
use nat_common::abi::Mac;
use nix::ifaddrs::getifaddrs;

/// A network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// None if it is no Ethernet interface.
    pub(super) mac: Option<Mac>,
    pub(super) addresses: Vec<Ipv4Addr>,
}

impl Interface {
    /// All interfaces of this network namespace.
    pub(super) fn all() -> anyhow::Result<Vec<Self>> {
        let mut interfaces = BTreeMap::<String, Self>::new();
        for entry in getifaddrs().context("cannot list the network interfaces")? {
            let interface = interfaces.entry(entry.interface_name.clone()).or_default();
            interface.name = entry.interface_name;
            let Some(address) = entry.address else { continue };
            if let Some(link) = address.as_link_addr() {
                interface.index = link.ifindex().try_into().context("an interface index beyond 32 bits")?;
                // Loopback and tunnels have zeros.
                interface.mac = link.addr().filter(|mac| *mac != [0; 6]);
            } else if let Some(inet) = address.as_sockaddr_in() {
                interface.addresses.push(inet.ip());
            }
        }
        Ok(interfaces.into_values().collect())
    }
}
