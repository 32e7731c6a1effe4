//! Builds the BPF programs that tests and benchmarks measure by.

use std::env;
use std::process::ExitCode;

use nat_ebpf_builder::{Package, embed};

fn main() -> ExitCode {
    // Without the lab there is nobody to run them.
    if env::var_os("CARGO_FEATURE_LAB").is_none() {
        return ExitCode::SUCCESS;
    }
    embed(&Package::YARDSTICKS, &[])
}
