//! More routers than the lab begins with: a row of them on one side of the node, and a host at its end.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::{Lab, NODE_DOWN, Namespace, cable};

/// The first router on the VMs' side; it is on the switch.
pub const INNER_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

/// A router's interface towards the node.
const NEAR: &str = "near";
/// A router's interface away from the node.
const AWAY: &str = "away";

/// A side of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The VMs': the first router has [`INNER_ROUTER`] on the lab's switch.
    Inside,
    /// The internet's: the first router is the lab's internet host.
    Outside,
}

impl Side {
    /// First two bytes of the addresses on this side's links.
    const fn network(self) -> [u8; 2] {
        match self {
            Self::Inside => [10, 1],
            Self::Outside => [198, 18],
        }
    }
}

/// Routers in a row, and a host behind the last.
#[derive(Debug)]
pub struct Chain {
    /// The routers, from the node away.
    pub routers: Vec<Namespace>,
    /// The host.
    pub host: Namespace,
    side: Side,
}

impl Chain {
    /// Adds `routers` in a row and a host to the lab; they go with it.
    ///
    /// # Errors
    /// When there is to be no router, or the network cannot be set up.
    pub fn new(lab: &Lab, side: Side, routers: u8) -> Result<Self> {
        ensure!(routers > 0, "a row of no routers");
        let name = |number: u8| format!("{}{number}", if side == Side::Inside { "in" } else { "out" });
        let first = match side {
            Side::Inside => Self::attach_inside(lab, &name(0))?,
            Side::Outside => lab.internet.clone(),
        };
        let mut row = vec![first];
        for number in 1..=routers {
            row.push(lab.add_host(&name(number))?);
        }
        let [a, b] = side.network();
        for (number, pair) in (1..=routers).zip(row.windows(2)) {
            let [here, there] = pair else { continue };
            let (near, far) = Self::link(side, number);
            cable(here, AWAY, None, there, NEAR)?;
            here.ip(&[format!("address add {near}/24 dev {AWAY}")])?;
            there.ip(&[
                "link set lo up".to_owned(),
                format!("address add {far}/24 dev {NEAR}"),
                format!("route add default via {near}"),
            ])?;
            if number < routers {
                here.ip(&[format!("route add {a}.{b}.0.0/16 via {far}")])?;
            }
        }
        let host = row.pop().unwrap_or_else(|| lab.internet.clone());
        for router in &row {
            router.sysctl("net/ipv4/ip_forward", "1")?;
            // Tests send what routers complain of faster than people do.
            router.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        }
        host.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        Ok(Self { routers: row, host, side })
    }

    /// The first router on the VMs' side.
    fn attach_inside(lab: &Lab, name: &str) -> Result<Namespace> {
        let router = lab.add_host(name)?;
        lab.plug(&router, NEAR, name)?;
        router.ip(&[
            "link set lo up".to_owned(),
            format!("address add {INNER_ROUTER}/24 dev {NEAR}"),
            format!("route add default via {NODE_DOWN}"),
        ])?;
        let [a, b] = Side::Inside.network();
        lab.node.ip(&[format!("route add {a}.{b}.0.0/16 via {INNER_ROUTER}")])?;
        Ok(router)
    }

    /// Addresses of the link behind a router, the near end first. Routers are numbered from 1.
    const fn link(side: Side, router: u8) -> (Ipv4Addr, Ipv4Addr) {
        let [a, b] = side.network();
        (Ipv4Addr::new(a, b, router, 1), Ipv4Addr::new(a, b, router, 2))
    }

    /// The address that a router has towards the host. Routers are numbered from 1.
    #[must_use]
    pub const fn away(&self, router: u8) -> Ipv4Addr {
        Self::link(self.side, router).0
    }

    /// The address that a router has towards the node. Routers are numbered from 1.
    #[must_use]
    pub const fn near(&self, router: u8) -> Ipv4Addr {
        match (self.side, router) {
            (Side::Inside, 1) => INNER_ROUTER,
            (Side::Outside, 1) => super::INTERNET,
            _ => Self::link(self.side, router - 1).1,
        }
    }

    /// The host's address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Self::link(self.side, u8::try_from(self.routers.len()).unwrap_or(u8::MAX)).1
    }

    /// Gives the link between the first two routers another MTU.
    ///
    /// # Errors
    /// When there is but one router, or `ip` refuses.
    pub fn narrow(&self, mtu: u16) -> Result<()> {
        let [first, second, ..] = self.routers.as_slice() else { anyhow::bail!("there is but one router") };
        first.ip(&[format!("link set {AWAY} mtu {mtu}")])?;
        second.ip(&[format!("link set {NEAR} mtu {mtu}")])
    }
}
