//! Generations of maps. A program's maps cannot be exchanged, nor their sizes changed: where the ABI or the number of
//! bindings is another, new maps stand beside the old ones until the last interface has changed over.
//!
//! Each generation is a directory of pins, `maps_N`. What it is worth, [`Node::stage`] says, whenever the daemon was killed:
//!
//! - no [`Node::abi_version`]: no program runs on it; it is thrown away.
//! - [`Node::OPEN`]: programs may run on it, and on those before it as well: all of them count. The next start goes on
//!   with it if it fits, else with a new one.
//! - [`Node::CURRENT`]: all that came before is in its sums, and is thrown away.
//!
//! **Invariant:** the sums of earlier generations are written as they are and never added to what stands, into a
//! generation that is not current yet. So it may be done again after a crash.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use aya::programs::loaded_programs;
use bytemuck::{Pod, Zeroable as _};
use nat_common::abi::slowpath::Tally;
use nat_common::abi::{self, ABI_VERSION, Addr, Inbound, Meter, Node, map};
use nat_common::verdict::{Counter, Reject};

use super::bpffs;
use super::findings::Findings;
use super::meters::{self, Meters};
use crate::config::{self, KeyError};
use crate::dataplane::{Binding, Owner, Owners};
use crate::model;

/// What the names of the directories begin with.
const PREFIX: &str = "maps_";

/// One generation of maps.
#[derive(Debug)]
pub(super) struct Generation {
    number: u32,
    /// Where its pins are.
    pub(super) dir: PathBuf,
    /// Its settings; all zero if there are none.
    pub(super) node: Node,
}

/// What maps came to.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// By index; those at zero are left out.
    pub(super) meters: BTreeMap<u32, Meter>,
    /// By place.
    pub(super) counters: Vec<u64>,
}

impl Generation {
    /// All that stand under the pin path, in the order in which they were made.
    pub(super) fn all(pin_path: &Path) -> anyhow::Result<Vec<Self>> {
        let mut all = Vec::new();
        for dir in bpffs::pins(pin_path)? {
            if let Some(number) = number(&dir) {
                all.push(Self { number, node: node(&dir)?, dir });
            }
        }
        all.sort_by_key(|generation| generation.number);
        Ok(all)
    }

