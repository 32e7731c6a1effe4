//! What the file means: defaults, ranges, and the rules that span several keys.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use super::{
    Api, Config, DEFAULT_PIN_PATH, DEFAULT_RATE, DEFAULT_SOCKET, DEFAULT_STORE_PATH, Datapath, KeyError,
    MAX_ACTIVE_WINDOW, MAX_BINDINGS, Metrics, Mode, Series, SlowPath, Usage, raw,
};
use crate::model::{Name, PoolSpec, Quota, Spec, unusable};

type Result<T> = std::result::Result<T, KeyError>;

/// Longest path that a Unix socket can have, in bytes (`sun_path` without its final zero).
const MAX_SOCKET_PATH: usize = 107;
/// Most uplinks and downlinks together.
const MAX_INTERFACES: usize = 64;
/// Most CIDRs and reserved addresses of all pools together.
const MAX_POOL_ENTRIES: usize = 1024;
/// Shortest interval of the ledger.
const MIN_INTERVAL: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);
/// Ten years.
const MAX_RETENTION: Duration = Duration::from_hours(87_660);
/// More would be no protection: a packet takes some microseconds there.
const MAX_SLOW_RATE: u32 = 100_000;

/// kernel: `CONFIG_NR_CPUS` is nowhere more.
const MAX_CPUS: u32 = 8192;

const MAX_REUSE_DELAY: Duration = Duration::from_hours(365 * 24);

/// Gives the file its meaning.
pub(super) fn config(raw: raw::Raw) -> Result<Config> {
    let pools = pools(raw.pool)?;
    let quotas = quotas(raw.account)?;
    let default_quota = quota("quota", raw.quota.eips, raw.quota.vms)?;
    let public_ip = raw.node.public_ip.map(|text| public_ip(&text, &pools)).transpose()?;
    Ok(Config {
        node_name: name("node.name", raw.node.name.as_deref().unwrap_or("nat-1"))?,
        datapath: datapath(raw.datapath, slow_path(&raw.slow_path)?, public_ip)?,
        store_path: absolute("store.path", raw.store.path, DEFAULT_STORE_PATH)?,
        api: api(raw.api)?,
        metrics: metrics(&raw.metrics)?,
        usage: usage(&raw.usage)?,
        spec: Spec { pools, default_quota, quotas },
    })
}

