//! The memory of [`Front`], by parts: each is written by whom it concerns.

use std::mem::offset_of;

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use nat_common::abi::express::{DIRECTORY, Front, Routing, SEATS, Seat};
use nat_common::abi::map;
use nat_common::abi::trace::Settings;

use super::maps::failed;
use super::numbers::Numbers;

/// The map of a loaded object.
pub(super) fn of(ebpf: &Ebpf) -> anyhow::Result<&MapData> {
    match ebpf.map(map::FRONT) {
        Some(Map::Array(data)) => Ok(data),
        _ => bail!("the program has no array {}", map::FRONT),
    }
}

/// [`Front::routing`].
pub(super) fn routing(front: &MapData) -> anyhow::Result<Numbers> {
    part(front, offset_of!(Front, routing), size_of::<Routing>())
}

/// [`Front::trace`].
pub(super) fn trace(front: &MapData) -> anyhow::Result<Numbers> {
    part(front, offset_of!(Front, trace), size_of::<Settings>())
}

/// [`Front::seats`].
pub(super) fn seats(front: &MapData) -> anyhow::Result<Numbers> {
    part(front, offset_of!(Front, seats), size_of::<[Seat; SEATS]>())
}

/// [`Front::directory`].
pub(super) fn directory(front: &MapData) -> anyhow::Result<Numbers> {
    part(front, offset_of!(Front, directory), size_of::<[u16; DIRECTORY]>())
}

/// [`Front::covering`].
pub(super) fn covering(front: &MapData) -> anyhow::Result<Numbers> {
    part(front, offset_of!(Front, covering), DIRECTORY)
}

fn part(front: &MapData, offset: usize, length: usize) -> anyhow::Result<Numbers> {
    Numbers::part(front, offset, length).with_context(|| failed(map::FRONT))
}