    /// A directory for the one after all that are there.
    pub(super) fn make(pin_path: &Path) -> anyhow::Result<Self> {
        let number = bpffs::pins(pin_path)?.iter().filter_map(|dir| number(dir)).max().unwrap_or(0) + 1;
        let dir = pin_path.join(format!("{PREFIX}{number}"));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { number, dir, node: Node::default() })
    }

    /// Whether a program may run on it.
    pub(super) const fn is_open(&self) -> bool {
        self.node.abi_version != 0
    }

    /// Whether it holds all that has ever been counted.
    pub(super) const fn is_current(&self) -> bool {
        self.is_open() && self.node.stage == Node::CURRENT
    }

    /// Whether a program of this version can run on it, with room for so many bindings.
    pub(super) fn fits(&self, max_bindings: u32) -> anyhow::Result<bool> {
        let has_room = |name: &str, entries: u32| -> anyhow::Result<bool> {
            let info = MapInfo::from_pin(self.dir.join(name)).with_context(|| self.unreadable(name))?;
            Ok(info.max_entries() == entries)
        };
        Ok(self.node.abi_version == ABI_VERSION
            && has_room(map::INBOUND, max_bindings)?
            && self.node.meters == model::meters(max_bindings)
            && has_room(map::METERS, model::meters(max_bindings) * meters::lanes()?)?
            && has_room(map::COUNTERS, Counter::COUNT)?)
    }

    /// The bindings that stand in it, as far as their inbound halves say.
    pub(super) fn bindings(&self) -> anyhow::Result<Vec<Binding>> {
        let binding = |(public_ip, value): (Addr, &[u8])| {
            let Inbound { private_ip, tenant, meter, .. } = beginning(value);
            Binding { public_ip: public_ip.into(), tenant, private_ip: private_ip.into(), meter }
        };
        let bindings = || -> Result<Vec<Binding>, MapError> {
            with_size!(self.open(map::INBOUND)?, Bytes, |inbound| {
                let inbound = HashMap::<_, Addr, Bytes>::try_from(Map::HashMap(inbound))?;
                inbound.iter().map(|entry| entry.map(|(key, value)| binding((key, &value)))).collect()
            })
        };
        bindings().with_context(|| self.unreadable(map::INBOUND))
    }

    /// What its program was told of each interface.
    pub(super) fn ports(&self) -> anyhow::Result<BTreeMap<u32, abi::Port>> {
        let ports = || -> Result<BTreeMap<u32, abi::Port>, MapError> {
            with_size!(self.open(map::PORTS)?, Bytes, |ports| {
                let ports = HashMap::<_, u32, Bytes>::try_from(Map::HashMap(ports))?;
                ports.iter().map(|entry| entry.map(|(index, port)| (index, beginning(&port)))).collect()
            })
        };
        ports().with_context(|| self.unreadable(map::PORTS))
    }

    /// Adds what it came to; of the meters, those that count here for whom they are to count.
    pub(super) fn add_to(&self, sums: &mut Sums, owners: &Owners<'_>) -> anyhow::Result<()> {
        let bindings: BTreeMap<u32, Binding> =
            self.bindings()?.into_iter().map(|binding| (binding.meter, binding)).collect();
        let is_owners = |meter: u32| match (owners(meter), bindings.get(&meter)) {
            (Some(Owner::Binding(owner)), here) => here == Some(&owner),
            (Some(Owner::Closing(address)), here) => here.is_none_or(|here| here.public_ip == address),
            (None, _) => false,
        };
        self.add_meters(&mut sums.meters, is_owners).with_context(|| self.unreadable(map::METERS))?;
        let mut add = |place: usize, packets: u64| {
            let places = sums.counters.len().max(place + 1);
            sums.counters.resize(places, 0);
            sums.counters[place] += packets;
        };
        let mut add_counters = || -> Result<(), MapError> {
            let counters = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(self.open(map::COUNTERS)?))?;
            for (place, cpus) in counters.iter().enumerate() {
                add(place, cpus?.iter().sum());
            }
            if self.is_current() {
                let carried = Array::<_, u64>::try_from(Map::Array(self.open(map::CARRIED_COUNTERS)?))?;
                for (place, packets) in carried.iter().enumerate() {
                    add(place, packets?);
                }
            }
            // Not in versions that had no slow path.
            if self.dir.join(map::TALLIES).exists() {
                let tallies = Array::<_, u64>::try_from(Map::Array(self.open(map::TALLIES)?))?;
                // By their places: a later version may know of more reasons, an earlier one of fewer.
                let first = Counter::Drop(Reject::FIRST).index() as usize;
                for (drop, packets) in tallies.iter().skip(Tally::FIRST_DROP as usize).enumerate() {
                    add(first + drop, packets?);
                }
            }
            Ok(())
        };
        add_counters().with_context(|| self.unreadable(map::COUNTERS))
    }

    /// Adds what its meters show, whomever they count for.
    pub(super) fn add_readings(&self, sums: &mut BTreeMap<u32, Meter>) -> anyhow::Result<()> {
        self.add_meters(sums, |_| true).with_context(|| self.unreadable(map::METERS))
    }

    fn add_meters(
        &self,
        sums: &mut BTreeMap<u32, Meter>,
        is_owners: impl Fn(u32) -> bool,
    ) -> anyhow::Result<()> {
        let mut add = |index: u32, meter: Meter| {
            if meter != Meter::default() && is_owners(index) {
                let sum = sums.entry(index).or_default();
                *sum = sum.plus(meter);
            }
        };
        let meters = Meters::open(&self.open(map::METERS)?, self.node.meters)?;
        for index in 0..meters.count() {
            add(index, meters.read(index)?);
        }
        // Those of one that is not current yet stand for earlier ones, which are still there themselves.
        if self.is_current() {
            with_size!(self.open(map::CARRIED_METERS)?, Bytes, |carried| {
                let carried = HashMap::<_, u32, Bytes>::try_from(Map::HashMap(carried))?;
                for entry in &carried {
                    let (index, meter) = entry?;
                    add(index, beginning(&meter));
                }
                Ok::<_, MapError>(())
            })?;
        }
        Ok(())
    }

    /// Takes its pins away. No program runs on it, or its sums stand elsewhere.
    pub(super) fn discard(&self) -> anyhow::Result<()> {
        let failed = || format!("cannot remove {}", self.dir.display());
        // First what says that it is worth something.
        let node = self.dir.join(map::NODE);
        if node.exists() {
            fs::remove_file(&node).with_context(failed)?;
        }
        let removed = bpffs::pins(&self.dir)?.iter().map(fs::remove_file).fold(Ok(()), Result::and);
        removed.and_then(|()| fs::remove_dir(&self.dir)).with_context(failed)
    }

    fn open(&self, name: &str) -> Result<MapData, MapError> {
        MapData::from_pin(self.dir.join(name))
    }

    fn unreadable(&self, name: &str) -> String {
        format!("{} cannot be read; run `eipnat unload`, and start again", self.dir.join(name).display())
    }
}

/// Pins those maps again that somebody has unpinned, as far as a running program uses them: with NODE gone, for one, a
/// generation would look as if it had never been used. What is not used by a program is lost without its pin.
pub(super) fn restore_pins(pin_path: &Path, findings: &mut Findings) {
    let dirs = bpffs::pins(pin_path).unwrap_or_default().into_iter().filter(|dir| number(dir).is_some());
    for dir in dirs {
        match restore_pins_in(&dir) {
            Ok(restored) if restored.is_empty() => {}
            Ok(restored) => findings.advise(format!(
                "{} pinned again in {}: somebody had removed the pins",
                restored.join(", "),
                dir.display()
            )),
            Err(error) => findings.advise(format!("pins in {} cannot be restored: {error:#}", dir.display())),
        }
        let is_gone = |name: &&str| dir.join(map::NODE).exists() && !dir.join(name).exists();
        for name in [map::CARRIED_METERS, map::CARRIED_COUNTERS].iter().filter(|name| is_gone(name)) {
            findings.advise(format!(
                "the pin {} was removed, and with it what maps of earlier versions had counted",
                dir.join(name).display()
            ));
        }
    }
}

