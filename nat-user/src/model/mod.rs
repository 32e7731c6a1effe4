//! The desired state: pools, EIPs and what they are attached to.
//!
//! **Invariant:** nothing in here does I/O or looks at a clock; time is passed in. [`Model::plan`] decides what a
//! command changes without changing it, [`crate::store::Store::commit`] makes that durable, and only then
//! `Model::apply` shows it.

mod meters;
mod name;
mod pool;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use ipnet::Ipv4Net;

use crate::dataplane::Binding;
use meters::Meters;
pub use name::{Name, NameError, Target};
use pool::Pool;
pub use pool::PoolSpec;
pub use refusal::{Kind, Refusal};

/// The plain, untagged network.
const TENANT: u32 = 0;

/// Addresses that are never a VM's nor handed out, with what they are instead.
const UNUSABLE: [(Ipv4Net, &str); 5] = [
    (range(0, 0, 8), "0.0.0.0/8 (\"this network\")"),
    (range(127, 0, 8), "127.0.0.0/8 (loopback)"),
    (range(169, 254, 16), "169.254.0.0/16 (link-local)"),
    (range(224, 0, 4), "224.0.0.0/4 (multicast)"),
    (range(240, 0, 4), "240.0.0.0/4 (reserved)"),
];

const fn range(first: u8, second: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), prefix)
}

/// The first range that `net` overlaps whose addresses are never a VM's nor handed out.
#[must_use]
pub fn unusable(net: Ipv4Net) -> Option<&'static str> {
    UNUSABLE.iter().find(|(range, _)| range.contains(&net) || net.contains(range)).map(|(_, what)| *what)
}

/// A public address that an account holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eip {
    /// The public address.
    pub address: Ipv4Addr,
    /// The pool that it is from.
    pub pool: Name,
    /// Who holds it.
    pub account: Name,
    /// The counters that its traffic is billed on: its own from the first attach to the release.
    pub meter: Option<u32>,
    /// What it is attached to.
    pub private_ip: Option<Ipv4Addr>,
}

impl Eip {
    /// The binding that the datapath has to serve.
    #[must_use]
    pub fn binding(&self) -> Option<Binding> {
        let (private_ip, meter) = (self.private_ip?, self.meter?);
        Some(Binding { public_ip: self.address, tenant: TENANT, private_ip, meter })
    }
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// An account wants an EIP.
    Allocate {
        /// From this pool.
        pool: Option<Name>,
        /// This very address.
        address: Option<Ipv4Addr>,
        /// The account.
        account: Option<Name>,
    },
    /// An EIP is to stand for a target. Fine if it does already.
    Attach(Ipv4Addr, Target),
    /// An EIP is to stand for nothing. Fine if it does not.
    Detach(Ipv4Addr),
    /// An EIP is given back.
    Release(Ipv4Addr),
}

/// What a command changes; only [`Model::plan`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address becomes an EIP.
    Allocate(Eip),
    /// An EIP is attached, detached, or (`before == after`) as it should be.
    Update {
        /// As it was.
        before: Eip,
        /// As it is to be.
        after: Eip,
    },
    /// An EIP goes back to its pool.
    Release {
        /// As it was.
        eip: Eip,
        /// When.
        at: SystemTime,
    },
}

impl Change {
    /// The EIP as it is to be; as it was, if it goes.
    #[must_use]
    pub const fn eip(&self) -> &Eip {
        match self {
            Self::Allocate(eip) | Self::Update { after: eip, .. } | Self::Release { eip, .. } => eip,
        }
    }

