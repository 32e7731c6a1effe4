//! The configuration file: TOML in, a [`Config`] that cannot be wrong out.
//!
//! Three steps, each with its own module: `raw` gives TOML its shape, `check` gives it a meaning, `host` looks
//! whether this machine has what is named. Every mistake becomes one [`KeyError`], before anything is changed.

mod check;
mod host;
mod raw;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{Name, Spec};
pub(crate) use host::group_id;

/// Where the pins are unless the configuration says otherwise.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/eipnat";

/// Where the daemon's socket is unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/eipnat/api.sock";

/// Most requests a second unless the configuration says otherwise.
pub const DEFAULT_RATE: NonZeroU32 = NonZeroU32::new(2000).expect("not zero");

/// Where the store is unless the configuration says otherwise.
pub const DEFAULT_STORE_PATH: &str = "/var/lib/eipnat";

/// Most bindings that a node can be configured for.
pub const MAX_BINDINGS: u32 = 1 << 24;

/// Longest that an EIP can be configured to stay active that carries nothing.
pub const MAX_ACTIVE_WINDOW: Duration = Duration::from_hours(24);

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What this node is called.
    pub node_name: Name,
    /// The XDP program's part.
    pub datapath: Datapath,
    /// Directory for durable state.
    pub store_path: PathBuf,
    /// The daemon's socket.
    pub api: Api,
    /// What `/metrics` tells, and where.
    pub metrics: Metrics,
    /// How the bill is kept.
    pub usage: Usage,
    /// Where public addresses come from (at least one pool, no two of them overlapping), and who may have how many.
    pub spec: Spec,
}

/// Interfaces and BPF state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// Interfaces that face the internet; at least one.
    pub uplinks: Vec<String>,
    /// Interfaces that face the VMs; at least one. One that is an uplink as well is one-armed.
    pub downlinks: Vec<String>,
    /// How the XDP program is attached.
    pub mode: Mode,
    /// Most public addresses in use at one time; 1 to [`MAX_BINDINGS`].
    pub max_bindings: u32,
    /// Directory of the pinned maps, programs and links.
    pub pin_path: PathBuf,
    /// Whether the running program gives way to one that is the same. From the command line.
    pub replace_program: bool,
    /// Source of ICMP errors that private routers without a public address send (RFC 5508, REQ-5c).
    pub public_ip: Option<Ipv4Addr>,
    /// What the fast path cannot do.
    pub slow_path: SlowPath,
}

/// What the fast path cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlowPath {
    /// Whether there is one. Without it the kernel's own stack finishes what the fast path cannot, and nobody is answered.
    pub enabled: bool,
    /// Most packets a second that an interface sends there for one reason. As many may come at once.
    pub rate: NonZeroU32,
    /// Most ICMP errors of a kind that the node makes, a second.
    pub icmp_rate: NonZeroU32,
    /// Most of them to one destination.
    pub icmp_rate_to_one: NonZeroU32,
    /// The CPU that its thread stays on; the last if there is none.
    pub cpu: Option<u32>,
    /// Whether drivers that can do it write into the sockets' memory. It makes the fast path copy what it forwards.
    pub zero_copy: bool,
}

impl Default for SlowPath {
    fn default() -> Self {
        const fn rate(rate: u32) -> NonZeroU32 {
            NonZeroU32::new(rate).expect("not zero")
        }
        Self {
            enabled: true,
            rate: rate(1000),
            icmp_rate: rate(1000),
            icmp_rate_to_one: rate(100),
            cpu: None,
            zero_copy: false,
        }
    }
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native, else generic and a warning.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic receive path.
    Generic,
}

/// What `/metrics` tells, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Where it is served.
    pub listen: SocketAddr,
    /// Whose traffic it tells.
    pub series: Series,
    /// How long an EIP stays active that carries nothing.
    pub active_window: Duration,
}

/// Whose traffic `/metrics` tells. Prometheus keeps four series for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// Every EIP's and every account's.
    All,
    /// That of EIPs that are active, and every account's.
    Active,
    /// Every account's.
    Account,
    /// Nobody's.
    None,
}

/// How the bill is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How long a record is at most; they begin anew at whole multiples of it, UTC.
    pub interval: Duration,
    /// How long records are kept.
    pub retention: Duration,
}

impl Default for Usage {
    fn default() -> Self {
        Self { interval: Duration::from_hours(1), retention: Duration::from_hours(90 * 24) }
    }
}

/// The daemon's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Where it is.
    pub socket: PathBuf,
    /// The group that may use it, besides root.
    pub group: Option<String>,
    /// Most requests a second.
    pub rate: NonZeroU32,
}

impl Config {
    /// Reads a configuration file and checks it as far as that goes without a look at the machine.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            KeyError::new("file", format!("cannot be read: {error}; name a readable TOML file with --config"))
        })?;
        check::config(raw::parse(&text)?)
    }

    /// [`Config::read`]s a file, and checks that this machine has the interfaces and the group that it names.
    ///
    /// # Errors
    /// The first mistake.
    pub fn load(file: &Path) -> Result<Self, KeyError> {
        let mut config = Self::read(file)?;
        host::check(&mut config)?;
        Ok(config)
    }
}

/// A mistake in the configuration. It prints as `KEY: what is wrong; how to mend it`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what_and_mend}")]
pub struct KeyError {
    /// Where it is: a dotted key such as `pool[0].cidrs`, a line of the file, or the file itself.
    pub key: String,
    /// What is wrong; how to mend it.
    pub what_and_mend: String,
}

impl KeyError {
    /// A mistake at `key`.
    pub fn new(key: impl Into<String>, what_and_mend: impl Into<String>) -> Self {
        Self { key: key.into(), what_and_mend: what_and_mend.into() }
    }
}
