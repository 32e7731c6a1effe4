use std::time::Duration;

use super::*;
use crate::dataplane::memory::{Event, MemoryDataplane, State};
use crate::dataplane::{Binding, Half};
use crate::model::{Allocation, Name, PoolSpec, Spec, Target};

const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const BINDING: Binding = Binding { public_ip: EIP, tenant: 0, private_ip: VM, meter: 0 };
const ALLOCATE: Command =
    Command::Allocate(Allocation { pool: None, address: None, account: None, request: None });
const ATTACH: Command = Command::Attach { eip: EIP, target: Target::PrivateIp(VM), reassign: false };

fn try_start(dataplane: &MemoryDataplane) -> anyhow::Result<Control> {
    start_with("203.0.113.0/24", dataplane)
}

fn start_with(pool: &str, dataplane: &MemoryDataplane) -> anyhow::Result<Control> {
    let pool = PoolSpec {
        name: Name::default_one(),
        cidrs: vec![pool.parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::ZERO,
    };
    let spec = Spec { pools: vec![pool], ..Spec::default() };
    start_from(Store::in_memory(spec, dataplane.capacity()).unwrap(), dataplane)
}

fn start_from(store: Store, dataplane: &MemoryDataplane) -> anyhow::Result<Control> {
    Control::start(store, Box::new(dataplane.clone()), config::Usage::default(), SystemTime::UNIX_EPOCH)
}

fn start(dataplane: &MemoryDataplane) -> Control {
    try_start(dataplane).unwrap()
}

fn execute(control: &mut Control, command: &Command) -> Result<Subject, Error> {
    control.execute(command, SystemTime::UNIX_EPOCH)
}

fn metered(control: &Control) -> Vec<(Ipv4Addr, Name, Carried)> {
    control.metered(Ipv4Addr::UNSPECIFIED, None).unwrap().0
}

/// What a second brings.
fn tick(control: &mut Control) {
    for _ in 0..control.tick(SystemTime::UNIX_EPOCH).looks {
        control.patrol();
    }
}

#[test]
fn a_command_is_in_force_when_it_returns() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    execute(&mut control, &ATTACH).unwrap();
    assert_eq!(dataplane.state().halves(), [Half::Inbound(BINDING), Half::Outbound(BINDING)]);
    execute(&mut control, &Command::Detach(EIP)).unwrap();
    assert_eq!(
        dataplane.state().events,
        [
            Event::ResetMeter(0),
            Event::Insert(Half::Outbound(BINDING)),
            Event::Insert(Half::Inbound(BINDING)),
            Event::Remove(Half::Inbound(BINDING)),
            Event::Remove(Half::Outbound(BINDING)),
            Event::Quiesce,
        ]
    );
}

#[test]
fn a_revision_is_a_change() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    for (command, revision) in [(ALLOCATE, 1), (ATTACH, 2), (ATTACH, 2), (Command::Detach(EIP), 3)] {
        execute(&mut control, &command).unwrap();
        assert_eq!(control.revision(), revision);
    }
    assert!(matches!(
        execute(&mut control, &Command::Release(VM)),
        Err(Error::Refused(Refusal::UnknownEip(VM)))
    ));
    assert_eq!(control.revision(), 3);
}

#[test]
fn what_an_eip_has_carried_goes_on_after_a_detach_and_begins_anew_after_a_release() {
    let dataplane = MemoryDataplane::new(1);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    assert_eq!(control.carried(EIP).unwrap(), Carried::default());
    assert!(metered(&control).is_empty());
    execute(&mut control, &ATTACH).unwrap();
    dataplane.state().meters[0] = Meter { in_bytes: 1500, in_packets: 1, ..Meter::default() };
    let carried = Carried { in_bytes: 1500, in_packets: 1, ..Carried::default() };
    assert_eq!(control.carried(EIP).unwrap(), carried);
    execute(&mut control, &Command::Detach(EIP)).unwrap();
    assert_eq!(control.carried(EIP).unwrap(), carried);
    assert_eq!(control.model().closing().count(), 0);
    execute(&mut control, &ATTACH).unwrap();
    assert_eq!(metered(&control)[0].2, carried);
    dataplane.state().meters[0] = Meter { out_bytes: 40, out_packets: 1, ..Meter::default() };
    assert_eq!(metered(&control)[0].2, Carried { out_bytes: 40, out_packets: 1, ..carried });
    for command in [Command::Detach(EIP), Command::Release(EIP), ALLOCATE] {
        execute(&mut control, &command).unwrap();
    }
    let next = Ipv4Addr::new(203, 0, 113, 1);
    let attach = Command::Attach { eip: next, target: Target::PrivateIp(VM), reassign: false };
    execute(&mut control, &attach).unwrap();
    assert_eq!(control.carried(next).unwrap(), Carried::default());
}

