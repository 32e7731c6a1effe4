//! Real hosts at both ends of a node: somebody on the internet, and a VM.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::device::Kind;
use super::works::{self, GATEWAY, INNER, NODE_DOWN, NODE_UP, VMS, Works, mac_text, neighbour};
use crate::lab::{Daemon, Ground, Namespace};

/// EIPs that are bound.
const COUNT: u32 = 16;

/// The number of the VM's EIP.
const OWN: u32 = 10;

/// The interfaces of the two hosts.
pub(super) const WAN: &str = "wan";
pub(super) const VM: &str = "eth0";

/// A node with a host at either end, which know their gateway's MAC address for good.
pub(super) struct Path {
    pub(super) kind: Kind,
    pub(super) client: Namespace,
    pub(super) node: Namespace,
    pub(super) vm: Namespace,
    /// The MAC address that the client sends to.
    pub(super) gateway: [u8; 6],
    works: Works,
}

impl Path {
    pub(super) fn new(kind: Kind, ground: &Ground) -> Result<Self> {
        let mut path = Self::without_works(kind, ground)?;
        path.works = works::work(kind, ground, &path.node, COUNT)?;
        Ok(path)
    }

    /// The same, but nothing forwards yet.
    pub(super) fn without_works(kind: Kind, ground: &Ground) -> Result<Self> {
        let (client, vm) = (
            works::host(ground, &format!("c{}", kind.short()))?,
            works::host(ground, &format!("v{}", kind.short()))?,
        );
        let node = works::node(kind, ground, (&client, WAN), (&vm, VM))?;
        // The bare redirect changes no MAC address: there the gateway is the other host.
        let (outer, inner) = if kind == Kind::Redirect {
            ((&vm, VM), (&client, WAN))
        } else {
            ((&node, "up0"), (&node, "dn0"))
        };
        let (_, address) = works::pair(OWN);
        client.ip(&[
            "link set lo up".to_owned(),
            format!("address add {GATEWAY}/24 dev {WAN}"),
            neighbour(NODE_UP, WAN, &mac_text(outer.0, outer.1)?),
            format!("route add {}/12 via {NODE_UP}", works::EIPS),
            format!("route add {VMS}/12 via {NODE_UP}"),
        ])?;
        vm.ip(&[
            "link set lo up".to_owned(),
            format!("address add {address}/32 dev lo"),
            format!("address add {INNER}/24 dev {VM}"),
            neighbour(NODE_DOWN, VM, &mac_text(inner.0, inner.1)?),
            format!("route add default via {NODE_DOWN} src {address}"),
        ])?;
        let gateway = outer.0.mac_address(outer.1)?;
        Ok(Self { kind, gateway, client, node, vm, works: Works::default() })
    }

    /// The address that the client sends to.
    pub(super) fn target(&self) -> Ipv4Addr {
        self.address(OWN)
    }

    /// What the VM of that number has for an address on the internet.
    pub(super) fn address(&self, number: u32) -> Ipv4Addr {
        let (eip, vm) = works::pair(number);
        if self.kind.translates() { eip } else { vm }
    }

    /// The VM's address as the VM knows it.
    pub(super) fn own() -> Ipv4Addr {
        works::pair(OWN).1
    }

    /// Eipnat's daemon.
    pub(super) fn daemon(&self) -> Option<&Daemon> {
        self.works.daemon.as_ref()
    }
}
