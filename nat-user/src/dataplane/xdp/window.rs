//! Numbers of an array map that is large, seen through a window: what is mapped counts as the daemon's memory, and the meters of a
//! million bindings would be hundreds of megabytes.
#![expect(unsafe_code, reason = "the kernel and the XDP program write to the mapped memory, too")]

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use memmap2::{MmapOptions, MmapRaw};

/// How many numbers are in a window: as many bytes as any machine's pages have, or a multiple of it. To move a window takes a few
/// microseconds.
const NUMBERS: usize = 64 * 1024 / size_of::<u64>();

/// A map that was made to be mapped (`BPF_F_MMAPABLE`), of which as much is mapped as was last looked at. Whoever looks at
/// many places had better do it in their order.
#[derive(Debug)]
pub(super) struct Window {
    map: Arc<OwnedFd>,
    /// How many numbers the map has.
    count: usize,
    /// What is mapped, and where it begins, in windows.
    mapped: Mutex<Option<(usize, MmapRaw)>>,
}

impl Window {
    /// On a map that has `count` numbers.
    pub(super) const fn new(map: Arc<OwnedFd>, count: usize) -> Self {
        Self { map, count, mapped: Mutex::new(None) }
    }

    /// Reads the numbers from a place on; those that the map does not have stay as they are.
    pub(super) fn read(&self, mut place: usize, numbers: &mut [u64]) -> anyhow::Result<()> {
        let known = numbers.len().min(self.count.saturating_sub(place));
        let mut rest = &mut numbers[..known];
        while !rest.is_empty() {
            let (here, later) = rest.split_at_mut(rest.len().min(NUMBERS - place % NUMBERS));
            self.at(place, |memory| {
                for (at, number) in here.iter_mut().enumerate() {
                    // SAFETY: the place is in the map and in the window; an aligned read of eight bytes is whole.
                    *number = unsafe { memory.add(at).read_volatile() };
                }
            })?;
            (place, rest) = (place + here.len(), later);
        }
        Ok(())
    }

    /// Writes a number that nobody else writes at the same time. Places that the map does not have are not written.
    pub(super) fn write(&self, place: usize, value: u64) -> anyhow::Result<()> {
        if place >= self.count {
            return Ok(());
        }
        // SAFETY: as in `read`; the mapping is a writable one.
        self.at(place, |memory| unsafe { memory.write_volatile(value) })
    }

    /// Does something with the memory of a number; that of those after it in the window follows.
    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    fn at<T>(&self, place: usize, work: impl FnOnce(*mut u64) -> T) -> anyhow::Result<T> {
        let window = place / NUMBERS;
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match mapped.take() {
            Some((begin, memory)) if begin == window => memory,
            // The old one goes first.
            other => {
                drop(other);
                let from = window * NUMBERS;
                let length = NUMBERS.min(self.count - from) * size_of::<u64>();
                let offset = (from * size_of::<u64>()) as u64;
                let window = MmapOptions::new().offset(offset).len(length).map_raw(&self.map);
                window.context("it cannot be mapped")?
            }
        };
        let first = memory.as_mut_ptr().cast::<u64>();
        // SAFETY: the place is in the window, which stays mapped until `mapped` is written the next time.
        let done = work(unsafe { first.add(place % NUMBERS) });
        *mapped = Some((window, memory));
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_follows_the_places_that_are_looked_at() {
        let file = tempfile::tempfile().unwrap();
        // Its last window is a short one.
        let count = 3 * NUMBERS + 5;
        file.set_len((count * size_of::<u64>()) as u64).unwrap();
        let map = Arc::new(OwnedFd::from(file));
        let (window, other) = (Window::new(Arc::clone(&map), count), Window::new(map, count));
        let places = [0, 1, NUMBERS - 1, NUMBERS, 2 * NUMBERS + 7, count - 1];
        for place in places {
            window.write(place, place as u64 + 1).unwrap();
        }
        window.write(count, 9).unwrap();
        for place in places {
            let mut number = [0];
            other.read(place, &mut number).unwrap();
            assert_eq!(number[0], place as u64 + 1);
        }
        // Across windows, and beyond the end.
        let mut numbers = [7; 3];
        other.read(NUMBERS - 1, &mut numbers).unwrap();
        assert_eq!(numbers, [NUMBERS as u64, NUMBERS as u64 + 1, 0]);
        let mut numbers = [7; 2];
        other.read(count - 1, &mut numbers).unwrap();
        assert_eq!(numbers, [count as u64, 7]);
    }
}