fn datapath(raw: raw::Datapath, slow_path: SlowPath, public_ip: Option<Ipv4Addr>) -> Result<Datapath> {
    interfaces("datapath.uplinks", &raw.uplinks, "internet")?;
    interfaces("datapath.downlinks", &raw.downlinks, "VMs")?;
    let count = raw.uplinks.iter().chain(&raw.downlinks).collect::<BTreeSet<_>>().len();
    if count > MAX_INTERFACES {
        let what =
            format!("{count} interfaces with the uplinks; a node can have {MAX_INTERFACES}: name fewer");
        return Err(KeyError::new("datapath.downlinks", what));
    }
    let mode = match raw.mode.as_deref() {
        None | Some("auto") => Mode::Auto,
        Some("native") => Mode::Native,
        Some("generic") => Mode::Generic,
        Some(other) => {
            let what = format!(r#""{other}" is not a mode; write "auto", "native" or "generic""#);
            return Err(KeyError::new("datapath.mode", what));
        }
    };
    let wanted = raw.max_bindings.unwrap_or(1 << 20);
    let max_bindings =
        u32::try_from(wanted).ok().filter(|max| (1..=MAX_BINDINGS).contains(max)).ok_or_else(|| {
            let what = format!("{wanted} is out of range; write a number from 1 to {MAX_BINDINGS}");
            KeyError::new("datapath.max_bindings", what)
        })?;
    Ok(Datapath {
        uplinks: raw.uplinks,
        downlinks: raw.downlinks,
        mode,
        max_bindings,
        pin_path: absolute("datapath.pin_path", raw.pin_path, DEFAULT_PIN_PATH)?,
        public_ip,
        slow_path,
        replace_program: false,
    })
}

fn slow_path(raw: &raw::SlowPath) -> Result<SlowPath> {
    let default = SlowPath::default();
    let rate = |key: &str, wanted: Option<i64>, default: NonZeroU32, most: u32| {
        let wanted = wanted.unwrap_or(default.get().into());
        let rate = u32::try_from(wanted).ok().filter(|rate| *rate <= most).and_then(NonZeroU32::new);
        rate.ok_or_else(|| {
            let what = format!("{wanted} is out of range; write packets a second, from 1 to {most}");
            KeyError::new(format!("slow_path.{key}"), what)
        })
    };
    let cpu = raw.cpu.map(|cpu| {
        u32::try_from(cpu).ok().filter(|cpu| *cpu < MAX_CPUS).ok_or_else(|| {
            let what = format!(
                "{cpu} is no CPU; write the number of one, as in /proc/cpuinfo, or leave the key out"
            );
            KeyError::new("slow_path.cpu", what)
        })
    });
    Ok(SlowPath {
        enabled: raw.enabled.unwrap_or(default.enabled),
        rate: rate("rate", raw.rate, default.rate, MAX_SLOW_RATE)?,
        icmp_rate: rate("icmp_rate", raw.icmp_rate, default.icmp_rate, MAX_SLOW_RATE)?,
        icmp_rate_to_one: rate(
            "icmp_rate_to_one",
            raw.icmp_rate_to_one,
            default.icmp_rate_to_one,
            MAX_SLOW_RATE,
        )?,
        cpu: cpu.transpose()?,
        zero_copy: raw.zero_copy.unwrap_or(default.zero_copy),
    })
}

fn interfaces(key: &str, names: &[String], towards: &str) -> Result<()> {
    if names.is_empty() {
        let what = format!("missing; name at least one interface that faces the {towards}");
        return Err(KeyError::new(key, what));
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(KeyError::new(key, format!(r#""{twice}" is listed twice; list it once"#))),
        None => Ok(()),
    }
}

fn api(raw: raw::Api) -> Result<Api> {
    let socket = absolute("api.socket", raw.socket, DEFAULT_SOCKET)?;
    let length = socket.as_os_str().as_bytes().len();
    if length > MAX_SOCKET_PATH {
        let what = format!("a path of {length} bytes; a socket's may have {MAX_SOCKET_PATH}: shorten it");
        return Err(KeyError::new("api.socket", what));
    }
    let wanted = raw.rate.unwrap_or(DEFAULT_RATE.get().into());
    let rate = u32::try_from(wanted).ok().and_then(NonZeroU32::new).ok_or_else(|| {
        let what = format!(
            "{wanted} is out of range; write how many requests a second are answered, as in {DEFAULT_RATE}"
        );
        KeyError::new("api.rate", what)
    })?;
    Ok(Api { socket, group: raw.group, rate })
}

fn metrics(raw: &raw::Metrics) -> Result<Metrics> {
    let series = match raw.series.as_deref() {
        None | Some("all") => Series::All,
        Some("active") => Series::Active,
        Some("account") => Series::Account,
        Some("none") => Series::None,
        Some(other) => {
            let what =
                format!(r#""{other}" is no choice of series; write "all", "active", "account" or "none""#);
            return Err(KeyError::new("metrics.series", what));
        }
    };
    Ok(Metrics {
        listen: listen(raw.listen.as_deref().unwrap_or("127.0.0.1:9464"))?,
        series,
        active_window: duration(
            "metrics.active_window",
            raw.active_window.as_deref().unwrap_or("5m"),
            MAX_ACTIVE_WINDOW,
        )?,
    })
}

fn usage(raw: &raw::Usage) -> Result<Usage> {
    let default = Usage::default();
    let interval = raw.interval.as_deref().map(|text| duration("usage.interval", text, DAY)).transpose()?;
    let interval = interval.unwrap_or(default.interval);
    if interval < MIN_INTERVAL
        || !DAY.as_secs().is_multiple_of(interval.as_secs())
        || interval.subsec_nanos() > 0
    {
        let what = format!(
            "{} does not divide a day into whole parts of a minute or more; write it as in \"1h\"",
            humantime::format_duration(interval)
        );
        return Err(KeyError::new("usage.interval", what));
    }
    let retention = raw.retention.as_deref().map(|text| duration("usage.retention", text, MAX_RETENTION));
    Ok(Usage { interval, retention: retention.transpose()?.unwrap_or(default.retention) })
}

/// A duration above zero, up to `max`.
fn duration(key: &str, text: &str, max: Duration) -> Result<Duration> {
    let duration = humantime::parse_duration(text).ok();
    duration.filter(|duration| !duration.is_zero() && *duration <= max).ok_or_else(|| {
        let what = format!(
            r#""{text}" is not a duration up to {}; write it as in "60s", "5m" or "1h""#,
            humantime::format_duration(max)
        );
        KeyError::new(key, what)
    })
}

fn listen(text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        let what = format!(r#""{text}" is not an IP address and port; write it as in "127.0.0.1:9464""#);
        KeyError::new("metrics.listen", what)
    })
}

fn absolute(key: &str, text: Option<String>, default: &str) -> Result<PathBuf> {
    let path = PathBuf::from(text.unwrap_or_else(|| default.to_owned()));
    if path.is_absolute() && path.file_name().is_some() {
        return Ok(path);
    }
    let what =
        format!(r#""{}" is not an absolute path; write it from the root, as in "{default}""#, path.display());
    Err(KeyError::new(key, what))
}

fn name(key: &str, text: &str) -> Result<Name> {
    text.parse().map_err(|error| KeyError::new(key, format!("{error}; choose another")))
}

fn public_ip(text: &str, pools: &[PoolSpec]) -> Result<Ipv4Addr> {
    let key = "node.public_ip";
    let address = address(key, text)?;
    if let Some(range) = unusable(address.into()) {
        return Err(KeyError::new(
            key,
            format!("{address} is in {range}, which is never a node's; write one of this node's"),
        ));
    }
    match pools.iter().find(|pool| pool.contains(address) && !pool.reserve.contains(&address)) {
        Some(pool) => {
            let what = format!(
                r#"{address} is in pool "{}", where it may become a VM's; add it to the pool's reserve"#,
                pool.name
            );
            Err(KeyError::new(key, what))
        }
        None => Ok(address),
    }
}

fn pools(raw: Vec<raw::Pool>) -> Result<Vec<PoolSpec>> {
    let count: usize = raw.iter().map(|pool| pool.cidrs.len() + pool.reserve.len()).sum();
    if raw.is_empty() {
        return Err(KeyError::new("pool", "missing; add a [[pool]] with name and cidrs"));
    }
    if count > MAX_POOL_ENTRIES {
        let what = format!(
            "{count} cidrs and reserved addresses; a node can have {MAX_POOL_ENTRIES}: join neighbouring ones"
        );
        return Err(KeyError::new("pool", what));
    }
    let pools: Vec<PoolSpec> = raw
        .into_iter()
        .enumerate()
        .map(|(index, raw)| pool(&format!("pool[{index}]"), raw))
        .collect::<Result<_>>()?;
    let mut names = BTreeSet::new();
    for (index, pool) in pools.iter().enumerate() {
        if !names.insert(&pool.name) {
            let what = format!(r#"a second pool "{}"; give each pool its own name"#, pool.name);
            return Err(KeyError::new(format!("pool[{index}].name"), what));
        }
    }
    no_overlap(&pools)?;
    Ok(pools)
}

fn quotas(raw: Vec<raw::Account>) -> Result<BTreeMap<Name, Quota>> {
    let mut quotas = BTreeMap::new();
    for (index, account) in raw.into_iter().enumerate() {
        let key = format!("account[{index}]");
        let Some(text) = account.name else {
            return Err(KeyError::new(
                format!("{key}.name"),
                r#"missing; name the account, as in name = "acme""#,
            ));
        };
        let name = name(&format!("{key}.name"), &text)?;
        if quotas.insert(name, quota(&key, account.eips, account.vms)?).is_some() {
            let what = format!(r#"a second account "{text}"; say everything about it in one place"#);
            return Err(KeyError::new(format!("{key}.name"), what));
        }
    }
    Ok(quotas)
}

fn quota(key: &str, eips: Option<i64>, vms: Option<i64>) -> Result<Quota> {
    let number = |of: &str, wanted: Option<i64>| {
        wanted
            .map(|wanted| {
                u64::try_from(wanted).map_err(|_| {
                    let what = format!("{wanted} is below zero; write how many an account may have");
                    KeyError::new(format!("{key}.{of}"), what)
                })
            })
            .transpose()
    };
    Ok(Quota { eips: number("eips", eips)?, vms: number("vms", vms)? })
}

fn pool(key: &str, raw: raw::Pool) -> Result<PoolSpec> {
    let name_key = format!("{key}.name");
    let Some(text) = raw.name else {
        return Err(KeyError::new(name_key, r#"missing; name the pool, as in name = "default""#));
    };
    let name = name(&name_key, &text)?;
    let cidrs_key = format!("{key}.cidrs");
    if raw.cidrs.is_empty() {
        return Err(KeyError::new(
            cidrs_key,
            r#"missing; write at least one, as in cidrs = ["203.0.113.0/24"]"#,
        ));
    }
    let mut cidrs = raw.cidrs.iter().map(|text| cidr(&cidrs_key, text)).collect::<Result<Vec<_>>>()?;
    cidrs.sort_unstable();
    let reserve_key = format!("{key}.reserve");
    let mut reserve = BTreeSet::new();
    for text in &raw.reserve {
        let address = address(&reserve_key, text)?;
        if !cidrs.iter().any(|cidr| cidr.contains(&address)) {
            return Err(KeyError::new(
                reserve_key,
                format!("{address} is not in this pool's cidrs; remove or correct it"),
            ));
        }
        reserve.insert(address);
    }
    let reuse_delay = delay(&format!("{key}.reuse_delay"), raw.reuse_delay.as_deref().unwrap_or("60s"))?;
    Ok(PoolSpec { name, cidrs, reserve, reuse_delay })
}

fn delay(key: &str, text: &str) -> Result<Duration> {
    let mistake =
        |what: &str| KeyError::new(key, format!(r#""{text}" is {what}; write it as in "60s" or "24h""#));
    let delay = humantime::parse_duration(text).map_err(|_| mistake("not a duration"))?;
    if delay > MAX_REUSE_DELAY { Err(mistake("more than a year")) } else { Ok(delay) }
}

fn address(key: &str, text: &str) -> Result<Ipv4Addr> {
    text.parse().map_err(|_| {
        KeyError::new(key, format!(r#""{text}" is not an IPv4 address; write it as in "203.0.113.1""#))
    })
}

fn cidr(key: &str, text: &str) -> Result<Ipv4Net> {
    let mistake = |what: String| Err(KeyError::new(key, format!(r#""{text}" {what}"#)));
    let Ok(net) = text.parse::<Ipv4Net>() else {
        return mistake(match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!(r#"has no prefix length; write "{text}/32" for the one address"#),
            _ => r#"is not an IPv4 CIDR; write it as in "203.0.113.0/24""#.to_owned(),
        });
    };
    if net != net.trunc() {
        return mistake(format!(
            r#"has host bits; write "{}", or "{}/32" for the one address"#,
            net.trunc(),
            net.addr()
        ));
    }
    match unusable(net) {
        Some(range) => {
            mistake(format!("overlaps {range}, which is never routed; write addresses that are yours"))
        }
        None => Ok(net),
    }
}

/// CIDRs nest or are disjoint, so in sorted order an overlap shows between neighbours.
fn no_overlap(pools: &[PoolSpec]) -> Result<()> {
    let mut all: Vec<(Ipv4Net, usize)> = Vec::new();
    for (index, pool) in pools.iter().enumerate() {
        all.extend(pool.cidrs.iter().map(|cidr| (*cidr, index)));
    }
    all.sort_unstable();
    for pair in all.windows(2) {
        let [(outer, first), (inner, second)] = [pair[0], pair[1]];
        if outer.contains(&inner) {
            let ((here, index), (there, other)) = if first > second {
                ((outer, first), (inner, second))
            } else {
                ((inner, second), (outer, first))
            };
            let of = if index == other {
                "the same pool".to_owned()
            } else {
                format!(r#"pool "{}""#, pools[other].name)
            };
            let what = format!(
                "{here} overlaps {there} of {of}; an address can be there only once: remove one of them"
            );
            return Err(KeyError::new(format!("pool[{index}].cidrs"), what));
        }
    }
    Ok(())
}
