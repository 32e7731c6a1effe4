//! What the datapath would do with a packet that nobody has sent.

use std::net::IpAddr;

use nat_common::abi::{Addr, AddressKind, Port};
use nat_common::pipeline::{Query, Route};
use nat_common::verdict::Counter;

/// What the running program has made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// What would have counted it.
    pub counter: Counter,
    /// Index of the interface that it would leave by.
    pub egress: Option<u32>,
    /// Whether that is what the program told the kernel to do with it.
    pub is_carried_out: bool,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// The kernel's answer to the question where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// As the program sees it.
    pub route: Route,
    /// The next hop's address, where the kernel tells.
    pub next_hop: Option<IpAddr>,
    /// The most that the way out takes, in bytes of an IP packet; 0 where the kernel does not tell.
    pub mtu: u16,
}

/// A datapath that can be asked what it would do. Nothing that is asked is billed, counted or sent.
#[expect(clippy::missing_errors_doc, reason = "every method fails where the kernel refuses")]
pub trait Trials {
    /// The index of an interface that the program runs on.
    fn interface(&self, name: &str) -> anyhow::Result<Option<u32>>;
    /// The name of an interface.
    fn interface_name(&self, ifindex: u32) -> Option<String>;
    /// What the program knows of an interface.
    fn port(&self, ifindex: u32) -> anyhow::Result<Option<Port>>;
    /// What an address is to the program.
    fn kind(&self, addr: Addr) -> anyhow::Result<AddressKind>;
    /// Source of ICMP errors whose sender has no public address; all zero if there is none.
    fn public_ip(&self) -> anyhow::Result<Addr>;
    /// The way out.
    fn route(&mut self, query: &Query) -> anyhow::Result<Way>;
    /// Whether the slow path takes packets that come by an interface.
    fn is_slow_path_on(&self, ifindex: u32) -> bool;
    /// Runs the very program that is on an interface on a frame as if it had come by that interface.
    fn try_out(&mut self, ifindex: u32, frame: &[u8]) -> anyhow::Result<Trial>;
}
