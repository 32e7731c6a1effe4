//! The bill as JSON.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::model::{Carried, Name};
use crate::store::Query;
use crate::usage::{Payer, Record, Seconds, seconds};

/// What a public address has carried for somebody, from one time to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// The public address.
    #[schema(value_type = String, format = Ipv4)]
    pub eip: Ipv4Addr,
    /// Who pays.
    pub account: Name,
    /// The VM that it stood for, if it had a name.
    pub vm: Option<Name>,
    /// From when on.
    #[schema(value_type = String, format = DateTime)]
    pub from: Instant,
    /// Until when; a record that is under way goes on from there.
    #[schema(value_type = String, format = DateTime)]
    pub to: Instant,
    /// Bytes towards the VM: IPv4 total lengths.
    pub in_bytes: u64,
    /// Packets towards the VM.
    pub in_packets: u64,
    /// Bytes towards the internet: IPv4 total lengths.
    pub out_bytes: u64,
    /// Packets towards the internet.
    pub out_packets: u64,
}

impl From<Record> for UsageRow {
    fn from(Record { payer: Payer { address, account, vm }, begin, end, carried }: Record) -> Self {
        let Carried { in_bytes, in_packets, out_bytes, out_packets } = carried;
        let (from, to) = (Instant(begin), Instant(end));
        Self { eip: address, account, vm, from, to, in_bytes, in_packets, out_bytes, out_packets }
    }
}

/// Some records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsagePage {
    /// The records. Those that are under way are all on the first page, the others follow in the order of their beginnings.
    pub rows: Vec<UsageRow>,
    /// What to ask for with `after` to get the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Those of this public address.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eip: Option<Ipv4Addr>,
    /// Those that this account pays for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Name>,
    /// Those that begin then or later (RFC 3339, UTC).
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Instant>,
    /// Those that begin earlier than that.
    #[param(value_type = Option<String>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Instant>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl From<&UsageQuery> for Query {
    fn from(UsageQuery { eip, account, from, to, .. }: &UsageQuery) -> Self {
        let from = from.map_or(0, |Instant(from)| from);
        Self { eip: *eip, account: account.clone(), from, to: to.map(|Instant(to)| to) }
    }
}

/// A second in time, as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Instant(pub Seconds);

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last that can be written is far off.
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.min(253_402_300_799));
        humantime::format_rfc3339_seconds(time).fmt(f)
    }
}

impl From<Instant> for String {
    fn from(instant: Instant) -> Self {
        instant.to_string()
    }
}

impl FromStr for Instant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = humantime::parse_rfc3339_weak(text).or_else(|_| {
            let midnight = format!("{text}T00:00:00Z");
            humantime::parse_rfc3339(&midnight)
        });
        let ago = || humantime::parse_duration(text).ok().and_then(|ago| SystemTime::now().checked_sub(ago));
        time.ok().or_else(ago).map(|time| Self(seconds(time))).ok_or_else(|| {
            format!(
                "{text:?} is no time; write it in UTC as in 2026-01-31T12:00:00Z or 2026-01-31, or how long ago as in 24h"
            )
        })
    }
}

impl TryFrom<String> for Instant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
