//! What the fast path's express lane reads: the bindings once more, in arrays by address, and next hops that are known.
//!
//! An address is found as in a DIR-24-8 table: its upper 16 bits give a page, the next 8 a place in the page, and the last 8
//! an entry in a block. That an address is in a pool and not bound stands in the page already, a bit each: who scans a pool shall not
//! take the cache from those who use it. Whatever has no place there is found in the hash maps, by the pipeline.

use bytemuck::{Pod, Zeroable};

use super::trace::Settings;
use super::{Addr, Mac, Outbound};

/// Entries of a page, and of a block.
pub const ENTRIES: usize = 256;

/// How many pages there are. Page 0 is none: nothing is known of any address in it.
pub const PAGES: u32 = 512;

/// The page all of whose addresses the pipeline has to judge.
pub const SPECIAL_PAGE: u32 = 1;

/// The page of addresses that are in a pool, and not bound.
pub const UNBOUND_PAGE: u32 = 2;

/// Stands for a block where there is none, and more to be said of its addresses than nothing. Block 0 is none, too.
pub const SPECIAL: u32 = VACANT - 1;

/// In [`Place::inbound`], besides the block: some of the addresses are in a pool, and not bound, as [`Page::vacant`] tells.
pub const VACANT: u32 = 1 << 31;

/// Next hops that a CPU remembers by destination; a power of two.
pub const NEXT_HOPS: u32 = 4096;

/// Routes that cover a /16 and have a next hop of their own, and one that stands for none.
pub const COVERING: u32 = 256;

/// How many next hops a CPU remembers in all.
pub const NEXT_HOPS_LANE: u32 = NEXT_HOPS + COVERING;

/// Interfaces that are found without a hash; a power of two.
pub const SEATS: usize = 256;

/// Length of the directory: the upper halves of addresses.
pub const DIRECTORY: usize = 1 << 16;

/// What every packet needs, so that one look-up finds it all. The one element of [`map::FRONT`](super::map::FRONT).
#[repr(C)]
#[derive(Debug)]
pub struct Front {
    /// For how long next hops may be remembered.
    pub routing: Routing,
    /// What is traced.
    pub trace: Settings,
    /// Lower bits of an interface's index -> the interface.
    pub seats: [Seat; SEATS],
    /// Upper half of an address (host byte order) -> page.
    pub directory: [u16; DIRECTORY],
    /// The same -> the number of the route that leads to all those addresses, by one next hop; 0: each has a next hop of its own.
    pub covering: [u8; DIRECTORY],
}

/// What is known of the addresses of a /16. Element of [`map::PAGES`](super::map::PAGES).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Third byte of an address -> what is known of its /24.
    pub places: [Place; ENTRIES],
    /// The same -> a bit for each address, from the lowest one on: it is in a pool, and not bound. Where [`VACANT`] says so.
    pub vacant: [[u64; ENTRIES / 64]; ENTRIES],
}

/// What is known of 256 addresses. Where all of them are bound, it is eight bytes, so that a million take few lines of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Place {
    /// Their block in [`map::INBOUND_BLOCKS`](super::map::INBOUND_BLOCKS), 0 or [`SPECIAL`]; and [`VACANT`].
    pub inbound: u32,
    /// Their block in [`map::OUTBOUND_BLOCKS`](super::map::OUTBOUND_BLOCKS), 0 or [`SPECIAL`].
    pub outbound: u32,
}

impl Place {
    /// The block of public addresses.
    #[inline(always)]
    #[must_use]
    pub const fn inbound_block(&self) -> u32 {
        self.inbound & !VACANT
    }
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
    /// [`Adjacency::mark`] of all the rest, and of whom it is for: two CPUs may write at the same time.
    pub check: u16,
    /// The interface's own address.
    pub source: Mac,
    /// The way's MTU, in bytes.
    pub mtu: u16,
}

impl Adjacency {
    /// Whether a packet of `length` bytes to `address` may take it without the FIB being asked. There is no generation 0.
    #[inline(always)]
    #[must_use]
    pub const fn carries(&self, address: Addr, length: u16, generation: u32) -> bool {
        self.generation == generation && self.check == self.mark(address) && length <= self.mtu
    }

