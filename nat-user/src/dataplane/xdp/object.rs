//! The compiled program, and its way into the kernel.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
use log::{Level, log_enabled, warn};
use nat_common::abi::{ABI_VERSION, Node, map};

use super::ProgramLogger;
use super::log::Names;
use crate::config::{self, KeyError};
use crate::model::SPARE_METERS;

/// The XDP program, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/eipnat-xdp"));

/// The program's name in the object, and in `bpftool prog`.
const PROGRAM: &str = "eipnat";

/// Name of the program's pin.
pub(super) const PROGRAM_PIN: &str = "program";

/// What an earlier daemon left that this one can go on with: the settings in its maps.
pub(super) fn standing(config: &config::Datapath) -> anyhow::Result<Option<Node>> {
    let Some(node) = pinned_node(&config.pin_path)?.filter(is_complete) else { return Ok(None) };
    if node.abi_version != ABI_VERSION {
        bail!(
            "the maps in {} are of another version ({}, this one has {ABI_VERSION}); run `eipnat unload` first",
            config.pin_path.display(),
            node.abi_version
        );
    }
    let info =
        MapInfo::from_pin(config.pin_path.join(map::INBOUND)).context("cannot read the pinned maps")?;
    if info.max_entries() != config.max_bindings {
        return Err(KeyError::new(
            "datapath.max_bindings",
            format!(
                "the running datapath was made for {}; set that, or run `eipnat unload` first",
                info.max_entries()
            ),
        )
        .into());
    }
    Ok(Some(node))
}

/// Whether the daemon that made the maps lived long enough to describe the node in them. Before that, nothing is
/// attached.
pub(super) fn is_complete(node: &Node) -> bool {
    node.abi_version != 0
}

/// The settings that an earlier daemon left.
pub(super) fn pinned_node(pin_path: &Path) -> anyhow::Result<Option<Node>> {
    let pin = pin_path.join(map::NODE);
    if !pin.exists() {
        return Ok(None);
    }
    let read = || -> Result<[u8; size_of::<Node>()], MapError> {
        Array::try_from(Map::Array(MapData::from_pin(&pin)?))?.get(&0, 0)
    };
    let bytes = read().with_context(|| {
        format!(
            "{} is no map of this version; `eipnat unload` with the version that made it, or delete it",
            pin.display()
        )
    })?;
    Ok(Some(bytemuck::cast(bytes)))
}

/// Creates the maps, or takes those that are pinned, and loads the program.
pub(super) fn load(config: &config::Datapath) -> anyhow::Result<Ebpf> {
    // The program is compiled with its log in it; below its level the verifier cuts it out.
    let level = if log_enabled!(Level::Debug) { Level::Debug as u8 } else { Level::Error as u8 };
    let mut loader = EbpfLoader::new();
    loader
        .default_map_pin_directory(&config.pin_path)
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("AYA_LOG_LEVEL", &level, true);
    for name in [map::INBOUND, map::OUTBOUND] {
        loader.map_max_entries(name, config.max_bindings);
    }
    loader.map_max_entries(map::METERS, config.max_bindings + SPARE_METERS);
    let mut ebpf = loader.load(OBJECT).map_err(|error| map_error(error, config))?;
    program(&mut ebpf)?.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed"));
            anyhow!(
                "the kernel refuses the XDP program ({io_error}: {}); it needs Linux 6.1 or later with BPF JIT",
                last.unwrap_or("no reason given")
            )
        }
        other => anyhow!(other).context("the XDP program cannot be loaded"),
    })?;
    Ok(ebpf)
}

/// Pins the program beside its maps, where `bpftool` and tests find it; an earlier one's pin is replaced.
pub(super) fn pin_program(ebpf: &mut Ebpf, pin_path: &Path) -> anyhow::Result<()> {
    let pin = pin_path.join(PROGRAM_PIN);
    match fs::remove_file(&pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", pin.display()));
        }
        _ => {}
    }
    program(ebpf)?.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))
}

/// The one program in the object.
pub(super) fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    let program = ebpf.program_mut(PROGRAM).context("the object has no program `eipnat`")?;
    program.try_into().context("the program `eipnat` is no XDP program")
}

fn map_error(error: EbpfError, config: &config::Datapath) -> anyhow::Error {
    match error {
        EbpfError::MapError(MapError::CreateError { name, io_error }) => KeyError::new(
            "datapath.max_bindings",
            format!(
                "no memory for the map {name} of {} bindings: {io_error}; set a smaller number",
                config.max_bindings
            ),
        )
        .into(),
        other => anyhow!(other).context("the XDP program's maps cannot be made"),
    }
}

/// The way of the program's log to the daemon's.
pub(super) fn logger(ebpf: &mut Ebpf) -> Option<ProgramLogger> {
    // Packets do not depend on it.
    EbpfLogger::init_with_logger(ebpf, Names)
        .inspect_err(|error| warn!("the XDP program's log cannot be read: {error}"))
        .ok()
}
