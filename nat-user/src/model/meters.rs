//! Which places in the datapath's array of counters are taken.

use std::collections::BTreeSet;

/// Hands out meter indices below a capacity, the lowest first.
#[derive(Clone, Debug)]
pub(super) struct Meters {
    capacity: u32,
    /// The lowest index above all that were ever taken.
    fresh: u32,
    /// Indices below it that are free.
    free: BTreeSet<u32>,
}

impl Meters {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, free: BTreeSet::new() }
    }

    /// One more than the highest that was ever taken.
    pub(super) const fn used(&self) -> u32 {
        self.fresh
    }

    /// Those that can be taken.
    pub(super) fn free(&self) -> impl Iterator<Item = u32> {
        self.free.iter().copied().chain(self.fresh..self.capacity)
    }

    /// Takes one; false if it is not to be had.
    pub(super) fn take(&mut self, meter: u32) -> bool {
        if meter >= self.capacity {
            return false;
        }
        if meter >= self.fresh {
            self.free.extend(self.fresh..meter);
            self.fresh = meter + 1;
            return true;
        }
        self.free.remove(&meter)
    }

    pub(super) fn give_back(&mut self, meter: u32) {
        self.free.insert(meter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_taken_once_in_any_order() {
        let mut meters = Meters::new(4);
        assert!(meters.take(2) && !meters.take(2) && !meters.take(4));
        assert_eq!(meters.free().collect::<Vec<_>>(), [0, 1, 3]);
        assert!(meters.take(0));
        meters.give_back(2);
        assert_eq!(meters.free().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(meters.take(3) && meters.take(2) && meters.take(1));
        assert_eq!(meters.free().next(), None);
    }
}
