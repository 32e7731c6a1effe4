//! The XDP program is the binary of this package; see `main.rs`.
#![no_std]