    /// Whether everything is so already.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Update { before, after } if before == after)
    }

    /// The meter that comes into use, if any.
    #[must_use]
    pub const fn new_meter(&self) -> Option<u32> {
        match self {
            Self::Update { before: Eip { meter: None, .. }, after } => after.meter,
            _ => None,
        }
    }

    /// The bindings that it concerns: what was bound, and what is to be.
    #[must_use]
    pub fn bindings(&self) -> (Option<Binding>, Option<Binding>) {
        match self {
            Self::Update { before, after } => (before.binding(), after.binding()),
            Self::Allocate(_) | Self::Release { .. } => (None, None),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Eip { address, pool, account, .. } = self.eip();
        match self {
            Self::Allocate(_) => write!(f, "{address} of pool {pool} allocated to account {account}"),
            Self::Release { .. } => write!(f, "{address} of account {account} released"),
            Self::Update { after: Eip { private_ip: Some(private_ip), .. }, .. } => {
                write!(f, "{address} attached to {private_ip}")
            }
            Self::Update { .. } => write!(f, "{address} detached"),
        }
    }
}

/// A pool in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage<'a> {
    /// The pool.
    pub spec: &'a PoolSpec,
    /// Addresses that it can hand out, all in all. The other three figures add up to it.
    pub size: u64,
    /// Addresses that are held.
    pub allocated: u64,
    /// Addresses that were given back and are not free again yet.
    pub cooling: u64,
    /// Addresses that can be had now.
    pub free: u64,
}

/// The desired state.
///
/// **Invariant:** every EIP is in one pool; bindings are 1:1 both ways; every bound EIP has a meter that no other has.
#[derive(Clone, Debug)]
pub struct Model {
    pools: Vec<Pool>,
    eips: BTreeMap<Ipv4Addr, Eip>,
    /// Private address -> EIP.
    bound: HashMap<Ipv4Addr, Ipv4Addr>,
    meters: Meters,
}

impl Model {
    /// Nothing held yet. `capacity` is how many meters the datapath has.
    #[must_use]
    pub fn new(pools: Vec<PoolSpec>, capacity: u32) -> Self {
        Self {
            pools: pools.into_iter().map(Pool::new).collect(),
            eips: BTreeMap::new(),
            bound: HashMap::new(),
            meters: Meters::new(capacity),
        }
    }

    /// Every EIP, by address.
    pub fn eips(&self) -> impl Iterator<Item = &Eip> {
        self.eips.values()
    }

    /// One EIP.
    ///
    /// # Errors
    /// If the address is nobody's.
    pub fn eip(&self, address: Ipv4Addr) -> Result<&Eip, Refusal> {
        self.eips.get(&address).ok_or(Refusal::UnknownEip(address))
    }

