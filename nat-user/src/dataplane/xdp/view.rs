//! What the slow path sees of the maps and the kernel. Its handles are its own: it shares no lock with the control plane.

use std::path::Path;

use anyhow::Context as _;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError};
use log::{debug, error};
use nat_common::abi::drops::Dropped;
use nat_common::abi::slowpath::Tally;
use nat_common::abi::{self, Addr, AddressKind, Inbound, Meter, Outbound, OutboundKey, map};
use nat_common::pipeline::{Direction, Node, Query, Route};
use nat_common::verdict::Reject;

use super::drops::Drops;
use super::fib::Fib;
use super::maps::{Bytes, found};
use super::meters::Meters;
use super::numbers::Numbers;
use crate::dataplane::trial::Way;
use crate::slowpath::router::Kernel;

/// Handles of the maps that it needs.
pub(super) struct View {
    fib: Fib,
    ports: HashMap<MapData, u32, Bytes<abi::Port>>,
    inbound: HashMap<MapData, Addr, Bytes<Inbound>>,
    outbound: HashMap<MapData, Bytes<OutboundKey>, Bytes<Outbound>>,
    addresses: LpmTrie<MapData, Addr, u32>,
    node: Array<MapData, Bytes<abi::Node>>,
    drops: Drops,
    meters: Meters,
    tallies: Numbers,
}

impl View {
    /// Opens the maps that are pinned in a directory, and loads the program that asks the FIB.
    pub(super) fn open(maps: &Path, meters: u32) -> anyhow::Result<Self> {
        Ok(Self {
            fib: Fib::load()?,
            ports: open(maps, map::PORTS, Map::HashMap)?,
            inbound: open(maps, map::INBOUND, Map::HashMap)?,
            outbound: open(maps, map::OUTBOUND, Map::HashMap)?,
            addresses: open(maps, map::ADDRESSES, Map::LpmTrie)?,
            node: open(maps, map::NODE, Map::Array)?,
            drops: Drops::open(open::<Array<MapData, Bytes<Dropped>>>(maps, map::DROPS, Map::Array)?.map())?,
            meters: Meters::open(
                open::<Array<MapData, Bytes<Meter>>>(maps, map::METERS, Map::Array)?.map(),
                meters,
            )?,
            tallies: Numbers::open(open::<Array<MapData, u64>>(maps, map::TALLIES, Map::Array)?.map())?,
        })
    }
}

fn open<M: TryFrom<Map, Error = MapError>>(
    maps: &Path,
    name: &str,
    kind: fn(MapData) -> Map,
) -> anyhow::Result<M> {
    let pin = maps.join(name);
    let data = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    M::try_from(kind(data)).with_context(|| format!("the pinned map {name} has another type"))
}

/// What a map has at a key. A map that cannot be read has nothing; the packet is dropped then, and counted.
fn at<T>(value: Result<T, MapError>) -> Option<T> {
    found(value).unwrap_or_else(|error| {
        debug!("the slow path cannot read a map: {error}");
        None
    })
}

impl Node for View {
    fn port(&mut self, ifindex: u32) -> Option<abi::Port> {
        at(self.ports.get(&ifindex, 0)).map(bytemuck::cast)
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        at(self.inbound.get(&public_ip, 0)).map(bytemuck::cast)
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        at(self.outbound.get(&bytemuck::cast(key), 0)).map(bytemuck::cast)
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        at(self.addresses.get(&Key::new(32, addr), 0)).map_or(AddressKind::Other, AddressKind::from_number)
    }

    fn public_ip(&mut self) -> Addr {
        let node: Option<abi::Node> = at(self.node.get(&0, 0)).map(bytemuck::cast);
        node.map_or([0; 4], |node| node.public_ip)
    }

    fn route(&mut self, query: &Query) -> Route {
        self.way(query).route
    }

    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        // No memory, for some kilobytes: then the packet is on nobody's bill.
        if let Err(error) = self.meters.bill(meter, direction, bytes) {
            error!("a packet of the slow path cannot be billed: {error:#}");
        }
    }
}

impl Kernel for View {
    fn way(&mut self, query: &Query) -> Way {
        self.fib.ask(query).unwrap_or_else(|error| {
            debug!("{error:#}");
            Way { route: Route::Failed, next_hop: None, mtu: 0 }
        })
    }

    fn count(&mut self, tally: Tally) {
        self.tallies.add(tally.place() as usize, 1);
    }

    fn remember_drop(&mut self, address: Addr, is_bound: bool, reason: Reject) {
        // What is remembered may be forgotten at any time.
        if let Err(error) = self.drops.add(address, is_bound, reason) {
            debug!("a drop cannot be remembered: {error:#}");
        }
    }
}
