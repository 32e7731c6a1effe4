//! What the programs and whoever runs them agree on.
#![no_std]

use bytemuck::{Pod, Zeroable};

/// Length of a generated frame, in bytes: the shortest of Ethernet, with its checksum.
pub const FRAME_LEN: usize = 60;

/// How often the programs that only count do so in a run.
pub const COUNTS: u32 = 64;

/// What the generator makes: UDP datagrams, of which addresses and source port vary.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Plan {
    /// Index of the interface that they leave by.
    pub ifindex: u32,
    /// The first source address, as a number.
    pub source: u32,
    /// Which bits of it vary.
    pub source_mask: u32,
    /// The first destination, as a number.
    pub destination: u32,
    /// Which bits of it vary.
    pub destination_mask: u32,
    /// The frames' destination MAC address.
    pub mac: [u8; 6],
    /// Which bits of the source port vary; its others are those of 1024.
    pub port_mask: u16,
    /// Their TTL.
    pub ttl: u8,
    /// Zero.
    pub padding: [u8; 3],
}

/// Where the yardstick NAT sends packets for an address, and who counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Binding {
    /// The other address.
    pub address: [u8; 4],
    /// Index of its counter.
    pub counter: u32,
}

const _: () = assert!(size_of::<Plan>() == 32 && size_of::<Binding>() == 8);
