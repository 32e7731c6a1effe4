//! The desired state: pools, accounts, VMs, EIPs and what they are attached to.
//!
//! **Invariant:** nothing in here does I/O or looks at a clock; time is passed in. [`Model::plan`] decides what a
//! command changes without changing it, [`crate::store::Store::commit`] makes that durable, and only then
//! `Model::apply` shows it.

mod bindings;
mod draft;
mod import;
mod meters;
mod name;
mod plan;
mod pool;
mod records;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::time::SystemTime;

use ipnet::Ipv4Net;

use crate::dataplane::Binding;
use crate::usage::Payer;
pub use bindings::Bindings;
pub use import::{ImportError, Line};
use meters::Meters;
pub use name::{Name, NameError, Target};
pub use plan::{Allocation, Command};
use pool::Pool;
pub use pool::PoolSpec;
pub use records::{
    Attachment, Carried, Change, Closing, Edit, Eip, Past, PublicIp, Record, Returned, Subject, Vm,
};
pub use refusal::{Kind, Refusal};

/// How many meters a datapath with room for so many bindings has: a binding that takes another's place begins to count
/// while the old one's meter is still to be read.
#[must_use]
pub const fn meters(bindings: u32) -> u32 {
    bindings.saturating_add(SPARE_METERS)
}

const SPARE_METERS: u32 = 64;

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

/// A pool in figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage<'a> {
    /// The pool.
    pub spec: &'a PoolSpec,
    /// Addresses that it can hand out, all in all. The other three figures add up to it.
    pub size: u64,
    /// Addresses that are held: EIPs, and VMs' public IPs.
    pub allocated: u64,
    /// Addresses that were given back and are not free again yet.
    pub cooling: u64,
    /// Addresses that can be had now.
    pub free: u64,
}

/// How much an account may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// EIPs; `None`: any number.
    pub eips: Option<u64>,
    /// VMs; `None`: any number.
    pub vms: Option<u64>,
}

/// What the configuration says about the desired state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// The pools.
    pub pools: Vec<PoolSpec>,
    /// What an account may have that is not in `quotas`.
    pub default_quota: Quota,
    /// What certain accounts may have.
    pub quotas: BTreeMap<Name, Quota>,
}

/// What an account has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holdings {
    eips: u64,
    vms: u64,
}

/// The desired state.
///
/// **Invariant:** bindings are 1:1 both ways; every binding has a meter that no other has; an address of a pool is
/// held by one, waits to be free again, or is free.
#[derive(Clone, Debug)]
pub struct Model {
    pools: Vec<Pool>,
    default_quota: Quota,
    quotas: BTreeMap<Name, Quota>,
    /// How many bindings there may be.
    capacity: u32,
    eips: BTreeMap<Ipv4Addr, Box<Eip>>,
    /// EIPs by account and the account's own name for them.
    requests: HashMap<(Name, Name), Ipv4Addr>,
    vms: BTreeMap<Name, Box<Vm>>,
    vm_names: HashMap<Ipv4Addr, Name>,
    /// Every binding that the datapath has to serve.
    bindings: Bindings,
    /// The meter of each of them, by private address.
    bound: HashMap<Ipv4Addr, u32>,
    /// VMs without the public IP that they should have, in the order of their turn.
    waiting: BTreeSet<(SystemTime, Name)>,
    closing: BTreeMap<u32, Closing>,
    accounts: BTreeMap<Name, Holdings>,
    meters: Meters,
}

impl Model {
    /// Nothing held yet. `capacity` is how many bindings the datapath has room for.
    #[must_use]
    pub fn new(spec: Spec, capacity: u32) -> Self {
        Self {
            pools: spec.pools.into_iter().map(Pool::new).collect(),
            default_quota: spec.default_quota,
            quotas: spec.quotas,
            capacity,
            eips: BTreeMap::new(),
            requests: HashMap::new(),
            vms: BTreeMap::new(),
            vm_names: HashMap::new(),
            bindings: Bindings::default(),
            bound: HashMap::new(),
            waiting: BTreeSet::new(),
            closing: BTreeMap::new(),
            accounts: BTreeMap::new(),
            meters: Meters::new(meters(capacity)),
        }
    }

    /// Every EIP, by address.
    pub fn eips(&self) -> impl Iterator<Item = &Eip> {
        self.eips.values().map(|eip| &**eip)
    }

    /// EIPs by address, from one on.
    pub fn eips_from(&self, address: Ipv4Addr) -> impl Iterator<Item = &Eip> {
        self.eips.range(address..).map(|(_, eip)| &**eip)
    }

    /// One EIP.
    ///
    /// # Errors
    /// If the address is nobody's.
    pub fn eip(&self, address: Ipv4Addr) -> Result<&Eip, Refusal> {
        self.held(address).ok_or(Refusal::UnknownEip(address))
    }