fn restore_pins_in(dir: &Path) -> anyhow::Result<Vec<&'static str>> {
    let is_there = |name: &&str| dir.join(name).exists();
    let (pinned, missing): (Vec<&str>, Vec<&str>) = map::ALL.iter().partition(|name| is_there(name));
    // Without any, nothing says which program is its.
    let pinned: Vec<u32> =
        pinned.iter().filter_map(|name| Some(MapInfo::from_pin(dir.join(name)).ok()?.id())).collect();
    let mut restored = Vec::new();
    if missing.is_empty() || pinned.is_empty() {
        return Ok(restored);
    }
    // One that has just gone is not the one.
    for program in loaded_programs().flatten() {
        let Ok(ids) = program.map_ids() else { continue };
        let ids = ids.unwrap_or_default();
        if !ids.iter().any(|id| pinned.contains(id)) {
            continue;
        }
        for id in ids {
            let map = MapData::from_id(id)?;
            let info = map.info()?;
            let name = missing.iter().find(|name| info.name_as_str() == Some(name));
            if let Some(name) = name.filter(|name| !restored.contains(*name)) {
                map.pin(dir.join(name))?;
                restored.push(*name);
            }
        }
    }
    Ok(restored)
}

/// What the programs were told of the interfaces. The earliest knows best how these were before eipnat came.
pub(super) fn told(generations: &[Generation]) -> anyhow::Result<BTreeMap<u32, abi::Port>> {
    let mut told = BTreeMap::new();
    for generation in generations.iter().rev().filter(|generation| generation.is_open()) {
        told.extend(generation.ports()?);
    }
    Ok(told)
}

/// New maps must have room for the bindings of those that they replace.
pub(super) fn check_room(config: &config::Datapath, earlier: &[Generation]) -> anyhow::Result<()> {
    for generation in earlier {
        let bindings = generation.bindings()?.len();
        if bindings > config.max_bindings as usize {
            let what = format!("{bindings} bindings stand; set at least that, or detach some first");
            return Err(KeyError::new("datapath.max_bindings", what).into());
        }
    }
    Ok(())
}

/// The number in a directory's name.
fn number(dir: &Path) -> Option<u32> {
    dir.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// The settings in a generation's maps; all zero if it was not even made completely.
fn node(dir: &Path) -> anyhow::Result<Node> {
    let pin = dir.join(map::NODE);
    let data = match MapData::from_pin(&pin) {
        Ok(data) => data,
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(Node::zeroed());
        }
        Err(error) => bail!("{} is no map: {error}; remove it", pin.display()),
    };
    let read = || -> Result<Node, MapError> {
        with_size!(data, Bytes, |node| {
            let node = Array::<_, Bytes>::try_from(Map::Array(node))?;
            Ok(beginning(&node.get(&0, 0)?))
        })
    };
    read().with_context(|| format!("{} is not eipnat's; remove it", pin.display()))
}

/// As much of a structure as its writer knew; the rest is zero.
fn beginning<T: Pod>(bytes: &[u8]) -> T {
    let mut value = T::zeroed();
    let known = bytes.len().min(size_of::<T>());
    bytemuck::bytes_of_mut(&mut value)[..known].copy_from_slice(&bytes[..known]);
    value
}

/// Does something with a map whose values' size is known only now. aya wants it in a type.
macro_rules! with_size {
    ($map:expr, $bytes:ident, |$data:ident| $work:expr) => {
        with_size!($map, $bytes, |$data| $work, 8 12 16 20 24 28 32 36 40 44 48 52 56 60 64 80 96 112 128)
    };
    ($map:expr, $bytes:ident, |$data:ident| $work:expr, $($size:literal)+) => {{
        let $data: MapData = $map;
        match $data.info()?.value_size() {
            $($size => {
                type $bytes = [u8; $size];
                $work
            })+
            size => Err(MapError::InvalidValueSize { size: size as usize, expected: 128 }),
        }
    }};
}
use with_size;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_have_numbers() {
        assert_eq!(number(Path::new("/sys/fs/bpf/eipnat/maps_12")), Some(12));
        for other in ["/bpf/maps_", "/bpf/maps_x", "/bpf/link_3_native", "/bpf/NODE"] {
            assert_eq!(number(Path::new(other)), None);
        }
    }

    #[test]
    fn a_longer_structure_is_cut_and_a_shorter_one_filled_up() {
        let port = abi::Port { role: 3, mac: [2; 6], ..abi::Port::default() };
        let bytes = bytemuck::bytes_of(&port);
        assert_eq!(beginning::<abi::Port>(&[bytes, &[9; 8]].concat()), port);
        assert_eq!(beginning::<abi::Port>(&bytes[..12]), port);
    }
}
