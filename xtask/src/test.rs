//! Every check and test, in the order of their cost.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::fuzz;
use crate::kernel::{self, Kernel};
use crate::needs::Profile;
use crate::setup;
use crate::shell::{Seconds, as_root, cargo, is_root, path_variable, target_dir};

/// How a check came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed(String),
    /// It could not be done here, and why; the rest counts without it.
    Skipped(String),
}

/// One check.
struct Check {
    name: &'static str,
    run: fn() -> anyhow::Result<Outcome>,
}

const CHECKS: &[Check] = &[
    Check { name: "layout (rustfmt)", run: fmt },
    Check { name: "lints (clippy)", run: clippy },
    Check { name: "lints of the XDP program (clippy)", run: clippy_ebpf },
    Check { name: "licences and sources (cargo-deny)", run: deny },
    Check { name: "security advisories (cargo-deny)", run: advisories },
    Check { name: "documentation (rustdoc)", run: doc },
];

/// Sets up, runs every check and test whether or not those before it failed, and prints how each came out. With
/// arguments for the test programs, such as a filter, the checks are left out. Says whether all is well.
///
/// # Errors
/// When set-up fails.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<bool> {
    setup::run(Profile::Test)?;
    let mut report = Report::default();
    if arguments.is_empty() {
        for check in CHECKS {
            report.add(check.name, check.run);
        }
    } else {
        println!("test: only what matches `{}`, without the checks", arguments.join(" "));
    }
    report.add("tests (cargo test)", || tests(arguments));
    if arguments.is_empty() {
        report.add("fuzzers (cargo-fuzz)", fuzz::run);
        report.add(Kernel::Debian12.title(), || kernel::run(Kernel::Debian12));
    }
    print!("{report}");
    Ok(report.is_good())
}

/// Sets up, and runs the tests on another kernel, nothing else. Says whether all is well.
///
/// # Errors
/// When set-up fails, or the tests cannot be run.
pub(crate) fn run_on(kernel: Kernel) -> anyhow::Result<bool> {
    setup::run(Profile::Test)?;
    let mut report = Report::default();
    report.add(kernel.title(), || kernel::run(kernel));
    print!("{report}");
    Ok(report.is_good())
}

fn fmt() -> anyhow::Result<Outcome> {
    match status(cargo().args(["fmt", "--all", "--check"]))? {
        Outcome::Ok => fuzz::fmt(),
        outcome => Ok(outcome),
    }
}

fn clippy() -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    match status(&mut command)? {
        Outcome::Ok => fuzz::clippy(),
        outcome => Ok(outcome),
    }
}

/// The XDP program is checked as if for this machine, by the same clippy as everything else: neither rustup's
/// minimal nightly nor Debian's Rust comes with one.
fn clippy_ebpf() -> anyhow::Result<Outcome> {
    let mut command = cargo();
    command
        .args(["clippy", "--locked", "--package", "nat-ebpf", "--package", "yardsticks", "--bins"])
        .args(["--features", "nat-ebpf/program,yardsticks/program"])
        .args(["--target-dir"])
        .arg(target_dir()?.join("ebpf-lint"))
        .args(["--", "-D", "warnings"])
        // aya-ebpf wants an unstable feature, and a program without std cannot unwind.
        .envs([("RUSTC_BOOTSTRAP", "1"), ("CARGO_PROFILE_DEV_PANIC", "abort")]);
    status(&mut command)
}

fn deny() -> anyhow::Result<Outcome> {
    status(cargo().args(["deny", "--all-features", "--locked", "check", "bans", "licenses", "sources"]))
}

fn advisories() -> anyhow::Result<Outcome> {
    // Told apart here, since the check itself fails alike for an advisory and for a database out of reach.
    let fetched =
        cargo().args(["deny", "--all-features", "--locked", "fetch", "db"]).stdin(Stdio::null()).output()?;
    if !fetched.status.success() {
        return Ok(Outcome::Skipped("the advisory database cannot be fetched from here".to_owned()));
    }
    status(cargo().args(["deny", "--all-features", "--locked", "check", "advisories"]))
}

fn doc() -> anyhow::Result<Outcome> {
    status(cargo().args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings"))
}

fn tests(arguments: &[String]) -> anyhow::Result<Outcome> {
    // What upgrades are tested with. The test programs cannot build it where they run as root and cargo does not.
    let other = ["--bin", "eipnat-changeover-next-abi", "--bin", "eipnat-next-abi", "--features", "next-abi"];
    let built = status(cargo().args(["build", "--locked", "--package", "tests"]).args(other))?;
    if built != Outcome::Ok {
        return Ok(built);
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    if !is_root() {
        // Only the test programs run as root, cargo and the compiler do not.
        let sudo = as_root("true", "the tests load XDP programs and make network namespaces, which")?;
        println!("test: the test programs run as root, through sudo");
        let path = path_variable()?;
        let sudo = Path::new(sudo.get_program()).display().to_string();
        let runner = [&sudo, "--preserve-env", "--", "env", &path.to_string_lossy()];
        command.arg("--config").arg(format!("target.'cfg(all())'.runner = {runner:?}"));
    }
    status(command.arg("--").args(arguments))
}

/// Runs a command in the workspace's root. What it says is shown.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<Outcome> {
    let status = command.current_dir(root()?).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(if status.success() { Outcome::Ok } else { Outcome::Failed(status.to_string()) })
}

/// The workspace's root.
pub(crate) fn root() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in no workspace")
}

/// How each check came out, and how long it took.
#[derive(Default)]
struct Report(Vec<(&'static str, Duration, Outcome)>);

impl Report {
    fn add(&mut self, name: &'static str, check: impl FnOnce() -> anyhow::Result<Outcome>) {
        println!("test: {name}");
        let start = Instant::now();
        let outcome = check().unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        self.0.push((name, start.elapsed(), outcome));
    }

    fn is_good(&self) -> bool {
        self.0.iter().all(|(_, _, outcome)| !matches!(outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        for (name, time, outcome) in &self.0 {
            let time = Seconds(*time).to_string();
            let outcome = match outcome {
                Outcome::Ok => "ok".to_owned(),
                Outcome::Failed(why) => format!("FAILED: {why}"),
                Outcome::Skipped(why) => format!("skipped: {why}"),
            };
            writeln!(f, "{name:<36}{time:>8}  {outcome}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: impl IntoIterator<Item = anyhow::Result<Outcome>>) -> Report {
        let mut report = Report::default();
        for outcome in outcomes {
            report.add("check", || outcome);
        }
        report
    }

    #[test]
    fn one_failure_spoils_the_whole() {
        assert!(report([Ok(Outcome::Ok), Ok(Outcome::Ok)]).is_good());
        assert!(!report([Ok(Outcome::Failed("exit status: 1".into())), Ok(Outcome::Ok)]).is_good());
        assert!(!report([Ok(Outcome::Ok), Err(anyhow::anyhow!("no sudo"))]).is_good());
    }

    #[test]
    fn what_was_skipped_is_said_and_spoils_nothing() {
        let report = report([Ok(Outcome::Skipped("no network".into())), Ok(Outcome::Ok)]);
        assert!(report.is_good());
        assert!(report.to_string().contains("skipped: no network"), "{report}");
    }

    #[test]
    fn commands_that_fail_are_failures() {
        assert_eq!(status(&mut Command::new("true")).unwrap(), Outcome::Ok);
        assert_eq!(status(&mut Command::new("false")).unwrap(), Outcome::Failed("exit status: 1".into()));
        assert!(status(&mut Command::new("/no/such/program")).is_err());
    }
}
