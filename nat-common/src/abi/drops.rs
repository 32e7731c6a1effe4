//! What is remembered of the packets that were dropped, for whoever asks after an address.

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// How many pairs of a bound public address and a reason a CPU remembers; a power of two.
pub const BOUND: u32 = 8192;

/// How many it remembers of addresses that are not bound, apart, so that whoever tries them all makes it forget nothing of the
/// other ones; a power of two.
pub const UNBOUND: u32 = 2048;

/// Length of a CPU's lane.
pub const LANE: u32 = BOUND + UNBOUND;

/// Packets that were dropped for one reason, as one CPU has seen them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Dropped {
    /// The public address that they were for, or would have come from. All zero: there were none.
    pub address: Addr,
    /// Number of the [`Reject`](crate::verdict::Reject).
    pub reason: u32,
    /// How many.
    pub packets: u64,
    /// When the last one was, in nanoseconds of `CLOCK_MONOTONIC`.
    pub last: u64,
}

impl Dropped {
    /// The place in a lane, which others of the same hash value share: the later one stays.
    #[inline(always)]
    #[must_use]
    pub const fn place(address: Addr, is_bound: bool, reason: u32) -> u32 {
        // Multiplicative hashing, by odd numbers without a pattern.
        let hash = u32::from_ne_bytes(address)
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add(reason.wrapping_mul(0x85eb_ca6b));
        if is_bound {
            hash >> (32 - BOUND.trailing_zeros())
        } else {
            BOUND + (hash >> (32 - UNBOUND.trailing_zeros()))
        }
    }
}

const _: () = assert!(size_of::<Dropped>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_in_its_part_of_the_lane() {
        for n in 0..100_000u32 {
            let address = n.wrapping_mul(0x0101_0107).to_be_bytes();
            assert!(Dropped::place(address, true, n % 40) < BOUND);
            assert!((BOUND..LANE).contains(&Dropped::place(address, false, n % 40)));
        }
    }
}
