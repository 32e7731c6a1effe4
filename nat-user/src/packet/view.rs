//! What a frame shows, however broken it is.

use std::fmt;
use std::net::Ipv4Addr;

use nat_common::wire::ipv4::{self, protocol};
use nat_common::wire::{dccp, ethernet, icmpv4, tcp, udp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An IPv4 packet, as far as its beginning tells. Numbers stand as in its header, right or wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Who sends.
    pub source: Ipv4Addr,
    /// Who receives.
    pub destination: Ipv4Addr,
    /// What it carries.
    pub protocol: u8,
    /// Source and destination port, where its protocol has them and they are there.
    pub ports: Option<(u16, u16)>,
    /// Type and code of an ICMP message.
    pub icmp: Option<(u8, u8)>,
    /// IPv4 total length, in bytes.
    pub length: u16,
    /// Hops left.
    pub ttl: u8,
    /// Offset of a fragment that is not the first, in bytes; 0 otherwise.
    pub fragment: u16,
}

/// Where things stand in a frame with an IPv4 packet.
struct Layout {
    ip: usize,
    payload: usize,
    protocol: u8,
    /// Whether the transport's header is there.
    is_first: bool,
}

impl Layout {
    fn of(frame: &[u8], ip: usize) -> Option<Self> {
        let header = frame.get(ip..ip + ipv4::MIN_HEADER_LEN)?;
        (header[0] >> 4 == 4).then(|| Self {
            ip,
            payload: ip + usize::from(header[0] & 15).max(5) * 4,
            protocol: header[9],
            is_first: fragment_offset(header) == 0,
        })
    }

    fn of_frame(frame: &[u8]) -> Option<Self> {
        let is_ipv4 = frame.get(12..14) == Some(&ethernet::TYPE_IPV4.to_be_bytes());
        if is_ipv4 { Self::of(frame, ethernet::HEADER_LEN) } else { None }
    }

    /// Where the transport's checksum stands, and its name.
    fn checksum(&self) -> Option<(usize, &'static str)> {
        let (offset, name) = match self.protocol {
            protocol::TCP => (tcp::CHECKSUM, "TCP checksum"),
            protocol::UDP => (udp::CHECKSUM, "UDP checksum"),
            protocol::UDP_LITE => (udp::CHECKSUM, "UDP-Lite checksum"),
            protocol::DCCP => (dccp::CHECKSUM, "DCCP checksum"),
            protocol::ICMP => (icmpv4::CHECKSUM, "ICMP checksum"),
            _ => return None,
        };
        self.is_first.then_some((self.payload + offset, name))
    }

    /// The packet that an ICMP error quotes.
    fn quote(&self, frame: &[u8]) -> Option<Self> {
        let is_error = self.protocol == protocol::ICMP
            && self.is_first
            && matches!(icmpv4::Kind::of(*frame.get(self.payload)?), icmpv4::Kind::Error);
        if is_error { Self::of(frame, self.payload + icmpv4::HEADER_LEN) } else { None }
    }
}

/// In units of 8 bytes.
fn fragment_offset(header: &[u8]) -> u16 {
    u16::from_be_bytes([header[6] & 0x1f, header[7]])
}

