//! The JSON that the API speaks.

mod slow_path;
mod top;
mod usage;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::Control;
use crate::dataplane::{self, Port};
use crate::model::{self, Carried, Model, Name};
pub use slow_path::{Claim, Frames, Lost, Rings, SlowPath, SlowPathReason, Socket};
pub use top::{PacketRates, Rates, SortBy, Top, TopQuery, TopRow};
pub use usage::{Instant, UsagePage, UsageQuery, UsageRow};

/// An EIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Eip {
    /// The public address.
    #[schema(value_type = String, format = Ipv4)]
    pub eip: Ipv4Addr,
    /// Whether it stands for something.
    pub state: EipState,
    /// What it stands for.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub private_ip: Option<Ipv4Addr>,
    /// The VM that has that address, if it has a name.
    pub vm: Option<Name>,
    /// Who holds the EIP.
    pub account: Name,
    /// The pool that it is from.
    pub pool: Name,
}

/// Whether an EIP stands for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EipState {
    /// Held, and attached to nothing.
    Allocated,
    /// Held, and attached.
    Attached,
}

impl Eip {
    /// An EIP of the model.
    #[must_use]
    pub fn of(model: &Model, eip: &model::Eip) -> Self {
        let private_ip = eip.attached.map(|attached| attached.private_ip);
        Self {
            eip: eip.address,
            state: if private_ip.is_some() { EipState::Attached } else { EipState::Allocated },
            private_ip,
            vm: private_ip.and_then(|private_ip| model.vm_at(private_ip)).map(|vm| vm.name.clone()),
            account: eip.account.clone(),
            pool: eip.pool.clone(),
        }
    }
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its name.
    pub name: Name,
    /// Its address.
    #[schema(value_type = String, format = Ipv4)]
    pub private_ip: Ipv4Addr,
    /// Its dynamic public address.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub public_ip: Option<Ipv4Addr>,
    /// The EIP that stands for it.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub eip: Option<Ipv4Addr>,
    /// Whose it is.
    pub account: Name,
    /// Whether it gets a public IP as soon as its pool has one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
}

impl Vm {
    /// A VM of the model.
    #[must_use]
    pub fn of(model: &Model, vm: &model::Vm) -> Self {
        let eip = model.eip_of(vm.private_ip).filter(|_| vm.public_ip.is_none());
        Self {
            name: vm.name.clone(),
            private_ip: vm.private_ip,
            public_ip: vm.public_ip.map(|public_ip| public_ip.address),
            eip: eip.map(|eip| eip.address),
            account: vm.account.clone(),
            waiting: vm.waiting_since.is_some(),
        }
    }
}

/// What an EIP has carried since it was allocated: IPv4 total lengths, and packets.
pub type Counters = Carried;

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Whether every binding forwards.
    pub ready: bool,
    /// The revision of the desired state.
    pub revision: u64,
    /// How many bindings there are.
    pub bindings: usize,
    /// What the XDP program is attached to.
    pub interfaces: Vec<Port>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What was mended of the datapath since the daemon started; absent if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repairs: Option<Repairs>,
}

impl Status {
    /// The state of a control plane.
    #[must_use]
    pub fn of(control: &Control) -> Self {
        let problems = control.problems();
        Self {
            ready: problems.is_empty(),
            revision: control.revision(),
            bindings: control.model().bound(),
            interfaces: control.ports(),
            problems,
            repairs: control.last_repair().map(|(at, what)| Repairs {
                count: control.repairs(),
                last_at: humantime::format_rfc3339_seconds(*at).to_string(),
                last: what.clone(),
            }),
        }
    }
}

/// What was mended of the datapath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repairs {
    /// How often.
    pub count: u64,
    /// When it was the last time (RFC 3339).
    pub last_at: String,
    /// What it was the last time.
    pub last: String,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    #[schema(value_type = Vec<String>)]
    pub cidrs: Vec<Ipv4Net>,
    /// How many of them are handed out, now or ever; the other three figures add up to it.
    pub size: u64,
    /// How many are EIPs or public IPs.
    pub allocated: u64,
    /// How many were given back and are not free again yet.
    pub cooling: u64,
    /// How many can be had now.
    pub free: u64,
}

