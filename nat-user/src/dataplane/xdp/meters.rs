//! The meters: an array with a lane for each CPU, and one for the slow path.

use std::fs;

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use nat_common::abi::Meter;
use nat_common::pipeline::Direction;

use super::numbers::{Numbers, stride};

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
    numbers: Numbers,
    /// How many there are.
    count: u32,
    lanes: usize,
    /// From one to the next in a lane, in numbers.
    stride: usize,
}

impl Meters {
    /// Maps a map's memory; a lane of it has `count` meters.
    pub(super) fn open(map: &MapData, count: u32) -> anyhow::Result<Self> {
        let entries = map.info()?.max_entries() as usize;
        let whole = count > 0 && entries.is_multiple_of(count as usize);
        ensure!(whole, "the meters' map has {entries} elements, and {count} meters");
        Ok(Self {
            numbers: Numbers::open(map)?,
            count,
            lanes: entries / count as usize,
            stride: stride(map)?,
        })
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// What a meter shows, summed over all lanes; `None` if there is none of that index.
    pub(super) fn read(&self, index: u32) -> Option<Meter> {
        let sum = |sum: Meter, lane| {
            let mut numbers = [0; NUMBERS];
            // An older version may have had fewer, a newer one more.
            for (number, place) in numbers.iter_mut().take(self.stride).zip(self.at(index, lane)..) {
                *number = self.numbers.read(place);
            }
            sum.plus(bytemuck::cast(numbers))
        };
        (index < self.count).then(|| (0..self.lanes).fold(Meter::default(), sum))
    }

    /// Sets a meter to zero that nothing counts on. Answers whether there is one of that index.
    pub(super) fn reset(&self, index: u32) -> bool {
        let places = (0..self.lanes).flat_map(|lane| (self.at(index, lane)..).take(self.stride));
        places.take_while(|_| index < self.count).for_each(|place| self.numbers.write(place, 0));
        index < self.count
    }

    /// Adds a packet of the slow path, which alone writes to its lane.
    pub(super) fn bill(&self, index: u32, direction: Direction, bytes: u16) {
        if index >= self.count {
            return;
        }
        // As in `Meter`.
        let place = self.at(index, self.lanes - 1) + if direction == Direction::In { 0 } else { 2 };
        self.numbers.add(place, bytes.into());
        self.numbers.add(place + 1, 1);
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
