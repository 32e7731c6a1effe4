//! What a command would change.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use nat_common::abi::Meter;

use super::pool::Pool;
use super::{
    Attachment, Carried, Change, Closing, Eip, Model, Name, PublicIp, Record, Refusal, Returned,
    SPARE_METERS, Subject, Target, Vm, unusable,
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

/// A change that is being put together, and what it has already taken of the state that it starts from.
struct Draft<'a> {
    model: &'a Model,
    change: Change,
    now: SystemTime,
    free_meters: Box<dyn Iterator<Item = u32> + 'a>,
    /// Bindings at the end of the change.
    bound: usize,
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
            let mut draft = Draft::new(self, Subject::Vm(vm.clone()), now);
            let after = draft.with_public_ip(vm).ok()?;
            let public_ip = after.public_ip?.address;
            draft.change.push(Some(Record::Vm(vm.clone())), Some(Record::Vm(after.clone())));
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
            let after = Eip { carried: Some(eip.carried.unwrap_or_default().and(more)), ..eip.clone() };
            change.push(Some(Record::Eip(eip.clone())), Some(Record::Eip(after)));
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
            let after = Eip { carried: eip.carried.map(|_| Carried::default()), ..eip.clone() };
            change.push(Some(Record::Eip(eip.clone())), Some(Record::Eip(after)));
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
        let (pool, address) = if let Some(address) = wanted.address {
            (self.wanted(address, named, now)?, address)
        } else {
            let pool = named.or_else(|| self.default_pool()).ok_or(Refusal::WhichPool)?;
            (pool, pool.next(now)?)
        };
        if let Some(quota) = self.quota(&account).eips.filter(|quota| self.holdings(&account).eips >= *quota)
        {
            return Err(Refusal::EipQuota { account, quota });
        }
        let name = pool.spec.name.clone();
        let what = format!("{address} of pool {name} allocated to account {account}");
        let request = wanted.request.clone();
        let eip = Eip { address, pool: name, account, request, attached: None, carried: None };
        let mut draft = Draft::new(self, Subject::Eip(eip.clone()), now);
        draft.take_from(pool, address);
        draft.change.push(None, Some(Record::Eip(eip.clone())));
        Ok(draft.done(Subject::Eip(eip), what))
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
        if pool.holds(address) {
            return Err(Refusal::HeldByVm(address));
        }
        pool.check(address, now)?;
        Ok(pool)
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
        let vm = self.vm_at(private_ip);
        let old = before.attached.map(|attached| attached.private_ip);
        if old == Some(private_ip) {
            return Ok(Change::nothing(Subject::Eip(before.clone())));
        }
        self.check_private(private_ip)?;
        if let Some(vm) = vm.filter(|vm| vm.account != before.account) {
            let (name, theirs, ours) = (vm.name.clone(), vm.account.clone(), before.account.clone());
            return Err(Refusal::OtherAccount { eip, account: ours, vm: name, owner: theirs });
        }
        if let Some(private_ip) = old.filter(|_| !reassign) {
            return Err(Refusal::Attached { eip, private_ip });
        }
        if let Some(other) = self.eip_of(private_ip) {
            return Err(Refusal::PrivateIpBound { private_ip, eip: other.address });
        }

        let mut draft = Draft::new(self, Subject::Eip(before.clone()), now);
        if let Some(vm) = vm {
            draft.take_public_ip(vm);
        }
        draft.close(before, old.and_then(|old| self.vm_at(old)));
        let meter = draft.bind()?;
        let after = Eip {
            attached: Some(Attachment { private_ip, meter }),
            carried: Some(before.carried.unwrap_or_default()),
            ..before.clone()
        };
        draft.change.push(Some(Record::Eip(before.clone())), Some(Record::Eip(after.clone())));
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
        let mut draft = Draft::new(self, Subject::Eip(before.clone()), now);
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
        let mut draft = Draft::new(self, Subject::Eip(before.clone()), now);
        draft.change.push(Some(Record::Eip(before.clone())), None);
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
                Ok(Change::nothing(Subject::Vm(there.clone())))
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
        let mut draft = Draft::new(self, Subject::Vm(vm.clone()), now);
        let vm = if vm.pool.is_some() && eip.is_none() { draft.with_public_ip(&vm)? } else { vm };
        draft.change.push(None, Some(Record::Vm(vm.clone())));
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
        let mut draft = Draft::new(self, Subject::Vm(vm.clone()), now);
        if let Some(eip) = self.eip_of(vm.private_ip) {
            draft.detach(eip, Some(vm));
        }
        draft.change.push(Some(Record::Vm(vm.clone())), None);
        draft.return_public_ip(vm);
        Ok(draft.done(Subject::Vm(vm.clone()), format!("VM {name} destroyed, {} is free", vm.private_ip)))
    }

    /// Whether an address can be a VM's.
    fn check_private(&self, private_ip: Ipv4Addr) -> Result<(), Refusal> {
        if let Some(range) = unusable(private_ip.into()) {
            return Err(Refusal::Unusable { private_ip, range });
        }
        match self.pool_of(private_ip) {
            Some(pool) => Err(Refusal::NotPrivate { private_ip, pool: pool.spec.name.clone() }),
            None => Ok(()),
        }
    }
}

