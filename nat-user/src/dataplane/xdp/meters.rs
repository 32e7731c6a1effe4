//! The meters, read and written where they stand: their map is an array in memory that can be mapped. By system calls it
//! takes one for each CPU's part of each meter, of which a node has millions.
#![expect(unsafe_code, reason = "the kernel and the XDP program write to the mapped memory, too")]

use std::fs;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};
use nat_common::abi::Meter;

/// How many numbers a meter is made of.
const NUMBERS: usize = size_of::<Meter>() / size_of::<u64>();

/// How many lanes the map of the meters has: one for each number that a CPU of this machine may have.
pub(super) fn lanes() -> anyhow::Result<u32> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let ranges = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    // The last number of `0-63`, `0`, or `0-3,8-11`.
    let last = ranges.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    Ok(last.with_context(|| format!("{FILE} says {ranges:?}, which is no list of CPUs"))? + 1)
}

/// The meters of one map, whichever version has made it.
#[derive(Debug)]
pub(super) struct Meters {
    memory: MmapRaw,
    /// How many there are.
    count: u32,
    lanes: usize,
    /// From one to the next in a lane, in numbers.
    stride: usize,
}

impl Meters {
    /// Maps a map's memory; a lane of it has `count` meters.
    pub(super) fn open(map: &MapData, count: u32) -> anyhow::Result<Self> {
        let info = map.info()?;
        let (entries, size) = (info.max_entries() as usize, info.value_size() as usize);
        // kernel: array_map_alloc() rounds an element's size up to 8.
        let stride = size.div_ceil(size_of::<u64>());
        let whole = count > 0 && entries.is_multiple_of(count as usize);
        ensure!(whole, "the meters' map has {entries} elements, and {count} meters");
        let length = entries * stride * size_of::<u64>();
        let memory =
            MmapOptions::new().len(length).map_raw(&map.fd().as_fd()).context("it cannot be mapped")?;
        Ok(Self { memory, count, lanes: entries / count as usize, stride })
    }

    /// How many there are.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// What a meter shows, summed over all CPUs; `None` if there is none of that index.
    pub(super) fn read(&self, index: u32) -> Option<Meter> {
        let sum = |sum: Meter, lane| {
            let mut numbers = [0; NUMBERS];
            // An older version may have had fewer, a newer one more.
            for (number, place) in numbers.iter_mut().take(self.stride).zip(self.at(index, lane)..) {
                // SAFETY: `at` is the place of an element of the map, whose memory is mapped as long as this lives, and
                // eight-byte reads of it are whole: the elements are aligned.
                *number = unsafe { self.numbers().add(place).read_volatile() };
            }
            sum.plus(bytemuck::cast(numbers))
        };
        (index < self.count).then(|| (0..self.lanes).fold(Meter::default(), sum))
    }

    /// Sets a meter to zero that nothing counts on. Answers whether there is one of that index.
    pub(super) fn reset(&self, index: u32) -> bool {
        let places = (0..self.lanes).flat_map(|lane| (self.at(index, lane)..).take(self.stride));
        for place in places.take_while(|_| index < self.count) {
            // SAFETY: as in `read`; the mapping is a writable one, and no program writes there at the same time.
            unsafe { self.numbers().add(place).write_volatile(0) };
        }
        index < self.count
    }

    /// Where an element begins, in numbers.
    const fn at(&self, index: u32, lane: usize) -> usize {
        (lane * self.count as usize + index as usize) * self.stride
    }

    fn numbers(&self) -> *mut u64 {
        // Aligned: a mapping begins at a page.
        self.memory.as_mut_ptr().cast()
    }
}
