//! What is remembered of dropped packets: an array with a lane for each CPU, and one for the slow path.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::MapData;
use nat_common::abi::Addr;
use nat_common::abi::drops::{Dropped, LANE};
use nat_common::verdict::Reject;
use rustix::time::{ClockId, clock_gettime};

use super::numbers::Numbers;
use crate::dataplane::AddressDrops;

/// How many numbers one is made of.
const NUMBERS: usize = size_of::<Dropped>() / size_of::<u64>();

/// The memory of the map.
#[derive(Debug)]
pub(super) struct Drops {
    numbers: Numbers,
    lanes: usize,
}

impl Drops {
    /// Maps the map's memory.
    pub(super) fn open(map: &MapData) -> anyhow::Result<Self> {
        Ok(Self { numbers: Numbers::open(map)?, lanes: map.info()?.max_entries() as usize / LANE as usize })
    }

    /// Those of a public address, whether it is bound or not.
    pub(super) fn of(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>> {
        let now = now()?;
        let mut all = Vec::new();
        for reason in Reject::ALL {
            let number = *reason as u32;
            let mut sum = Dropped::default();
            for is_bound in [false, true] {
                let place = Dropped::place(address.octets(), is_bound, number);
                for one in (0..self.lanes).map(|lane| self.read(lane, place)) {
                    if one.address == address.octets() && one.reason == number {
                        sum = Dropped {
                            packets: sum.packets + one.packets,
                            last: sum.last.max(one.last),
                            ..one
                        };
                    }
                }
            }
            if sum.packets > 0 {
                let last = now.saturating_sub(Duration::from_nanos(sum.last));
                all.push(AddressDrops { reason: *reason, packets: sum.packets, last });
            }
        }
        Ok(all)
    }

    /// Forgets those of all these addresses.
    pub(super) fn forget(&self, addresses: &HashSet<Ipv4Addr>) {
        for lane in 0..self.lanes {
            for place in 0..LANE {
                let one = self.read(lane, place);
                if one != Dropped::default() && addresses.contains(&one.address.into()) {
                    self.write(lane, place, Dropped::default());
                }
            }
        }
    }

    /// Remembers one of the slow path, which alone writes to its lane.
    pub(super) fn add(&self, address: Addr, is_bound: bool, reason: Reject) -> anyhow::Result<()> {
        let (lane, number) = (self.lanes.saturating_sub(1), reason as u32);
        let place = Dropped::place(address, is_bound, number);
        let before = self.read(lane, place);
        let is_same = before.address == address && before.reason == number;
        let packets = if is_same { before.packets + 1 } else { 1 };
        let last = u64::try_from(now()?.as_nanos()).unwrap_or(u64::MAX);
        self.write(lane, place, Dropped { address, reason: number, packets, last });
        Ok(())
    }

    fn read(&self, lane: usize, place: u32) -> Dropped {
        let first = Self::at(lane, place);
        bytemuck::cast([0, 1, 2].map(|number| self.numbers.read(first + number)))
    }

    fn write(&self, lane: usize, place: u32, dropped: Dropped) {
        let numbers: [u64; NUMBERS] = bytemuck::cast(dropped);
        for (number, value) in numbers.into_iter().enumerate() {
            self.numbers.write(Self::at(lane, place) + number, value);
        }
    }

    const fn at(lane: usize, place: u32) -> usize {
        (lane * LANE as usize + place as usize) * NUMBERS
    }
}

fn now() -> anyhow::Result<Duration> {
    Duration::try_from(clock_gettime(ClockId::Monotonic))
        .context("the clock shows a time before its beginning")
}
