//! The BPF maps, seen from the daemon.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::{DevMapHash, XskMap};
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray};
use ipnet::Ipv4Net;
use nat_common::abi::drops::Dropped;
use nat_common::abi::slowpath::{Bucket, Tally};
use nat_common::abi::{self, Addr, AddressKind, Inbound, Meter, Node, Outbound, OutboundKey, map};
use nat_common::verdict::{Counter, Errand, Punt, Reject};

use super::super::{Half, Verdicts};
use super::drops::Drops;
use super::express::Express;
use super::generations::Sums;
use super::halves::Halves;
use super::kinds::Kinds;
use super::meters::Meters;
use super::numbers::Numbers;
use crate::ahead::read_ahead;
use crate::model;

// aya wants its own marker on keys and values; byte arrays have it.
pub(super) type Bytes<T> = <T as Plain>::Bytes;

/// A structure of the ABI as bytes.
pub(super) trait Plain: bytemuck::Pod {
    type Bytes: bytemuck::Pod;
}

macro_rules! plain {
    ($($type:ty),+) => { $(impl Plain for $type { type Bytes = [u8; size_of::<$type>()]; })+ };
}
plain!(Inbound, OutboundKey, Outbound, Meter, Node, abi::Port, Dropped, Bucket);

/// Handles of all maps.
pub(super) struct Maps {
    halves: Halves,
    meters: Meters,
    counters: PerCpuArray<MapData, u64>,
    ports: HashMap<MapData, u32, Bytes<abi::Port>>,
    egress: DevMapHash<MapData>,
    addresses: LpmTrie<MapData, Addr, u32>,
    node: Array<MapData, Bytes<Node>>,
    drops: Drops,
    express: Express,
    carried_meters: HashMap<MapData, u32, Bytes<Meter>>,
    /// What stands in there: nobody else writes to it.
    carried: BTreeMap<u32, Meter>,
    carried_counters: Array<MapData, u64>,
    sockets: XskMap<MapData>,
    buckets: Array<MapData, Bytes<Bucket>>,
    tallies: Numbers,
    capacity: u32,
}

