//! `eipnat-bench`: eipnat beside its peers on this machine; see `cargo xtask bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::bench::{self, Options};

/// Measures packets a second of eipnat and its peers, by turns, as shares of what a bare XDP redirect carries
#[derive(Debug, Parser)]
struct Cli {
    /// Take a minute, with fewer EIPs and fewer rounds
    #[arg(long)]
    quick: bool,
    /// Where results.json and shares.svg go
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    output: PathBuf,
}

fn main() -> ExitCode {
    let Cli { quick, output } = Cli::parse();
    match bench::run(&Options { quick, output }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
