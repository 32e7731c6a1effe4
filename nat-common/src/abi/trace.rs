//! The trace: packets that the program reports, and what the daemon asks it to report.
//!
//! A packet is reported if one of its addresses, as it came or as it left, stands in [`map::TRACED`](super::map::TRACED).

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// Stands for every packet in [`map::TRACED`](super::map::TRACED), those that are not IPv4 too.
pub const EVERYTHING: Addr = [0; 4];

/// Most addresses that can be traced at the same time.
pub const MAX_TRACED: u32 = 1024;

/// Bytes of the ring buffer that events come by.
pub const EVENTS_SIZE: u32 = 1 << 20;

/// How many bytes of a frame are kept as they came. Whatever the translator changes stands before it, so the rest of the frame
/// as it left is the rest of the frame as it came.
pub const HEAD: usize = 192;

/// Most bytes of a frame as it left that go with an event.
pub const MAX_SNAP: usize = 9216;

/// Fewest: both addresses behind an Ethernet header, and an IPv4 header with all its options.
pub const MIN_SNAP: usize = 96;

/// What is to be reported. Stands in [`Front::trace`](super::express::Front::trace).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Until when, in nanoseconds of `CLOCK_MONOTONIC`; 0 for nothing. So a trace whose daemon has died ends by itself.
    pub until: u64,
    /// Most events that one CPU writes in a second.
    pub rate: u32,
    /// How many bytes of a frame as it left go with an event.
    pub snap: u32,
}

/// A packet that the program reports. The frame as it left follows, as much of it as [`Event::captured`] says.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// When it came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Index of the interface that it came by.
    pub ingress: u32,
    /// Its [`Counter`](crate::verdict::Counter)'s place.
    pub counter: u32,
    /// Index of the interface that it leaves by; 0 if it does not leave, or the kernel finishes it.
    pub egress: u32,
    /// Length of the frame, in bytes.
    pub length: u32,
    /// How many bytes of the frame as it left follow.
    pub captured: u32,
    /// Zero.
    pub padding: u32,
    /// The first bytes of the frame as it came; as many of them count as the frame has.
    pub head: [u8; HEAD],
}

// The last byte that is changed is that of the transport's checksum in a quoted packet; both IPv4 headers may have options.
const _: () = assert!(14 + 60 + 8 + 60 + 18 <= HEAD);
const _: () = assert!(14 + 60 + 4 <= MIN_SNAP && MIN_SNAP <= HEAD && HEAD <= MAX_SNAP);
const _: () = assert!(size_of::<Settings>() == 16 && size_of::<Event>() == 32 + HEAD);
const _: () = assert!(core::mem::offset_of!(Event, head) == 32);
