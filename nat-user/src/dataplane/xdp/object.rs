//! The compiled program, and its way into the kernel.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use aya::maps::{MapData, MapError, MapInfo};
use aya::programs::{ProgramError, ProgramInfo, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
use aya_obj::programs::XdpAttachType;
use log::{Level, debug, log_enabled, warn};
use nat_common::abi::express::NEXT_HOPS_LANE;
use nat_common::abi::{drops, map};

use super::ProgramLogger;
use super::log::Names;
use super::{express, meters};
use crate::config::{self, KeyError};
use crate::model;

/// The XDP program, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/eipnat-xdp"));

/// The program's name in the object, and in `bpftool prog`.
const PROGRAM: &str = "eipnat";

/// How the lines of the verifier's log begin that come after what it has to say.
const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// Name of the program's pin.
pub(super) const PROGRAM_PIN: &str = "program";

/// Creates the maps, or takes those that are pinned in `maps`, and loads the program.
pub(super) fn load(config: &config::Datapath, maps: &Path) -> anyhow::Result<Ebpf> {
    // The program is compiled with its log in it; below its level the verifier cuts it out.
    let level = if log_enabled!(Level::Debug) { Level::Debug as u8 } else { Level::Error as u8 };
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(maps).verifier_log_level(VerifierLogLevel::STATS).override_global(
        "AYA_LOG_LEVEL",
        &level,
        true,
    );
    for name in [map::INBOUND, map::OUTBOUND] {
        loader.map_max_entries(name, config.max_bindings);
    }
    let (meters, lanes) = (model::meters(config.max_bindings), meters::lanes()?);
    loader.map_max_entries(map::METERS, meters.saturating_mul(lanes));
    loader.map_max_entries(map::CARRIED_METERS, meters);
    loader.map_max_entries(map::DROPS, drops::LANE * lanes);
    loader.map_max_entries(map::NEXT_HOPS, NEXT_HOPS_LANE * lanes);
    loader.override_global("METERS_OF_LANE", &meters, true);
    for name in [map::INBOUND_BLOCKS, map::OUTBOUND_BLOCKS] {
        loader.map_max_entries(name, express::blocks(config.max_bindings));
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| map_error(error, config))?;
    load_program(program(&mut ebpf, PROGRAM)?)?;
    Ok(ebpf)
}

fn load_program(program: &mut Xdp) -> anyhow::Result<()> {
    program.load().map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let last = log.lines().rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word)));
            anyhow!(
                "the kernel refuses the XDP program ({io_error}: {}); it needs Linux 6.1 or later with BPF JIT",
                last.unwrap_or("no reason given")
            )
        }
        other => anyhow!(other).context("the XDP program cannot be loaded"),
    })
}

/// The program that belongs on every interface.
pub(super) struct Program {
    ebpf: Ebpf,
    /// The one that an earlier daemon has loaded, where it is the same.
    running: Option<Xdp>,
}

impl Program {
    /// The loaded program; or the one that runs on the same maps already, if it is the same and `replace` does not say
    /// otherwise.
    pub(super) fn choose(
        mut ebpf: Ebpf,
        pin_path: &Path,
        maps: &MapPins,
        replace: bool,
    ) -> anyhow::Result<Self> {
        let own = program(&mut ebpf, PROGRAM)?.info()?;
        // A program with its log switched on writes to a map of its own, which only the daemon that loaded it reads.
        let may_stay = !replace && !log_enabled!(Level::Debug);
        let pin = pin_path.join(PROGRAM_PIN);
        let running =
            may_stay.then(|| Xdp::from_pin(pin, XdpAttachType::Interface).ok()).flatten().filter(|running| {
                running.info().is_ok_and(|running| is_same(&running, &own) && maps.are_alike(&running, &own))
            });
        if running.is_some() {
            debug!("the running program is the same, and stays");
        }
        Ok(Self { ebpf, running })
    }

    pub(super) fn get(&mut self) -> anyhow::Result<&mut Xdp> {
        match &mut self.running {
            Some(running) => Ok(running),
            None => program(&mut self.ebpf, PROGRAM),
        }
    }

    /// Pins it, for `bpftool` and tests, in the place of an earlier one. Answers whether it was not pinned yet.
    pub(super) fn pin(&mut self, pin_path: &Path) -> anyhow::Result<bool> {
        let pin = pin_path.join(PROGRAM_PIN);
        let program = self.get()?;
        let id = program.info()?.id();
        if ProgramInfo::from_pin(&pin).is_ok_and(|pinned| pinned.id() == id) {
            return Ok(false);
        }
        make_way(&pin)?;
        program.pin(&pin).with_context(|| format!("cannot pin {}", pin.display()))?;
        Ok(true)
    }
}

/// Whether two programs are the same code. What the verifier has cut out, the program's log, counts as well.
fn is_same(one: &ProgramInfo, other: &ProgramInfo) -> bool {
    let code = |info: &ProgramInfo| (info.tag(), info.size_translated());
    code(one) == code(other)
}

/// The maps as what is pinned.
pub(super) struct MapPins(Vec<(PathBuf, MapData, u32)>);

impl MapPins {
    /// Opens the maps of a directory.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let open = |name: &&str| {
            let pin = dir.join(name);
            let map = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
            let id = map.info()?.id();
            Ok((pin, map, id))
        };
        Ok(Self(map::ALL.iter().map(open).collect::<anyhow::Result<_>>()?))
    }

    /// Whether two programs use the same of these maps.
    fn are_alike(&self, one: &ProgramInfo, other: &ProgramInfo) -> bool {
        let used = |program: &ProgramInfo| -> Option<Vec<bool>> {
            let ids = program.map_ids().ok()??;
            Some(self.0.iter().map(|(_, _, id)| ids.contains(id)).collect())
        };
        used(one).is_some_and(|one| used(other) == Some(one))
    }

    /// Pins those again that are not pinned any more, and answers their names.
    pub(super) fn restore(&self) -> anyhow::Result<Vec<String>> {
        let mut restored = Vec::new();
        for (pin, map, id) in &self.0 {
            if MapInfo::from_pin(pin).is_ok_and(|pinned| pinned.id() == *id) {
                continue;
            }
            if let Some(dir) = pin.parent() {
                fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            }
            make_way(pin)?;
            map.pin(pin).with_context(|| format!("cannot pin {}", pin.display()))?;
            restored.push(pin.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        Ok(restored)
    }
}

fn make_way(pin: &Path) -> anyhow::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// A program in the object.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program `{name}`"))?;
    program.try_into().with_context(|| format!("the program `{name}` is no XDP program"))
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
