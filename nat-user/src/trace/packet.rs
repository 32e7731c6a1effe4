//! A reported packet, as clients get it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use nat_common::abi::trace::HEAD;
use nat_common::verdict::Counter;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dataplane::Role;
use crate::dataplane::trace::Report;
use crate::packet::{View, to_hex};

/// A packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Packet {
    /// When it came (RFC 3339).
    pub time: String,
    /// `in`, `out` or `hairpin`; absent where nothing tells.
    pub direction: Option<String>,
    /// The interface that it came by.
    pub on: String,
    /// The interface that it left by; absent if it did not, or the kernel's own stack has got it.
    pub to: Option<String>,
    /// What it carries; absent if it is not IPv4.
    pub protocol: Option<String>,
    /// Length in bytes: IPv4's total length, or the frame's if it is not IPv4.
    pub length: u32,
    /// Its addresses as it came; absent if it is not IPv4.
    pub before: Option<Address>,
    /// Its addresses as it left; absent if it did not.
    pub after: Option<Address>,
    /// `forward`, `pass`, `punt` or `drop`.
    pub verdict: String,
    /// Why, for a punt or a drop.
    pub reason: Option<String>,
    /// The packet itself, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<Frames>,
}

/// The addresses of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Address {
    /// Who sends.
    #[schema(value_type = String, format = Ipv4)]
    pub source: Ipv4Addr,
    /// The source port.
    pub source_port: Option<u16>,
    /// Who receives.
    #[schema(value_type = String, format = Ipv4)]
    pub destination: Ipv4Addr,
    /// The destination port.
    pub destination_port: Option<u16>,
}

/// A packet as it came and as it left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Frames {
    /// Length of the frame, in bytes; what follows may be less.
    pub length: u32,
    /// The frame as it came, in hexadecimal digits.
    pub before: String,
    /// The frame as it left; absent if it did not.
    pub after: Option<String>,
}

impl Address {
    fn of(frame: &[u8]) -> Option<Self> {
        let view = View::of(frame)?;
        Some(Self {
            source: view.source,
            source_port: view.ports.map(|(source, _)| source),
            destination: view.destination,
            destination_port: view.ports.map(|(_, destination)| destination),
        })
    }

    /// Source and destination, with their ports.
    #[must_use]
    pub fn way(&self) -> String {
        let end = |address: Ipv4Addr, port: Option<u16>| {
            port.map_or_else(|| address.to_string(), |port| format!("{address}:{port}"))
        };
        format!("{} > {}", end(self.source, self.source_port), end(self.destination, self.destination_port))
    }
}

impl Packet {
    /// A reported packet, without its frames and its direction.
    pub(super) fn of(report: &Report, clock: &Clock, names: &mut Names) -> Self {
        let event = &report.event;
        let head = head(report);
        let counter = Counter::at(event.counter);
        let has_left = matches!(counter, Some(Counter::Forward | Counter::Punt(_)));
        let view = View::of(head);
        Self {
            time: clock.time(event.time),
            direction: None,
            on: names.of(event.ingress),
            to: (event.egress != 0).then(|| names.of(event.egress)),
            protocol: view.map(|view| view.protocol_name()),
            length: view.map_or(event.length, |view| view.length.into()),
            before: Address::of(head),
            after: if has_left { Address::of(&report.frame) } else { None },
            verdict: counter.map_or("unknown", Counter::verdict).to_owned(),
            reason: counter.and_then(Counter::reason).map(str::to_owned),
            frames: None,
        }
    }

    /// The verdict, with its reason.
    #[must_use]
    pub fn outcome(&self) -> String {
        self.reason
            .as_ref()
            .map_or_else(|| self.verdict.clone(), |reason| format!("{} {reason}", self.verdict))
    }

    /// All addresses that it shows.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.before.iter().chain(&self.after).flat_map(|address| [address.source, address.destination])
    }

    /// With what a client wants to know besides.
    pub(super) fn for_client(&self, report: &Report, snap: usize, roles: &HashMap<String, Role>) -> Self {
        let frames = (snap > 0).then(|| {
            let cut = |bytes: &[u8]| to_hex(&bytes[..bytes.len().min(snap)]);
            Frames {
                length: report.event.length,
                before: cut(&as_it_came(report)),
                after: self.after.is_some().then(|| cut(&report.frame)),
            }
        });
        Self { direction: self.direction(roles).map(str::to_owned), frames, ..self.clone() }
    }

    fn direction(&self, roles: &HashMap<String, Role>) -> Option<&'static str> {
        if let (Some(before), Some(after)) = (&self.before, &self.after) {
            match (before.source != after.source, before.destination != after.destination) {
                (true, true) => return Some("hairpin"),
                (true, false) => return Some("out"),
                (false, true) => return Some("in"),
                (false, false) => {}
            }
        }
        match roles.get(&self.on)? {
            Role::Uplink => Some("in"),
            Role::Downlink => Some("out"),
            Role::Both => None,
        }
    }
}

/// The beginning of the frame as it came.
fn head(report: &Report) -> &[u8] {
    let head = &report.event.head;
    &head[..head.len().min(report.event.length as usize)]
}

/// The frame as it came, as far as it is known: what the translator changes stands in its head.
fn as_it_came(report: &Report) -> Vec<u8> {
    let rest = report.frame.get(HEAD..).unwrap_or_default();
    [head(report), rest].concat()
}

/// What o'clock it is by the kernel's clock that events are stamped with.
pub(super) struct Clock {
    now: SystemTime,
    monotonic: u64,
}

impl Clock {
    pub(super) fn now(monotonic: u64) -> Self {
        Self { now: SystemTime::now(), monotonic }
    }

    fn time(&self, stamp: u64) -> String {
        let age = Duration::from_nanos(self.monotonic.saturating_sub(stamp));
        let time = self.now.checked_sub(age).unwrap_or(self.now);
        humantime::format_rfc3339_micros(time).to_string()
    }
}

/// Names of interfaces, each asked for once.
#[derive(Default)]
pub(super) struct Names(HashMap<u32, String>);

impl Names {
    fn of(&mut self, ifindex: u32) -> String {
        let ask = || {
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
            netdevice::index_to_name(socket, ifindex).ok()
        };
        self.0
            .entry(ifindex)
            .or_insert_with(|| ask().unwrap_or_else(|| format!("interface {ifindex}")))
            .clone()
    }

    /// They may change.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}
