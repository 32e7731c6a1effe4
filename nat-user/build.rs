//! Builds the BPF programs, for `include_bytes!(concat!(env!("OUT_DIR"), "/eipnat-xdp"))` and the like.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use nat_ebpf_builder::{OVERRIDE, PROGRAMS, SOURCES, Toolchain, build, shared_target_dir};

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> anyhow::Result<()> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package stands in no workspace")?;
    for source in SOURCES {
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
    let features: &[&str] = if env::var_os("CARGO_FEATURE_NEXT_ABI").is_some() { &["next-abi"] } else { &[] };
    // Variants of the program that are built at the same time do not overwrite each other.
    target_dir.extend(features);
    let objects = build(&toolchain, root, &target_dir, features)?;
    for program in PROGRAMS {
        let (object, copy) = (objects.join(program), out_dir.join(program));
        fs::copy(&object, &copy)
            .with_context(|| format!("cannot copy {} to {}", object.display(), copy.display()))?;
    }
    Ok(())
}
