//! Every byte that crosses the kernel boundary: names of the BPF maps, their keys and their values.
//!
//! **Invariant:** a change of any layout or meaning here goes with a new [`ABI_VERSION`].
//!
//! # What stays the same in every version
//!
//! A datapath outlives the daemon that made it, so each version reads what any other left. Of that it needs the counters
//! and what `unload` puts back, and for these:
//!
//! - A structure only grows, at its end, and what is new means "not known" where it is zero. So the first bytes of
//!   [`Node`], [`Port`], [`Meter`] and [`Inbound`] can be read whichever version wrote them.
//! - The maps [`map::NODE`], [`map::PORTS`], [`map::INBOUND`], [`map::METERS`], [`map::COUNTERS`], [`map::TALLIES`] (from
//!   version 6 on) and the two that carry sums on keep their names, types and keys (as they are from version 5 on, the first that was released). A meter's index
//!   is given out by the daemon's store, not by the version.
//! - A reason of [`verdict`](crate::verdict) keeps its number: new ones are appended, none is taken out.
//!
//! Apart from that, bindings need no such rule: they are written anew, from the daemon's desired state.

use bytemuck::{Pod, Zeroable};

use crate::verdict::Errand;

pub mod drops;
pub mod express;
pub mod slowpath;
pub mod trace;
pub mod trial;

/// Version of everything in this module. Where the pinned maps carry another one, the daemon makes new maps.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-abi") { u32::MAX } else { 9 };

/// Most interfaces that a program can be told of: uplinks, downlinks, and what is below them, such as the ports of a bridge
/// to which hundreds of VMs are plugged.
pub const MAX_PORTS: u32 = 4096;

/// Most entries of [`map::ADDRESSES`]. It takes memory only for those that are there.
pub const MAX_ADDRESSES: u32 = 65536;

/// Names of the BPF maps. They are also the file names under the pin path.
pub mod map {
    /// Hash: public address (`[u8; 4]`) -> [`Inbound`](super::Inbound).
    pub const INBOUND: &str = "INBOUND";
    /// Hash: [`OutboundKey`](super::OutboundKey) -> [`Outbound`](super::Outbound).
    pub const OUTBOUND: &str = "OUTBOUND";
    /// Array of [`Meter`](super::Meter): a lane for each CPU, one after another, each with
    /// [`Node::meters`](super::Node::meters) of them. Per-CPU arrays take as much memory, but a CPU's values are scattered in
    /// them, and a reader cannot map them (`docs/architecture.md` has the figures).
    pub const METERS: &str = "METERS";
    /// Per-CPU array: [`Counter`](crate::verdict::Counter) index -> packets (`u64`).
    pub const COUNTERS: &str = "COUNTERS";
    /// Hash: interface index (`u32`) -> [`Port`](super::Port).
    pub const PORTS: &str = "PORTS";
    /// Devmap hash: interface index -> the interface that frames leave by.
    pub const EGRESS: &str = "EGRESS";
    /// LPM trie: CIDR -> what an address in it is, an [`AddressKind`](super::AddressKind) (`u32`).
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Array with the one element [`Node`](super::Node).
    pub const NODE: &str = "NODE";
    /// Hash: meter index -> the [`Meter`](super::Meter) that earlier maps came to. Not read by the program.
    pub const CARRIED_METERS: &str = "CARRIED_METERS";
    /// Array: counter index -> what earlier maps came to. Not read by the program.
    pub const CARRIED_COUNTERS: &str = "CARRIED_COUNTERS";
    /// Array of [`Dropped`](super::drops::Dropped): a lane of [`drops::LANE`](super::drops::LANE) for each CPU, and one for the
    /// slow path.
    pub const DROPS: &str = "DROPS";

    /// Hash: address that is traced -> 1 (`u32`).
    pub const TRACED: &str = "TRACED";
    /// Ring buffer of [`Event`](super::trace::Event)s.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array with one element: how many events were left out (`u64`).
    pub const LEFT_OUT: &str = "LEFT_OUT";

    /// Array with the one element [`Front`](super::express::Front).
    pub const FRONT: &str = "FRONT";
    /// Array: page -> what is known of a /16, a [`Page`](super::express::Page).
    pub const PAGES: &str = "PAGES";
    /// Array: block -> an [`InboundEntry`](super::express::InboundEntry) for each last byte of an address.
    pub const INBOUND_BLOCKS: &str = "INBOUND_BLOCKS";
    /// Array: block -> an [`Outbound`](super::Outbound) for each last byte of an address of tenant 0.
    pub const OUTBOUND_BLOCKS: &str = "OUTBOUND_BLOCKS";
    /// Array of [`NextHop`](super::express::NextHop)s: a lane of [`express::NEXT_HOPS`](super::express::NEXT_HOPS) for each CPU.
    pub const NEXT_HOPS: &str = "NEXT_HOPS";

