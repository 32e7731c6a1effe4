//! `eipnat-bench`: eipnat beside its peers on this machine; see `cargo xtask bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::bench::{self, Options, Part};

/// Measures eipnat and its peers, by turns: packets a second as shares of what a bare XDP redirect carries, and all else that users
/// feel
#[derive(Debug, Parser)]
struct Cli {
    /// Take a minute or two, with fewer EIPs and fewer rounds
    #[arg(long)]
    quick: bool,
    /// Where results.json and shares.svg go
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    output: PathBuf,
    /// Measure these parts alone, separated by commas
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure all of it so many times, and report the medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
}

fn main() -> ExitCode {
    let Cli { quick, output, only, runs } = Cli::parse();
    match bench::run(&Options { quick, output, only, runs }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
