//! What EIPs carry just now.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Status;
use crate::model::Name;
use crate::top::{Filter, Question, Ranking};

/// What is asked of `GET /v1/top`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// For how long is measured, in milliseconds.
    #[param(default = 1000, minimum = 100, maximum = 10_000)]
    pub interval_ms: u64,
    /// How many EIPs are answered at most.
    #[param(default = 50, minimum = 1, maximum = 1000)]
    pub limit: usize,
    /// Which of them.
    #[param(inline)]
    pub sort: SortBy,
    /// Whether the last of them come first.
    pub reverse: bool,
    /// Of this account alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Name>,
    /// Of those whose EIP or private IP begins with this or is in this network, or whose VM or account has it in its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

impl Default for TopQuery {
    fn default() -> Self {
        Self {
            interval_ms: 1000,
            limit: 50,
            sort: SortBy::default(),
            reverse: false,
            account: None,
            filter: None,
        }
    }
}

impl TopQuery {
    /// Shortest and longest interval, in milliseconds.
    pub const INTERVALS_MS: [u64; 2] = [100, 10_000];
    /// Most EIPs in an answer.
    pub const MAX_LIMIT: usize = 1000;

    /// What that means.
    ///
    /// # Errors
    /// If something is out of bounds: what, and within which bounds it has to be.
    pub fn question(self) -> Result<Question, String> {
        let Self { interval_ms, limit, sort, reverse, account, filter } = self;
        let [shortest, longest] = Self::INTERVALS_MS;
        if !(shortest..=longest).contains(&interval_ms) {
            return Err(format!("interval_ms={interval_ms} is not between {shortest} and {longest}"));
        }
        if !(1..=Self::MAX_LIMIT).contains(&limit) {
            return Err(format!("limit={limit} is not between 1 and {}", Self::MAX_LIMIT));
        }
        Ok(Question {
            interval: Duration::from_millis(interval_ms),
            ranking: Ranking { sort, reverse, limit },
            filter: Filter::new(account, filter.as_deref()),
        })
    }
}

/// What EIPs are sorted by: a rate, the largest first, or their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SortBy {
    /// Bits in both directions
    #[default]
    Total,
    /// Bits towards the VM
    In,
    /// Bits towards the internet
    Out,
    /// Packets in both directions
    Packets,
    /// Packets towards the VM
    InPackets,
    /// Packets towards the internet
    OutPackets,
    /// The address
    Eip,
}

impl SortBy {
    /// What counts of an EIP's rates; nothing where it is the address.
    #[must_use]
    pub fn rate(self, rates: &Rates) -> f64 {
        match self {
            Self::Total => rates.in_bps + rates.out_bps,
            Self::In => rates.in_bps,
            Self::Out => rates.out_bps,
            Self::Packets => rates.in_pps + rates.out_pps,
            Self::InPackets => rates.in_pps,
            Self::OutPackets => rates.out_pps,
            Self::Eip => 0.0,
        }
    }
}

/// Traffic in a second: bits of IPv4 total lengths, and packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    /// Bits a second towards the VM.
    pub in_bps: f64,
    /// Packets a second towards the VM.
    pub in_pps: f64,
    /// Bits a second towards the internet.
    pub out_bps: f64,
    /// Packets a second towards the internet.
    pub out_pps: f64,
}

impl Rates {
    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            in_bps: self.in_bps + other.in_bps,
            in_pps: self.in_pps + other.in_pps,
            out_bps: self.out_bps + other.out_bps,
            out_pps: self.out_pps + other.out_pps,
        }
    }
}

/// What the node and its EIPs carry just now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Top {
    /// How the daemon is.
    pub status: Status,
    /// The time in which the node's packets were counted, in milliseconds. Each EIP's rates are by the time between its own
    /// two readings.
    pub interval_ms: u64,
    /// How many EIPs are attached.
    pub eips: usize,
    /// What they carry together.
    pub total: Rates,
    /// How many of them match account and filter.
    pub matching: usize,
    /// Those of them that were asked for, in order.
    pub rows: Vec<TopRow>,
    /// The node's packets.
    pub packets: PacketRates,
}

/// What an EIP carries just now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopRow {
    /// The public address.
    #[schema(value_type = String, format = Ipv4)]
    pub eip: Ipv4Addr,
    /// What it stands for.
    #[schema(value_type = String, format = Ipv4)]
    pub private_ip: Ipv4Addr,
    /// The VM that has that address, if it has a name.
    pub vm: Option<Name>,
    /// Who holds the EIP.
    pub account: Name,
    /// Its traffic.
    #[serde(flatten)]
    pub rates: Rates,
}

/// The node's packets a second by what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PacketRates {
    /// Rewritten and sent on.
    pub forward: f64,
    /// Left to the node's own stack.
    pub pass: f64,
    /// Left to the slow path.
    pub punt: f64,
    /// Dropped.
    pub drop: f64,
    /// Those left to the slow path by reason; reasons without any are left out.
    pub punts: BTreeMap<String, f64>,
    /// The dropped ones by reason; reasons without any are left out.
    pub drops: BTreeMap<String, f64>,
}