impl Maps {
    /// Takes the maps out of a loaded object. What stands in them goes on to hold.
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32) -> anyhow::Result<Self> {
        let meters: Array<MapData, Bytes<Meter>> = take(ebpf, map::METERS)?;
        let carried_meters = take(ebpf, map::CARRIED_METERS)?;
        let carried = carried(&carried_meters).with_context(|| failed(map::CARRIED_METERS))?;
        let addresses = take(ebpf, map::ADDRESSES)?;
        let kinds = kinds(&addresses).with_context(|| failed(map::ADDRESSES))?;
        Ok(Self {
            halves: Halves::take(ebpf)?,
            meters: Meters::open(meters.map(), model::meters(capacity))
                .with_context(|| failed(map::METERS))?,
            counters: take(ebpf, map::COUNTERS)?,
            ports: take(ebpf, map::PORTS)?,
            egress: take(ebpf, map::EGRESS)?,
            addresses,
            node: take(ebpf, map::NODE)?,
            drops: Drops::open(take::<Array<MapData, Bytes<Dropped>>>(ebpf, map::DROPS)?.map())
                .with_context(|| failed(map::DROPS))?,
            express: Express::take(ebpf, capacity, kinds)?,
            carried_meters,
            carried,
            carried_counters: take(ebpf, map::CARRIED_COUNTERS)?,
            sockets: take(ebpf, map::SOCKETS)?,
            buckets: take(ebpf, map::BUCKETS)?,
            tallies: Numbers::open(take::<Array<MapData, u64>>(ebpf, map::TALLIES)?.map())
                .with_context(|| failed(map::TALLIES))?,
            capacity,
        })
    }

    /// Shows every half that stands, and brings the express lane to what they say.
    pub(super) fn survey(&mut self, see: &mut dyn FnMut(Half)) -> anyhow::Result<()> {
        self.express.begin_anew();
        let (halves, express) = (&self.halves, &mut self.express);
        read_ahead(
            |send| halves.all(send),
            |some| {
                for half in some {
                    express.insert(half);
                    see(half);
                }
                Ok(())
            },
        )?;
        self.express.settle();
        Ok(())
    }

    /// Whether that has been done.
    pub(super) fn is_surveyed(&self) -> bool {
        self.express.is_settled()
    }

    /// The public addresses that are bound.
    pub(super) fn bound(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.express.bound()
    }

    /// No packet is under way any more that was when the last binding was removed.
    pub(super) fn quiesced(&mut self) {
        self.express.quiesced();
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Writes the settings, and answers whether there were others.
    pub(super) fn set_node(&mut self, node: Node) -> anyhow::Result<bool> {
        let node: Bytes<Node> = bytemuck::cast(node);
        if self.node.get(&0, 0).with_context(|| failed(map::NODE))? == node {
            return Ok(false);
        }
        self.node.set(0, node, 0).with_context(|| failed(map::NODE))?;
        Ok(true)
    }

    /// Makes the maps say what addresses are, and answers whether they said anything else.
    pub(super) fn set_addresses(&mut self, kinds: &Kinds) -> anyhow::Result<bool> {
        let written = self.write_addresses(kinds);
        self.express.set_kinds(kinds);
        written
    }

    fn write_addresses(&mut self, kinds: &Kinds) -> anyhow::Result<bool> {
        let lpm = |(cidr, kind): (&Ipv4Net, &AddressKind)| {
            ((u32::from(cidr.prefix_len()), cidr.network().octets()), *kind as u32)
        };
        let wanted: BTreeMap<(u32, Addr), u32> = kinds.iter().map(lpm).collect();
        let standing = standing(&self.addresses).with_context(|| failed(map::ADDRESSES))?;
        // What is wanted comes first: an address that is reserved or the node's own is in a pool's CIDR as well.
        for (key, kind) in wanted.iter().rev().filter(|(key, kind)| standing.get(key) != Some(kind)) {
            self.addresses
                .insert(&Key::new(key.0, key.1), kind, 0)
                .with_context(|| failed(map::ADDRESSES))?;
        }
        for (length, addr) in standing.keys().filter(|key| !wanted.contains_key(key)) {
            found(self.addresses.remove(&Key::new(*length, *addr)))
                .with_context(|| failed(map::ADDRESSES))?;
        }
        Ok(standing != wanted)
    }

    /// Indices of the interfaces that the maps know.
    pub(super) fn port_indices(&self) -> anyhow::Result<Vec<u32>> {
        self.ports.keys().collect::<Result<_, _>>().with_context(|| failed(map::PORTS))
    }

    /// Tells the program of an interface, and answers whether it knew anything else of it.
    pub(super) fn set_port(&mut self, ifindex: u32, port: abi::Port) -> anyhow::Result<bool> {
        // First the way out: what the program knows of, it sends packets to.
        let way_out = found(self.egress.get(ifindex, 0)).with_context(|| failed(map::EGRESS))?;
        let leads_there = way_out.is_some_and(|to| to.if_index == ifindex && to.prog_id.is_none());
        if !leads_there {
            self.egress.insert(ifindex, ifindex, None, 0).with_context(|| failed(map::EGRESS))?;
        }
        let bytes: Bytes<abi::Port> = bytemuck::cast(port);
        let knows = found(self.ports.get(&ifindex, 0)).with_context(|| failed(map::PORTS))? == Some(bytes);
        if !knows {
            self.ports.insert(ifindex, bytes, 0).with_context(|| failed(map::PORTS))?;
        }
        self.express.seat(ifindex, &port);
        Ok(!knows || !leads_there)
    }

    /// Has the fast path send packets of a queue to a socket.
    pub(super) fn set_socket(&mut self, place: u32, socket: &OwnedFd) -> anyhow::Result<()> {
        self.sockets.set(place, socket.as_raw_fd(), 0).with_context(|| failed(map::SOCKETS))
    }

    /// What has gone to the slow path from an interface, and what was too much for it, by errand.
    pub(super) fn handed_over(&self, port: &abi::Port) -> anyhow::Result<Vec<(Errand, Bucket)>> {
        let bucket = |errand: &Errand| {
            let place = port.bucket(*errand)?;
            let bucket = self.buckets.get(&place, 0).with_context(|| failed(map::BUCKETS));
            Some(bucket.map(|bucket| (*errand, bytemuck::cast(bucket))))
        };
        Errand::ALL.iter().filter_map(bucket).collect()
    }

    /// What the slow path has counted.
    pub(super) fn tally(&self, tally: Tally) -> u64 {
        self.tallies.read(tally.place() as usize)
    }

    /// What the program knows of an interface.
    pub(super) fn port(&self, ifindex: u32) -> anyhow::Result<Option<abi::Port>> {
        let port = found(self.ports.get(&ifindex, 0)).with_context(|| failed(map::PORTS))?;
        Ok(port.map(bytemuck::cast))
    }

    /// What an address is to the program.
    pub(super) fn kind(&self, addr: Addr) -> anyhow::Result<AddressKind> {
        let kind =
            found(self.addresses.get(&Key::new(32, addr), 0)).with_context(|| failed(map::ADDRESSES))?;
        Ok(kind.map_or(AddressKind::Other, AddressKind::from_number))
    }

    /// The settings.
    pub(super) fn node(&self) -> anyhow::Result<Node> {
        Ok(bytemuck::cast(self.node.get(&0, 0).with_context(|| failed(map::NODE))?))
    }

    /// Makes the program forget an interface.
    pub(super) fn remove_port(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.express.unseat(ifindex);
        found(self.ports.remove(&ifindex)).with_context(|| failed(map::PORTS))?;
        // The kernel has taken it out of the devmap by itself if the interface is gone.
        found(self.egress.remove(ifindex)).with_context(|| failed(map::EGRESS))?;
        Ok(())
    }

    /// The maps of bindings.
    pub(super) fn halves(&self) -> &Halves {
        &self.halves
    }

    pub(super) fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()> {
        for half in halves {
            let meter = half.binding().meter;
            ensure!(meter < self.meters.count(), "there is no room for meter {meter}");
        }
        self.halves.insert(halves)?;
        let is_outbound = |half: &&Half| matches!(half, Half::Outbound(_));
        let outbound_first =
            halves.iter().filter(is_outbound).chain(halves.iter().filter(|half| !is_outbound(half)));
        for half in outbound_first {
            self.express.insert(*half);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        self.express.remove(half);
        self.halves.remove(half)
    }

    pub(super) fn meters(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        // In their order, whatever the caller's is.
        let mut places: Vec<usize> = (0..meters.len()).collect();
        places.sort_by_key(|place| meters[*place]);
        let mut all = vec![Meter::default(); meters.len()];
        for place in places {
            let index = meters[place];
            let live = self.meters.read(index).with_context(|| failed(map::METERS))?;
            all[place] = self.carried.get(&index).map_or(live, |carried| carried.plus(live));
        }
        Ok(all)
    }

    pub(super) fn reset_meter(&mut self, meter: u32) -> anyhow::Result<()> {
        self.meters.reset(meter).with_context(|| failed(map::METERS))?;
        if self.carried.contains_key(&meter) {
            found(self.carried_meters.remove(&meter)).with_context(|| failed(map::CARRIED_METERS))?;
            self.carried.remove(&meter);
        }
        Ok(())
    }

    /// What is remembered of dropped packets.
    pub(super) fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Sets what earlier maps came to.
    pub(super) fn carry(&mut self, sums: &Sums) -> anyhow::Result<()> {
        for (meter, sum) in sums.meters.iter().filter(|(meter, _)| **meter < self.meters.count()) {
            let bytes: Bytes<Meter> = bytemuck::cast(*sum);
            self.carried_meters.insert(meter, bytes, 0).with_context(|| failed(map::CARRIED_METERS))?;
            self.carried.insert(*meter, *sum);
        }
        for (counter, sum) in (0..Counter::COUNT).zip(&sums.counters) {
            self.carried_counters.set(counter, sum, 0).with_context(|| failed(map::CARRIED_COUNTERS))?;
        }
        Ok(())
    }

    pub(super) fn verdicts(&self) -> anyhow::Result<Verdicts> {
        let read = |counter: Counter| -> anyhow::Result<u64> {
            let cpus = self.counters.get(&counter.index(), 0).with_context(|| failed(map::COUNTERS))?;
            let carried = self
                .carried_counters
                .get(&counter.index(), 0)
                .with_context(|| failed(map::CARRIED_COUNTERS))?;
            Ok(cpus.iter().sum::<u64>() + carried)
        };
        Ok(Verdicts {
            forward: read(Counter::Forward)?,
            pass: read(Counter::Pass)?,
            punts: Punt::ALL
                .iter()
                .map(|&punt| Ok((punt, read(Counter::Punt(punt))?)))
                .collect::<anyhow::Result<_>>()?,
            drops: Reject::ALL
                .iter()
                .map(|&reject| {
                    Ok((reject, read(Counter::Drop(reject))? + self.tally(Tally::Dropped(reject))))
                })
                .collect::<anyhow::Result<_>>()?,
        })
    }
}

/// What stands in the map of addresses, by length and network.
fn standing(map: &LpmTrie<MapData, Addr, u32>) -> Result<BTreeMap<(u32, Addr), u32>, MapError> {
    map.iter().map(|entry| entry.map(|(key, kind)| ((key.prefix_len(), key.data()), kind))).collect()
}

fn kinds(map: &LpmTrie<MapData, Addr, u32>) -> Result<Kinds, MapError> {
    let kind = |((length, addr), kind): ((u32, Addr), u32)| {
        let cidr = Ipv4Net::new(addr.into(), u8::try_from(length).ok()?).ok()?;
        Some((cidr, AddressKind::from_number(kind)))
    };
    Ok(standing(map)?.into_iter().filter_map(kind).collect::<BTreeMap<_, _>>().into())
}

fn carried(map: &HashMap<MapData, u32, Bytes<Meter>>) -> Result<BTreeMap<u32, Meter>, MapError> {
    map.iter().map(|entry| entry.map(|(meter, sum)| (meter, bytemuck::cast(sum)))).collect()
}

/// Takes one map out of a loaded object.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<M> {
    let map = ebpf.take_map(name).with_context(|| format!("the program has no map {name}"))?;
    M::try_from(map).with_context(|| format!("the pinned map {name} has another type"))
}

/// Makes the absence of a key a value.
pub(super) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn failed(map: &str) -> String {
    format!("the BPF map {map} cannot be accessed")
}
