//! `cargo xtask`: set-up, build, run and test.

mod apt;
mod fuzz;
mod kernel;
mod needs;
mod run;
mod setup;
mod shell;
mod test;
#[cfg(test)]
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use kernel::Kernel;
use needs::Profile;

#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, and say what for. A second run installs nothing.
    Setup {
        /// Install only what this takes.
        #[arg(long, value_enum, default_value_t = Profile::Test)]
        profile: Profile,
    },
    /// Set up, and build everything for release.
    Build,
    /// Set up, build, and show the main job in a lab of network namespaces; with --config, run the daemon itself.
    Run {
        /// End the demonstration after this long [default: on a terminal at Ctrl-C, else after 10].
        #[arg(long, value_name = "N", conflicts_with = "config")]
        seconds: Option<u64>,
        /// Run the daemon on this machine's own interfaces instead, with this configuration.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Further arguments, for `eipnat-lab demo` or `eipnat run`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Set up, build, and measure eipnat against its peers on this machine; prints ratios.
    Bench {
        /// Take a minute or two.
        #[arg(long)]
        quick: bool,
        /// Where results.json and shares.svg go.
        #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
        output: PathBuf,
        /// Further arguments, for `eipnat-bench`: `--only PART`, `--runs N`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Set up, and run every check and test, or, with a filter, just the tests that match.
    Test {
        /// Run only the tests on another kernel, which is booted in qemu.
        #[arg(long, value_enum, conflicts_with = "arguments")]
        kernel: Option<Kernel>,
        /// Arguments for the test programs, such as a filter on the tests' names.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Setup { profile } => setup::run(profile).map(|()| true),
        Task::Build => setup::run(Profile::Build).and_then(|()| run::build()).map(|()| true),
        Task::Run { seconds, config, arguments } => run::run(seconds, config, &arguments).map(|()| true),
        Task::Bench { quick, output, arguments } => run::bench(quick, &output, &arguments).map(|()| true),
        Task::Test { kernel: Some(kernel), .. } => test::run_on(kernel),
        Task::Test { kernel: None, arguments } => test::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
