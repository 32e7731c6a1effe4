//! Finds a toolchain that can compile for the BPF target, and builds BPF programs with it.
//!
//! Rust has no prebuilt `core` for BPF on rustup, so there are two ways ([`Way`]):
//! - **nightly**: rustup's nightly compiles `core` itself (`-Z build-std=core`), which needs its `rust-src`;
//! - **debian**: Debian packages a Rust *with* a prebuilt `core` for BPF. It is a stable compiler, and aya-ebpf
//!   wants one unstable feature, so `RUSTC_BOOTSTRAP=1` is set for this one build.
//!
//! The first that is complete is taken; [`OVERRIDE`] names one. Both link with bpf-linker.

mod programs;
mod toolchain;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

pub use programs::{cargo_bin, find_program, search_path};
pub use toolchain::{
    BPF_LINKER_VERSION, LLVM_VERSION, Missing, NIGHTLY, OVERRIDE, Toolchain, Way, find_linker,
};

/// The target triple. XDP programs run on the machine that builds them, or on one of its kind.
pub const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

/// A package of BPF programs.
pub struct Package {
    name: &'static str,
    /// Its binaries, and the files that [`build`] makes.
    programs: &'static [&'static str],
    /// What they are made from, relative to the workspace's root: when one of these changes, they are out of date.
    sources: &'static [&'static str],
}

impl Package {
    /// The product's.
    pub const EIPNAT: Self = Self {
        name: "nat-ebpf",
        programs: &["eipnat-xdp", "eipnat-fib"],
        sources: &["nat-common/Cargo.toml", "nat-common/src", "nat-ebpf/Cargo.toml", "nat-ebpf/src"],
    };
    /// What tests and benchmarks measure by.
    pub const YARDSTICKS: Self = Self {
        name: "yardsticks",
        programs: &["yardsticks"],
        sources: &["tests/yardsticks/Cargo.toml", "tests/yardsticks/src"],
    };
    /// What all are made from besides.
    const SOURCES: [&'static str; 3] = ["Cargo.lock", "Cargo.toml", "nat-ebpf/builder/src"];
}

/// What a build script does to have a package's programs beside its crate: for
/// `include_bytes!(concat!(env!("OUT_DIR"), "/PROGRAM"))`.
#[must_use]
pub fn embed(package: &Package, features: &[&str]) -> ExitCode {
    match try_embed(package, features) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn try_embed(package: &Package, features: &[&str]) -> anyhow::Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").context("not run by cargo")?;
    let root = Path::new(&manifest).parent().context("the package stands in no workspace")?;
    for source in Package::SOURCES.iter().chain(package.sources) {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-env-changed={OVERRIDE}");

    let toolchain = Toolchain::detect()?;
    for program in toolchain.programs() {
        println!("cargo::rerun-if-changed={}", program.display());
    }
    println!("cargo::rustc-env=EIPNAT_EBPF_COMPILER={toolchain}");

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: not run by cargo")?);
    let mut target_dir = shared_target_dir(&out_dir);
    // Variants of the programs that are built at the same time do not overwrite each other.
    target_dir.extend(features);
    let objects = build(package, &toolchain, root, &target_dir, features)?;
    for program in package.programs {
        let (object, copy) = (objects.join(program), out_dir.join(program));
        fs::copy(&object, &copy)
            .with_context(|| format!("cannot copy {} to {}", object.display(), copy.display()))?;
    }
    Ok(())
}

/// Compiles a package's programs in the workspace at `root`, with further features of the package, and returns the directory of the
/// object files.
///
/// `target_dir` must not be one that a cargo which waits for this call is building in: two cargos in one target
/// directory lock each other out. [`shared_target_dir`] gives a suitable one.
///
/// # Errors
/// When cargo cannot be started or a program does not compile. What the compiler had to say about it went to
/// stderr.
pub fn build(
    package: &Package,
    toolchain: &Toolchain,
    root: &Path,
    target_dir: &Path,
    features: &[&str],
) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(&toolchain.cargo);
    scrub(&mut cargo);
    cargo
        .current_dir(root)
        .stdin(Stdio::null())
        .args([
            "build",
            "--locked",
            "--release",
            "--package",
            package.name,
            "--bins",
            "--features",
            &[&["program"], features].concat().join(","),
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env(format!("CARGO_TARGET_{}_LINKER", TARGET.to_uppercase().replace('-', "_")), &toolchain.linker)
        // BTF is made from the debug information. bpf-linker optimises over the whole program by itself, so
        // rustc's own link-time optimisation would only be in its way.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\u{1f}-Clink-arg=--btf\u{1f}-Clink-arg=--cpu-features=+allows-misaligned-mem-access")
        .envs([
            ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
            ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
        ]);
    match toolchain.way {
        Way::Nightly => cargo.args(["-Z", "build-std=core"]),
        Way::Debian => cargo.env("RUSTC_BOOTSTRAP", "1"),
    };
    let status = cargo.status().with_context(|| format!("cannot start {}", toolchain.cargo.display()))?;
    if !status.success() {
        bail!("the BPF programs of {} do not compile with {toolchain}", package.name);
    }
    Ok(target_dir.join(TARGET).join("release"))
}

/// A target directory of its own for the program, shared by all profiles of the workspace, so that a debug and a
/// release build make it once. `out_dir` is a build script's `OUT_DIR`.
#[must_use]
pub fn shared_target_dir(out_dir: &Path) -> PathBuf {
    // Cargo marks the root of its target directory as a cache, wherever the user may have put it.
    let target = out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists()).unwrap_or(out_dir);
    target.join("ebpf")
}

/// Takes the calling cargo's settings off a command: they describe the host's build, made by another compiler.
fn scrub(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if belongs_to_caller(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable describes the calling cargo's own build, and not the user's surroundings.
fn belongs_to_caller(name: &OsStr) -> bool {
    // Where cargo and rustup keep their things, and how they reach registries and talk to the terminal.
    const SURROUNDINGS: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "RUSTUP_",
    ];
    let Some(name) = name.to_str() else { return false };
    // cargo puts the host compiler's own libraries on the library path of build scripts.
    if matches!(name, "MAKEFLAGS" | "MFLAGS" | "LD_LIBRARY_PATH" | "RUSTUP_TOOLCHAIN") {
        return true;
    }
    (name.starts_with("CARGO") || name.starts_with("RUST"))
        && !SURROUNDINGS.iter().any(|s| name.starts_with(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_calling_build_are_scrubbed() {
        for name in [
            "CARGO",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MAKEFLAGS",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "RUST_RECURSION_COUNT",
        ] {
            assert!(belongs_to_caller(OsStr::new(name)), "{name} is passed on");
        }
    }

    #[test]
    fn the_users_surroundings_are_kept() {
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_TERM_COLOR",
            "HOME",
            "PATH",
            "RUSTUP_HOME",
            "https_proxy",
        ] {
            assert!(!belongs_to_caller(OsStr::new(name)), "{name} is taken off");
        }
    }

    #[test]
    fn the_shared_target_dir_stands_beside_the_profiles() {
        let dir = env::temp_dir().join(format!("nat-ebpf-builder-{}", std::process::id()));
        let out_dir = dir.join("target/debug/build/nat-user-0/out");
        fs::create_dir_all(&out_dir).unwrap();
        fs::write(dir.join("target/CACHEDIR.TAG"), "").unwrap();
        let shared = shared_target_dir(&out_dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(shared, dir.join("target/ebpf"));
    }
}
