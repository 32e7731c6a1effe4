//! What a change takes of the state that it starts from, step by step.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::pool::Pool;
use super::{
    Attachment, Change, Closing, Edit, Eip, Model, Name, Past, PublicIp, Record, Refusal, Returned,
    SPARE_METERS, Subject, Vm,
};

/// A change that is being put together, and what it has already taken of the state that it starts from.
pub(super) struct Draft<'a> {
    pub(super) model: &'a Model,
    pub(super) change: Change,
    now: SystemTime,
    free_meters: Box<dyn Iterator<Item = u32> + 'a>,
    /// Bindings at the end of the change.
    bound: usize,
    /// How many EIPs accounts have got.
    allocated: HashMap<Name, u64>,
    /// EIPs that were attached, by private address.
    attached: HashMap<Ipv4Addr, Ipv4Addr>,
    /// When addresses can be had again that were given back.
    returned: HashMap<Ipv4Addr, SystemTime>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(model: &'a Model, now: SystemTime) -> Self {
        Self {
            model,
            change: Change::nothing(Subject::Many),
            now,
            free_meters: Box::new(model.meters.free()),
            bound: model.bound(),
            allocated: HashMap::new(),
            attached: HashMap::new(),
            returned: HashMap::new(),
        }
    }

    /// Makes room for so many EIPs.
    pub(super) fn expect(&mut self, eips: usize) {
        self.change.edits.reserve(eips);
        self.attached.reserve(eips);
    }

    pub(super) fn done(self, subject: Subject, what: String) -> Change {
        Change { subject, what, ..self.change }
    }

    /// An account gets the EIP at an address, in a pool if one was named. The edit is the caller's.
    pub(super) fn allocate(
        &mut self,
        address: Ipv4Addr,
        named: Option<&Pool>,
        account: Name,
    ) -> Result<Eip, Refusal> {
        let pool = self.wanted(address, named)?;
        let held =
            self.model.holdings(&account).eips + self.allocated.get(&account).copied().unwrap_or_default();
        if let Some(quota) = self.model.quota(&account).eips.filter(|quota| held >= *quota) {
            return Err(Refusal::EipQuota { account, quota });
        }
        self.take_from(pool, address);
        match self.allocated.get_mut(&account) {
            Some(allocated) => *allocated += 1,
            None => drop(self.allocated.insert(account.clone(), 1)),
        }
        let pool = pool.spec.name.clone();
        Ok(Eip { address, pool, account, request: None, attached: None, carried: Past::Never })
    }

    /// The pool of an address, if it can be had.
    fn wanted(&self, address: Ipv4Addr, named: Option<&Pool>) -> Result<&'a Pool, Refusal> {
        let pool = self.model.pool_of(address).ok_or(Refusal::InNoPool(address))?;
        if let Some(named) = named.filter(|named| named.spec.name != pool.spec.name) {
            let (actual, wanted) = (pool.spec.name.clone(), named.spec.name.clone());
            return Err(Refusal::InOtherPool { address, actual, wanted });
        }
        if let Some(holder) = self.model.held(address) {
            return Err(Refusal::Held { address, account: holder.account.clone() });
        }
        let returned = self.returned.get(&address).copied();
        if pool.holds(address) && returned.is_none() {
            return Err(Refusal::HeldByVm(address));
        }
        pool.check(address, returned, self.now)?;
        Ok(pool)
    }

    /// An EIP is to stand for a private address. Answers what it is then, or `None` if it is so already. The edit of the EIP, and
    /// what a VM gets that has lost it, are the caller's.
    pub(super) fn attach(
        &mut self,
        before: &Eip,
        private_ip: Ipv4Addr,
        reassign: bool,
    ) -> Result<Option<Eip>, Refusal> {
        let (model, eip) = (self.model, before.address);
        let vm = model.vm_at(private_ip);
        let old = before.attached.map(|attached| attached.private_ip);
        if old == Some(private_ip) {
            return Ok(None);
        }
        model.check_private(private_ip)?;
        if let Some(vm) = vm.filter(|vm| vm.account != before.account) {
            let (name, theirs, ours) = (vm.name.clone(), vm.account.clone(), before.account.clone());
            return Err(Refusal::OtherAccount { eip, account: ours, vm: name, owner: theirs });
        }
        if let Some(private_ip) = old.filter(|_| !reassign) {
            return Err(Refusal::Attached { eip, private_ip });
        }
        let other = model.eip_of(private_ip).map(|other| other.address);
        if let Some(eip) = other.or_else(|| self.attached.get(&private_ip).copied()) {
            return Err(Refusal::PrivateIpBound { private_ip, eip });
        }
        if let Some(vm) = vm {
            self.take_public_ip(vm);
        }
        self.close(before, old.and_then(|old| model.vm_at(old)));
        let meter = self.bind()?;
        self.attached.insert(private_ip, eip);
        Ok(Some(Eip {
            attached: Some(Attachment { private_ip, meter }),
            carried: if before.carried == Past::Never { Past::Nothing } else { before.carried.clone() },
            ..before.clone()
        }))
    }

    pub(super) fn edit_eip(&mut self, before: Option<&Eip>, after: &Eip) {
        let record = |eip: &Eip| Record::Eip(eip.clone().into());
        self.change.push(before.map(record), Some(record(after)));
    }

    pub(super) fn edit_vm(&mut self, before: Option<&Vm>, after: Option<&Vm>) {
        let record = |vm: &Vm| Record::Vm(vm.clone().into());
        self.change.push(before.map(record), after.map(record));
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
    pub(super) fn detach(&mut self, before: &Eip, vm: Option<&Vm>) -> Eip {
        self.close(before, vm);
        let after = Eip { attached: None, ..before.clone() };
        self.edit_eip(Some(before), &after);
        after
    }

    /// Takes the public IP from a VM that gets an EIP; it waits for none any more.
    fn take_public_ip(&mut self, vm: &Vm) {
        let after = Vm { public_ip: None, waiting_since: None, ..vm.clone() };
        self.edit_vm(Some(vm), Some(&after));
        self.return_public_ip(vm);
    }

    pub(super) fn return_public_ip(&mut self, vm: &Vm) {
        if let Some(PublicIp { address, meter }) = vm.public_ip {
            self.closing(meter, address, &vm.account, Some(vm), false);
            self.give_back(address);
        }
    }

    /// Gives a public IP to a VM that has lost its EIP, if it is to have one. If there is none, the VM waits.
    pub(super) fn give_public_ip(&mut self, vm: &Vm) {
        if vm.pool.is_none() {
            return;
        }
        let after =
            self.with_public_ip(vm).unwrap_or_else(|_| Vm { waiting_since: Some(self.now), ..vm.clone() });
        self.edit_vm(Some(vm), Some(&after));
    }

    /// The VM with a public IP. The edit of the VM is the caller's.
    pub(super) fn with_public_ip(&mut self, vm: &Vm) -> Result<Vm, Refusal> {
        let name = vm.pool.as_ref().ok_or(Refusal::WhichPool)?;
        let pool = self.model.pool(name).ok_or_else(|| Refusal::UnknownPool(name.clone()))?;
        let address = pool.next(self.now)?;
        let meter = self.bind()?;
        self.take_from(pool, address);
        Ok(Vm { public_ip: Some(PublicIp { address, meter }), waiting_since: None, ..vm.clone() })
    }

    /// An address leaves its pool.
    fn take_from(&mut self, pool: &Pool, address: Ipv4Addr) {
        if self.returned.remove(&address).is_some() {
            // It never was.
            let is_its = |edit: &Edit| matches!(&edit.after, Some(Record::Returned(there)) if there.address == address);
            self.change.edits.retain(|edit| !is_its(edit));
        } else if let Some(free_at) = pool.returned(address) {
            self.change.push(Some(Record::Returned(Returned { address, free_at })), None);
        }
    }

    /// An address goes back to its pool.
    pub(super) fn give_back(&mut self, address: Ipv4Addr) {
        if let Some(pool) = self.model.pool_of(address) {
            let free_at = self.now + pool.spec.reuse_delay;
            self.returned.insert(address, free_at);
            self.change.push(None, Some(Record::Returned(Returned { address, free_at })));
        }
    }
}
