//! What both sides of the kernel boundary agree on.
//!
//! The crate is `no_std`, allocates nothing, does no I/O, reads no clock and logs nothing. The same code runs as
//! the XDP program, in the daemon's slow path, and on the host in tests.
//!
//! Addresses are `[u8; 4]` in network byte order everywhere in this crate, so that neither alignment nor
//! endianness can go wrong between a packet, a BPF map and the daemon.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod express;
pub mod frame;
pub mod parse;
pub mod pipeline;
pub mod translate;
pub mod verdict;
pub mod wire;
