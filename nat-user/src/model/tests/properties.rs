//! Whatever people do, nothing is given twice, lost or leaked.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// What may happen between two looks.
#[derive(Clone, Debug)]
enum Action {
    Command(Command),
    Import(Vec<Line>),
    /// The daemon starts again, with another configuration.
    Restart(usize),
}

fn any_action() -> impl Strategy<Value = Action> {
    let line = (eip(), private(), account());
    let import = proptest::collection::vec(line, 1..4).prop_map(|lines| {
        let lines = (1..).zip(lines);
        let line = |(number, (eip, private_ip, account))| Line { number, eip, private_ip, account };
        Action::Import(lines.map(line).collect())
    });
    prop_oneof![
        16 => any_command().prop_map(Action::Command),
        2 => import,
        1 => (0..CONFIGURATIONS).prop_map(Action::Restart),
    ]
}

fn eip() -> impl Strategy<Value = Ipv4Addr> {
    (0..6_u8).prop_map(|last| Ipv4Addr::new(203, 0, 113, last))
}

fn private() -> impl Strategy<Value = Ipv4Addr> {
    (0..4_u8).prop_map(|last| Ipv4Addr::new(10, 0, 0, last))
}

fn account() -> impl Strategy<Value = Option<Name>> {
    proptest::option::weighted(0.3, Just("acme".parse::<Name>().unwrap()))
}

fn any_command() -> impl Strategy<Value = Command> {
    let name = || (0..3_u8).prop_map(|number| format!("vm{number}").parse::<Name>().unwrap());
    let request = proptest::option::weighted(0.5, (0..2_u8).prop_map(|n| format!("r{n}").parse().unwrap()));
    let target = prop_oneof![private().prop_map(Target::PrivateIp), name().prop_map(Target::Vm)];
    prop_oneof![
        3 => (proptest::option::weighted(0.3, eip()), account(), request)
            .prop_map(|(address, account, request)| Command::Allocate(Allocation { pool: None, address, account, request })),
        4 => (eip(), target, any::<bool>())
            .prop_map(|(eip, target, reassign)| Command::Attach { eip, target, reassign }),
        2 => eip().prop_map(Command::Detach),
        2 => eip().prop_map(Command::Release),
        3 => (name(), private(), account(), proptest::bool::weighted(0.8)).prop_map(
            |(name, private_ip, account, public_ip)| {
                Command::CreateVm { name, private_ip, account, public_ip, pool: None }
            }
        ),
        2 => name().prop_map(Command::DestroyVm),
    ]
}

const CAPACITY: u32 = 3;

const CONFIGURATIONS: usize = 4;

/// The one that it begins with and ends with, a larger pool with quotas, one with reserved addresses, and a pool
/// elsewhere.
fn configuration(number: usize) -> Spec {
    let pool = spec;
    let spec = |cidr| Spec { pools: vec![pool("p", cidr)], ..Spec::default() };
    match number {
        0 => spec("203.0.113.0/30"),
        1 => Spec { default_quota: Quota { eips: Some(1), vms: Some(1) }, ..spec("203.0.113.0/29") },
        2 => {
            let mut spec = spec("203.0.113.0/30");
            spec.pools[0].reserve = [1, 2].map(|last| Ipv4Addr::new(203, 0, 113, last)).into();
            spec
        }
        _ => spec("198.51.100.0/31"),
    }
}

/// What has to hold at every moment.
fn check(model: &Model, now: u64) -> Result<(), TestCaseError> {
    let bindings: Vec<Binding> = model.bindings().iter().collect();
    let distinct =
        |key: fn(&Binding) -> u32| bindings.iter().map(key).collect::<BTreeSet<_>>().len() == bindings.len();
    prop_assert!(
        distinct(|b| b.public_ip.into()) && distinct(|b| b.private_ip.into()) && distinct(|b| b.meter)
    );
    prop_assert!(bindings.len() <= CAPACITY as usize);
    prop_assert_eq!(model.bound(), bindings.len());
    prop_assert!(model.closing().all(|closing| bindings.iter().all(|b| b.meter != closing.meter)));
    let usage = model.pools(at(now)).next().unwrap();
    let public_ips = model.vms().filter_map(|vm| Some(vm.public_ip?.address));
    let held: Vec<Ipv4Addr> = model.eips().map(|eip| eip.address).chain(public_ips).collect();
    prop_assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len());
    let of_pool = held.iter().filter(|address| usage.spec.contains(**address)).count();
    prop_assert_eq!(usage.allocated, of_pool as u64);
    prop_assert_eq!(usage.allocated + usage.cooling + usage.free, usage.size);
    for vm in model.vms() {
        let has_eip = model.eips().any(|eip| eip.attached.is_some_and(|a| a.private_ip == vm.private_ip));
        let has_one = has_eip || vm.public_ip.is_some();
        prop_assert!(!(has_eip && vm.public_ip.is_some()), "two addresses: {:?}", vm);
        prop_assert_eq!(vm.waiting_since.is_some(), vm.pool.is_some() && !has_one, "{:?}", vm);
    }
    for eip in model.eips() {
        let vm = eip.attached.and_then(|attached| model.vm_at(attached.private_ip));
        prop_assert!(vm.is_none_or(|vm| vm.account == eip.account));
    }
    Ok(())
}

