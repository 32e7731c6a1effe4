//! The BPF maps. Names, keys and values are nat-common's; sizes that depend on the configuration are set by the
//! daemon when it creates them.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, PerCpuArray};
use nat_common::abi::drops::{self, Dropped};
use nat_common::abi::express::Front;
use nat_common::abi::{
    Addr, AddressKind, Inbound, MAX_ADDRESSES, MAX_PORTS, Meter, Node, Outbound, OutboundKey, Port,
};
use nat_common::pipeline::Direction;
use nat_common::verdict::Counter;

use crate::watch::Watch;

/// Stands here for sizes that the daemon sets.
pub(crate) const SET_BY_DAEMON: u32 = 1;

#[map]
static NODE: Array<Node> = Array::pinned(1, 0);

#[map]
static FRONT: Array<Front> = Array::pinned(1, BPF_F_MMAPABLE);

#[map]
static PORTS: HashMap<u32, Port> = HashMap::pinned(MAX_PORTS, 0);

#[map]
static EGRESS: DevMapHash = DevMapHash::pinned(MAX_PORTS, 0);

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
static DROPS: Array<Dropped> = Array::pinned(SET_BY_DAEMON, BPF_F_MMAPABLE);

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
pub(crate) fn front() -> Option<*mut Front> {
    FRONT.get_ptr_mut(0)
}

#[inline(always)]
pub(crate) fn node() -> Option<&'static Node> {
    NODE.get(0)
}

/// The length of a lane of [`METERS`], which the loader sets.
#[unsafe(no_mangle)]
static METERS_OF_LANE: Global<u32> = Global::new(0);

#[inline(always)]
pub(crate) fn bill(meter: u32, direction: Direction, bytes: u16, watch: Watch) {
    let place = lane() * METERS_OF_LANE.load() + meter;
    let Some(meter) = METERS.get_ptr_mut(watch.place(place)) else { return };
    // SAFETY: the element is in this CPU's lane, and XDP programs do not interrupt each other on one. The daemon only reads.
    let meter = unsafe { &mut *meter };
    let (total, packets) = match direction {
        Direction::In => (&mut meter.in_bytes, &mut meter.in_packets),
        Direction::Out => (&mut meter.out_bytes, &mut meter.out_packets),
    };
    *total += u64::from(bytes);
    *packets += 1;
}

/// Sends the packet by an interface.
#[inline(always)]
pub(crate) fn send_by(ifindex: u32) -> u32 {
    // A full queue behind the map is not seen here, only an interface that it does not hold. The daemon puts one in before the
    // pipeline may choose it, and takes it out after; so it is another's doing, or a next hop was remembered.
    EGRESS.redirect(ifindex, 0).unwrap_or(XDP_DROP)
}

#[inline(always)]
pub(crate) fn count(place: u32) {
    if let Some(packets) = COUNTERS.get_ptr_mut(place) {
        // SAFETY: as in `bill`.
        unsafe { *packets += 1 }
    }
}

/// The lane of this CPU in maps that have one for each.
#[inline(always)]
pub(crate) fn lane() -> u32 {
    // SAFETY: it only reads a number of the CPU.
    unsafe { bpf_get_smp_processor_id() }
}

/// Remembers that a packet was dropped which concerns a public address.
#[inline(always)]
pub(crate) fn remember_drop(address: Addr, is_bound: bool, reason: u32, now: u64) {
    let place = lane() * drops::LANE + Dropped::place(address, is_bound, reason);
    let Some(dropped) = DROPS.get_ptr_mut(place) else { return };
    // SAFETY: as in `bill`; and whoever the daemon makes forget has no more than numbers to lose.
    let dropped = unsafe { &mut *dropped };
    if dropped.address != address || dropped.reason != reason {
        *dropped = Dropped { address, reason, packets: 0, last: now };
    }
    dropped.packets += 1;
    dropped.last = now;
}
