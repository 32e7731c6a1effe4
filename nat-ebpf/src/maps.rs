//! The BPF maps. Names, keys and values are nat-common's; sizes that depend on the configuration are set by the
//! daemon when it creates them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use nat_common::abi::{
    Addr, AddressKind, DropKey, Dropped, Inbound, MAX_ADDRESSES, MAX_DROPS, MAX_DROPS_UNBOUND, MAX_PORTS,
    Meter, Node, Outbound, OutboundKey, Port,
};
use nat_common::pipeline::Direction;
use nat_common::verdict::Counter;

use crate::slowpath::add_one;
use crate::watch::Watch;

/// Stands here for sizes that the daemon sets.
const SET_BY_DAEMON: u32 = 1;

#[map]
static NODE: Array<Node> = Array::pinned(1, 0);

#[map]
static PORTS: HashMap<u32, Port> = HashMap::pinned(MAX_PORTS, 0);

#[map]
pub(crate) static EGRESS: DevMapHash = DevMapHash::pinned(MAX_PORTS, 0);

#[map]
static ADDRESSES: LpmTrie<Addr, u32> = LpmTrie::pinned(MAX_ADDRESSES, BPF_F_NO_PREALLOC);

#[map]
static INBOUND: HashMap<Addr, Inbound> = HashMap::pinned(SET_BY_DAEMON, 0);

#[map]
static OUTBOUND: HashMap<OutboundKey, Outbound> = HashMap::pinned(SET_BY_DAEMON, 0);

#[map]
static METERS: Array<Meter> = Array::pinned(SET_BY_DAEMON, BPF_F_MMAPABLE);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::COUNT, 0);

#[map]
static DROPS: LruHashMap<DropKey, Dropped> = LruHashMap::pinned(MAX_DROPS, 0);

#[map]
static DROPS_UNBOUND: LruHashMap<DropKey, Dropped> = LruHashMap::pinned(MAX_DROPS_UNBOUND, 0);

// Only the daemon uses these two. They stand here so that all maps are made alike.

#[map]
static CARRIED_METERS: HashMap<u32, Meter> = HashMap::pinned(SET_BY_DAEMON, BPF_F_NO_PREALLOC);

#[map]
static CARRIED_COUNTERS: Array<u64> = Array::pinned(Counter::COUNT, 0);

#[inline(always)]
pub(crate) fn port(ifindex: u32) -> Option<Port> {
    // SAFETY: ports are only taken away after the program has left the interface.
    unsafe { PORTS.get(ifindex) }.copied()
}

#[inline(always)]
pub(crate) fn inbound(public_ip: Addr) -> Option<Inbound> {
    // SAFETY: the daemon waits for an RCU grace period between taking an element out and putting another in, so an
    // element that this program has found is not reused while it runs.
    unsafe { INBOUND.get(public_ip) }.copied()
}

#[inline(always)]
pub(crate) fn outbound(key: OutboundKey) -> Option<Outbound> {
    // SAFETY: as for `inbound`.
    unsafe { OUTBOUND.get(key) }.copied()
}

#[inline(always)]
pub(crate) fn kind(addr: Addr) -> AddressKind {
    ADDRESSES.get(Key::new(32, addr)).map_or(AddressKind::Other, |&number| AddressKind::from_number(number))
}

#[inline(always)]
pub(crate) fn node() -> Option<&'static Node> {
    NODE.get(0)
}

#[inline(always)]
pub(crate) fn bill(meter: u32, direction: Direction, bytes: u16, watch: Watch) {
    let Some(Node { meters, .. }) = node() else { return };
    // SAFETY: it only reads a number of the CPU.
    let lane = unsafe { bpf_get_smp_processor_id() };
    let Some(meter) = METERS.get_ptr_mut(watch.place(lane * meters + meter)) else { return };
    // SAFETY: the element is in this CPU's lane, and XDP programs do not interrupt each other on one. The daemon only reads.
    let meter = unsafe { &mut *meter };
    let (total, packets) = match direction {
        Direction::In => (&mut meter.in_bytes, &mut meter.in_packets),
        Direction::Out => (&mut meter.out_bytes, &mut meter.out_packets),
    };
    *total += u64::from(bytes);
    *packets += 1;
}

#[inline(always)]
pub(crate) fn count(place: u32) {
    if let Some(packets) = COUNTERS.get_ptr_mut(place) {
        // SAFETY: as in `bill`.
        unsafe { *packets += 1 }
    }
}

/// Remembers that a packet was dropped which concerns a public address.
#[inline(always)]
pub(crate) fn remember_drop(address: Addr, is_bound: bool, reason: u32) {
    let drops = if is_bound { &DROPS } else { &DROPS_UNBOUND };
    let key = DropKey { address, reason };
    // SAFETY: it only reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(dropped) = drops.get_ptr_mut(key) else {
        // Where another CPU comes first, or there is no memory, one packet more or less is not known of.
        let _ = drops.insert(key, Dropped { packets: 1, last: now }, 0);
        return;
    };
    // SAFETY: elements of this map stay memory of its values, whoever they are reused for, and every CPU adds atomically.
    unsafe {
        add_one(&raw mut (*dropped).packets);
        (*dropped).last = now;
    }
}