    /// Every binding that the datapath has to serve.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> {
        self.eips.values().filter_map(Eip::binding)
    }

    /// How many bindings there are.
    #[must_use]
    pub fn bound(&self) -> usize {
        self.bound.len()
    }

    /// Every pool in figures.
    pub fn pools(&self, now: SystemTime) -> impl Iterator<Item = PoolUsage<'_>> {
        self.pools.iter().map(move |pool| pool.usage(now))
    }

    /// What `command` would change now.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn plan(&self, command: &Command, now: SystemTime) -> Result<Change, Refusal> {
        match command {
            Command::Allocate { pool, address, account } => {
                self.plan_allocate(pool.as_ref(), *address, account.as_ref(), now)
            }
            Command::Attach(eip, target) => self.plan_attach(*eip, target),
            Command::Detach(eip) => {
                let before = self.eip(*eip)?.clone();
                Ok(Change::Update { after: Eip { private_ip: None, ..before.clone() }, before })
            }
            Command::Release(eip) => match self.eip(*eip)? {
                Eip { private_ip: Some(private_ip), .. } => {
                    Err(Refusal::Attached { eip: *eip, private_ip: *private_ip })
                }
                eip => Ok(Change::Release { eip: eip.clone(), at: now }),
            },
        }
    }

    fn plan_allocate(
        &self,
        pool: Option<&Name>,
        address: Option<Ipv4Addr>,
        account: Option<&Name>,
        now: SystemTime,
    ) -> Result<Change, Refusal> {
        let named =
            pool.map(|name| self.pool(name).ok_or_else(|| Refusal::UnknownPool(name.clone()))).transpose()?;
        let (pool, address) = if let Some(address) = address {
            (self.wanted(address, named, now)?, address)
        } else {
            let pool = named.or_else(|| self.default_pool()).ok_or(Refusal::WhichPool)?;
            (pool, pool.next(now)?)
        };
        let account = account.cloned().unwrap_or_else(Name::default_one);
        Ok(Change::Allocate(Eip {
            address,
            pool: pool.spec.name.clone(),
            account,
            meter: None,
            private_ip: None,
        }))
    }

    /// The pool of an address that was asked for by itself, if it can be had.
    fn wanted<'a>(
        &'a self,
        address: Ipv4Addr,
        named: Option<&'a Pool>,
        now: SystemTime,
    ) -> Result<&'a Pool, Refusal> {
        let pool = self.pool_of(address).ok_or(Refusal::InNoPool(address))?;
        if let Some(named) = named.filter(|named| named.spec.name != pool.spec.name) {
            let (actual, wanted) = (pool.spec.name.clone(), named.spec.name.clone());
            return Err(Refusal::InOtherPool { address, actual, wanted });
        }
        if let Some(holder) = self.eips.get(&address) {
            return Err(Refusal::Held { address, account: holder.account.clone() });
        }
        pool.check(address, now)?;
        Ok(pool)
    }

    fn plan_attach(&self, eip: Ipv4Addr, target: &Target) -> Result<Change, Refusal> {
        let before = self.eip(eip)?.clone();
        let private_ip = match target {
            Target::PrivateIp(private_ip) => *private_ip,
            Target::Vm(name) => return Err(Refusal::UnknownVm(name.clone())),
        };
        if before.private_ip == Some(private_ip) {
            return Ok(Change::Update { after: before.clone(), before });
        }
        if let Some(range) = unusable(private_ip.into()) {
            return Err(Refusal::Unusable { private_ip, range });
        }
        if let Some(pool) = self.pool_of(private_ip) {
            return Err(Refusal::NotPrivate { private_ip, pool: pool.spec.name.clone() });
        }
        if let Some(private_ip) = before.private_ip {
            return Err(Refusal::Attached { eip, private_ip });
        }
        if let Some(&eip) = self.bound.get(&private_ip) {
            return Err(Refusal::PrivateIpBound { private_ip, eip });
        }
        let meter =
            before.meter.or_else(|| self.meters.next()).ok_or(Refusal::NoRoom(self.meters.capacity))?;
        let after = Eip { private_ip: Some(private_ip), meter: Some(meter), ..before.clone() };
        Ok(Change::Update { before, after })
    }

    /// Carries a change out. It must come from [`Model::plan`] of this very state.
    pub(crate) fn apply(&mut self, change: Change) {
        if change.new_meter().is_some() {
            self.meters.take_next();
        }
        match change {
            Change::Allocate(eip) => {
                self.pool_mut(&eip.pool).take(eip.address);
                self.eips.insert(eip.address, eip);
            }
            Change::Update { before, after } => {
                if let Some(private_ip) = before.private_ip {
                    self.bound.remove(&private_ip);
                }
                if let Some(private_ip) = after.private_ip {
                    self.bound.insert(private_ip, after.address);
                }
                self.eips.insert(after.address, after);
            }
            Change::Release { eip, at } => {
                self.meters.returned.extend(eip.meter);
                self.pool_mut(&eip.pool).give_back(eip.address, at);
                self.eips.remove(&eip.address);
            }
        }
    }

    fn pool(&self, name: &Name) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.spec.name == *name)
    }

    fn pool_mut(&mut self, name: &Name) -> &mut Pool {
        let pool = self.pools.iter_mut().find(|pool| pool.spec.name == *name);
        pool.expect("a change names a pool of the model that planned it")
    }

    fn pool_of(&self, address: Ipv4Addr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.spec.contains(address))
    }

    fn default_pool(&self) -> Option<&Pool> {
        let only = if let [only] = self.pools.as_slice() { Some(only) } else { None };
        self.pool(&Name::default_one()).or(only)
    }
}