    /// XDP sockets of the slow path, by [`Port::socket`](super::Port::socket).
    pub const SOCKETS: &str = "SOCKETS";
    /// Array: [`Port::bucket`](super::Port::bucket) -> [`Bucket`](super::slowpath::Bucket).
    pub const BUCKETS: &str = "BUCKETS";
    /// Array: [`Tally::place`](super::slowpath::Tally::place) -> packets (`u64`). Not read by the program: the slow path counts
    /// there, so that its counters outlive the daemon.
    pub const TALLIES: &str = "TALLIES";

    /// All of them.
    pub const ALL: [&str; 22] = [
        NODE,
        PORTS,
        ADDRESSES,
        INBOUND,
        OUTBOUND,
        METERS,
        COUNTERS,
        EGRESS,
        CARRIED_METERS,
        CARRIED_COUNTERS,
        DROPS,
        TRACED,
        EVENTS,
        LEFT_OUT,
        FRONT,
        PAGES,
        INBOUND_BLOCKS,
        OUTBOUND_BLOCKS,
        NEXT_HOPS,
        SOCKETS,
        BUCKETS,
        TALLIES,
    ];
}

/// An IPv4 address in network byte order.
pub type Addr = [u8; 4];

/// A MAC address in transmission order.
pub type Mac = [u8; 6];

/// What an address is to the node. Value of [`map::ADDRESSES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AddressKind {
    /// Nothing: somebody's on the internet, or reserved in a pool.
    Other = 0,
    /// Of a pool: never the kernel's to deliver.
    Pooled = 1,
    /// The node's own, on any interface.
    Own = 2,
    /// In the network that a downlink, which is no uplink, is connected to.
    Inside = 3,
}

impl AddressKind {
    /// The kind with that number; one that is not known is [`AddressKind::Other`].
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Pooled,
            2 => Self::Own,
            3 => Self::Inside,
            _ => Self::Other,
        }
    }
}

/// Where packets to a public address go. Value of [`map::INBOUND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Inbound {
    /// The VM's private address.
    pub private_ip: Addr,
    /// The address space that `private_ip` belongs to; 0 is the plain, untagged network.
    pub tenant: u32,
    /// Index into [`map::METERS`].
    pub meter: u32,
    /// Stands for what a later version may want to know besides.
    #[cfg(feature = "next-abi")]
    pub next: u32,
}

impl Inbound {
    /// A way to a private address.
    #[must_use]
    pub const fn new(private_ip: Addr, tenant: u32, meter: u32) -> Self {
        Self {
            private_ip,
            tenant,
            meter,
            #[cfg(feature = "next-abi")]
            next: 0,
        }
    }
}

/// A private address within its tenant. Key of [`map::OUTBOUND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OutboundKey {
    /// The address space that `private_ip` belongs to; 0 is the plain, untagged network.
    pub tenant: u32,
    /// The VM's private address.
    pub private_ip: Addr,
}

/// How packets from a private address appear outside. Value of [`map::OUTBOUND`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Outbound {
    /// The public address.
    pub eip: Addr,
    /// Index into [`map::METERS`]; the same as in the matching [`Inbound`].
    pub meter: u32,
}

/// What one public address has carried. Bytes are IPv4 total lengths of forwarded packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Meter {
    /// Bytes towards the VM.
    pub in_bytes: u64,
    /// Packets towards the VM.
    pub in_packets: u64,
    /// Bytes towards the internet.
    pub out_bytes: u64,
    /// Packets towards the internet.
    pub out_packets: u64,
    /// Stands for what a later version may count besides.
    #[cfg(feature = "next-abi")]
    pub next: u64,
}

impl Meter {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            in_bytes: self.in_bytes + other.in_bytes,
            in_packets: self.in_packets + other.in_packets,
            out_bytes: self.out_bytes + other.out_bytes,
            out_packets: self.out_packets + other.out_packets,
            #[cfg(feature = "next-abi")]
            next: self.next + other.next,
        }
    }
}

/// One interface of the node. Value of [`map::PORTS`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Port {
    /// A set of [`Port::UPLINK`] and [`Port::DOWNLINK`]; empty for an interface below one of these (a bridge's port, a
    /// bond's slave), which the daemon has only changed settings of.
    pub role: u8,
    /// Not read by the program: `net.ipv4.conf.IF.` forwarding, `rp_filter` and `send_redirects` as they were before
    /// eipnat came, so that `unload` can put them back.
    pub sysctls_before: [u8; 3],
    /// The interface's own address: unicast frames to another one are not the node's to forward.
    pub mac: Mac,
    /// Not read by the program: the offloads that the daemon has turned off, and `unload` turns on again.
    pub offloads_before: u8,
    /// Zero.
    pub padding: u8,
    /// The tenant whose VMs are reached by this interface.
    pub tenant: u32,
    /// The interface's number among those that the slow path serves, from 1 to [`slowpath::MAX_PORTS`]; 0: it serves it not.
    pub slow_path: u32,
    /// Stands for what a later version may want to know besides.
    #[cfg(feature = "next-abi")]
    pub next: u32,
}