    fn held(&self, address: Ipv4Addr) -> Option<&Eip> {
        self.eips.get(&address).map(|eip| &**eip)
    }

    /// The EIP that an account has got by a name of its own.
    fn requested(&self, account: &Name, request: Option<&Name>) -> Option<&Eip> {
        self.held(*self.requests.get(&(account.clone(), request?.clone()))?)
    }

    /// Every VM, by name.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values().map(|vm| &**vm)
    }

    /// VMs by name, from one on.
    pub fn vms_from(&self, name: Option<&Name>) -> impl Iterator<Item = &Vm> {
        let from = name.map_or(Bound::Unbounded, Bound::Included);
        self.vms.range::<Name, _>((from, Bound::Unbounded)).map(|(_, vm)| &**vm)
    }

    /// One VM.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn vm(&self, name: &Name) -> Result<&Vm, Refusal> {
        self.vms.get(name).map(|vm| &**vm).ok_or_else(|| Refusal::UnknownVm(name.clone()))
    }

    /// The VM that has a private address.
    #[must_use]
    pub fn vm_at(&self, private_ip: Ipv4Addr) -> Option<&Vm> {
        self.vms.get(self.vm_names.get(&private_ip)?).map(|vm| &**vm)
    }

    /// The EIP that stands for a private address.
    #[must_use]
    pub fn eip_of(&self, private_ip: Ipv4Addr) -> Option<&Eip> {
        self.held(self.bindings.get(*self.bound.get(&private_ip)?)?.public_ip)
    }

    /// Every binding that the datapath has to serve.
    #[must_use]
    pub const fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// On whose account the traffic of a meter goes, if a binding counts on it.
    #[must_use]
    pub fn payer(&self, meter: u32) -> Option<Payer> {
        let Binding { public_ip: address, private_ip, .. } = self.bindings.get(meter)?;
        let vm = self.vm_at(private_ip);
        let eip = self.held(address).filter(|eip| eip.binding().is_some());
        let account = eip.map(|eip| &eip.account).or_else(|| vm.map(|vm| &vm.account))?;
        Some(Payer { address, account: account.clone(), vm: vm.map(|vm| vm.name.clone()) })
    }

    /// The meter on which the binding of a public address counts.
    #[must_use]
    pub fn meter_of(&self, address: Ipv4Addr) -> Option<u32> {
        let eip = self.held(address).map(Eip::binding);
        let public_ip = || self.vms().filter_map(Vm::binding).find(|binding| binding.public_ip == address);
        eip.unwrap_or_else(public_ip).map(|binding| binding.meter)
    }

    /// One more than the highest meter that was ever in use.
    #[must_use]
    pub const fn meters_used(&self) -> u32 {
        self.meters.used()
    }

    /// How many bindings there are.
    #[must_use]
    pub const fn bound(&self) -> usize {
        self.bindings.len()
    }

    /// What is still to be read on a meter for the last time.
    #[must_use]
    pub fn closing_on(&self, meter: u32) -> Option<&Closing> {
        self.closing.get(&meter)
    }

    /// Meters that are still to be read for the last time.
    pub fn closing(&self) -> impl Iterator<Item = &Closing> {
        self.closing.values()
    }

    /// Every pool in figures.
    pub fn pools(&self, now: SystemTime) -> impl Iterator<Item = PoolUsage<'_>> {
        self.pools.iter().map(move |pool| pool.usage(now))
    }

    /// Carries a change out. It must come from this very state.
    pub(crate) fn apply(&mut self, change: Change) {
        // Everything goes before anything comes: one record may take what another leaves.
        for before in change.edits.iter().filter_map(|edit| edit.before.as_ref()) {
            self.remove(before);
        }
        for after in change.edits.into_iter().filter_map(|edit| edit.after) {
            let inserted = self.insert(after);
            debug_assert_eq!(inserted, Ok(()), "a plan makes no contradiction");
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// If it contradicts those that are there; the text says which.
    pub(crate) fn insert(&mut self, record: Record) -> Result<(), String> {
        if let Some(binding) = record.binding() {
            self.bind(&binding)?;
        }
        match record {
            Record::Eip(mut eip) => {
                self.hold(eip.address)?;
                if let Some(pool) = self.pool(&eip.pool) {
                    eip.pool = pool.spec.name.clone();
                }
                eip.account = self.count_in(eip.account, |holdings| holdings.eips += 1);
                if let Some(request) = &eip.request
                    && let Some(other) =
                        self.requests.insert((eip.account.clone(), request.clone()), eip.address)
                {
                    return Err(format!("{other} and {} were asked for by the same name", eip.address));
                }
                self.eips.insert(eip.address, eip);
            }
            Record::Vm(mut vm) => {
                if let Some(public_ip) = vm.public_ip {
                    self.hold(public_ip.address)?;
                }
                if let Some(other) = self.vm_names.insert(vm.private_ip, vm.name.clone()) {
                    return Err(format!("the VMs {other} and {} have the same address", vm.name));
                }
                self.waiting.extend(vm.waiting_since.map(|since| (since, vm.name.clone())));
                vm.account = self.count_in(vm.account, |holdings| holdings.vms += 1);
                self.vms.insert(vm.name.clone(), vm);
            }
            Record::Returned(Returned { address, free_at }) => {
                if let Some(pool) = self.pool_of_mut(address) {
                    pool.keep(address, free_at);
                }
            }
            Record::Closing(closing) => {
                self.take_meter(closing.meter)?;
                self.closing.insert(closing.meter, closing);
            }
        }
        Ok(())
    }

    fn bind(&mut self, binding: &Binding) -> Result<(), String> {
        self.take_meter(binding.meter)?;
        self.bindings.insert(*binding);
        match self.bound.insert(binding.private_ip, binding.meter).and_then(|other| self.bindings.get(other))
        {
            None => Ok(()),
            Some(other) => {
                Err(format!("{} and {} stand for {}", other.public_ip, binding.public_ip, binding.private_ip))
            }
        }
    }

    fn take_meter(&mut self, meter: u32) -> Result<(), String> {
        if self.meters.take(meter) {
            Ok(())
        } else {
            Err(format!("meter {meter} is used twice, or beyond what datapath.max_bindings has room for"))
        }
    }

    fn hold(&mut self, address: Ipv4Addr) -> Result<(), String> {
        let is_free = self.pool_of_mut(address).is_none_or(|pool| pool.hold(address));
        if is_free { Ok(()) } else { Err(format!("{address} is held twice")) }
    }

    fn remove(&mut self, record: &Record) {
        if let Some(binding) = record.binding() {
            self.bound.remove(&binding.private_ip);
            self.bindings.remove(binding.meter);
            self.meters.give_back(binding.meter);
        }
        match record {
            Record::Eip(eip) => {
                self.let_go(eip.address);
                self.count_out(&eip.account, |holdings| holdings.eips -= 1);
                if let Some(request) = &eip.request {
                    self.requests.remove(&(eip.account.clone(), request.clone()));
                }
                self.eips.remove(&eip.address);
            }
            Record::Vm(vm) => {
                if let Some(public_ip) = vm.public_ip {
                    self.let_go(public_ip.address);
                }
                if let Some(since) = vm.waiting_since {
                    self.waiting.remove(&(since, vm.name.clone()));
                }
                self.count_out(&vm.account, |holdings| holdings.vms -= 1);
                self.vm_names.remove(&vm.private_ip);
                self.vms.remove(&vm.name);
            }
            Record::Returned(Returned { address, .. }) => {
                if let Some(pool) = self.pool_of_mut(*address) {
                    pool.forget(*address);
                }
            }
            Record::Closing(Closing { meter, .. }) => {
                self.closing.remove(meter);
                self.meters.give_back(*meter);
            }
        }
    }

    fn let_go(&mut self, address: Ipv4Addr) {
        if let Some(pool) = self.pool_of_mut(address) {
            pool.let_go(address);
        }
    }

    /// An account has something more. Answers the copy of its name that all share who have it.
    fn count_in(&mut self, account: Name, change: impl FnOnce(&mut Holdings)) -> Name {
        let entry = self.accounts.entry(account);
        let name = entry.key().clone();
        change(entry.or_default());
        name
    }

    fn count_out(&mut self, account: &Name, change: impl FnOnce(&mut Holdings)) {
        if let Some(holdings) = self.accounts.get_mut(account) {
            change(holdings);
            if *holdings == Holdings::default() {
                self.accounts.remove(account);
            }
        }
    }

    fn quota(&self, account: &Name) -> Quota {
        self.quotas.get(account).copied().unwrap_or(self.default_quota)
    }

    fn holdings(&self, account: &Name) -> Holdings {
        self.accounts.get(account).copied().unwrap_or_default()
    }

    fn pool(&self, name: &Name) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.spec.name == *name)
    }

    fn pool_of(&self, address: Ipv4Addr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.spec.contains(address))
    }

    fn pool_of_mut(&mut self, address: Ipv4Addr) -> Option<&mut Pool> {
        self.pools.iter_mut().find(|pool| pool.spec.contains(address))
    }

    fn default_pool(&self) -> Option<&Pool> {
        let only = if let [only] = self.pools.as_slice() { Some(only) } else { None };
        self.pool(&Name::default_one()).or(only)
    }
}