#[test]
fn a_new_store_does_not_take_a_datapath_down_that_serves() {
    let mut dataplane = MemoryDataplane::new(4);
    dataplane.insert(&[Half::Inbound(BINDING)]).unwrap();
    let error = try_start(&dataplane).err().unwrap().to_string();
    assert!(error.starts_with("store.path: the store is new, but the datapath serves bindings"), "{error}");
    assert_eq!(dataplane.state().halves(), [Half::Inbound(BINDING)]);
}

#[test]
fn a_vm_that_waits_is_served_when_time_has_come() {
    let dataplane = MemoryDataplane::new(1);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    execute(&mut control, &ATTACH).unwrap();
    let name: Name = "web".parse().unwrap();
    let create =
        Command::CreateVm { name: name.clone(), private_ip: VM, account: None, public_ip: true, pool: None };
    execute(&mut control, &create).unwrap();
    assert_eq!(control.model().vm(&name).unwrap().public_ip, None, "it has an EIP");
    execute(&mut control, &Command::Detach(EIP)).unwrap();
    let public_ip = control.model().vm(&name).unwrap().public_ip.unwrap().address;
    assert_eq!(dataplane.state().halves().len(), 2);
    let next = Command::Attach { eip: EIP, target: Target::Vm(name.clone()), reassign: false };
    execute(&mut control, &next).unwrap();
    let events = dataplane.state().events.clone();
    let last: Vec<&str> = events
        .iter()
        .rev()
        .take(6)
        .map(|event| match event {
            Event::Insert(Half::Inbound(_)) => "in+",
            Event::Insert(Half::Outbound(_)) => "out+",
            Event::Remove(Half::Inbound(_)) => "in-",
            Event::Remove(Half::Outbound(_)) => "out-",
            Event::Quiesce => "quiesce",
            Event::ResetMeter(_) => "reset",
        })
        .collect();
    assert_eq!(last, ["in+", "out+", "quiesce", "out-", "in-", "reset"], "never two addresses at once");
    assert_ne!(public_ip, EIP);
    tick(&mut control);
    assert_eq!(dataplane.state().halves().len(), 2);
}

#[test]
fn a_datapath_that_fails_is_told_and_mended() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    for command in [ALLOCATE, ATTACH] {
        execute(&mut control, &command).unwrap();
    }
    dataplane.state().broken = true;
    let error = execute(&mut control, &Command::Detach(EIP)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "accepted, but not in force yet: the datapath lags behind revision 3: the datapath in memory was told to fail"
    );
    assert!(!control.problems().is_empty());
    tick(&mut control);
    assert!(!control.problems().is_empty());

    dataplane.state().broken = false;
    tick(&mut control);
    assert_eq!((control.problems(), dataplane.state().halves()), (vec![], vec![]));
}

#[test]
fn the_next_command_mends_too_and_a_failed_reset_changes_nothing() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    dataplane.state().broken = true;
    assert!(matches!(execute(&mut control, &ATTACH), Err(Error::Failed(_))));
    assert_eq!((control.revision(), control.problems()), (1, vec![]));

    dataplane.state().broken = false;
    execute(&mut control, &ATTACH).unwrap();
    dataplane.state().broken = true;
    execute(&mut control, &Command::Detach(EIP)).unwrap_err();
    dataplane.state().broken = false;
    execute(&mut control, &ALLOCATE).unwrap();
    assert_eq!((control.problems(), dataplane.state().halves()), (vec![], vec![]));
}

