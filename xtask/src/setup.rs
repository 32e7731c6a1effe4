//! Installs what is missing.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nat_ebpf_builder::{
    BPF_LINKER_VERSION, NIGHTLY, OVERRIDE, Toolchain, Way, cargo_bin, find_linker, find_program,
};

use crate::apt::{self, Wanted};
use crate::needs::{CARGO_TOOLS, DEBIAN_RUST, How, LLVM, LLVM_PREFIX, NEEDS, Need, Profile};
use crate::shell::{Patience, Seconds, Step, cargo, say};

/// Installs whatever `profile` takes and is not there, and says what for.
///
/// # Errors
/// When something cannot be had: what, and what to do.
pub(crate) fn run(profile: Profile) -> anyhow::Result<()> {
    let start = Instant::now();
    let needs: Vec<&Need> = NEEDS.iter().filter(|need| need.profile <= profile && !need.is_there()).collect();
    let needs_compiler = compiler()?;
    let needs_linker = find_linker().is_err();
    let mut changed = needs_compiler.changed || needs_linker || !needs.is_empty();

    install_packages(&needs, needs_compiler.from_debian, needs_linker)?;
    if needs_linker {
        install_linker()?;
    }
    if profile >= Profile::Test {
        changed |= install_cargo_tools()?;
    }

    let toolchain = Toolchain::detect()?;
    let done = if changed { "done" } else { "nothing is missing" };
    say(format_args!("{done} ({}); the XDP program is built by {toolchain}", Seconds(start.elapsed())));
    for (way, why) in &toolchain.passed_over {
        say(format_args!("not by {}: {why}", way.name()));
    }
    Ok(())
}

/// What is to be done for a compiler for the BPF target.
struct NeedsCompiler {
    /// Something has been installed already.
    changed: bool,
    /// Debian's packages are to be installed.
    from_debian: bool,
}

/// Looks for a compiler for the BPF target, and tries to get rustup's nightly if there is none.
fn compiler() -> anyhow::Result<NeedsCompiler> {
    let allowed = Way::allowed()?;
    if allowed.iter().any(|way| way.find_compiler().is_ok()) {
        return Ok(NeedsCompiler { changed: false, from_debian: false });
    }
    if allowed.contains(&Way::Nightly) {
        match install_nightly() {
            Ok(()) => return Ok(NeedsCompiler { changed: true, from_debian: false }),
            Err(error) if !allowed.contains(&Way::Debian) => {
                return Err(error.context(format!("{OVERRIDE}={}", Way::Nightly.name())));
            }
            Err(error) => {
                say(format_args!("{NIGHTLY} cannot be had here: {}", gist(&error)));
                say("taking Debian's Rust instead, which has a prebuilt core for BPF");
            }
        }
    }
    Ok(NeedsCompiler { changed: true, from_debian: true })
}

fn install_nightly() -> anyhow::Result<()> {
    let rustup = find_program("rustup").context("rustup is not installed")?;
    let title = format!("{NIGHTLY} with rust-src (rustup): compiles the XDP program");
    let mut command = Command::new(rustup);
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src"]);
    command.arg("--no-self-update");
    // Without a way to its server, rustup tries again and again for minutes.
    let patience =
        Patience { first: Duration::from_secs(20), sign: "downloading", then: Duration::from_mins(15) };
    Step { title: &title, progress: None, patience: Some(patience) }.run(&mut command)
}

/// The line of a long error that says what went wrong.
fn gist(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let said = text.lines().rfind(|line| line.starts_with("error:"));
    said.or(text.lines().next()).unwrap_or_default().trim_start_matches("error:").trim().to_owned()
}

fn install_packages(needs: &[&Need], debian_rust: bool, llvm: bool) -> anyhow::Result<()> {
    let (whole, unpacked): (Vec<&Need>, Vec<&Need>) = needs.iter().partition(|need| need.how == How::Package);
    let of = |needs: &[&Need]| -> Vec<Wanted> {
        needs.iter().flat_map(|need| need.packages.iter().map(|&package| (package, need.why))).collect()
    };
    let mut packages = of(&whole);
    if debian_rust {
        packages.extend(DEBIAN_RUST);
    }
    if llvm {
        packages.extend(LLVM);
    }
    let all: Vec<Wanted> = packages.iter().copied().chain(of(&unpacked)).collect();
    if all.is_empty() {
        return Ok(());
    }
    apt::prepare(&all)?;
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    for need in unpacked {
        for package in need.packages {
            apt::unpack_program(need.sign, package, need.why)?;
        }
    }
    Ok(())
}

fn install_linker() -> anyhow::Result<()> {
    let (major, minor, patch) = BPF_LINKER_VERSION;
    let version = format!("{major}.{minor}.{patch}");
    let mut command = cargo_install("bpf-linker", &version)?;
    command.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", LLVM_PREFIX);
    Step::new(&format!("bpf-linker {version} (cargo install): links the XDP program")).run(&mut command)
}

/// Components and subcommands of cargo that the checks use. Says whether anything was missing.
fn install_cargo_tools() -> anyhow::Result<bool> {
    let mut changed = false;
    for (subcommand, component, why) in
        [("fmt", "rustfmt", "checks the layout of the code"), ("clippy", "clippy", "checks the code")]
    {
        let version =
            cargo().args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if version.is_ok_and(|status| status.success()) {
            continue;
        }
        let rustup = find_program("rustup");
        let rustup =
            rustup.with_context(|| format!("there is neither cargo {subcommand} nor rustup to add it"))?;
        let title = format!("{component} (rustup): {why}");
        Step::new(&title).run(Command::new(rustup).args(["component", "add", component]))?;
        changed = true;
    }
    for (name, version, why) in CARGO_TOOLS {
        if find_program(name).is_none() {
            let title = format!("{name} {version} (cargo install): {why}");
            Step::new(&title).run(&mut cargo_install(name, version)?)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Into cargo's own directory of programs, whatever the user's configuration says, so that it is found again.
fn cargo_install(name: &str, version: &str) -> anyhow::Result<Command> {
    let bin = cargo_bin().context("there is neither CARGO_HOME nor HOME")?;
    let Some(root) = bin.parent() else { bail!("CARGO_HOME is empty") };
    let mut command = cargo();
    // Somewhere else, for the workspace's settings are none of its business.
    command.current_dir("/").args(["install", name, "--version", version, "--locked", "--root"]);
    command.arg(OsString::from(root));
    // They run for a moment each, so that the time to compile them counts for more than their speed.
    command.envs([
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
        ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ]);
    Ok(command)
}
