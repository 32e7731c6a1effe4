//! The network-namespace lab and the packet fixtures: what the tests and the demonstration build on.

#[cfg(feature = "lab")]
pub mod bench;
#[cfg(feature = "lab")]
pub mod changeover;
#[cfg(feature = "lab")]
pub mod differential;
#[cfg(feature = "lab")]
pub mod durability;
pub mod fixtures;
#[cfg(feature = "lab")]
pub mod lab;
pub mod reference;
