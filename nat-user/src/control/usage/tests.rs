use std::path::Path;

use proptest::prelude::*;

use super::super::*;
use super::*;
use crate::dataplane::memory::MemoryDataplane;
use crate::model::{Allocation, Command, Name, PoolSpec, Spec, Target};
use crate::usage::Record as Bill;

const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const HOUR: u64 = 3600;

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn spec() -> Spec {
    let pool = PoolSpec {
        name: Name::default_one(),
        cidrs: vec!["203.0.113.0/28".parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::ZERO,
    };
    Spec { pools: vec![pool], ..Spec::default() }
}

fn start(directory: &Path, dataplane: &MemoryDataplane, now: u64) -> Control {
    let store = Store::open(directory, spec(), dataplane.capacity()).unwrap();
    Control::start(store, Box::new(dataplane.clone()), config::Usage::default(), at(now)).unwrap()
}

fn allocate(account: &str) -> Command {
    let account = Some(account.parse().unwrap());
    Command::Allocate(Allocation { account, ..Allocation::default() })
}

fn attach(eip: Ipv4Addr) -> Command {
    Command::Attach { eip, target: Target::PrivateIp(VM), reassign: false }
}

fn create_vm(name: &str, account: &str, public_ip: bool) -> Command {
    let account = Some(account.parse().unwrap());
    Command::CreateVm { name: name.parse().unwrap(), private_ip: VM, account, public_ip, pool: None }
}

fn carry(dataplane: &MemoryDataplane, meter: usize, bytes: u64) {
    dataplane.state().meters[meter].in_bytes += bytes;
}

fn flush(control: &mut Control, now: u64) {
    (0..control.flush_parts()).for_each(|part| control.flush(part, at(now)));
}

fn bill(control: &Control, query: &Query, now: u64) -> Vec<Bill> {
    let (under_way, mut next) = control.usage(query, at(now)).unwrap();
    let mut all = Vec::new();
    while let Some(after) = next {
        let (some, further) = control.ended_usage(query, after).unwrap();
        all.extend(some);
        next = further;
    }
    all.extend(under_way);
    all
}

/// Address, account, VM, beginning, end and bytes of every record.
fn lines(control: &Control, now: u64) -> Vec<String> {
    let line = |Bill { payer: Payer { address, account, vm }, begin, end, carried }: Bill| {
        let vm = vm.map_or_else(|| "-".to_owned(), |vm| vm.to_string());
        format!("{address} {account} {vm} {begin} {end} {}", carried.in_bytes)
    };
    bill(control, &Query::default(), now).into_iter().map(line).collect()
}

#[test]
fn a_daemon_that_dies_at_any_time_costs_no_byte() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 10);
    control.execute(&allocate("acme"), at(20)).unwrap();
    control.execute(&attach(EIP), at(30)).unwrap();
    carry(&dataplane, 0, 100);
    assert_eq!(lines(&control, 40), ["203.0.113.0 acme - 30 40 100"]);
    drop(control);
    // It has seen nothing of them yet; the next one knows when it has begun to look.
    let mut control = start(directory.path(), &dataplane, 50);
    assert_eq!(lines(&control, 60), ["203.0.113.0 acme - 50 60 100"]);
    flush(&mut control, 60);
    carry(&dataplane, 0, 11);
    drop(control);
    let mut control = start(directory.path(), &dataplane, 70);
    assert_eq!(lines(&control, 70), ["203.0.113.0 acme - 50 70 111"]);
    flush(&mut control, HOUR + 1);
    carry(&dataplane, 0, 5);
    drop(control);
    let mut control = start(directory.path(), &dataplane, HOUR + 20);
    let first = format!("203.0.113.0 acme - 50 {HOUR} 111");
    let second = format!("203.0.113.0 acme - {} {} 5", HOUR + 20, HOUR + 30);
    assert_eq!(lines(&control, HOUR + 30), [first.clone(), second.clone()]);
    control.execute(&Command::Detach(EIP), at(HOUR + 30)).unwrap();
    drop(control);
    let control = start(directory.path(), &dataplane, HOUR + 40);
    assert_eq!(lines(&control, HOUR + 40), [first, second]);
    assert_eq!(control.accounts()["acme".parse::<Name>().as_ref().unwrap()].in_bytes, 116);
}