impl<'a> Draft<'a> {
    fn new(model: &'a Model, subject: Subject, now: SystemTime) -> Self {
        Self {
            model,
            change: Change::nothing(subject),
            now,
            free_meters: Box::new(model.meters.free()),
            bound: model.bound.len(),
        }
    }

    fn done(self, subject: Subject, what: String) -> Change {
        Change { subject, what, ..self.change }
    }

    /// Makes room for one more binding, and answers its meter.
    fn bind(&mut self) -> Result<u32, Refusal> {
        if self.bound >= self.model.capacity as usize {
            return Err(Refusal::NoRoom(self.model.capacity));
        }
        self.bound += 1;
        self.free_meters.next().ok_or(Refusal::TooManyEnd(SPARE_METERS))
    }

    /// Ends an EIP's binding, if it has one; `vm` is what it stands for.
    fn close(&mut self, eip: &Eip, vm: Option<&Vm>) {
        if let Some(Attachment { meter, .. }) = eip.attached {
            self.closing(meter, eip.address, &eip.account, vm, true);
        }
    }

    fn closing(&mut self, meter: u32, address: Ipv4Addr, account: &Name, vm: Option<&Vm>, of_eip: bool) {
        self.bound -= 1;
        let (account, vm) = (account.clone(), vm.map(|vm| vm.name.clone()));
        self.change.push(None, Some(Record::Closing(Closing { meter, address, account, vm, of_eip })));
    }

    /// An EIP stands for nothing any more.
    fn detach(&mut self, before: &Eip, vm: Option<&Vm>) -> Eip {
        self.close(before, vm);
        let after = Eip { attached: None, ..before.clone() };
        self.change.push(Some(Record::Eip(before.clone())), Some(Record::Eip(after.clone())));
        after
    }

    /// Takes the public IP from a VM that gets an EIP; it waits for none any more.
    fn take_public_ip(&mut self, vm: &Vm) {
        let after = Vm { public_ip: None, waiting_since: None, ..vm.clone() };
        self.change.push(Some(Record::Vm(vm.clone())), Some(Record::Vm(after)));
        self.return_public_ip(vm);
    }

    fn return_public_ip(&mut self, vm: &Vm) {
        if let Some(PublicIp { address, meter }) = vm.public_ip {
            self.closing(meter, address, &vm.account, Some(vm), false);
            self.give_back(address);
        }
    }

    /// Gives a public IP to a VM that has lost its EIP, if it is to have one. If there is none, the VM waits.
    fn give_public_ip(&mut self, vm: &Vm) {
        if vm.pool.is_none() {
            return;
        }
        let after =
            self.with_public_ip(vm).unwrap_or_else(|_| Vm { waiting_since: Some(self.now), ..vm.clone() });
        self.change.push(Some(Record::Vm(vm.clone())), Some(Record::Vm(after)));
    }

    /// The VM with a public IP. The edit of the VM is the caller's.
    fn with_public_ip(&mut self, vm: &Vm) -> Result<Vm, Refusal> {
        let name = vm.pool.as_ref().ok_or(Refusal::WhichPool)?;
        let pool = self.model.pool(name).ok_or_else(|| Refusal::UnknownPool(name.clone()))?;
        let address = pool.next(self.now)?;
        let meter = self.bind()?;
        self.take_from(pool, address);
        Ok(Vm { public_ip: Some(PublicIp { address, meter }), waiting_since: None, ..vm.clone() })
    }

    /// An address leaves its pool.
    fn take_from(&mut self, pool: &Pool, address: Ipv4Addr) {
        if let Some(free_at) = pool.returned(address) {
            self.change.push(Some(Record::Returned(Returned { address, free_at })), None);
        }
    }

    /// An address goes back to its pool.
    fn give_back(&mut self, address: Ipv4Addr) {
        if let Some(pool) = self.model.pool_of(address) {
            let free_at = self.now + pool.spec.reuse_delay;
            self.change.push(None, Some(Record::Returned(Returned { address, free_at })));
        }
    }
}