impl View {
    /// Looks at a frame; `None` if there is no IPv4 packet in it.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let layout = Layout::of_frame(frame)?;
        let header = &frame[layout.ip..];
        let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let has_ports = matches!(
            layout.protocol,
            protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::DCCP | SCTP
        );
        let ports = word(layout.payload).zip(word(layout.payload + 2));
        let message = word(layout.payload).map(u16::to_be_bytes).map(|[kind, code]| (kind, code));
        Some(Self {
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]),
            protocol: layout.protocol,
            ports: ports.filter(|_| has_ports && layout.is_first),
            icmp: message.filter(|_| layout.protocol == protocol::ICMP && layout.is_first),
            length: u16::from_be_bytes([header[2], header[3]]),
            ttl: header[8],
            fragment: fragment_offset(header) * 8,
        })
    }

    /// A frame in a line, whatever it is.
    #[must_use]
    pub fn line(frame: &[u8]) -> String {
        match (Self::of(frame), frame.get(12..14)) {
            (Some(view), _) => view.to_string(),
            (None, Some(&[high, low])) => format!("ethertype 0x{high:02x}{low:02x}, {} bytes", frame.len()),
            (None, _) => format!("{} bytes, too short for a frame", frame.len()),
        }
    }

    /// The name of what it carries.
    #[must_use]
    pub fn protocol_name(&self) -> String {
        match self.protocol {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            protocol::ICMP => "icmp".to_owned(),
            protocol::UDP_LITE => "udp-lite".to_owned(),
            protocol::DCCP => "dccp".to_owned(),
            SCTP => "sctp".to_owned(),
            50 => "esp".to_owned(),
            protocol::AH => "ah".to_owned(),
            47 => "gre".to_owned(),
            other => format!("protocol {other}"),
        }
    }

    /// Source and destination, with their ports.
    #[must_use]
    pub fn way(&self) -> String {
        match self.ports {
            Some((from, to)) => format!("{}:{from} > {}:{to}", self.source, self.destination),
            None => format!("{} > {}", self.source, self.destination),
        }
    }
}

/// The number of SCTP.
const SCTP: u8 = 132;

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol_name(), self.way())?;
        match self.icmp {
            Some((8, 0)) => f.write_str(", echo request")?,
            Some((0, 0)) => f.write_str(", echo reply")?,
            Some((kind, code)) => write!(f, ", type {kind} code {code}")?,
            None => {}
        }
        if self.fragment != 0 {
            write!(f, ", fragment at {}", self.fragment)?;
        }
        write!(f, ", ttl {}, {} bytes", self.ttl, self.length)
    }
}

/// A field that the translator has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// Its name.
    pub field: String,
    /// As it came.
    pub before: String,
    /// As it leaves.
    pub after: String,
}

/// What differs between a frame as it came and as it leaves, in the order of the bytes.
#[must_use]
pub fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let fields = fields(before);
    let mut changes = Vec::new();
    for (at, length, name, show) in &fields {
        let range = *at..*at + *length;
        if let (Some(old), Some(new)) = (before.get(range.clone()), after.get(range))
            && old != new
        {
            changes.push((*at, Change { field: name.clone(), before: show(old), after: show(new) }));
        }
    }
    // Nothing else should, so it had better be seen if it does.
    let is_known = |at: usize| fields.iter().any(|(from, length, ..)| (*from..*from + *length).contains(&at));
    for (at, (old, new)) in
        before.iter().zip(after).enumerate().filter(|(at, (old, new))| old != new && !is_known(*at))
    {
        let hex = |byte: &u8| format!("0x{byte:02x}");
        changes.push((at, Change { field: format!("byte {at}"), before: hex(old), after: hex(new) }));
    }
    changes.sort_by_key(|(at, _)| *at);
    changes.into_iter().map(|(_, change)| change).collect()
}

/// Offset, length, name and how it is shown.
type Field = (usize, usize, String, fn(&[u8]) -> String);

fn fields(frame: &[u8]) -> Vec<Field> {
    let mut fields: Vec<Field> =
        vec![(0, 6, "destination MAC".to_owned(), super::mac), (6, 6, "source MAC".to_owned(), super::mac)];
    if let Some(layout) = Layout::of_frame(frame) {
        fields.push((layout.ip + ipv4::TTL, 1, "TTL".to_owned(), |bytes| bytes[0].to_string()));
        add(&mut fields, &layout, "");
        if let Some(quote) = layout.quote(frame) {
            add(&mut fields, &quote, "quoted ");
        }
    }
    fields
}

fn add(fields: &mut Vec<Field>, layout: &Layout, of: &str) {
    let hex = |bytes: &[u8]| format!("0x{}", super::to_hex(bytes));
    let address = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
    fields.push((layout.ip + ipv4::CHECKSUM, 2, format!("{of}IP checksum"), hex));
    fields.push((layout.ip + ipv4::ADDRESSES, 4, format!("{of}source"), address));
    fields.push((layout.ip + ipv4::ADDRESSES + 4, 4, format!("{of}destination"), address));
    if let Some((at, name)) = layout.checksum() {
        fields.push((at, 2, format!("{of}{name}"), hex));
    }
}