#[test]
fn a_move_splits_and_so_does_a_name() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    carry(&dataplane, 0, 100);
    control.execute(&create_vm("web", "acme", true), at(3)).unwrap();
    carry(&dataplane, 0, 10);
    let private_ip = Ipv4Addr::new(10, 0, 0, 9);
    let away = Command::Attach { eip: EIP, target: Target::PrivateIp(private_ip), reassign: true };
    control.execute(&away, at(4)).unwrap();
    // The EIP has another meter, and the VM a public IP.
    let meter_of = |address: Ipv4Addr| dataplane.state().inbound[&address].meter as usize;
    carry(&dataplane, meter_of(EIP), 3);
    carry(&dataplane, meter_of(OTHER), 4);
    control.execute(&Command::DestroyVm("web".parse().unwrap()), at(5)).unwrap();
    control.execute(&Command::Detach(EIP), at(6)).unwrap();
    assert_eq!(
        lines(&control, 7),
        [
            "203.0.113.0 acme - 2 3 100",
            "203.0.113.0 acme web 3 4 10",
            "203.0.113.1 acme web 4 5 4",
            "203.0.113.0 acme - 4 6 3",
        ]
    );
    let asked = |eip, account: Option<&str>, from, to| {
        let account = account.map(|account| account.parse().unwrap());
        bill(&control, &Query { eip, account, from, to }, 7).len()
    };
    assert_eq!(asked(Some(EIP), None, 0, None), 3);
    assert_eq!(asked(Some(EIP), None, 3, Some(4)), 1);
    assert_eq!(asked(None, Some("acme"), 4, None), 2);
    assert_eq!(asked(None, Some("other"), 0, None), 0);
}

#[test]
fn when_the_machine_restarts_what_was_written_counts_and_counters_begin_anew() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    carry(&dataplane, 0, 7);
    control.execute(&Command::Detach(EIP), at(3)).unwrap();
    control.execute(&attach(EIP), at(4)).unwrap();
    carry(&dataplane, 0, 100);
    flush(&mut control, 10);
    carry(&dataplane, 0, 1);
    drop(control);
    let anew = MemoryDataplane::new(4);
    anew.state().meters_id = [8; 16];
    let mut control = start(directory.path(), &anew, 60);
    let lost = ["203.0.113.0 acme - 2 3 7", "203.0.113.0 acme - 4 10 100"];
    assert_eq!(lines(&control, 60), lost);
    assert_eq!(control.carried(EIP).unwrap(), Carried::default());
    assert!(control.accounts().is_empty());
    carry(&anew, 0, 50);
    flush(&mut control, 70);
    drop(control);
    let control = start(directory.path(), &anew, 80);
    assert_eq!(lines(&control, 80), [lost[0], lost[1], "203.0.113.0 acme - 60 80 50"]);
    assert_eq!(control.carried(EIP).unwrap().in_bytes, 50);
}

#[test]
fn an_older_state_that_is_put_back_takes_no_bill_back() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&allocate("zeta"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    let backup = directory.path().join("backup");
    std::fs::write(&backup, control.backup().unwrap()).unwrap();
    carry(&dataplane, 0, 100);
    control.execute(&Command::Detach(EIP), at(3)).unwrap();
    control.execute(&attach(OTHER), at(4)).unwrap();
    carry(&dataplane, 0, 30);
    flush(&mut control, 5);
    carry(&dataplane, 0, 3);
    drop(control);
    store::restore(directory.path(), &backup).unwrap();
    let control = start(directory.path(), &dataplane, 10);
    assert_eq!(lines(&control, 10), ["203.0.113.0 acme - 2 3 100", "203.0.113.1 zeta - 4 10 33"]);
    assert_eq!(control.carried(EIP).unwrap(), Carried::default());
}

#[test]
fn a_ledger_that_was_taken_away_bills_nothing_twice() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    carry(&dataplane, 0, 100);
    flush(&mut control, 5);
    drop(control);
    std::fs::rename(directory.path().join("usage.db"), directory.path().join("usage.old")).unwrap();
    let control = start(directory.path(), &dataplane, 10);
    carry(&dataplane, 0, 1);
    assert_eq!(lines(&control, 20), ["203.0.113.0 acme - 10 20 1"]);
}

#[test]
fn old_records_go_and_the_rest_adds_up() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    for hour in 1..4 {
        carry(&dataplane, 0, hour);
        flush(&mut control, hour * HOUR - 1);
        flush(&mut control, hour * HOUR);
    }
    assert_eq!(lines(&control, 4 * HOUR).len(), 3);
    let late = config::Usage::default().retention.as_secs() + 2 * HOUR - 400;
    // A clock that is wrong for a while costs nothing.
    flush(&mut control, late);
    assert_eq!(lines(&control, 4 * HOUR).len(), 3);
    for second in 0..400 {
        flush(&mut control, late + second);
    }
    assert_eq!(lines(&control, 4 * HOUR), [format!("203.0.113.0 acme - {} {} 3", 2 * HOUR, 3 * HOUR)]);
}

