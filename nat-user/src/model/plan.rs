//! What a command would change.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use nat_common::abi::Meter;

use super::draft::Draft;
use super::{
    Attachment, Carried, Change, Closing, Eip, Model, Name, Past, Record, Refusal, Subject, Target, Vm,
    unusable,
};

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// An account wants an EIP.
    Allocate(Allocation),
    /// An EIP is to stand for a target. Fine if it does already.
    Attach {
        /// The EIP.
        eip: Ipv4Addr,
        /// What it is to stand for.
        target: Target,
        /// Whether it may leave what it stands for now.
        reassign: bool,
    },
    /// An EIP is to stand for nothing. Fine if it does not.
    Detach(Ipv4Addr),
    /// An EIP is given back.
    Release(Ipv4Addr),
    /// A VM comes into being. Fine if it is there, just so.
    CreateVm {
        /// Its name.
        name: Name,
        /// Its address.
        private_ip: Ipv4Addr,
        /// Whose it is.
        account: Option<Name>,
        /// Whether it is to have a public IP.
        public_ip: bool,
        /// From this pool.
        pool: Option<Name>,
    },
    /// A VM goes.
    DestroyVm(Name),
}

/// Which EIP an account wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// From this pool.
    pub pool: Option<Name>,
    /// This very address.
    pub address: Option<Ipv4Addr>,
    /// The account.
    pub account: Option<Name>,
    /// The client's name for what it wants: asked for again, it gets the EIP that it has already.
    pub request: Option<Name>,
}