impl Port {
    /// Bit of `role`: the interface faces the internet.
    pub const UPLINK: u8 = 1;
    /// Bit of `role`: the interface faces the VMs.
    pub const DOWNLINK: u8 = 2;

    /// Whether the interface faces the internet.
    #[must_use]
    pub const fn is_uplink(&self) -> bool {
        self.role & Self::UPLINK != 0
    }

    /// Whether the interface faces the VMs.
    #[must_use]
    pub const fn is_downlink(&self) -> bool {
        self.role & Self::DOWNLINK != 0
    }

    /// The place in [`map::SOCKETS`] of the socket of one of its queues, if the slow path can serve that.
    #[inline(always)]
    #[must_use]
    pub const fn socket(&self, queue: u32) -> Option<u32> {
        if self.slow_path == 0 || queue >= slowpath::MAX_QUEUES {
            return None;
        }
        Some((self.slow_path - 1) * slowpath::MAX_QUEUES + queue)
    }

    /// The place in [`map::BUCKETS`] for its packets on one errand, if the slow path serves it.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(&self, errand: Errand) -> Option<u32> {
        if self.slow_path == 0 {
            return None;
        }
        Some((self.slow_path - 1) * slowpath::BUCKETS_OF_PORT + errand.number())
    }

    /// The place there for those of its packets that are too many for the slow path, and that the kernel may have.
    #[inline(always)]
    #[must_use]
    pub const fn overflow(&self) -> Option<u32> {
        if self.slow_path == 0 {
            return None;
        }
        Some(self.slow_path * slowpath::BUCKETS_OF_PORT - 1)
    }
}

/// Settings of the whole node. The one element of [`map::NODE`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// [`ABI_VERSION`] of whoever made the maps. Zero until there is something in them: then no program runs on them yet.
    pub abi_version: u32,
    /// Not read by the program: [`Node::OPEN`] or [`Node::CURRENT`].
    pub stage: u8,
    /// Not read by the program: `net.ipv4.conf.all.send_redirects` as it was before eipnat came.
    pub all_send_redirects_before: u8,
    /// Not read by the program: how many directories eipnat made for the pins, which `unload` removes again: the pin path
    /// and those above it.
    pub directories_made: u8,
    /// Not read by the program: `net.ipv4.ip_no_pmtu_disc` as it was before eipnat came.
    pub ip_no_pmtu_disc_before: u8,
    /// Source of ICMP errors whose sender, a private router, has no public address of its own (RFC 5508 §4.2,
    /// REQ-5c). All zero: not known.
    pub public_ip: Addr,
    /// Not read by the program, to which its loader tells it: how many meters there are, which is the length of a lane of
    /// [`map::METERS`].
    pub meters: u32,
    /// Not read by the program: drawn at random when the counters began at zero. Whoever remembers a reading knows by it
    /// whether the counters are still the same. Nobody but root does: it
    /// is also the ticket of a [trial].
    pub id: [u8; 16],
    /// How far packets to the slow path are apart on the long run, those of an interface and an errand, in nanoseconds.
    pub slow_path_interval: u32,
    /// Stands for what a later version may set besides.
    #[cfg(feature = "next-abi")]
    pub next: u32,
}

impl Node {
    /// `stage`: programs may run on these maps. What earlier maps have counted still stands in those, and programs may
    /// run on them as well.
    pub const OPEN: u8 = 1;
    /// `stage`: no program runs on earlier maps any more, and what these came to stands in the maps that carry sums on.
    pub const CURRENT: u8 = 2;
}

// The BPF program and the daemon are compiled apart, by different compilers: fail there and not on the wire.
#[cfg(not(feature = "next-abi"))]
const _: () = {
    assert!(size_of::<Inbound>() == 12 && size_of::<Outbound>() == 8 && size_of::<OutboundKey>() == 8);
    assert!(size_of::<Meter>() == 32 && size_of::<Port>() == 20 && size_of::<Node>() == 36);
};
const _: () = {
    assert!(core::mem::offset_of!(Inbound, meter) == 8 && core::mem::offset_of!(Outbound, meter) == 4);
    assert!(core::mem::offset_of!(Port, mac) == 4 && core::mem::offset_of!(Port, offloads_before) == 10);
    assert!(core::mem::offset_of!(Port, tenant) == 12);
    assert!(core::mem::offset_of!(Node, stage) == 4 && core::mem::offset_of!(Node, public_ip) == 8);
};
