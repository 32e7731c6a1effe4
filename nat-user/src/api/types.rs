//! The JSON that the API speaks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nat_common::abi::Meter;
use serde::{Deserialize, Serialize};

use crate::dataplane::{self, Port};
use crate::model::{self, Name};

/// An EIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eip {
    /// The public address.
    pub eip: Ipv4Addr,
    /// Whether it stands for something.
    pub state: EipState,
    /// What it stands for.
    pub private_ip: Option<Ipv4Addr>,
    /// The VM that has that address, if it has a name.
    pub vm: Option<Name>,
    /// Who holds the EIP.
    pub account: Name,
    /// The pool that it is from.
    pub pool: Name,
}

/// Whether an EIP stands for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EipState {
    /// Held, and attached to nothing.
    Allocated,
    /// Held, and attached.
    Attached,
}

impl From<&model::Eip> for Eip {
    fn from(eip: &model::Eip) -> Self {
        Self {
            eip: eip.address,
            state: if eip.private_ip.is_some() { EipState::Attached } else { EipState::Allocated },
            private_ip: eip.private_ip,
            vm: None,
            account: eip.account.clone(),
            pool: eip.pool.clone(),
        }
    }
}

/// What an EIP has carried since it was allocated: IPv4 total lengths, and packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes towards the VM.
    pub in_bytes: u64,
    /// Packets towards the VM.
    pub in_packets: u64,
    /// Bytes towards the internet.
    pub out_bytes: u64,
    /// Packets towards the internet.
    pub out_packets: u64,
}

impl From<Meter> for Counters {
    fn from(Meter { in_bytes, in_packets, out_bytes, out_packets }: Meter) -> Self {
        Self { in_bytes, in_packets, out_bytes, out_packets }
    }
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub cidrs: Vec<Ipv4Net>,
    /// How many of them are handed out, now or ever; the other three figures add up to it.
    pub size: u64,
    /// How many are EIPs.
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All packets, each counted once.
    pub verdicts: Verdicts,
    /// The dropped ones by reason; every reason is there.
    pub drops: BTreeMap<String, u64>,
}

/// Packets by verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl From<&dataplane::Verdicts> for Stats {
    fn from(verdicts: &dataplane::Verdicts) -> Self {
        Self {
            verdicts: Verdicts {
                forward: verdicts.forward,
                pass: verdicts.pass,
                punt: verdicts.punts.iter().map(|(_, packets)| packets).sum(),
                drop: verdicts.drops.iter().map(|(_, packets)| packets).sum(),
            },
            drops: verdicts
                .drops
                .iter()
                .map(|(reason, packets)| (reason.name().to_owned(), *packets))
                .collect(),
        }
    }
}

/// Body of `POST /v1/eips`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allocate {
    /// The pool to take it from.
    pub pool: Option<Name>,
    /// The address that is wanted.
    pub address: Option<Ipv4Addr>,
    /// Who is to hold it.
    pub account: Option<Name>,
}

/// Body of `PUT /v1/eips/{eip}/target`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// A VM's name or a private IP.
    pub target: String,
}

/// Body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What is wrong and what to do, in one line.
    pub error: String,
}
