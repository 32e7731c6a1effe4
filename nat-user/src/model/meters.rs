//! Which places in the datapath's array of counters are taken.

use std::collections::VecDeque;

/// Hands out meter indices below a capacity. One that was given back comes last, so that a reader who is late mixes
/// up as little as possible.
#[derive(Clone, Debug)]
pub(super) struct Meters {
    pub(super) capacity: u32,
    /// The lowest index that was never taken.
    fresh: u32,
    /// Indices that were given back, the oldest first.
    pub(super) returned: VecDeque<u32>,
}

impl Meters {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, returned: VecDeque::new() }
    }

    /// The index that is handed out next.
    pub(super) fn next(&self) -> Option<u32> {
        if self.fresh < self.capacity { Some(self.fresh) } else { self.returned.front().copied() }
    }

    /// Marks [`Meters::next`] as taken.
    pub(super) fn take_next(&mut self) {
        if self.fresh < self.capacity {
            self.fresh += 1;
        } else {
            self.returned.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ones_first_then_the_oldest_returned() {
        let mut meters = Meters::new(3);
        let take = |meters: &mut Meters| {
            let meter = meters.next();
            meters.take_next();
            meter
        };
        assert_eq!([take(&mut meters), take(&mut meters)], [Some(0), Some(1)]);
        meters.returned.extend([1, 0]);
        assert_eq!([0, 1, 2].map(|_| take(&mut meters)), [Some(2), Some(1), Some(0)]);
        assert_eq!(meters.next(), None);
    }
}
