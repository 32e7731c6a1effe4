//! What network cards and the kernel do to packets before XDP sees them, and which it must not (ethtool(8) `-K`).

use std::collections::BTreeSet;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NlasIterator, ParseableParametrized};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::interfaces::Interface;
use super::netlink;

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
    pub(super) const GENL_VERSION: u8 = 1;
    pub(super) const FEATURES_HEADER: u16 = 1;
    pub(super) const FEATURES_WANTED: u16 = 3;
    pub(super) const FEATURES_ACTIVE: u16 = 4;
    pub(super) const HEADER_DEV_INDEX: u16 = 1;
    pub(super) const BITSET_BITS: u16 = 3;
    pub(super) const BITSET_BIT: u16 = 1;
    pub(super) const BIT_NAME: u16 = 2;
    pub(super) const BIT_VALUE: u16 = 3;
    /// `include/uapi/linux/netlink.h`
    pub(super) const NESTED: u16 = 0x8000;
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

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | uapi::NESTED, bytes)
}

/// The values of the attributes of one kind.
fn attributes(bytes: &[u8], kind: u16) -> Vec<Vec<u8>> {
    let all = NlasIterator::new(bytes).map_while(Result::ok);
    all.filter(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec()).collect()
}

/// Asks the kernel's ethtool family about an interface; the answer's attributes.
fn ethtool(command: u8, ifindex: u32, attribute: Option<DefaultNla>) -> anyhow::Result<Vec<u8>> {
    let index = DefaultNla::new(uapi::HEADER_DEV_INDEX, ifindex.to_ne_bytes().to_vec());
    let mut body = vec![nested(uapi::FEATURES_HEADER, &[index])];
    body.extend(attribute);
    let mut bytes = vec![0; body.as_slice().buffer_len()];
    body.as_slice().emit(&mut bytes);
    let mut message = GenlMessage::from_payload(Ethtool { command, attributes: bytes });
    message.set_resolved_family_id(family()?);
    let answers = netlink::call(NETLINK_GENERIC, message)?;
    Ok(answers.into_iter().next().map(|answer| answer.payload.attributes).unwrap_or_default())
}

/// The number that the kernel has given to its ethtool family; it stays until the next boot.
fn family() -> anyhow::Result<u16> {
    static FAMILY: OnceLock<u16> = OnceLock::new();
    if let Some(family) = FAMILY.get() {
        return Ok(*family);
    }
    let family = ask_family()?;
    Ok(*FAMILY.get_or_init(|| family))
}

fn ask_family() -> anyhow::Result<u16> {
    let question = GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(Ethtool::family_name().to_owned())],
    };
    let answers = netlink::call(NETLINK_GENERIC, GenlMessage::from_payload(question))?;
    let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
    let mut id = attributes.filter_map(|attribute| match attribute {
        GenlCtrlAttrs::FamilyId(id) => Some(id),
        _ => None,
    });
    id.next().context("the kernel has no netlink for ethtool")
}

/// A message of the ethtool family.
#[derive(Clone, Debug)]
struct Ethtool {
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Ethtool {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        uapi::GENL_VERSION
    }
}

impl Emitable for Ethtool {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.attributes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Ethtool {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, attributes: bytes.to_vec() })
    }
}
