//! The BPF maps, seen from the daemon.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::{DevMapHash, XskMap};
use aya::maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray};
use ipnet::Ipv4Net;
use nat_common::abi::slowpath::{Bucket, Tally};
use nat_common::abi::{
    self, Addr, AddressKind, DropKey, Dropped, Inbound, Meter, Node, Outbound, OutboundKey, map,
};
use nat_common::verdict::{Counter, Errand, Punt, Reject};
use rustix::time::{ClockId, clock_gettime};

use super::super::{AT_ONCE, AddressDrops, Binding, Half, Place, Verdicts};
use super::batch;
use super::generations::Sums;
use super::meters::Meters;
use super::numbers::Numbers;
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
plain!(Inbound, OutboundKey, Outbound, Meter, Node, abi::Port, DropKey, Dropped, Bucket);

/// Handles of all maps.
pub(super) struct Maps {
    inbound: HashMap<MapData, Addr, Bytes<Inbound>>,
    outbound: HashMap<MapData, Bytes<OutboundKey>, Bytes<Outbound>>,
    meters: Meters,
    counters: PerCpuArray<MapData, u64>,
    ports: HashMap<MapData, u32, Bytes<abi::Port>>,
    egress: DevMapHash<MapData>,
    addresses: LpmTrie<MapData, Addr, u32>,
    node: Array<MapData, Bytes<Node>>,
    drops: HashMap<MapData, Bytes<DropKey>, Bytes<Dropped>>,
    drops_unbound: HashMap<MapData, Bytes<DropKey>, Bytes<Dropped>>,
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
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32) -> anyhow::Result<Self> {
        let meters: Array<MapData, Bytes<Meter>> = take(ebpf, map::METERS)?;
        let carried_meters = take(ebpf, map::CARRIED_METERS)?;
        let carried = carried(&carried_meters).with_context(|| failed(map::CARRIED_METERS))?;
        Ok(Self {
            inbound: take(ebpf, map::INBOUND)?,
            outbound: take(ebpf, map::OUTBOUND)?,
            meters: Meters::open(meters.map(), model::meters(capacity))
                .with_context(|| failed(map::METERS))?,
            counters: take(ebpf, map::COUNTERS)?,
            ports: take(ebpf, map::PORTS)?,
            egress: take(ebpf, map::EGRESS)?,
            addresses: take(ebpf, map::ADDRESSES)?,
            node: take(ebpf, map::NODE)?,
            drops: take(ebpf, map::DROPS)?,
            drops_unbound: take(ebpf, map::DROPS_UNBOUND)?,
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

    /// Makes the map say what addresses are, and answers whether it said anything else.
    pub(super) fn set_addresses(&mut self, kinds: &BTreeMap<Ipv4Net, AddressKind>) -> anyhow::Result<bool> {
        let wanted: BTreeMap<(u32, Addr), u32> = kinds
            .iter()
            .map(|(cidr, kind)| ((cidr.prefix_len().into(), cidr.network().octets()), *kind as u32))
            .collect();
        let standing = self
            .addresses
            .iter()
            .map(|entry| entry.map(|(key, kind)| ((key.prefix_len(), key.data()), kind)))
            .collect::<Result<BTreeMap<_, _>, _>>()
            .with_context(|| failed(map::ADDRESSES))?;
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
        let port: Bytes<abi::Port> = bytemuck::cast(port);
        let knows = found(self.ports.get(&ifindex, 0)).with_context(|| failed(map::PORTS))? == Some(port);
        if !knows {
            self.ports.insert(ifindex, port, 0).with_context(|| failed(map::PORTS))?;
        }
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
        found(self.ports.remove(&ifindex)).with_context(|| failed(map::PORTS))?;
        // The kernel has taken it out of the devmap by itself if the interface is gone.
        found(self.egress.remove(ifindex)).with_context(|| failed(map::EGRESS))?;
        Ok(())
    }

    /// Some halves of one kind, from a place on, and where those after them begin.
    pub(super) fn some_halves(
        &self,
        Place { is_outbound, at }: Place,
        count: u32,
    ) -> anyhow::Result<(Vec<Half>, Option<u32>)> {
        if is_outbound {
            let (some, next) =
                batch::read(&self.outbound, at, count).with_context(|| failed(map::OUTBOUND))?;
            let half = |(key, value)| Half::Outbound(outbound_binding(key, value));
            return Ok((some.into_iter().map(half).collect(), next));
        }
        let (some, next) = batch::read(&self.inbound, at, count).with_context(|| failed(map::INBOUND))?;
        let half = |(key, value)| Half::Inbound(inbound_binding(key, value));
        Ok((some.into_iter().map(half).collect(), next))
    }

    pub(super) fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        let key = public_ip.octets();
        let value = found(self.inbound.get(&key, 0)).with_context(|| failed(map::INBOUND))?;
        Ok(value.map(|value| inbound_binding(key, value)))
    }

    pub(super) fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        let key = bytemuck::cast(OutboundKey { tenant, private_ip: private_ip.octets() });
        let value = found(self.outbound.get(&key, 0)).with_context(|| failed(map::OUTBOUND))?;
        Ok(value.map(|value| outbound_binding(key, value)))
    }

    pub(super) fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()> {
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for half in halves {
            let Binding { public_ip, tenant, private_ip, meter } = half.binding();
            ensure!(meter < self.meters.count(), "there is no room for meter {meter}");
            match half {
                Half::Inbound(_) => {
                    let value = bytemuck::cast(Inbound::new(private_ip.octets(), tenant, meter));
                    inbound.push((public_ip.octets(), value));
                }
                Half::Outbound(_) => {
                    let key = bytemuck::cast(OutboundKey { tenant, private_ip: private_ip.octets() });
                    outbound.push((key, bytemuck::cast(Outbound { eip: public_ip.octets(), meter })));
                }
            }
        }
        batch::write(&mut self.outbound, &outbound).with_context(|| failed(map::OUTBOUND))?;
        batch::write(&mut self.inbound, &inbound).with_context(|| failed(map::INBOUND))
    }

    pub(super) fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        match half {
            Half::Inbound(binding) => {
                found(self.inbound.remove(&binding.public_ip.octets()))
                    .with_context(|| failed(map::INBOUND))?;
            }
            Half::Outbound(binding) => {
                let key = OutboundKey { tenant: binding.tenant, private_ip: binding.private_ip.octets() };
                found(self.outbound.remove(&bytemuck::cast(key))).with_context(|| failed(map::OUTBOUND))?;
            }
        }
        Ok(())
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

    /// The drops that are remembered of a public address.
    pub(super) fn drops(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>> {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
        let mut drops = Vec::new();
        for reason in Reject::ALL {
            let mut sum = Dropped::default();
            for (map, name) in [(&self.drops, map::DROPS), (&self.drops_unbound, map::DROPS_UNBOUND)] {
                let one = found(map.get(&drop_key(address, *reason), 0)).with_context(|| failed(name))?;
                let one: Dropped = one.map_or_else(Dropped::default, bytemuck::cast);
                sum = Dropped { packets: sum.packets + one.packets, last: sum.last.max(one.last) };
            }
            if sum.packets > 0 {
                let last = Duration::from_nanos(sum.last);
                drops.push(AddressDrops {
                    reason: *reason,
                    packets: sum.packets,
                    last: now.saturating_sub(last),
                });
            }
        }
        Ok(drops)
    }

    /// Forgets them.
    pub(super) fn forget_drops(&mut self, addresses: &HashSet<Ipv4Addr>) -> anyhow::Result<()> {
        for (map, name) in [(&mut self.drops, map::DROPS), (&mut self.drops_unbound, map::DROPS_UNBOUND)] {
            let mut next = Some(0);
            while let Some(from) = next {
                let (some, after) = batch::read(map, from, AT_ONCE).with_context(|| failed(name))?;
                let holder = |key: Bytes<DropKey>| bytemuck::cast::<_, DropKey>(key).address.into();
                for (key, _) in some.into_iter().filter(|(key, _)| addresses.contains(&holder(*key))) {
                    found(map.remove(&key)).with_context(|| failed(name))?;
                }
                next = after;
            }
        }
        Ok(())
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

fn carried(map: &HashMap<MapData, u32, Bytes<Meter>>) -> Result<BTreeMap<u32, Meter>, MapError> {
    map.iter().map(|entry| entry.map(|(meter, sum)| (meter, bytemuck::cast(sum)))).collect()
}

fn drop_key(address: Ipv4Addr, reason: Reject) -> Bytes<DropKey> {
    bytemuck::cast(DropKey { address: address.octets(), reason: reason as u32 })
}

/// Takes one map out of a loaded object.
pub(super) fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<M> {
    let map = ebpf.take_map(name).with_context(|| format!("the program has no map {name}"))?;
    M::try_from(map).with_context(|| format!("the pinned map {name} has another type"))
}

fn inbound_binding(public_ip: Addr, value: Bytes<Inbound>) -> Binding {
    let Inbound { private_ip, tenant, meter, .. } = bytemuck::cast(value);
    Binding { public_ip: public_ip.into(), tenant, private_ip: private_ip.into(), meter }
}

fn outbound_binding(key: Bytes<OutboundKey>, value: Bytes<Outbound>) -> Binding {
    let OutboundKey { tenant, private_ip } = bytemuck::cast(key);
    let Outbound { eip, meter } = bytemuck::cast(value);
    Binding { public_ip: eip.into(), tenant, private_ip: private_ip.into(), meter }
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
