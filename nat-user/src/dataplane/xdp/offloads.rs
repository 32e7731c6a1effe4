//! What network cards and the kernel do to packets before XDP sees them, and which it must not (ethtool(8) `-K`).

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use netlink_packet_core::DefaultNla;

use super::genl::{Family, attributes, nested};
use super::interfaces::Interface;

/// Offloads, each one bit.
pub(super) type Offloads = u8;

/// The card takes VLAN tags off, and XDP takes what was in a VLAN for untagged.
pub(super) const VLAN_TAGS: Offloads = 1;

/// The kernel merges TCP segments on one interface before generic XDP sees them on another above it, and what is
/// larger than an MTU cannot be sent on.
pub(super) const MERGING: Offloads = 2;

/// Their names. kernel: `netdev_features_strings[]`, net/ethtool/common.c
const NAMES: [(Offloads, &str); 2] = [(VLAN_TAGS, "rx-vlan-hw-parse"), (MERGING, "rx-gro")];

/// Turns off those of `unwanted` that are on, and answers which were.
pub(super) fn turn_off(interface: &Interface, unwanted: Offloads) -> anyhow::Result<Offloads> {
    let on = |active: &BTreeSet<String>| bits(|bit, name| unwanted & bit != 0 && active.contains(name));
    let before = on(&active(interface.index)?);
    if before == 0 {
        return Ok(0);
    }
    set(interface.index, before, false)?;
    let after = on(&active(interface.index)?);
    ensure!(after == 0, "the driver does not turn them off");
    Ok(before)
}

/// Turns them on again.
pub(super) fn turn_on(interface: &Interface, offloads: Offloads) -> anyhow::Result<()> {
    set(interface.index, offloads, true)
        .with_context(|| format!("the offloads of {} cannot be turned on again", interface.name))
}

fn bits(wanted: impl Fn(Offloads, &str) -> bool) -> Offloads {
    NAMES.iter().filter(|(bit, name)| wanted(*bit, name)).fold(0, |all, (bit, _)| all | bit)
}

/// kernel: `include/uapi/linux/ethtool_netlink.h`
mod uapi {
    pub(super) const FEATURES_GET: u8 = 11;
    pub(super) const FEATURES_SET: u8 = 12;
    pub(super) const FEATURES_HEADER: u16 = 1;
    pub(super) const FEATURES_WANTED: u16 = 3;
    pub(super) const FEATURES_ACTIVE: u16 = 4;
    pub(super) const HEADER_DEV_INDEX: u16 = 1;
    pub(super) const BITSET_BITS: u16 = 3;
    pub(super) const BITSET_BIT: u16 = 1;
    pub(super) const BIT_NAME: u16 = 2;
    pub(super) const BIT_VALUE: u16 = 3;
}

/// The features that are on.
fn active(ifindex: u32) -> anyhow::Result<BTreeSet<String>> {
    let answer = ethtool(uapi::FEATURES_GET, ifindex, None)?;
    let lists = attributes(&answer, uapi::FEATURES_ACTIVE);
    let bits = lists
        .iter()
        .flat_map(|list| attributes(list, uapi::BITSET_BITS))
        .flat_map(|bits| attributes(&bits, uapi::BITSET_BIT));
    // A list without a mask holds just what is on.
    let names = bits.flat_map(|bit| attributes(&bit, uapi::BIT_NAME));
    Ok(names
        .filter_map(|name| Some(String::from_utf8(name).ok()?.trim_end_matches('\0').to_owned()))
        .collect())
}

fn set(ifindex: u32, offloads: Offloads, on: bool) -> anyhow::Result<()> {
    if offloads == 0 {
        return Ok(());
    }
    let bits = NAMES.iter().filter(|(bit, _)| offloads & bit != 0).map(|(_, name)| {
        let mut bit = vec![DefaultNla::new(uapi::BIT_NAME, format!("{name}\0").into_bytes())];
        bit.extend(on.then(|| DefaultNla::new(uapi::BIT_VALUE, vec![])));
        nested(uapi::BITSET_BIT, &bit)
    });
    let bits = nested(uapi::BITSET_BITS, &bits.collect::<Vec<_>>());
    ethtool(uapi::FEATURES_SET, ifindex, Some(nested(uapi::FEATURES_WANTED, &[bits]))).map(drop)
}

/// Asks about an interface; the answer's attributes.
fn ethtool(command: u8, ifindex: u32, attribute: Option<DefaultNla>) -> anyhow::Result<Vec<u8>> {
    static FAMILY: Family = Family::new("ethtool");
    let index = DefaultNla::new(uapi::HEADER_DEV_INDEX, ifindex.to_ne_bytes().to_vec());
    let mut body = vec![nested(uapi::FEATURES_HEADER, &[index])];
    body.extend(attribute);
    FAMILY.ask(command, &body)
}
