//! One protocol a file: where its fields stand, and what they mean. All offsets are in bytes from the start of the
//! protocol's own header.

pub mod arp;
pub mod dccp;
pub mod ethernet;
pub mod icmpv4;
pub mod ipv4;
pub mod tcp;
pub mod udp;
