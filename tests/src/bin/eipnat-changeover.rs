//! A datapath of this version, without a daemon: see [`tests::changeover`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tests::changeover::main()
}