    /// Tells what was written by one CPU for one address from what two have written, or one for two.
    #[inline(always)]
    #[must_use]
    pub const fn mark(&self, address: Addr) -> u16 {
        // Multiplicative hashing, by odd numbers without a pattern.
        let [d0, d1, d2, d3, d4, d5] = self.destination;
        let [s0, s1, s2, s3, s4, s5] = self.source;
        let [m0, m1] = self.mtu.to_ne_bytes();
        let destination = u64::from_ne_bytes([d0, d1, d2, d3, d4, d5, 0, 0]);
        let source = u64::from_ne_bytes([s0, s1, s2, s3, s4, s5, m0, m1]);
        let way = (self.generation as u64) << 32 | self.ifindex as u64;
        let sum = destination
            .wrapping_add(u32::from_ne_bytes(address) as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(source.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
            .wrapping_add(way.wrapping_mul(0x1656_67b1_9e37_79f9));
        (sum >> 48) as u16
    }
}

/// Where packets to a public address go. Entry of a block of [`map::INBOUND_BLOCKS`](super::map::INBOUND_BLOCKS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct InboundEntry {
    /// The VM's private address, of tenant 0; all zero: the public one is not bound.
    pub private_ip: Addr,
    /// Index into [`map::METERS`](super::map::METERS). Of an address that is not bound [`InboundEntry::STRANGER`], or 0: its place or
    /// the pipeline knows.
    pub meter: u32,
    /// The next hop to the VM. The program writes it.
    pub adjacency: Adjacency,
}

impl InboundEntry {
    /// `meter` of an address that is not bound: nothing is known of it.
    pub const STRANGER: u32 = 1;
}

/// The next hop to addresses outside. Element of [`map::NEXT_HOPS`](super::map::NEXT_HOPS), which the program writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// [`NextHop::whose`] it is.
    pub address: Addr,
    /// Zero.
    pub padding: u32,
    /// Its next hop.
    pub adjacency: Adjacency,
}

impl NextHop {
    /// The place in a CPU's lane for a destination, and whose next hop stands there: that of the destination, or of the route that
    /// covers it, whose number stands for an address then.
    #[inline(always)]
    #[must_use]
    pub const fn whose(destination: Addr, covering: u8) -> (u32, Addr) {
        if covering == 0 {
            // Multiplicative hashing by the golden ratio.
            let hash = u32::from_ne_bytes(destination).wrapping_mul(0x9e37_79b1);
            (hash >> (32 - NEXT_HOPS.trailing_zeros()), destination)
        } else {
            (NEXT_HOPS + covering as u32, [0, 0, 0, covering])
        }
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

/// For how long next hops may be remembered.
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
    assert!(
        size_of::<Page>() == ENTRIES * 40
            && size_of::<Place>() == 8
            && size_of::<Outbound>() == 8
            && size_of::<Adjacency>() == 24
    );
    assert!(size_of::<InboundEntry>() == 32 && size_of::<NextHop>() == 32);
    assert!(size_of::<Seat>() == 16 && size_of::<Routing>() == 16);
    assert!(size_of::<Front>() == 32 + SEATS * 16 + DIRECTORY * 3);
};

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Addr = [10, 0, 0, 10];

    fn marked(adjacency: Adjacency) -> Adjacency {
        Adjacency { check: adjacency.mark(ADDRESS), ..adjacency }
    }

    #[test]
    fn what_two_have_written_carries_nothing() {
        let adjacency = Adjacency {
            generation: 7,
            ifindex: 3,
            destination: [2, 0, 0, 0, 0, 1],
            check: 0,
            source: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
        };
        let one = marked(adjacency);
        let other = marked(Adjacency { ifindex: 4, destination: [2, 0, 0, 0, 0, 3], mtu: 1400, ..adjacency });
        assert!(one.carries(ADDRESS, 1500, 7) && other.carries(ADDRESS, 1400, 7));
        assert!(
            !one.carries(ADDRESS, 1501, 7)
                && !one.carries(ADDRESS, 1500, 8)
                && !one.carries([10, 0, 0, 11], 9, 7)
        );
        let bytes = |adjacency: Adjacency| bytemuck::cast::<_, [u32; 6]>(adjacency);
        for written in 1..63u8 {
            let mixed: [u32; 6] =
                core::array::from_fn(
                    |at| if written & 1 << at == 0 { bytes(one)[at] } else { bytes(other)[at] },
                );
            let mixed: Adjacency = bytemuck::cast(mixed);
            assert!(
                mixed == one || mixed == other || !mixed.carries(ADDRESS, 100, 7),
                "{written:b}: {mixed:?}"
            );
        }
        // Another generation's source and MTU.
        assert!(!Adjacency { mtu: 9000, ..one }.carries(ADDRESS, 100, 7));
    }
}
