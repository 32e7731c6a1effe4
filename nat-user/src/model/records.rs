//! What the desired state is made of, and what a command changes of it.

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use nat_common::abi::Meter;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Name;
use crate::dataplane::Binding;

/// The plain, untagged network.
const TENANT: u32 = 0;

/// A public address that an account holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eip {
    /// The public address.
    pub address: Ipv4Addr,
    /// The pool that it is from.
    pub pool: Name,
    /// Who holds it.
    pub account: Name,
    /// The holder's own name for it, under which it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Name>,
    /// What it is attached to.
    pub attached: Option<Attachment>,
    /// What it has carried before it was attached as it is now.
    pub carried: Past,
}

impl Eip {
    /// The binding that the datapath has to serve for it.
    #[must_use]
    pub fn binding(&self) -> Option<Binding> {
        let Attachment { private_ip, meter } = self.attached?;
        Some(Binding { public_ip: self.address, tenant: TENANT, private_ip, meter })
    }
}

/// What a public address stands for, and what counts its traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The private address.
    pub private_ip: Ipv4Addr,
    /// The counters of the datapath, which are its alone as long as it lasts.
    pub meter: u32,
}

/// Traffic of the past: IPv4 total lengths, and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// Bytes towards the VM.
    pub in_bytes: u64,
    /// Packets towards the VM.
    pub in_packets: u64,
    /// Bytes towards the internet.
    pub out_bytes: u64,
    /// Packets towards the internet.
    pub out_packets: u64,
}

impl From<Meter> for Carried {
    fn from(meter: Meter) -> Self {
        Self::default().plus(meter)
    }
}

impl Carried {
    /// With what a meter shows on top.
    #[must_use]
    pub const fn plus(self, meter: Meter) -> Self {
        let Meter { in_bytes, in_packets, out_bytes, out_packets, .. } = meter;
        self.and(Self { in_bytes, in_packets, out_bytes, out_packets })
    }

    /// Whether every count is at least the other's.
    #[must_use]
    pub const fn is_at_least(self, other: Self) -> bool {
        self.in_bytes >= other.in_bytes
            && self.in_packets >= other.in_packets
            && self.out_bytes >= other.out_bytes
            && self.out_packets >= other.out_packets
    }

    /// What has come since it was `earlier`.
    #[must_use]
    pub const fn minus(self, earlier: Self) -> Self {
        Self {
            in_bytes: self.in_bytes.saturating_sub(earlier.in_bytes),
            in_packets: self.in_packets.saturating_sub(earlier.in_packets),
            out_bytes: self.out_bytes.saturating_sub(earlier.out_bytes),
            out_packets: self.out_packets.saturating_sub(earlier.out_packets),
        }
    }

    /// With other traffic on top.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            in_bytes: self.in_bytes + other.in_bytes,
            in_packets: self.in_packets + other.in_packets,
            out_bytes: self.out_bytes + other.out_bytes,
            out_packets: self.out_packets + other.out_packets,
        }
    }
}

/// What an EIP has carried in the past. It is small: there are a million of them, and most have carried nothing before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<Carried>", into = "Option<Carried>")]
pub enum Past {
    /// It was never attached.
    #[default]
    Never,
    /// It was, and has carried nothing.
    Nothing,
    /// It has carried this, which is not nothing.
    Something(Box<Carried>),
}

impl Past {
    /// What it has carried; `None` if it was never attached.
    #[must_use]
    pub fn get(&self) -> Option<Carried> {
        match self {
            Self::Never => None,
            Self::Nothing => Some(Carried::default()),
            Self::Something(carried) => Some(**carried),
        }
    }
}

impl From<Option<Carried>> for Past {
    fn from(carried: Option<Carried>) -> Self {
        match carried {
            None => Self::Never,
            Some(carried) if carried == Carried::default() => Self::Nothing,
            Some(carried) => Self::Something(Box::new(carried)),
        }
    }
}

impl From<Past> for Option<Carried> {
    fn from(past: Past) -> Self {
        past.get()
    }
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Its name.
    pub name: Name,
    /// Its address.
    pub private_ip: Ipv4Addr,
    /// Whose it is.
    pub account: Name,
    /// The pool that it has a public IP from as long as it has no EIP; `None` if it is to have none.
    pub pool: Option<Name>,
    /// Its public IP.
    pub public_ip: Option<PublicIp>,
    /// Since when it should have a public IP and there is none.
    pub waiting_since: Option<SystemTime>,
}

impl Vm {
    /// The binding that the datapath has to serve for its public IP.
    #[must_use]
    pub fn binding(&self) -> Option<Binding> {
        let PublicIp { address, meter } = self.public_ip?;
        Some(Binding { public_ip: address, tenant: TENANT, private_ip: self.private_ip, meter })
    }
}

