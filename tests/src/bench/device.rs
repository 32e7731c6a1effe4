//! What is measured: eipnat, its peers, and yardsticks.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use yardsticks::Plan;

use super::figures::float;
use super::line::{Direction, Expected, Line};
use super::works::{self, EIPS, MASK, VMS, Works};
use crate::lab::{Daemon, Ground, Namespace};

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Sends everything on, and looks at nothing. The first: all others are measured by it.
    Redirect,
    /// Drops everything, and looks at nothing.
    Discard,
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

/// Somebody on the internet.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Which bits of their addresses differ where there are many whom VMs talk to.
const CLIENTS: u32 = 0x00ff_00ff;

/// Packets from there to there, as yet to nobody's MAC address.
pub(super) const PLAN: Plan = Plan {
    ifindex: 0,
    source: u32::from_be_bytes(CLIENT.octets()),
    source_mask: 0,
    destination: u32::from_be_bytes(CLIENT.octets()),
    destination_mask: 0,
    mac: [0; 6],
    port_mask: 0,
    ttl: 64,
    padding: [0; 3],
};

impl Kind {
    /// What carries packets through.
    pub(super) const ALL: &'static [Self] =
        &[Self::Redirect, Self::Nat, Self::Eipnat, Self::Stateless, Self::Tracking, Self::Routing];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "bare XDP redirect",
            Self::Discard => "bare XDP drop",
            Self::Nat => "minimal XDP NAT",
            Self::Eipnat => "eipnat",
            Self::Stateless => "nftables, stateless",
            Self::Tracking => "nftables, conntrack",
            Self::Routing => "routing, no NAT",
        }
    }

    /// Whether EIPs are what is sent to.
    pub(super) const fn translates(self) -> bool {
        !matches!(self, Self::Redirect | Self::Discard | Self::Routing)
    }

    /// For names of hosts and interfaces.
    pub(super) const fn short(self) -> &'static str {
        match self {
            Self::Redirect => "red",
            Self::Discard => "dis",
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
    node: Namespace,
    into: Line,
    out: Line,
    works: Works,
}

impl Device {
    pub(super) fn new(
        kind: Kind,
        ground: &Ground,
        internet: &Namespace,
        vms: &Namespace,
        count: u32,
    ) -> Result<Self> {
        let [wan, vm, dummy_in, dummy_out] =
            ["w", "v", "g", "h"].map(|letter| format!("{letter}{}", kind.short()));
        let node = works::node(kind, ground, (internet, &wan), (vms, &vm))?;
        ground.cable((internet, &dummy_in), (&node, "x0"))?;
        ground.cable((vms, &dummy_out), (&node, "y0"))?;
        let works = works::work(kind, ground, &node, count)?;
        let mask = count.next_power_of_two() - 1;
        let (eips, vms_first) = (u32::from(EIPS), u32::from(VMS));
        let plan = |from: &str| -> Result<Plan> { Ok(Plan { mac: node.mac_address(from)?, ..PLAN }) };
        let destination = if kind == Kind::Routing { vms_first } else { eips };
        let into = Line::new(
            (internet, &wan),
            &dummy_in,
            (vms, &vm),
            Plan { destination, destination_mask: mask, ..plan("up0")? },
            Expected {
                is_source: false,
                prefix: if kind.translates() { vms_first } else { destination },
                mask: MASK,
            },
        )?;
        let out = Line::new(
            (vms, &vm),
            &dummy_out,
            (internet, &wan),
            Plan { source: vms_first, source_mask: mask, destination_mask: CLIENTS, ..plan("dn0")? },
            Expected {
                is_source: true,
                prefix: if kind.translates() { eips } else { vms_first },
                mask: MASK,
            },
        )?;
        Ok(Self { kind, node, into, out, works })
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Eipnat's daemon.
    pub(super) fn daemon(&self) -> Result<&Daemon> {
        self.works.daemon.as_ref().with_context(|| format!("{} has no daemon", self.kind.name()))
    }

    /// The host in the middle.
    pub(super) const fn node(&self) -> &Namespace {
        &self.node
    }

    /// From one side to the other.
    pub(super) const fn line(&mut self, direction: Direction) -> &mut Line {
        match direction {
            Direction::In => &mut self.into,
            Direction::Out => &mut self.out,
        }
    }

    /// Frames that have reached it from the internet.
    pub(super) fn received(&self) -> Result<u64> {
        let interfaces = self.node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        received_by(&interfaces, "up0").context("the kernel tells of no packets that up0 has received")
    }

    /// Packets a second that came rightly in one turn.
    pub(super) fn turn(&mut self, direction: Direction, frames: u32) -> Result<f64> {
        let turn = self.line(direction).turn(frames);
        let (came, taken) = turn.with_context(|| format!("{}, {}", self.kind.name(), direction.name()))?;
        ensure!(came > 0, "{} carries nothing {}", self.kind.name(), direction.name());
        Ok(float(came) / taken.as_secs_f64())
    }
}

/// Packets that an interface has received, from `/proc/net/dev`.
fn received_by(interfaces: &str, interface: &str) -> Option<u64> {
    let numbers =
        interfaces.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::received_by;

    #[test]
    fn packets_of_an_interface_are_read() {
        let interfaces = "Inter-|   Receive |  Transmit\n face |bytes packets errs\n    lo:   7   1    0\n   up0: 600 10 2 0\n";
        assert_eq!(received_by(interfaces, "up0"), Some(10));
        assert_eq!(received_by(interfaces, "up"), None);
    }
}
