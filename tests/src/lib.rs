//! The network-namespace lab, and what the end-to-end tests and the demonstration build on it.

pub mod lab;