/// A dynamic public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIp {
    /// The address.
    pub address: Ipv4Addr,
    /// The counters of its traffic.
    pub meter: u32,
}

/// A public address that was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Returned {
    /// The address.
    pub address: Ipv4Addr,
    /// When it can be had again.
    pub free_at: SystemTime,
}

/// A meter whose binding has ended and that is still to be read for the last time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// The meter, which nothing else uses until then.
    pub meter: u32,
    /// The public address whose traffic it has counted.
    pub address: Ipv4Addr,
    /// Who pays for it.
    pub account: Name,
    /// The VM that it was carried for, if it had a name.
    pub vm: Option<Name>,
    /// Whether the address is an EIP that is still held, whose record gets what the meter shows.
    pub of_eip: bool,
}

/// One thing of the desired state. A large one stands in a box: there may be a million in a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An EIP, by its address.
    Eip(Box<Eip>),
    /// A VM, by its name.
    Vm(Box<Vm>),
    /// A returned address, by itself.
    Returned(Returned),
    /// A closing meter, by its index.
    Closing(Closing),
}

impl Record {
    /// Its kind, and what tells it from others of the kind.
    #[must_use]
    pub fn key(&self) -> (&'static str, String) {
        match self {
            Self::Eip(eip) => ("eip", eip.address.to_string()),
            Self::Vm(vm) => ("vm", vm.name.to_string()),
            Self::Returned(returned) => ("returned", returned.address.to_string()),
            Self::Closing(closing) => ("closing", closing.meter.to_string()),
        }
    }

    /// The binding that the datapath has to serve for it.
    #[must_use]
    pub fn binding(&self) -> Option<Binding> {
        match self {
            Self::Eip(eip) => eip.binding(),
            Self::Vm(vm) => vm.binding(),
            Self::Returned(_) | Self::Closing(_) => None,
        }
    }

    /// The meter that nothing else may use as long as it is there.
    #[must_use]
    pub fn meter(&self) -> Option<u32> {
        match self {
            Self::Closing(closing) => Some(closing.meter),
            other => other.binding().map(|binding| binding.meter),
        }
    }
}

/// A record as it was and as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// `None` if it is new.
    pub before: Option<Record>,
    /// `None` if it goes.
    pub after: Option<Record>,
}

const _: () = assert!(size_of::<Eip>() <= 56 && size_of::<Record>() <= 32, "there may be millions of them");

impl Edit {
    /// Which record it is about.
    #[must_use]
    pub fn key(&self) -> Option<(&'static str, String)> {
        self.before.as_ref().or(self.after.as_ref()).map(Record::key)
    }
}

/// Whom a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An EIP as it is to be; as it was, if it goes.
    Eip(Eip),
    /// A VM, likewise.
    Vm(Vm),
    /// Many at once.
    Many,
}

/// What a command changes: all of it or nothing. Only the model makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whom it is about.
    pub subject: Subject,
    pub(super) edits: Vec<Edit>,
    pub(super) what: String,
    /// Nobody has wanted it: it is no revision of its own.
    pub(super) is_bookkeeping: bool,
}

impl Change {
    /// Nothing, since everything is so already.
    pub(super) fn nothing(subject: Subject) -> Self {
        Self { subject, edits: Vec::new(), what: String::new(), is_bookkeeping: false }
    }

    /// Whether everything is so already.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.edits.is_empty()
    }

    /// Whether it only follows from others, so that it is no revision of its own.
    #[must_use]
    pub fn is_bookkeeping(&self) -> bool {
        self.is_bookkeeping
    }

    /// The records that change, each once.
    #[must_use]
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The meters that come into use.
    pub fn new_meters(&self) -> impl Iterator<Item = u32> {
        let (before, after) = self.bindings();
        let before: HashSet<u32> = before.map(|binding| binding.meter).collect();
        after.map(|binding| binding.meter).filter(move |meter| !before.contains(meter))
    }

    /// The bindings that it concerns: what was bound, and what is to be.
    pub fn bindings(&self) -> (impl Iterator<Item = Binding>, impl Iterator<Item = Binding>) {
        let binding = |record: &Option<Record>| record.as_ref().and_then(Record::binding);
        (
            self.edits.iter().filter_map(move |edit| binding(&edit.before)),
            self.edits.iter().filter_map(move |edit| binding(&edit.after)),
        )
    }

    pub(super) fn push(&mut self, before: Option<Record>, after: Option<Record>) {
        if before != after {
            self.edits.push(Edit { before, after });
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
