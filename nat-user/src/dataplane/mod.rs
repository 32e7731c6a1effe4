//! What the daemon can ask of a datapath. There are two: the BPF maps ([`xdp`]) and one in memory for tests
//! ([`memory`]).

pub mod memory;
pub mod slow_path;
pub mod trace;
pub mod trial;
pub mod xdp;

use std::collections::HashSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use nat_common::abi::Meter;
use nat_common::verdict::{Punt, Reject};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::trace::Tracer;
use self::trial::Trials;
pub(crate) use self::xdp::may_be_public;

/// A public address that stands for a private one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Binding {
    /// The public address: an EIP or a dynamic public IP.
    pub public_ip: Ipv4Addr,
    /// The private address space; 0 is the plain, untagged network.
    pub tenant: u32,
    /// The VM's address in it.
    pub private_ip: Ipv4Addr,
    /// Index of the counters that the binding's traffic is billed on.
    pub meter: u32,
}

/// One direction of a [`Binding`] as it stands in the datapath. The two are separate map entries, so a crash
/// between them leaves one: reconciliation has to see that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Half {
    /// Public to private.
    Inbound(Binding),
    /// Private to public.
    Outbound(Binding),
}

impl Half {
    /// The binding that it is a half of.
    #[must_use]
    pub const fn binding(&self) -> Binding {
        let (Self::Inbound(binding) | Self::Outbound(binding)) = *self;
        binding
    }
}

/// Where a look at all halves goes on, inbound ones first. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether all inbound ones have been looked at.
    pub is_outbound: bool,
    /// Where among those of a kind; 0 is the beginning, and the rest the datapath's own affair.
    pub at: u32,
}

impl Place {
    /// Where it goes on behind some halves of a kind; `at`: behind them, if there are more.
    const fn after(self, at: Option<u32>) -> Option<Self> {
        match (at, self.is_outbound) {
            (Some(at), is_outbound) => Some(Self { is_outbound, at }),
            (None, false) => Some(Self { is_outbound: true, at: 0 }),
            (None, true) => None,
        }
    }
}

/// How an interface serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Faces the internet.
    Uplink,
    /// Faces the VMs.
    Downlink,
    /// Both: one-armed.
    Both,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uplink => "uplink",
            Self::Downlink => "downlink",
            Self::Both => "both",
        })
    }
}

/// How the XDP program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's generic receive path: slower, works with every driver.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The interface's name.
    pub name: String,
    /// How it serves.
    pub role: Role,
    /// How the program runs on it.
    pub mode: Mode,
}

/// What [`Dataplane::mend`] has come to, in words for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// What was not as it has to be, and is again.
    pub repaired: Vec<String>,
    /// What is not as it has to be and stays so, and what to do about it.
    pub problems: Vec<String>,
}

/// Packets by outcome, summed over all CPUs; each packet is counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Rewritten and sent on by the fast path.
    pub forward: u64,
    /// Left to the node's own stack.
    pub pass: u64,
    /// Handed on by the fast path, by reason.
    pub punts: Vec<(Punt, u64)>,
    /// Dropped, by reason; every reason is there, at zero too.
    pub drops: Vec<(Reject, u64)>,
}

/// Packets that were dropped for one reason, of those that concern a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressDrops {
    /// Why.
    pub reason: Reject,
    /// How many.
    pub packets: u64,
    /// How long ago the last one was.
    pub last: Duration,
}

/// How many halves are read at a time.
pub const AT_ONCE: u32 = 16 * 1024;

/// Whom a meter counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A binding that is desired.
    Binding(Binding),
    /// A public address whose binding has ended, until the meter is read for the last time.
    Closing(Ipv4Addr),
}

/// Whom a meter counts for, if anybody.
pub type Owners<'a> = dyn Fn(u32) -> Option<Owner> + 'a;

/// The forwarding plane, seen from the control plane.
///
/// Only [`crate::reconcile`] calls the methods that change bindings.
#[expect(
    clippy::missing_errors_doc,
    reason = "every method fails where the kernel refuses its map operation"
)]
pub trait Dataplane: Trials + Send {
    /// About `count` half bindings of one kind that stand in the datapath, in no particular order, and where it goes on;
    /// `None` at the end. What stands from the first of a row of such looks to the last is seen.
    fn some_halves(&self, place: Place, count: u32) -> anyhow::Result<(Vec<Half>, Option<Place>)>;
    /// Shows every half binding that stands. What the datapath keeps beside them follows what is shown.
    fn survey(&mut self, see: &mut dyn FnMut(Half)) -> anyhow::Result<()> {
        let mut next = Some(Place::default());
        while let Some(place) = next {
            let (some, after) = self.some_halves(place, AT_ONCE)?;
            some.into_iter().for_each(&mut *see);
            next = after;
        }
        Ok(())
    }
    /// Whether any binding stands, or stood when an earlier daemon ended.
    fn serves(&self) -> anyhow::Result<bool>;
    /// The inbound half for a public address.
    fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>>;
    /// The outbound half for a private address.
    fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>>;
    /// Puts halves of one kind in, or replaces those with the same keys. Where it fails, some may be in.
    fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()>;
    /// Takes one half out; fine if it is not there.
    fn remove(&mut self, half: Half) -> anyhow::Result<()>;
    /// Returns when no packet is under way that has seen the bindings as they were before the call.
    fn quiesce(&mut self) -> anyhow::Result<()>;
    /// Lets packets meet the bindings. Called once, when all of them stand; what an earlier daemon left has forwarded
    /// until now. Of what an earlier daemon's maps have counted, only that is carried over which is its meter's owner's: a
    /// restored store may have given the meter to another one.
    fn activate(&mut self, owners: &Owners<'_>) -> anyhow::Result<()>;
    /// Compares what the datapath stands on with what it has to be, and mends it: interfaces, the program on them, their
    /// settings, every map except for the bindings.
    fn mend(&mut self) -> anyhow::Result<Mended>;
    /// Counters of the given meters, summed over all CPUs, in the same order.
    fn meters(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>>;
    /// The bindings that stood when an earlier daemon ended, in maps that are not those of today.
    fn earlier(&self) -> anyhow::Result<HashSet<Binding>> {
        Ok(HashSet::new())
    }
    /// As [`Dataplane::meters`], before [`Dataplane::activate`] has carried over what earlier maps have counted: with it.
    fn last_readings(&self, meters: &[u32]) -> anyhow::Result<Vec<Meter>> {
        self.meters(meters)
    }
    /// Sets a meter to zero, before its first use.
    fn reset_meter(&mut self, meter: u32) -> anyhow::Result<()>;
    /// What the meters are told from others by, which began at zero at another time.
    fn meters_id(&self) -> [u8; 16];
    /// The drops that are remembered of a public address, whether it is bound or not; the longest ago are forgotten first.
    fn drops(&self, address: Ipv4Addr) -> anyhow::Result<Vec<AddressDrops>>;
    /// Forgets those of all these addresses: they have other holders. It takes as long for one as for a million.
    fn forget_drops(&mut self, addresses: &HashSet<Ipv4Addr>) -> anyhow::Result<()>;
    /// Packet counters by outcome.
    fn verdicts(&self) -> anyhow::Result<Verdicts>;
    /// How the slow path does.
    fn slow_path(&self) -> anyhow::Result<slow_path::Report>;
    /// The interfaces that the program is attached to.
    fn ports(&self) -> Vec<Port>;
    /// How many bindings there is room for.
    fn capacity(&self) -> u32;
    /// Its reports of packets, once.
    fn take_tracer(&mut self) -> Option<Box<dyn Tracer>>;
}
