//! Builds the BPF programs, for `include_bytes!(concat!(env!("OUT_DIR"), "/eipnat-xdp"))` and the like.

use std::env;
use std::process::ExitCode;

use nat_ebpf_builder::{Package, embed};

fn main() -> ExitCode {
    let features: &[&str] = if env::var_os("CARGO_FEATURE_NEXT_ABI").is_some() { &["next-abi"] } else { &[] };
    embed(&Package::EIPNAT, features)
}
