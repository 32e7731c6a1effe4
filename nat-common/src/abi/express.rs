//! What the fast path's express lane reads: the bindings once more, in arrays by address, and next hops that are known.
//!
//! An address is found as in a DIR-24-8 table: its upper 16 bits give a page, the next 8 a place in the page, and the last 8
//! an entry in a block. Whatever has no place there is found in the hash maps, by the pipeline.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Mac, Outbound};

/// Entries of a page, and of a block.
pub const ENTRIES: usize = 256;

/// How many pages there are. Page 0 is none: nothing is known of any address in it.
pub const PAGES: u32 = 512;

/// The page all of whose addresses the pipeline has to judge.
pub const SPECIAL_PAGE: u32 = 1;

/// The page of addresses that are in a pool, and not bound.
pub const UNBOUND_PAGE: u32 = 2;

/// The block whose addresses are in a pool, and not bound. Block 0 is none.
pub const UNBOUND_BLOCK: u32 = 1;

/// Stands for a block where only the pipeline knows what its addresses are.
pub const SPECIAL: u32 = u32::MAX;

/// Next hops that a CPU remembers by destination; a power of two.
pub const NEXT_HOPS: u32 = 4096;

/// Interfaces that are found without a hash; a power of two.
pub const SEATS: u32 = 256;

/// What is known of 256 addresses. Element of a page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Their block in [`map::INBOUND_BLOCKS`](super::map::INBOUND_BLOCKS), 0 or [`SPECIAL`].
    pub inbound: u32,
    /// Their block in [`map::OUTBOUND_BLOCKS`](super::map::OUTBOUND_BLOCKS), 0 or [`SPECIAL`].
    pub outbound: u32,
}

/// A next hop, and when it was asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Adjacency {
    /// [`Routing::generation`] when the FIB was asked.
    pub generation: u32,
    /// The interface that packets leave by.
    pub ifindex: u32,
    /// The next hop's address.
    pub destination: Mac,
    /// The lower half of `generation` again: two CPUs may write at the same time.
    pub check: u16,
    /// The interface's own address.
    pub source: Mac,
    /// The way's MTU, in bytes.
    pub mtu: u16,
}

impl Adjacency {
    /// Whether a packet of `length` bytes may take it without the FIB being asked. There is no generation 0.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn carries(&self, length: u16, generation: u32) -> bool {
        self.generation == generation && self.check == generation as u16 && length <= self.mtu
    }
}

/// Where packets to a public address go. Entry of a block of [`map::INBOUND_BLOCKS`](super::map::INBOUND_BLOCKS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InboundEntry {
    /// The VM's private address, of tenant 0; all zero: the public one is not bound.
    pub private_ip: Addr,
    /// Index into [`map::METERS`](super::map::METERS). Of an address that is not bound [`InboundEntry::POOLED`],
    /// [`InboundEntry::STRANGER`], or 0: only the pipeline knows.
    pub meter: u32,
    /// The next hop to the VM. The program writes it.
    pub adjacency: Adjacency,
}

impl InboundEntry {
    /// `meter` of an address that is not bound: it is in a pool.
    pub const POOLED: u32 = 1;
    /// `meter` of an address that is not bound: nothing is known of it.
    pub const STRANGER: u32 = 2;
}

/// The next hop to an address outside. Element of [`map::NEXT_HOPS`](super::map::NEXT_HOPS), which the program writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// The address.
    pub address: Addr,
    /// Zero.
    pub padding: u32,
    /// Its next hop.
    pub adjacency: Adjacency,
}

impl NextHop {
    /// The place in a CPU's lane for an address.
    #[inline(always)]
    #[must_use]
    pub const fn place(address: Addr) -> u32 {
        // Multiplicative hashing by the golden ratio.
        u32::from_ne_bytes(address).wrapping_mul(0x9e37_79b1) >> (32 - NEXT_HOPS.trailing_zeros())
    }
}

/// An interface as the express lane knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Seat {
    /// The interface's index; 0: nobody sits here.
    pub ifindex: u32,
    /// [`Port::mac`](super::Port::mac).
    pub mac: Mac,
    /// [`Port::role`](super::Port::role).
    pub role: u8,
    /// Zero.
    pub padding: [u8; 5],
}

/// For how long next hops may be remembered. The one element of [`map::ROUTING`](super::map::ROUTING).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Routing {
    /// Another one whenever routes, neighbours or interfaces have changed. 0: ask the FIB for each packet.
    pub generation: u32,
    /// Zero.
    pub padding: u32,
    /// Until when that holds, in nanoseconds of `CLOCK_MONOTONIC`: the daemon, which watches for changes, goes on prolonging it.
    pub until: u64,
}

impl Routing {
    /// The generation that holds at a time; 0: none.
    #[inline(always)]
    #[must_use]
    pub const fn at(&self, now: u64) -> u32 {
        if now < self.until { self.generation } else { 0 }
    }
}

const _: () = {
    assert!(size_of::<Place>() == 8 && size_of::<Outbound>() == 8 && size_of::<Adjacency>() == 24);
    assert!(size_of::<InboundEntry>() == 32 && size_of::<NextHop>() == 32);
    assert!(size_of::<Seat>() == 16 && size_of::<Routing>() == 16);
};