#[test]
fn what_the_datapath_stands_on_is_mended_and_counted() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    assert!(dataplane.state().active);
    assert_eq!((control.problems(), control.repairs()), (vec![], 0));

    let gone = vec!["interface dn0 is gone".to_owned()];
    dataplane.state().drift =
        Mended { repaired: vec!["up0: described anew".to_owned()], problems: gone.clone() };
    tick(&mut control);
    tick(&mut control);
    assert_eq!((control.problems(), control.repairs()), (gone, 1));

    dataplane.state().drift = Mended::default();
    tick(&mut control);
    assert_eq!((control.problems(), control.repairs()), (vec![], 1));
}

#[test]
fn a_big_import_is_carried_out_at_once() {
    const LINES: u32 = 100_000;
    let dataplane = MemoryDataplane::new(LINES);
    let mut control = start_with("203.0.0.0/15", &dataplane).unwrap();
    let lines: Vec<Line> = (0..LINES)
        .map(|number| Line {
            number: number.into(),
            eip: (u32::from_be_bytes([203, 0, 0, 0]) + number).into(),
            private_ip: (u32::from_be_bytes([10, 0, 0, 1]) + number).into(),
            account: None,
        })
        .collect();
    let said = control.import(&lines, SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(said, "100000 of 100000 EIPs imported");
    assert_eq!(dataplane.state().inbound.len(), LINES as usize);
}

#[test]
fn after_a_restore_nobody_is_billed_for_anothers_traffic() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    execute(&mut control, &ATTACH).unwrap();
    // What the datapath has is of a later revision: another EIP has taken the meter over.
    {
        let mut state = dataplane.state();
        state.inbound.clear();
        state.outbound.clear();
        let other = Binding { public_ip: Ipv4Addr::new(203, 0, 113, 9), ..BINDING };
        state.inbound.insert(other.public_ip, other);
        state.outbound.insert((0, VM), other);
        state.meters[0].in_bytes = 10_000_000;
    }
    let Control { store, .. } = control;
    let control = start_from(store, &dataplane).unwrap();
    assert_eq!(control.carried(EIP).unwrap(), Carried::default());
    // And what stands as it should goes on counting.
    dataplane.state().meters[0].in_bytes = 7;
    let Control { store, .. } = control;
    let control = start_from(store, &dataplane).unwrap();
    assert_eq!(control.carried(EIP).unwrap().in_bytes, 7);
}

/// As few as these are looked at all at once.
#[test]
fn bindings_that_somebody_else_changes_are_mended_at_the_next_look() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    for command in [ALLOCATE, ATTACH] {
        execute(&mut control, &command).unwrap();
    }
    let good = [Half::Inbound(BINDING), Half::Outbound(BINDING)];
    let stranger =
        Binding { public_ip: [203, 0, 113, 3].into(), private_ip: [10, 0, 0, 66].into(), ..BINDING };
    let changes: [fn(&mut State, Binding); 5] = [
        |state, _| state.inbound.clear(),
        |state, _| state.outbound.clear(),
        |state, stranger| state.inbound.extend([(stranger.public_ip, stranger)]),
        |state, stranger| state.outbound.extend([((0, stranger.private_ip), stranger)]),
        |state, stranger| state.inbound.values_mut().for_each(|b| b.private_ip = stranger.private_ip),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        tick(&mut control);
        assert_eq!(control.repairs(), number as u64, "nothing to mend");
        change(&mut dataplane.state(), stranger);
        tick(&mut control);
        assert_eq!(dataplane.state().halves(), good);
        assert_eq!(control.repairs(), number as u64 + 1);
    }
}