/// What an import is: its lines one after another, as if somebody had typed them, or nothing.
fn by_commands(model: &Model, lines: &[Line], now: SystemTime) -> Option<Model> {
    let (mut model, mut seen) = (model.clone(), BTreeSet::new());
    for Line { eip, private_ip, account, .. } in lines.iter().cloned() {
        let account = account.unwrap_or_else(Name::default_one);
        let allocate =
            Allocation { address: Some(eip), account: Some(account.clone()), ..Allocation::default() };
        let attach = Command::Attach { eip, target: Target::PrivateIp(private_ip), reassign: false };
        let commands = match model.eip(eip) {
            _ if !seen.insert(eip) => return None,
            Ok(there) if there.account != account => return None,
            Ok(_) => vec![attach],
            Err(_) => vec![Command::Allocate(allocate), attach],
        };
        for command in commands {
            let change = model.plan(&command, now).ok()?;
            model.apply(change);
        }
    }
    Some(model)
}

/// All that is held and bound, and what is still to be done.
fn contents(model: &Model) -> (Vec<Eip>, Vec<Vm>, Vec<Closing>, Vec<Binding>) {
    (
        model.eips().cloned().collect(),
        model.vms().cloned().collect(),
        model.closing().cloned().collect(),
        model.bindings().iter().collect(),
    )
}

type Records = HashMap<(&'static str, String), Record>;

/// The model that a daemon starts with.
fn restarted(records: &Records, number: usize) -> Result<Model, TestCaseError> {
    let mut model = Model::new(configuration(number), CAPACITY);
    for record in records.values() {
        model.insert(record.clone()).map_err(TestCaseError::fail)?;
    }
    Ok(model)
}

/// What the records say by themselves, told to a new model, is the same state.
fn survives_a_restart(model: &Model, records: &Records, number: usize) -> Result<(), TestCaseError> {
    let again = restarted(records, number)?;
    prop_assert!(again.bindings().iter().eq(model.bindings().iter()));
    prop_assert_eq!(again.pools(at(0)).collect::<Vec<_>>(), model.pools(at(0)).collect::<Vec<_>>());
    prop_assert_eq!(&again.waiting, &model.waiting);
    prop_assert_eq!(&again.accounts, &model.accounts);
    prop_assert_eq!(&again.requests, &model.requests);
    Ok(())
}

proptest! {
    /// Whatever people do, nothing is given twice, lost or leaked.
    #[test]
    fn invariants_hold_after_any_commands(
        commands in proptest::collection::vec((any_action(), 0..40_u64, any::<bool>()), 0..60),
    ) {
        let mut configured = 0;
        let mut model = Model::new(configuration(configured), CAPACITY);
        let (mut now, mut records) = (0, Records::new());
        let mut returned = HashMap::new();
        for (action, pause, closes) in commands {
            now += pause;
            let change = match &action {
                Action::Command(command) => model.plan(command, at(now)).ok(),
                Action::Import(lines) => {
                    let change = model.plan_import(lines, at(now)).ok();
                    let imported = change.clone().map(|change| {
                        let mut model = model.clone();
                        model.apply(change);
                        contents(&model)
                    });
                    let expected = by_commands(&model, lines, at(now));
                    prop_assert_eq!(imported, expected.as_ref().map(contents));
                    change
                }
                Action::Restart(number) => {
                    survives_a_restart(&model, &records, configured)?;
                    configured = *number;
                    model = restarted(&records, configured)?;
                    check(&model, now)?;
                    None
                }
            };
            let mut changes: Vec<Change> = change.into_iter().collect();
            while let Some(change) = changes.pop() {
                for edit in change.edits() {
                    if let (None, Some(Record::Returned(address))) = (&edit.before, &edit.after) {
                        returned.insert(address.address, now);
                    }
                    if let (Some(Record::Returned(address)), None) = (&edit.before, &edit.after) {
                        let since = returned.remove(&address.address).unwrap();
                        prop_assert!(now >= since + DELAY, "{} reused after {}", address.address, now - since);
                    }
                    let key = edit.key().unwrap();
                    prop_assert_eq!(records.get(&key), edit.before.as_ref());
                    match &edit.after {
                        Some(after) => drop(records.insert(key, after.clone())),
                        None => drop(records.remove(&key)),
                    }
                }
                model.apply(change);
                check(&model, now)?;
                // One at a time: each is planned from the state that the one before has left.
                let read: Vec<_> =
                    model.closing().map(|closing| (closing.clone(), Meter::default())).collect();
                let close = Some(model.plan_close(&read)).filter(|close| closes && !close.is_nothing());
                changes.extend(close.or_else(|| model.plan_waiting(at(now))));
            }
        }
        survives_a_restart(&model, &records, configured)?;
        let mut model = restarted(&records, 0)?;
        // Nothing has leaked: in the end every address can be had.
        for name in model.vms().map(|vm| vm.name.clone()).collect::<Vec<_>>() {
            let change = model.plan(&Command::DestroyVm(name), at(now)).unwrap();
            model.apply(change);
        }
        for eip in model.eips().map(|eip| eip.address).collect::<Vec<_>>() {
            for command in [Command::Detach(eip), Command::Release(eip)] {
                let change = model.plan(&command, at(now)).unwrap();
                model.apply(change);
            }
        }
        for _ in 0..4 {
            let change = model.plan(&allocate(None, None), at(now + DELAY)).unwrap();
            model.apply(change);
        }
        prop_assert_eq!(model.bound(), 0);
    }
}
