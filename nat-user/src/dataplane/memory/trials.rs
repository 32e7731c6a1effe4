//! Trials and reports of the datapath in memory: the host's own translator is its program, and whatever is not a VM's network
//! (10/8) is reached by the uplink.

use std::collections::VecDeque;
use std::time::Duration;

use nat_common::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use nat_common::pipeline::{self, Direction, Node, Query, Route};
use nat_common::verdict::{Counter, Egress, Verdict};

use super::MemoryDataplane;
use crate::dataplane::Dataplane as _;
use crate::dataplane::trace::{Report, Tracer, Wanted};
use crate::dataplane::trial::{Trial, Trials, Way};

/// Its interfaces, by index from 1 on: an uplink and a downlink.
const NAMES: [&str; 2] = ["up0", "dn0"];

/// The node's own address.
const PUBLIC_IP: Addr = [192, 0, 2, 2];

const fn mac(ifindex: u32) -> [u8; 6] {
    let [.., last] = ifindex.to_be_bytes();
    [2, 0, 0, 0, 0, last]
}

const fn is_inside(addr: Addr) -> bool {
    addr[0] == 10
}

/// What its program asks.
struct MemoryNode<'a>(&'a MemoryDataplane);

impl Node for MemoryNode<'_> {
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        let role = if ifindex == 1 { Port::UPLINK } else { Port::DOWNLINK };
        (1..=2).contains(&ifindex).then(|| Port { role, mac: mac(ifindex), ..Port::default() })
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        let binding = self.0.inbound(public_ip.into()).ok()??;
        Some(Inbound::new(binding.private_ip.octets(), binding.tenant, binding.meter))
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        let binding = self.0.outbound(key.tenant, key.private_ip.into()).ok()??;
        Some(Outbound { eip: binding.public_ip.octets(), meter: binding.meter })
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        match addr {
            PUBLIC_IP => AddressKind::Own,
            [203, 0, 113, _] => AddressKind::Pooled,
            _ if is_inside(addr) => AddressKind::Inside,
            _ => AddressKind::Other,
        }
    }

    fn public_ip(&mut self) -> Addr {
        PUBLIC_IP
    }

    fn route(&mut self, query: &Query) -> Route {
        let destination = query.addresses.destination;
        if destination == PUBLIC_IP {
            return Route::NotForwarded;
        }
        let ifindex = if is_inside(destination) { 2 } else { 1 };
        Route::Via(Egress { ifindex, destination: [2, 0, 0, 0, 1, destination[3]], source: mac(ifindex) })
    }

    fn bill(&mut self, _: u32, _: Direction, _: u16) {}
}

impl Trials for MemoryDataplane {
    fn interface(&self, name: &str) -> anyhow::Result<Option<u32>> {
        Ok((1..).zip(NAMES).find(|(_, known)| *known == name).map(|(index, _)| index))
    }

    fn interface_name(&self, ifindex: u32) -> Option<String> {
        (1..).zip(NAMES).find(|(index, _)| *index == ifindex).map(|(_, name)| name.to_owned())
    }

    fn port(&self, ifindex: u32) -> anyhow::Result<Option<Port>> {
        Ok(MemoryNode(self).port(ifindex))
    }

    fn kind(&self, addr: Addr) -> anyhow::Result<AddressKind> {
        Ok(MemoryNode(self).kind(addr))
    }

    fn public_ip(&self) -> anyhow::Result<Addr> {
        Ok(PUBLIC_IP)
    }

    fn route(&mut self, query: &Query) -> anyhow::Result<Way> {
        let route = MemoryNode(self).route(query);
        let next_hop = matches!(route, Route::Via(_))
            .then(|| std::net::Ipv4Addr::from(query.addresses.destination).into());
        Ok(Way { route, next_hop, mtu: 1500 })
    }

    fn is_slow_path_on(&self, _: u32) -> bool {
        false
    }

    fn try_out(&mut self, ifindex: u32, frame: &[u8]) -> anyhow::Result<Trial> {
        let mut frame = frame.to_vec();
        let verdict = pipeline::process(frame.as_mut_slice(), ifindex, &mut MemoryNode(self));
        if self.state().trace.contradicts {
            return Ok(Trial { counter: Counter::Pass, egress: None, is_carried_out: true, frame });
        }
        let egress = if let Verdict::Forward(egress) = &verdict { Some(egress.ifindex) } else { None };
        let is_carried_out = !self.state().trace.does_otherwise;
        Ok(Trial { counter: Counter::from(&verdict), egress, is_carried_out, frame })
    }
}

/// What a test lets a [`MemoryDataplane`] report, and how its trials come out.
#[derive(Debug, Default)]
pub struct Trace {
    /// What is to be reported, if anything is.
    pub wanted: Option<Wanted>,
    /// What comes next.
    pub reports: VecDeque<Report>,
    /// How many were left out.
    pub left_out: u64,
    /// Whether a trial contradicts what the host's translator says.
    pub contradicts: bool,
    /// Whether a trial does otherwise than its verdict says.
    pub does_otherwise: bool,
}

/// The reports of a [`MemoryDataplane`].
pub(super) struct MemoryTracer(pub(super) MemoryDataplane);

impl Tracer for MemoryTracer {
    fn report(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        self.0.writable()?.trace.wanted = Some(wanted.clone());
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.0.state().trace.wanted = None;
        Ok(())
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        if self.0.state().trace.reports.is_empty() {
            std::thread::sleep(patience.min(Duration::from_millis(5)));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Report> {
        self.0.state().trace.reports.pop_front()
    }

    fn left_out(&mut self) -> anyhow::Result<u64> {
        Ok(self.0.state().trace.left_out)
    }

    fn now(&self) -> u64 {
        0
    }
}
