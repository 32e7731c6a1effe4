//! The fuzzers, a workspace of their own, for cargo-fuzz builds everything with flags of its own.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::shell::{cargo, target_dir};
use crate::test::{Outcome, root, status};

/// Where they stand.
const DIRECTORY: &str = "nat-common/fuzz";

/// Each, and for how many seconds it runs.
const TARGETS: [(&str, u32); 4] = [("parse", 6), ("translate", 6), ("pipeline", 12), ("rings", 6)];

/// Fewest inputs that each has to try: a hundredth of what the slowest does in its time on two busy cores, and many
/// times those that it begins with.
const ENOUGH: u64 = 10_000;

/// Begins the line in which libFuzzer says how many inputs it has tried.
const EXECUTED: &str = "stat::number_of_executed_units:";

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
        if let Err(why) = fuzz(&mut command)? {
            return Ok(Outcome::Failed(format!("{target}: {why}")));
        }
    }
    Ok(Outcome::Ok)
}

/// Runs a fuzzer, showing what it says, and judges it by the end that it comes to and by what it has done.
fn fuzz(command: &mut Command) -> anyhow::Result<Result<(), String>> {
    command.current_dir(root()?).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut fuzzer = command.spawn().context("cannot start cargo")?;
    let mut executed = None;
    for line in BufReader::new(fuzzer.stderr.take().context("stderr is piped")?).split(b'\n') {
        let line = line.context("cannot read what the fuzzer says")?;
        let line = String::from_utf8_lossy(&line);
        eprintln!("{line}");
        executed = count(&line).or(executed);
    }
    let status = fuzzer.wait()?;
    Ok(if status.success() { judge(executed) } else { Err(status.to_string()) })
}

/// How many inputs have been tried, if this line says so.
fn count(line: &str) -> Option<u64> {
    line.strip_prefix(EXECUTED)?.trim().parse().ok()
}

fn judge(executed: Option<u64>) -> Result<(), String> {
    match executed {
        Some(executed) if executed >= ENOUGH => Ok(()),
        Some(executed) => Err(format!("only {executed} inputs were tried, not {ENOUGH}")),
        None => Err("it does not say how many inputs were tried".to_owned()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuzzer_that_does_nothing_fails() {
        assert_eq!(count("stat::number_of_executed_units: 241093"), Some(241_093));
        assert_eq!(count("stat::average_exec_per_sec:     34441"), None);
        assert!(judge(Some(ENOUGH)).is_ok());
        assert!(judge(Some(ENOUGH - 1)).unwrap_err().contains("only 9999"));
        assert!(judge(None).is_err());
    }

    #[test]
    fn what_a_fuzzer_says_is_counted() {
        let run = |script: &str| fuzz(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(run(&format!("echo '{EXECUTED} 99999' >&2")), Ok(()));
        assert!(run(&format!("echo '{EXECUTED} 12' >&2")).unwrap_err().contains("only 12"));
        assert!(run(&format!("echo '{EXECUTED} 99999' >&2; exit 77")).unwrap_err().contains("77"));
        assert!(run("true").is_err());
    }
}
