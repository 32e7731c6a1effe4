use std::time::Duration;

use super::*;
use crate::dataplane::memory::{Event, MemoryDataplane};
use crate::dataplane::{Binding, Half};
use crate::model::{Name, Target};

const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 0);
const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const BINDING: Binding = Binding { public_ip: EIP, tenant: 0, private_ip: VM, meter: 0 };
const ALLOCATE: Command = Command::Allocate { pool: None, address: None, account: None };
const ATTACH: Command = Command::Attach(EIP, Target::PrivateIp(VM));

fn start(dataplane: &MemoryDataplane) -> Control {
    let pool = PoolSpec {
        name: Name::default_one(),
        cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::ZERO,
    };
    Control::start(vec![pool], Box::new(dataplane.clone())).unwrap()
}

fn execute(control: &mut Control, command: &Command) -> Result<Eip, Error> {
    control.execute(command, SystemTime::UNIX_EPOCH)
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
fn a_meter_goes_on_after_a_detach_and_begins_anew_after_a_release() {
    let dataplane = MemoryDataplane::new(1);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    assert_eq!(control.meter(EIP).unwrap(), Meter::default());
    assert!(control.metered().unwrap().is_empty());
    execute(&mut control, &ATTACH).unwrap();
    let carried = Meter { in_bytes: 1500, in_packets: 1, ..Meter::default() };
    dataplane.state().meters[0] = carried;
    execute(&mut control, &Command::Detach(EIP)).unwrap();
    assert_eq!(control.meter(EIP).unwrap(), carried);
    execute(&mut control, &ATTACH).unwrap();
    assert_eq!(control.metered().unwrap()[0].1, carried);
    for command in [Command::Detach(EIP), Command::Release(EIP), ALLOCATE] {
        execute(&mut control, &command).unwrap();
    }
    let next = Ipv4Addr::new(203, 0, 113, 1);
    execute(&mut control, &Command::Attach(next, Target::PrivateIp(VM))).unwrap();
    assert_eq!(control.meter(next).unwrap(), Meter::default());
}

#[test]
fn what_an_earlier_daemon_left_is_cleared() {
    let mut dataplane = MemoryDataplane::new(4);
    dataplane.insert(Half::Inbound(BINDING)).unwrap();
    start(&dataplane);
    assert_eq!(dataplane.state().halves(), []);
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
    assert!(control.problem().is_some());
    control.repair();
    assert!(control.problem().is_some());

    dataplane.state().broken = false;
    control.repair();
    assert_eq!((control.problem(), dataplane.state().halves()), (None, vec![]));
}

#[test]
fn the_next_command_mends_too_and_a_failed_reset_changes_nothing() {
    let dataplane = MemoryDataplane::new(4);
    let mut control = start(&dataplane);
    execute(&mut control, &ALLOCATE).unwrap();
    dataplane.state().broken = true;
    assert!(matches!(execute(&mut control, &ATTACH), Err(Error::Failed(_))));
    assert_eq!((control.revision(), control.problem()), (1, None));

    dataplane.state().broken = false;
    execute(&mut control, &ATTACH).unwrap();
    dataplane.state().broken = true;
    execute(&mut control, &Command::Detach(EIP)).unwrap_err();
    dataplane.state().broken = false;
    execute(&mut control, &ALLOCATE).unwrap();
    assert_eq!((control.problem(), dataplane.state().halves()), (None, vec![]));
}
