//! What the kernel says of the node's interfaces.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

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
                interface.mac = link.addr();
            } else if let Some(inet) = address.as_sockaddr_in() {
                interface.addresses.push(inet.ip());
            }
        }
        Ok(interfaces.into_values().collect())
    }
}

/// `net.ipv4.conf.INTERFACE.forwarding`. Without it the kernel's FIB gives the XDP program no routes.
pub(super) struct Forwarding(PathBuf);

impl Forwarding {
    pub(super) fn of(interface: &str) -> Self {
        Self(["/proc/sys/net/ipv4/conf", interface, "forwarding"].iter().collect())
    }

    pub(super) fn is_on(&self) -> anyhow::Result<bool> {
        let value =
            fs::read_to_string(&self.0).with_context(|| format!("cannot read {}", self.0.display()))?;
        Ok(value.trim() != "0")
    }

    pub(super) fn set(&self, on: bool) -> anyhow::Result<()> {
        fs::write(&self.0, if on { "1" } else { "0" })
            .with_context(|| format!("cannot write {}; set it by sysctl", self.0.display()))
    }
}
