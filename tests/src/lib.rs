//! The network-namespace lab and the packet fixtures: what the tests and the demonstration build on.

pub mod fixtures;
pub mod lab;