impl Model {
    /// What `command` would change now.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn plan(&self, command: &Command, now: SystemTime) -> Result<Change, Refusal> {
        match command {
            Command::Allocate(wanted) => self.plan_allocate(wanted, now),
            Command::Attach { eip, target, reassign } => self.plan_attach(*eip, target, *reassign, now),
            Command::Detach(eip) => self.plan_detach(*eip, now),
            Command::Release(eip) => self.plan_release(*eip, now),
            Command::CreateVm { name, private_ip, account, public_ip, pool } => {
                let account = account.clone().unwrap_or_else(Name::default_one);
                let vm = Vm {
                    name: name.clone(),
                    private_ip: *private_ip,
                    account,
                    pool: if *public_ip { Some(self.pool_for_vm(pool.as_ref())?) } else { None },
                    public_ip: None,
                    waiting_since: None,
                };
                self.plan_create(vm, pool.as_ref(), now)
            }
            Command::DestroyVm(name) => self.plan_destroy(name, now),
        }
    }

    /// What gives the VM whose turn it is the public IP that it waits for; `None` if nobody waits or there is none.
    #[must_use]
    pub fn plan_waiting(&self, now: SystemTime) -> Option<Change> {
        if self.bound.len() >= self.capacity as usize {
            return None;
        }
        // Of many that wait, most wait for the same pool.
        let has_one: HashMap<&Name, bool> =
            self.pools.iter().map(|pool| (&pool.spec.name, pool.next(now).is_ok())).collect();
        self.waiting.iter().find_map(|(_, name)| {
            let vm = self.vms.get(name)?;
            let pool = vm.pool.as_ref().filter(|pool| has_one.get(pool) == Some(&true));
            pool?;
            let mut draft = Draft::new(self, now);
            let after = draft.with_public_ip(vm).ok()?;
            let public_ip = after.public_ip?.address;
            draft.edit_vm(Some(vm), Some(&after));
            Some(draft.done(Subject::Vm(after), format!("VM {name} has waited and gets {public_ip}")))
        })
    }

    /// What closes meters that were read for the last time.
    #[must_use]
    pub fn plan_close(&self, read: &[(Closing, Meter)]) -> Change {
        let mut change = Change { is_bookkeeping: true, ..Change::nothing(Subject::Many) };
        let mut carried = BTreeMap::<Ipv4Addr, Carried>::new();
        for (closing, meter) in read {
            change.push(Some(Record::Closing(closing.clone())), None);
            if closing.of_eip {
                let all = carried.entry(closing.address).or_default();
                *all = all.plus(*meter);
            }
        }
        for (address, more) in carried {
            let Some(eip) = self.eips.get(&address) else { continue };
            let all = eip.carried.get().unwrap_or_default().and(more);
            let after = Eip { carried: Some(all).into(), ..Eip::clone(eip) };
            change.push(Some(Record::Eip(eip.clone())), Some(Record::Eip(after.into())));
        }
        change.what = format!("{} meters closed", read.len());
        change
    }

    /// What EIPs have carried is forgotten: the counters that showed it have begun anew.
    #[must_use]
    pub fn plan_anew(&self) -> Change {
        let what = "counters of EIPs begin anew".to_owned();
        let mut change = Change { is_bookkeeping: true, what, ..Change::nothing(Subject::Many) };
        for eip in self.eips() {
            if let Past::Something(_) = eip.carried {
                let after = Eip { carried: Past::Nothing, ..eip.clone() };
                change.push(Some(Record::Eip(eip.clone().into())), Some(Record::Eip(after.into())));
            }
        }
        change
    }

    fn plan_allocate(&self, wanted: &Allocation, now: SystemTime) -> Result<Change, Refusal> {
        let account = wanted.account.clone().unwrap_or_else(Name::default_one);
        if let Some(there) = self.requested(&account, wanted.request.as_ref()) {
            let is_other = wanted.address.is_some_and(|address| address != there.address)
                || wanted.pool.as_ref().is_some_and(|pool| *pool != there.pool);
            return if is_other {
                Err(Refusal::RequestUsed { request: wanted.request.clone(), address: there.address })
            } else {
                Ok(Change::nothing(Subject::Eip(there.clone())))
            };
        }
        let pool = wanted.pool.as_ref();
        let named =
            pool.map(|name| self.pool(name).ok_or_else(|| Refusal::UnknownPool(name.clone()))).transpose()?;
        let mut draft = Draft::new(self, now);
        let address = if let Some(address) = wanted.address {
            address
        } else {
            named.or_else(|| self.default_pool()).ok_or(Refusal::WhichPool)?.next(now)?
        };
        let eip = Eip { request: wanted.request.clone(), ..draft.allocate(address, named, account)? };
        let what = format!("{address} of pool {} allocated to account {}", eip.pool, eip.account);
        draft.edit_eip(None, &eip);
        Ok(draft.done(Subject::Eip(eip), what))
    }

    fn plan_attach(
        &self,
        eip: Ipv4Addr,
        target: &Target,
        reassign: bool,
        now: SystemTime,
    ) -> Result<Change, Refusal> {
        let before = self.eip(eip)?;
        let private_ip = match target {
            Target::PrivateIp(private_ip) => *private_ip,
            Target::Vm(name) => self.vm(name)?.private_ip,
        };
        let (vm, old) = (self.vm_at(private_ip), before.attached.map(|attached| attached.private_ip));
        let mut draft = Draft::new(self, now);
        let Some(after) = draft.attach(before, private_ip, reassign)? else {
            return Ok(Change::nothing(Subject::Eip(before.clone())));
        };
        draft.edit_eip(Some(before), &after);
        if let Some(old) = old.and_then(|old| self.vm_at(old)) {
            draft.give_public_ip(old);
        }
        let to = vm.map_or_else(|| private_ip.to_string(), |vm| format!("VM {} ({private_ip})", vm.name));
        let from = old.map_or_else(String::new, |old| format!(" (before: {old})"));
        Ok(draft.done(Subject::Eip(after), format!("{eip} attached to {to}{from}")))
    }

    fn plan_detach(&self, eip: Ipv4Addr, now: SystemTime) -> Result<Change, Refusal> {
        let before = self.eip(eip)?;
        let Some(Attachment { private_ip, .. }) = before.attached else {
            return Ok(Change::nothing(Subject::Eip(before.clone())));
        };
        let mut draft = Draft::new(self, now);
        let vm = self.vm_at(private_ip);
        let after = draft.detach(before, vm);
        if let Some(vm) = vm {
            draft.give_public_ip(vm);
        }
        Ok(draft.done(Subject::Eip(after), format!("{eip} detached from {private_ip}")))
    }

    fn plan_release(&self, eip: Ipv4Addr, now: SystemTime) -> Result<Change, Refusal> {
        let before = self.eip(eip)?;
        if let Some(Attachment { private_ip, .. }) = before.attached {
            return Err(Refusal::Attached { eip, private_ip });
        }
        let mut draft = Draft::new(self, now);
        draft.change.push(Some(Record::Eip(before.clone().into())), None);
        // What is still to be read is not the next holder's.
        for closing in self.closing.values().filter(|closing| closing.of_eip && closing.address == eip) {
            let after = Closing { of_eip: false, ..closing.clone() };
            draft.change.push(Some(Record::Closing(closing.clone())), Some(Record::Closing(after)));
        }
        draft.give_back(eip);
        let what = format!("{eip} of account {} released", before.account);
        Ok(draft.done(Subject::Eip(before.clone()), what))
    }

    /// The pool that a VM has its public IP from.
    fn pool_for_vm(&self, named: Option<&Name>) -> Result<Name, Refusal> {
        match named {
            Some(name) if self.pool(name).is_none() => Err(Refusal::UnknownPool(name.clone())),
            Some(name) => Ok(name.clone()),
            None => Ok(self.default_pool().ok_or(Refusal::WhichPool)?.spec.name.clone()),
        }
    }

    /// `named`: the pool, if one was asked for by name.
    fn plan_create(&self, vm: Vm, named: Option<&Name>, now: SystemTime) -> Result<Change, Refusal> {
        if let Some(there) = self.vms.get(&vm.name) {
            let same = |vm: &Vm| (vm.private_ip, vm.account.clone(), vm.pool.is_some());
            let is_pool = named.is_none() || there.pool.as_ref() == named;
            return if is_pool && same(there) == same(&vm) {
                Ok(Change::nothing(Subject::Vm(Vm::clone(there))))
            } else {
                Err(Refusal::VmExists { name: vm.name, private_ip: there.private_ip })
            };
        }
        self.check_private(vm.private_ip)?;
        if let Some(other) = self.vm_at(vm.private_ip) {
            return Err(Refusal::PrivateIpTaken { private_ip: vm.private_ip, vm: other.name.clone() });
        }
        let eip = self.eip_of(vm.private_ip);
        if let Some(eip) = eip.filter(|eip| eip.account != vm.account) {
            let (account, owner) = (eip.account.clone(), vm.account);
            return Err(Refusal::OtherAccount { eip: eip.address, account, vm: vm.name, owner });
        }
        let quota = self.quota(&vm.account).vms;
        if let Some(quota) = quota.filter(|quota| self.holdings(&vm.account).vms >= *quota) {
            return Err(Refusal::VmQuota { account: vm.account, quota });
        }
        let mut draft = Draft::new(self, now);
        let vm = if vm.pool.is_some() && eip.is_none() { draft.with_public_ip(&vm)? } else { vm };
        draft.edit_vm(None, Some(&vm));
        let with = match (vm.public_ip, eip) {
            (Some(public_ip), _) => format!(" with {}", public_ip.address),
            (None, Some(eip)) => format!(" with {}", eip.address),
            (None, None) => " without a public address".to_owned(),
        };
        let what = format!("VM {} of account {} created at {}{with}", vm.name, vm.account, vm.private_ip);
        Ok(draft.done(Subject::Vm(vm), what))
    }

    fn plan_destroy(&self, name: &Name, now: SystemTime) -> Result<Change, Refusal> {
        let vm = self.vm(name)?;
        let mut draft = Draft::new(self, now);
        if let Some(eip) = self.eip_of(vm.private_ip) {
            draft.detach(eip, Some(vm));
        }
        draft.edit_vm(Some(vm), None);
        draft.return_public_ip(vm);
        Ok(draft.done(Subject::Vm(vm.clone()), format!("VM {name} destroyed, {} is free", vm.private_ip)))
    }

    /// Whether an address can be a VM's.
    pub(super) fn check_private(&self, private_ip: Ipv4Addr) -> Result<(), Refusal> {
        if let Some(range) = unusable(private_ip.into()) {
            return Err(Refusal::Unusable { private_ip, range });
        }
        match self.pool_of(private_ip) {
            Some(pool) => Err(Refusal::NotPrivate { private_ip, pool: pool.spec.name.clone() }),
            None => Ok(()),
        }
    }
}
