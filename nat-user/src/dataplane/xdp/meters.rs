//! The meters: an array with a lane for each CPU, and one for the slow path.

use std::fs;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use nat_common::abi::Meter;
use nat_common::pipeline::Direction;

use super::numbers::stride;
use super::window::Window;

/// How many numbers a meter is made of.
const NUMBERS: usize = size_of::<Meter>() / size_of::<u64>();

/// How many lanes the map of the meters has: one for each number that a CPU of this machine may have, and the slow path's.
pub(super) fn lanes() -> anyhow::Result<u32> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let ranges = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    // The last number of `0-63`, `0`, or `0-3,8-11`.
    let last = ranges.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    Ok(last.with_context(|| format!("{FILE} says {ranges:?}, which is no list of CPUs"))? + 2)
}

/// The meters of one map, whichever version has made it.
#[derive(Debug)]
pub(super) struct Meters {
    /// One for each lane: what is looked at in all of them is the same place.
    lanes: Vec<Window>,
    /// How many there are.
    count: u32,
    /// From one to the next in a lane, in numbers.
    stride: usize,
}

impl Meters {
    /// On a map of which a lane has `count` meters.
    pub(super) fn open(map: &MapData, count: u32) -> anyhow::Result<Self> {
        let entries = map.info()?.max_entries() as usize;
        let whole = count > 0 && entries.is_multiple_of(count as usize);
        ensure!(whole, "the meters' map has {entries} elements, and {count} meters");
        let stride = stride(map)?;
        let map = Arc::new(map.fd().as_fd().try_clone_to_owned()?);
        let lane = |_| Window::new(Arc::clone(&map), entries * stride);
        Ok(Self { lanes: (0..entries / count as usize).map(lane).collect(), count, stride })
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// What a meter shows, summed over all lanes. Many are quickly read in their order.
    pub(super) fn read(&self, index: u32) -> anyhow::Result<Meter> {
        ensure!(index < self.count, "there is no meter {index}");
        let mut sum = Meter::default();
        for (number, lane) in self.lanes.iter().enumerate() {
            let mut numbers = [0; NUMBERS];
            // An older version may have had fewer, a newer one more.
            let known = self.stride.min(NUMBERS);
            lane.read(self.at(index, number), &mut numbers[..known])?;
            sum = sum.plus(bytemuck::cast(numbers));
        }
        Ok(sum)
    }

    /// Sets a meter to zero that nothing counts on.
    pub(super) fn reset(&self, index: u32) -> anyhow::Result<()> {
        ensure!(index < self.count, "there is no meter {index}");
        for (number, lane) in self.lanes.iter().enumerate() {
            let mut places = (self.at(index, number)..).take(self.stride);
            places.try_for_each(|place| lane.write(place, 0))?;
        }
        Ok(())
    }

    /// Adds a packet of the slow path, which alone writes to its lane.
    pub(super) fn bill(&self, index: u32, direction: Direction, bytes: u16) -> anyhow::Result<()> {
        let Some(lane) = self.lanes.last().filter(|_| index < self.count) else { return Ok(()) };
        // As in `Meter`.
        let place = self.at(index, self.lanes.len() - 1) + if direction == Direction::In { 0 } else { 2 };
        let mut numbers = [0; 2];
        lane.read(place, &mut numbers)?;
        lane.write(place, numbers[0].wrapping_add(bytes.into()))?;
        lane.write(place + 1, numbers[1].wrapping_add(1))
    }

    /// Where an element begins, in numbers.
    const fn at(&self, index: u32, lane: usize) -> usize {
        (lane * self.count as usize + index as usize) * self.stride
    }
}

const _: () = assert!(
    core::mem::offset_of!(Meter, in_bytes) == 0
        && core::mem::offset_of!(Meter, in_packets) == 8
        && core::mem::offset_of!(Meter, out_bytes) == 16
        && core::mem::offset_of!(Meter, out_packets) == 24
);
