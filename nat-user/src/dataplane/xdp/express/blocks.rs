//! Blocks of entries, each for the addresses of a /24.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::Range;

use log::debug;
use nat_common::abi::express::{ENTRIES, SPECIAL};

use super::super::numbers::Numbers;
use super::{addresses, bit_of, network};

/// A block of entries, for the addresses of a /24.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// [`SPECIAL`]: there was no room.
    pub(super) number: u32,
    /// The entries that are taken, a bit each.
    pub(super) taken: [u64; 4],
}

impl Block {
    pub(super) fn is_taken(&self, address: Ipv4Addr) -> bool {
        let (word, bit) = bit_of(address);
        self.taken[word] & bit != 0
    }

    pub(super) fn take(&mut self, address: Ipv4Addr, is_taken: bool) {
        let (word, bit) = bit_of(address);
        let bits = &mut self.taken[word];
        *bits = if is_taken { *bits | bit } else { *bits & !bit };
    }
}

/// All blocks of a direction.
#[derive(Debug)]
pub(super) struct Blocks {
    pub(super) memory: Numbers,
    /// The length of an entry, in numbers.
    pub(super) stride: usize,
    /// By the first three bytes of their addresses.
    pub(super) of: HashMap<u32, Block>,
    pub(super) free: BTreeSet<u32>,
    /// Those that packets under way may still look at.
    pub(super) leaving: Vec<u32>,
}

impl Blocks {
    pub(super) fn new<T>(memory: Numbers, numbers: Range<u32>) -> Self {
        let stride = size_of::<T>() / size_of::<u64>();
        Self { memory, stride, of: HashMap::new(), free: numbers.collect(), leaving: Vec::new() }
    }

    /// Takes over a block that stands.
    pub(super) fn adopt(&mut self, third: u32, number: u32) {
        if self.free.remove(&number) {
            self.of.insert(third, Block { number, taken: [0; 4] });
        }
    }

    /// The block of a /24; `entry`: what stands in a new one.
    pub(super) fn get_or_make(&mut self, third: u32, entry: impl Fn(Ipv4Addr) -> u64) -> &mut Block {
        if !self.of.contains_key(&third) {
            let number = self.free.pop_first().unwrap_or(SPECIAL);
            if number == SPECIAL {
                debug!("there is no room for {} in the express lane", network(third));
            }
            for address in addresses(third) {
                self.write(number, address, entry(address));
            }
            self.of.insert(third, Block { number, taken: [0; 4] });
        }
        self.of.entry(third).or_insert(Block { number: SPECIAL, taken: [0; 4] })
    }

    /// Gives a block up; others may have it when no packet looks at it any more.
    pub(super) fn leave(&mut self, third: u32) {
        let left = self.of.remove(&third).map(|block| block.number);
        self.leaving.extend(left.filter(|number| *number != SPECIAL));
    }

    /// Writes an entry, whose first number says whether the others count.
    pub(super) fn write(&self, block: u32, address: Ipv4Addr, first: u64) {
        if block == SPECIAL {
            return;
        }
        let at = (block as usize * ENTRIES + usize::from(address.octets()[3])) * self.stride;
        if self.memory.read(at) == first {
            // A next hop stays known.
            return;
        }
        (at + 1..at + self.stride).for_each(|at| self.memory.write(at, 0));
        self.memory.write(at, first);
    }
}