impl From<model::PoolUsage<'_>> for Pool {
    fn from(model::PoolUsage { spec, size, allocated, cooling, free }: model::PoolUsage<'_>) -> Self {
        Self { name: spec.name.clone(), cidrs: spec.cidrs.clone(), size, allocated, cooling, free }
    }
}

/// Packets by what became of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Packets by what the fast path did with them, each counted once; and among the dropped ones those that it has left to
    /// the slow path and that died there.
    pub verdicts: Verdicts,
    /// Those left to the slow path by reason; every reason is there.
    #[serde(default)]
    pub punts: BTreeMap<String, u64>,
    /// The dropped ones by reason; every reason is there. Those that died in the slow path are among them.
    pub drops: BTreeMap<String, u64>,
    /// What the slow path has made of what it got.
    #[serde(default)]
    pub slow_path: SlowPath,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verdicts {
    /// Rewritten and sent on.
    pub forward: u64,
    /// Left to the node's own stack.
    pub pass: u64,
    /// Left to the slow path.
    pub punt: u64,
    /// Dropped.
    pub drop: u64,
}

impl Verdicts {
    /// Each verdict with its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 4] {
        [("forward", self.forward), ("pass", self.pass), ("punt", self.punt), ("drop", self.drop)]
    }
}

impl Stats {
    /// What the datapath has counted.
    #[must_use]
    pub fn of(verdicts: &dataplane::Verdicts, slow_path: &dataplane::slow_path::Report) -> Self {
        Self {
            verdicts: Verdicts {
                forward: verdicts.forward,
                pass: verdicts.pass,
                punt: verdicts.punts.iter().map(|(_, packets)| packets).sum(),
                drop: verdicts.drops.iter().map(|(_, packets)| packets).sum(),
            },
            punts: by_name(verdicts.punts.iter().map(|(reason, packets)| (reason.name(), *packets))),
            drops: by_name(verdicts.drops.iter().map(|(reason, packets)| (reason.name(), *packets))),
            slow_path: slow_path.into(),
        }
    }
}

fn by_name(counters: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counters.map(|(name, packets)| (name.to_owned(), packets)).collect()
}

/// Packets that were dropped for one reason, of those that concern a public address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddressDrops {
    /// Why.
    pub reason: String,
    /// How many, as far as it is remembered.
    pub packets: u64,
    /// When the last one was (RFC 3339).
    pub last_at: String,
}

impl From<&dataplane::AddressDrops> for AddressDrops {
    fn from(drops: &dataplane::AddressDrops) -> Self {
        let last_at = SystemTime::now().checked_sub(drops.last).unwrap_or(SystemTime::UNIX_EPOCH);
        Self {
            reason: drops.reason.name().to_owned(),
            packets: drops.packets,
            last_at: humantime::format_rfc3339_seconds(last_at).to_string(),
        }
    }
}

/// Body of `POST /v1/eips`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Allocate {
    /// The pool to take it from.
    pub pool: Option<Name>,
    /// The address that is wanted.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub address: Option<Ipv4Addr>,
    /// Who is to hold it.
    pub account: Option<Name>,
    /// A name of the client's own for what it wants: asked for again by the same account, it gets the same EIP as long as
    /// that is held. So a retry is safe.
    pub request: Option<Name>,
}

/// Body of `PUT /v1/eips/{eip}/target`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// A VM's name or a private IP.
    pub target: String,
    /// Whether the EIP may leave what it stands for now.
    #[serde(default)]
    pub reassign: bool,
}

/// Body of `PUT /v1/vms/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its address.
    #[schema(value_type = String, format = Ipv4)]
    pub private_ip: Ipv4Addr,
    /// Whose it is to be.
    #[serde(default)]
    pub account: Option<Name>,
    /// Whether it is to have a public IP as long as it has no EIP.
    #[serde(default = "yes")]
    pub public_ip: bool,
    /// The pool to take that from.
    #[serde(default)]
    pub pool: Option<Name>,
}

const fn yes() -> bool {
    true
}

/// What an import has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// In words.
    pub imported: String,
}

/// Body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// What is wrong and what to do, in one line.
    pub error: String,
}
