//! Questions to the kernel's generic netlink families, of which the crates do not know each.

use std::sync::OnceLock;

use anyhow::Context as _;
use netlink_packet_core::{DecodeError, DefaultNla, Emitable, NlasIterator, ParseableParametrized};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::netlink;

/// kernel: `NLA_F_NESTED`, include/uapi/linux/netlink.h
const NESTED: u16 = 0x8000;

/// A family, and the number that the kernel has given to it; it stays until the next boot.
pub(super) struct Family {
    name: &'static str,
    number: OnceLock<u16>,
}

impl Family {
    pub(super) const fn new(name: &'static str) -> Self {
        Self { name, number: OnceLock::new() }
    }

    /// Asks, and answers the attributes of the first answer.
    pub(super) fn ask(&self, command: u8, attributes: &[DefaultNla]) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; attributes.buffer_len()];
        attributes.emit(&mut bytes);
        let mut message = GenlMessage::from_payload(Message { command, attributes: bytes });
        message.set_resolved_family_id(self.number()?);
        let answers = netlink::call(NETLINK_GENERIC, message)?;
        Ok(answers.into_iter().next().map(|answer| answer.payload.attributes).unwrap_or_default())
    }

    fn number(&self) -> anyhow::Result<u16> {
        if let Some(number) = self.number.get() {
            return Ok(*number);
        }
        let nlas = vec![GenlCtrlAttrs::FamilyName(self.name.to_owned())];
        let question = GenlMessage::from_payload(GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas });
        let answers = netlink::call(NETLINK_GENERIC, question);
        let answers = answers.with_context(|| format!("the kernel has no netlink family {}", self.name))?;
        let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
        let mut number = attributes.filter_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(number) => Some(number),
            _ => None,
        });
        let number =
            number.next().with_context(|| format!("the netlink family {} has no number", self.name))?;
        Ok(*self.number.get_or_init(|| number))
    }
}

/// An attribute that holds others.
pub(super) fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NESTED, bytes)
}

/// The values of the attributes of one kind.
pub(super) fn attributes(bytes: &[u8], kind: u16) -> Vec<Vec<u8>> {
    let all = NlasIterator::new(bytes).map_while(Result::ok);
    all.filter(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec()).collect()
}

/// A message of any family.
#[derive(Clone, Debug)]
struct Message {
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        // The number is looked up by `Family`.
        ""
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.attributes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self { command: header.cmd, attributes: bytes.to_vec() })
    }
}
