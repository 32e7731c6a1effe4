//! The pipeline's surroundings: the answers are the live datapath's, and all of them are kept.

use std::net::Ipv4Addr;

use nat_common::abi::slowpath::MAX_FRAME;
use nat_common::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use nat_common::pipeline::{Admission, Direction, Node, Query, Route};
use nat_common::verdict::Punt;

use crate::dataplane::trial::Way;
use crate::dataplane::{Binding, Dataplane};

/// A question of the pipeline, and its answer.
#[derive(Clone, Debug)]
pub(super) enum Fact {
    /// What the program knows of an interface.
    Port(u32, Option<Port>),
    /// The binding of a public address.
    Inbound(Ipv4Addr, Option<Binding>),
    /// The binding of a private address.
    Outbound(Ipv4Addr, Option<Binding>),
    /// What an address is to the node.
    Kind(Ipv4Addr, AddressKind),
    /// Whom the node's own ICMP errors come from.
    PublicIp(Ipv4Addr),
    /// The way out.
    Route(Query, Way),
    /// Who finishes what the program cannot.
    Admission(Admission),
    /// A packet like this is billed.
    Bill(u32, Direction, u16),
}

/// A [`Node`] that keeps what it is asked.
pub(super) struct Recorder<'a> {
    dataplane: &'a mut dyn Dataplane,
    /// The interface that the packet comes by.
    ifindex: u32,
    /// Whether it is asked as the slow path.
    is_slow_path: bool,
    facts: Vec<Fact>,
    /// The first answer that could not be had. What follows on it is worth nothing.
    failure: Option<anyhow::Error>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(dataplane: &'a mut dyn Dataplane, ifindex: u32) -> Self {
        Self { dataplane, ifindex, is_slow_path: false, facts: Vec::new(), failure: None }
    }

    /// One whose pipeline is the slow path's.
    pub(super) fn of_slow_path(dataplane: &'a mut dyn Dataplane, ifindex: u32) -> Self {
        Self { is_slow_path: true, ..Self::new(dataplane, ifindex) }
    }

    /// All questions and answers.
    pub(super) fn facts(self) -> anyhow::Result<Vec<Fact>> {
        self.failure.map_or(Ok(self.facts), Err)
    }

    fn heard<T>(&mut self, answer: anyhow::Result<T>, otherwise: T) -> T {
        answer.unwrap_or_else(|error| {
            self.failure.get_or_insert(error);
            otherwise
        })
    }
}

impl Node for Recorder<'_> {
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        let answer = self.dataplane.port(ifindex);
        let port = self.heard(answer, None);
        self.facts.push(Fact::Port(ifindex, port));
        port
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        let answer = self.dataplane.inbound(public_ip.into());
        let binding = self.heard(answer, None);
        self.facts.push(Fact::Inbound(public_ip.into(), binding));
        binding.map(|binding| Inbound::new(binding.private_ip.octets(), binding.tenant, binding.meter))
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        let private_ip = Ipv4Addr::from(key.private_ip);
        let answer = self.dataplane.outbound(key.tenant, private_ip);
        let binding = self.heard(answer, None);
        self.facts.push(Fact::Outbound(private_ip, binding));
        binding.map(|binding| Outbound { eip: binding.public_ip.octets(), meter: binding.meter })
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        let answer = self.dataplane.kind(addr);
        let kind = self.heard(answer, AddressKind::Other);
        self.facts.push(Fact::Kind(addr.into(), kind));
        kind
    }

    fn public_ip(&mut self) -> Addr {
        let answer = self.dataplane.public_ip();
        let public_ip = self.heard(answer, [0; 4]);
        self.facts.push(Fact::PublicIp(public_ip.into()));
        public_ip
    }

    fn route(&mut self, query: &Query) -> Route {
        let answer = self.dataplane.route(query);
        let way = self.heard(answer, Way { route: Route::Failed, next_hop: None, mtu: 0 });
        self.facts.push(Fact::Route(*query, way));
        way.route
    }

    fn admit(&mut self, _: Punt, size: usize, egress: u32) -> Admission {
        if self.is_slow_path {
            return Admission::Here;
        }
        // A trial takes nobody's place, so there is always one for it.
        let has_slow_path =
            [self.ifindex, egress].iter().all(|ifindex| self.dataplane.is_slow_path_on(*ifindex));
        let is_taken = size <= MAX_FRAME && has_slow_path;
        let admission = if is_taken { Admission::Taken } else { Admission::Kernel };
        self.facts.push(Fact::Admission(admission));
        admission
    }

    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        self.facts.push(Fact::Bill(meter, direction, bytes));
    }
}