#[test]
fn whoever_waits_for_an_address_is_served_before_a_new_command() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start_with("203.0.113.0/31", &dataplane).unwrap();
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let name: Name = "web".parse().unwrap();
    let create =
        Command::CreateVm { name: name.clone(), private_ip: VM, account: None, public_ip: true, pool: None };
    execute(&mut control, &ALLOCATE).unwrap();
    execute(&mut control, &create).unwrap();
    let attach = Command::Attach { eip: EIP, target: Target::Vm(name.clone()), reassign: false };
    execute(&mut control, &attach).unwrap();
    execute(&mut control, &ALLOCATE).unwrap();
    execute(&mut control, &Command::Detach(EIP)).unwrap();
    assert!(control.model().vm(&name).unwrap().waiting_since.is_some(), "there is none");
    let other = EIP.to_bits() + 1;
    control.execute(&Command::Release(other.into()), at(1)).unwrap();
    let refused = control.execute(&ALLOCATE, at(2)).unwrap_err().to_string();
    assert!(refused.contains("no free address"), "{refused}");
    assert_eq!(control.model().vm(&name).unwrap().public_ip.unwrap().address, Ipv4Addr::from(other));
}

/// Its client has been told that it has taken too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_nobody_waits_for_any_more_is_not_carried_out() {
    let dataplane = MemoryDataplane::new(4);
    let control = Shared::new(start(&dataplane));
    let held = control.clone();
    let (taken, is_taken) = tokio::sync::oneshot::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let keep = move |_: &mut Control| {
        taken.send(()).unwrap();
        is_released.recv()
    };
    let holder = tokio::spawn(async move { call(&held, keep).await });
    is_taken.await.unwrap();
    let allocate = call(&control, |control| execute(control, &ALLOCATE).map(drop));
    tokio::time::timeout(Duration::from_millis(50), allocate).await.unwrap_err();
    release.send(()).unwrap();
    holder.await.unwrap().unwrap().unwrap();
    let eips = call(&control, |control| control.model().eips().count()).await.unwrap();
    assert_eq!(eips, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_panic_leaves_the_state_in_doubt_for_everybody_who_comes_later() {
    let control = Shared::new(start(&MemoryDataplane::new(4)));
    call(&control, |_| -> () { panic!("a bug") }).await.unwrap_err();
    for _ in 0..2 {
        let later = call(&control, |_| unreachable!("nobody has it any more")).await;
        assert!(later.unwrap_err().to_string().contains("in doubt"));
    }
}

#[test]
fn attached_eips_come_in_pieces_and_with_their_own_meters_alone() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    for _ in 0..4 {
        execute(&mut control, &ALLOCATE).unwrap();
    }
    let eip = |last| Ipv4Addr::new(203, 0, 113, last);
    let attach = |control: &mut Control, last, host| {
        let target = Target::PrivateIp(Ipv4Addr::new(10, 0, 0, host));
        execute(control, &Command::Attach { eip: eip(last), target, reassign: false }).unwrap();
    };
    for (last, host) in [(0, 2), (2, 3), (3, 4)] {
        attach(&mut control, last, host);
    }
    let (mut all, mut next, mut looks) = (Vec::new(), Some(Ipv4Addr::UNSPECIFIED), 0);
    while let Some(from) = next {
        let (some, after) = control.attached_from(from, 2);
        all.extend(some);
        next = after;
        looks += 1;
    }
    let attached = |last, meter| Attached { eip: eip(last), meter };
    assert_eq!((all.as_slice(), looks), (&[attached(0, 0), attached(2, 1), attached(3, 2)][..], 2));
    assert_eq!(control.attached_from(Ipv4Addr::UNSPECIFIED, 100), (all.clone(), None));
    assert_eq!(control.attached_from(eip(3), 100), (vec![attached(3, 2)], None));

    dataplane.state().meters[2].in_bytes = 7;
    execute(&mut control, &Command::Detach(eip(0))).unwrap();
    execute(&mut control, &Command::Detach(eip(2))).unwrap();
    attach(&mut control, 2, 5);
    let seen: Vec<_> = control.metered_of(&all).unwrap();
    assert_eq!(seen.len(), 1, "one has no meter any more, and one another: {seen:?}");
    assert_eq!((seen[0].0, seen[0].1.in_bytes), (attached(3, 2), 7));
}