#[test]
fn an_older_state_that_is_put_back_loses_no_record_that_was_under_way() {
    let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
    let mut control = start(directory.path(), &dataplane, 0);
    control.execute(&allocate("acme"), at(1)).unwrap();
    control.execute(&attach(EIP), at(2)).unwrap();
    let backup = directory.path().join("backup");
    std::fs::write(&backup, control.backup().unwrap()).unwrap();
    // Away, and on to a third, which counts on the first meter again.
    for (host, now) in [(9, 3), (10, 4)] {
        let target = Target::PrivateIp(Ipv4Addr::new(10, 0, 0, host));
        control.execute(&Command::Attach { eip: EIP, target, reassign: true }, at(now)).unwrap();
    }
    assert_eq!(dataplane.state().inbound[&EIP].meter, 0);
    carry(&dataplane, 0, 30);
    flush(&mut control, 5);
    drop(control);
    store::restore(directory.path(), &backup).unwrap();
    let control = start(directory.path(), &dataplane, 10);
    assert_eq!(lines(&control, 10), ["203.0.113.0 acme - 4 10 30"]);
    assert_eq!(control.carried(EIP).unwrap(), Carried::default());
}

/// What happens to a node.
#[derive(Clone, Debug)]
enum Event {
    Attach,
    Detach,
    CreateVm(bool),
    DestroyVm,
    Carry(u64),
    Flush,
    Crash,
    Pause(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Attach),
        Just(Event::Detach),
        any::<bool>().prop_map(Event::CreateVm),
        Just(Event::DestroyVm),
        (1_u64..1000).prop_map(Event::Carry),
        (1_u64..1000).prop_map(Event::Carry),
        Just(Event::Flush),
        Just(Event::Crash),
        (1_u64..3000).prop_map(Event::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever happens in which order, each byte is on the bill once, of the address, account and VM that it was carried for.
    #[test]
    fn every_byte_is_billed_once_to_the_right_one(events in proptest::collection::vec(event(), 1..25)) {
        let (directory, dataplane) = (tempfile::tempdir().unwrap(), MemoryDataplane::new(4));
        let mut control = start(directory.path(), &dataplane, 0);
        control.execute(&allocate("acme"), at(0)).unwrap();
        let (mut now, mut expected) = (0, BTreeMap::<(Ipv4Addr, Option<String>), u64>::new());
        for event in events {
            now += 1;
            let command = match event {
                Event::Attach => attach(EIP),
                Event::Detach => Command::Detach(EIP),
                Event::CreateVm(public_ip) => create_vm("web", "acme", public_ip),
                Event::DestroyVm => Command::DestroyVm("web".parse().unwrap()),
                Event::Carry(bytes) => {
                    let bound: Vec<_> = dataplane.state().inbound.values().copied().collect();
                    for binding in bound {
                        carry(&dataplane, binding.meter as usize, bytes);
                        let vm = control.model().vm_at(VM).map(|vm| vm.name.to_string());
                        *expected.entry((binding.public_ip, vm)).or_default() += bytes;
                    }
                    continue;
                }
                Event::Flush => {
                    flush(&mut control, now);
                    continue;
                }
                Event::Crash => {
                    drop(control);
                    control = start(directory.path(), &dataplane, now);
                    continue;
                }
                Event::Pause(seconds) => {
                    now += seconds;
                    continue;
                }
            };
            // Some are refused, as they should be.
            let _ = control.execute(&command, at(now));
        }
        let mut billed = BTreeMap::<(Ipv4Addr, Option<String>), u64>::new();
        for Bill { payer, carried, .. } in bill(&control, &Query::default(), now) {
            prop_assert_eq!(payer.account.as_str(), "acme");
            *billed.entry((payer.address, payer.vm.map(|vm| vm.to_string()))).or_default() += carried.in_bytes;
        }
        prop_assert_eq!(&billed, &expected);
        flush(&mut control, now);
        let sum: u64 = expected.values().sum();
        prop_assert_eq!(control.accounts().values().map(|carried| carried.in_bytes).sum::<u64>(), sum);
    }
}
