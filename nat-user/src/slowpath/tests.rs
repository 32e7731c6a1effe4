//! The slow path without sockets, clocks and threads.

mod arp;
mod fragment;
mod frames;
mod router;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::time::Instant;

use etherparse::PacketBuilder;
use nat_common::abi::slowpath::Tally;
use nat_common::abi::{Addr, AddressKind, Inbound, Mac, Outbound, OutboundKey, Port};
use nat_common::pipeline::{Direction, Node, Query, Route};
use nat_common::verdict::{Egress, Errand, Punt, Reject};

use super::limits::Limits;
use super::router::{Around, Kernel, Packet, Router, Wire};
use super::waiting::Neighbour;
use crate::dataplane::trial::Way;

const UP: u32 = 1;
const DOWN: u32 = 2;
const UP_MAC: Mac = [2, 0, 0, 0, 1, 1];
const DOWN_MAC: Mac = [2, 0, 0, 0, 1, 2];
const PEER_MAC: Mac = [2, 0, 0, 0, 9, 9];
const NODE_UP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const NODE_DOWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const X: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// The next hop towards the internet.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A node with one binding, meter 0, whose neighbours are known or not.
#[derive(Debug)]
struct Model {
    is_bound: bool,
    knows_vm: bool,
    knows_gateway: bool,
    mtu: u16,
    tallies: BTreeMap<u32, u64>,
    drops: Vec<(Ipv4Addr, Reject)>,
    bills: Vec<(Direction, u16)>,
}

/// What its interfaces have done.
#[derive(Debug, Default)]
struct Line {
    sent: Vec<(u32, Vec<u8>)>,
    asked: Vec<Neighbour>,
    is_full: bool,
}

impl Node for Model {
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        let (role, mac) = match ifindex {
            UP => (Port::UPLINK, UP_MAC),
            DOWN => (Port::DOWNLINK, DOWN_MAC),
            _ => return None,
        };
        Some(Port { role, mac, ..Port::default() })
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        (self.is_bound && public_ip == EIP.octets()).then(|| Inbound::new(VM.octets(), 0, 0))
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        (self.is_bound && key.private_ip == VM.octets()).then(|| Outbound { eip: EIP.octets(), meter: 0 })
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        if addr[..3] == EIP.octets()[..3] { AddressKind::Pooled } else { AddressKind::Other }
    }

    fn public_ip(&mut self) -> Addr {
        NODE_UP.octets()
    }

    fn route(&mut self, query: &Query) -> Route {
        self.way(query).route
    }

    fn bill(&mut self, _: u32, direction: Direction, bytes: u16) {
        self.bills.push((direction, bytes));
    }
}

impl Kernel for Model {
    fn way(&mut self, query: &Query) -> Way {
        let is_inside = query.addresses.destination[0] == 10;
        let (ifindex, source, next_hop, is_known) = if is_inside {
            (DOWN, DOWN_MAC, Ipv4Addr::from(query.addresses.destination), self.knows_vm)
        } else {
            (UP, UP_MAC, GATEWAY, self.knows_gateway)
        };
        let route = match is_known {
            _ if query.total_len > self.mtu => Route::TooBig,
            true => Route::Via(Egress { ifindex, destination: PEER_MAC, source }),
            false => Route::Unresolved(ifindex),
        };
        Way { route, next_hop: Some(IpAddr::V4(next_hop)), mtu: self.mtu }
    }

    fn count(&mut self, tally: Tally) {
        *self.tallies.entry(tally.place()).or_default() += 1;
    }

    fn remember_drop(&mut self, address: Addr, _: bool, reason: Reject) {
        self.drops.push((address.into(), reason));
    }
}

impl Wire for Line {
    fn send(&mut self, ifindex: u32, frame: &[u8]) -> bool {
        if !self.is_full {
            self.sent.push((ifindex, frame.to_vec()));
        }
        !self.is_full
    }

    fn own_address(&mut self, ifindex: u32, _: Addr) -> Option<Addr> {
        Some(if ifindex == UP { NODE_UP.octets() } else { NODE_DOWN.octets() })
    }

    fn is_own(&self, mac: Mac) -> bool {
        [UP_MAC, DOWN_MAC].contains(&mac)
    }

    fn resolve(&mut self, neighbour: Neighbour) {
        self.asked.push(neighbour);
    }
}

/// The router between the two.
struct Bench {
    model: Model,
    line: Line,
    router: Router,
    now: Instant,
}

impl Bench {
    /// One that knows every neighbour, and makes `errors` ICMP errors a second to one destination.
    fn new(errors: u32) -> Self {
        let rate = |rate| NonZeroU32::new(rate).unwrap();
        Self {
            model: Model {
                is_bound: true,
                knows_vm: true,
                knows_gateway: true,
                mtu: 1500,
                tallies: BTreeMap::new(),
                drops: Vec::new(),
                bills: Vec::new(),
            },
            line: Line::default(),
            router: Router::new(Limits::new(rate(1000), rate(errors))),
            now: Instant::now(),
        }
    }

    fn around<T>(&mut self, work: impl FnOnce(&mut Router, Instant, &mut Around<'_>) -> T) -> T {
        let mut around = Around { kernel: &mut self.model, wire: &mut self.line };
        work(&mut self.router, self.now, &mut around)
    }

    fn handle(&mut self, ifindex: u32, errand: Errand, bytes: Vec<u8>) {
        let packet = Packet { ifindex, errand, size: bytes.len(), bytes };
        self.around(|router, now, around| router.handle(packet, now, around));
    }

    fn carry(&mut self, ifindex: u32, punt: Punt, bytes: Vec<u8>) {
        self.handle(ifindex, Errand::Carry(punt), bytes);
    }

    fn retry(&mut self) {
        for neighbour in self.router.neighbours() {
            self.around(|router, now, around| router.retry(neighbour, now, around));
        }
    }

    fn expire(&mut self) {
        self.around(Router::expire);
    }

    fn count(&self, tally: Tally) -> u64 {
        self.model.tallies.get(&tally.place()).copied().unwrap_or(0)
    }

    /// The frames that were sent, each by the interface.
    fn sent(&mut self) -> Vec<(u32, Vec<u8>)> {
        std::mem::take(&mut self.line.sent)
    }
}

/// A UDP datagram in a frame to the node, with that TTL and so many bytes of payload.
fn udp(mac: Mac, from: Ipv4Addr, to: Ipv4Addr, ttl: u8, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let data: Vec<u8> = (0..payload).map(|at| u8::try_from(at % 251).unwrap()).collect();
    PacketBuilder::ethernet2(PEER_MAC, mac)
        .ipv4(from.octets(), to.octets(), ttl)
        .udp(1000, 2000)
        .write(&mut frame, &data)
        .unwrap();
    // The builder forbids fragmentation by default.
    set_df(&mut frame, false);
    frame
}

fn set_df(frame: &mut [u8], df: bool) {
    frame[20] = if df { 0x40 } else { 0 };
    mend_header(frame);
}

/// Computes the header's checksum anew.
fn mend_header(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 15) * 4;
    frame[24..26].fill(0);
    let sum = nat_common::checksum::sum(frame, 14, end).unwrap();
    frame[24..26].copy_from_slice(&(!nat_common::checksum::fold(sum)).to_be_bytes());
}
