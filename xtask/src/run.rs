//! The demonstration, and the daemon itself.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::needs::Profile;
use crate::setup;
use crate::shell::{as_root, cargo, is_root, say, target_dir};

/// Sets up, builds, and becomes the demonstration, or the daemon if there is a configuration.
///
/// # Errors
/// When set-up or build fail, or the program cannot be started. Its own failure is its exit code.
pub(crate) fn run(seconds: Option<u64>, config: Option<PathBuf>, arguments: &[String]) -> anyhow::Result<()> {
    // The daemon alone needs none of the lab's programs: this may be somebody's router.
    setup::run(if config.is_some() { Profile::Build } else { Profile::Lab })?;
    build()?;
    let eipnat = release_program("eipnat")?;
    let mut command = if let Some(config) = config {
        let mut command = root_command(eipnat)?;
        command.arg("run").arg("--config").arg(config);
        command
    } else {
        let mut command = root_command(release_program("eipnat-lab")?)?;
        command.arg("demo").arg("--eipnat").arg(eipnat);
        command
    };
    if let Some(seconds) = seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Sets up, builds, and becomes the benchmark.
///
/// # Errors
/// As [`run`].
pub(crate) fn bench(quick: bool, output: &Path, arguments: &[String]) -> anyhow::Result<()> {
    setup::run(Profile::Test)?;
    build()?;
    let mut command = root_command(release_program("eipnat-bench")?)?;
    if quick {
        command.arg("--quick");
    }
    let error = command.arg("--output").arg(output).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Builds the daemon, with the XDP program in it, and the lab, for release.
///
/// # Errors
/// When they do not compile; the compiler has said why.
pub(crate) fn build() -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--package", "nat-user", "--package", "tests", "--bins"]);
    if !command.status().context("cannot start cargo")?.success() {
        bail!("the build failed, see above");
    }
    Ok(())
}

fn root_command(program: PathBuf) -> anyhow::Result<Command> {
    if !is_root() {
        say(
            "eipnat loads an XDP program and changes interfaces, which takes root: through sudo from here on",
        );
    }
    as_root(program, "eipnat loads an XDP program and changes interfaces, which")
}

/// Where cargo puts a program that is built for release.
fn release_program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("release").join(name))
}
