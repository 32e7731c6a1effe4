//! The fuzzers, a workspace of their own, for cargo-fuzz builds everything with flags of its own.

use std::path::PathBuf;
use std::process::Command;

use crate::shell::{cargo, target_dir};
use crate::test::{Outcome, root, status};

/// Where they stand.
const DIRECTORY: &str = "nat-common/fuzz";

/// Each, and for how many seconds it runs.
const TARGETS: [(&str, u32); 3] = [("parse", 6), ("translate", 6), ("pipeline", 12)];

/// Longest input, in bytes: a frame of ordinary length, and more.
const MAX_LEN: u32 = 2048;

/// Writes the fixtures' packets where the fuzzers begin, and runs each for a while. A fuzzer that finds something
/// says what, and where it has written the input.
pub(crate) fn run() -> anyhow::Result<Outcome> {
    let seeds = status(&mut plain("run", &["--quiet", "--example", "seeds"])?)?;
    if seeds != Outcome::Ok {
        return Ok(seeds);
    }
    for (target, seconds) in TARGETS {
        let mut command = cargo();
        command
            .args(["fuzz", "run", "--fuzz-dir", DIRECTORY, "--sanitizer", "none", "--target-dir"])
            .arg(target_directory()?)
            .args([target, "--"])
            .args([format!("-max_total_time={seconds}"), format!("-max_len={MAX_LEN}")])
            .arg("-print_final_stats=1")
            // A stable compiler takes the flags for coverage then.
            .env("RUSTC_BOOTSTRAP", "1");
        if let Outcome::Failed(why) = status(&mut command)? {
            return Ok(Outcome::Failed(format!("{target}: {why}")));
        }
    }
    Ok(Outcome::Ok)
}

/// Checks the layout of their code.
pub(crate) fn fmt() -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command.args(["fmt", "--check", "--manifest-path"]).arg(manifest()?);
    status(&mut command)
}

/// Checks their code.
pub(crate) fn clippy() -> anyhow::Result<Outcome> {
    let mut command = plain("clippy", &["--all-targets"])?;
    // What the workspace's lint table asks of all other crates.
    command.args([
        "--",
        "-D",
        "warnings",
        "-W",
        "clippy::pedantic",
        "-W",
        "missing_docs",
        "-D",
        "unsafe_code",
    ]);
    status(&mut command)
}

/// A command of cargo's in their workspace.
fn plain(subcommand: &str, arguments: &[&str]) -> anyhow::Result<Command> {
    let mut command = cargo();
    command.args([subcommand, "--locked", "--manifest-path"]).arg(manifest()?);
    command.arg("--target-dir").arg(target_directory()?).args(arguments);
    Ok(command)
}

fn manifest() -> anyhow::Result<PathBuf> {
    Ok(root()?.join(DIRECTORY).join("Cargo.toml"))
}

/// One for everything, so that nothing is built into the sources' directories.
fn target_directory() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("fuzz"))
}
