//! Numbers that the daemon shares with the kernel: the memory of an array map. By system calls it takes one for each, of which
//! a node has millions.
#![expect(unsafe_code, reason = "the kernel and the XDP program write to the mapped memory, too")]

use std::ops::Range;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

/// The memory of a map, as numbers of eight bytes. Places that it does not have read as zero, and are not written.
#[derive(Debug)]
pub(super) struct Numbers {
    memory: MmapRaw,
    /// Those that are meant.
    places: Range<usize>,
}

impl Numbers {
    /// Maps an array that was made for it (`BPF_F_MMAPABLE`).
    pub(super) fn open(map: &MapData) -> anyhow::Result<Self> {
        let count = map.info()?.max_entries() as usize * stride(map)?;
        let length = count * size_of::<u64>();
        let memory =
            MmapOptions::new().len(length).map_raw(&map.fd().as_fd()).context("it cannot be mapped")?;
        Ok(Self { memory, places: 0..count })
    }

    /// A part of them, the bytes from `offset` on; both are multiples of eight.
    pub(super) fn part(map: &MapData, offset: usize, length: usize) -> anyhow::Result<Self> {
        let whole = Self::open(map)?;
        let places = offset / size_of::<u64>()..(offset + length) / size_of::<u64>();
        ensure!(places.end <= whole.places.end, "the map ends before byte {}", offset + length);
        Ok(Self { places, ..whole })
    }

    /// So many numbers that no map has.
    #[cfg(test)]
    pub(super) fn in_memory(count: usize) -> Self {
        let memory = MmapOptions::new().len(count * size_of::<u64>()).map_anon().unwrap();
        Self { memory: memory.into(), places: 0..count }
    }

    /// The number at a place.
    pub(super) fn read(&self, place: usize) -> u64 {
        // SAFETY: the place is in the map, whose memory is mapped as long as this lives; an aligned read of eight bytes is
        // whole.
        self.at(place).map_or(0, |number| unsafe { number.read_volatile() })
    }

    /// Writes a number that nobody else writes at the same time.
    pub(super) fn write(&self, place: usize, value: u64) {
        if let Some(number) = self.at(place) {
            // SAFETY: as in `read`; the mapping is a writable one.
            let number = unsafe { AtomicU64::from_ptr(number) };
            // Who sees it sees what was written before.
            number.store(value, Ordering::Release);
        }
    }

    /// Adds to a number that nobody else writes at the same time.
    pub(super) fn add(&self, place: usize, value: u64) {
        self.write(place, self.read(place).wrapping_add(value));
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    fn at(&self, place: usize) -> Option<*mut u64> {
        let first = self.memory.as_mut_ptr().cast::<u64>();
        // SAFETY: the place is in the mapping.
        (place < self.places.len()).then(|| unsafe { first.add(self.places.start + place) })
    }
}

/// How far the elements of an array are apart, in numbers. kernel: `array_map_alloc()` rounds an element's size up to 8.
pub(super) fn stride(map: &MapData) -> anyhow::Result<usize> {
    Ok((map.info()?.value_size() as usize).div_ceil(size_of::<u64>()))
}
