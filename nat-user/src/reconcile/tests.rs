use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use nat_common::abi::Meter;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::dataplane::memory::{Event, MemoryDataplane, State};
use crate::model::{Command, Line, Model, Name, PoolSpec, Spec, Target};

fn binding(public: u8, private: u8, meter: u32) -> Binding {
    Binding {
        public_ip: Ipv4Addr::new(203, 0, 113, public),
        tenant: 0,
        private_ip: Ipv4Addr::new(10, 0, 0, private),
        meter,
    }
}

/// Few addresses, so that they collide often.
fn any_binding() -> impl Strategy<Value = Binding> {
    (0..5_u8, 0..5_u8, 0..3_u32).prop_map(|(public, private, meter)| binding(public, private, meter))
}

/// Whatever a crash or an outsider may have left.
fn any_actual() -> impl Strategy<Value = Vec<Half>> {
    vec((any_binding(), any::<bool>()), 0..12)
        .prop_map(|list| list.into_iter().map(|(b, inbound)| half(b, inbound)).collect())
}

/// 1:1 both ways.
fn any_desired() -> impl Strategy<Value = Vec<Binding>> {
    vec(any_binding(), 0..8).prop_map(|list| {
        let by_public: BTreeMap<_, _> = list.into_iter().map(|b| (b.public_ip, b)).collect();
        let by_private: BTreeMap<_, _> = by_public.into_values().map(|b| (b.private_ip, b)).collect();
        // No two have the same meter.
        (0..).zip(by_private.into_values()).map(|(meter, binding)| Binding { meter, ..binding }).collect()
    })
}

const fn half(binding: Binding, inbound: bool) -> Half {
    if inbound { Half::Inbound(binding) } else { Half::Outbound(binding) }
}

fn dataplane_with(halves: &[Half]) -> MemoryDataplane {
    let dataplane = MemoryDataplane::new(8);
    for half in halves {
        put(&mut dataplane.state(), *half);
    }
    dataplane
}

fn put(state: &mut State, half: Half) {
    match half {
        Half::Inbound(b) => state.inbound.insert(b.public_ip, b),
        Half::Outbound(b) => state.outbound.insert((b.tenant, b.private_ip), b),
    };
}

/// Follows the events from `initial` on and checks every instant.
fn check_every_instant(initial: &BTreeSet<Half>, desired: &BTreeSet<Half>, events: &[Event]) {
    let mut standing = initial.clone();
    let mut packets_may_see_old = false;
    for event in events {
        match event {
            Event::Insert(half) => {
                assert!(!packets_may_see_old, "insert before quiesce");
                assert!(desired.contains(half), "{half:?} was not asked for");
                let key = |half: &Half| match half {
                    Half::Inbound(b) => (Some(b.public_ip), None),
                    Half::Outbound(b) => (None, Some((b.tenant, b.private_ip))),
                };
                assert!(standing.iter().all(|other| key(other) != key(half)), "overwritten in place");
                if let Half::Inbound(b) = half {
                    assert!(standing.contains(&Half::Outbound(*b)), "reachable before it can answer");
                }
                standing.insert(*half);
            }
            Event::Remove(half) => {
                assert!(!desired.contains(half), "{half:?} taken away from under traffic");
                packets_may_see_old = true;
                standing.remove(half);
            }
            Event::Quiesce => packets_may_see_old = false,
            Event::ResetMeter(_) => panic!("reconciliation touches no meter"),
        }
    }
    assert!(!packets_may_see_old, "acknowledged before quiesce");
}

proptest! {
    #[test]
    fn any_state_becomes_the_desired_one(initial in any_actual(), desired in any_desired()) {
        let mut dataplane = dataplane_with(&initial);
        let initial: BTreeSet<Half> = dataplane.state().halves().into_iter().collect();
        everything(&mut dataplane, &desired.iter().copied().collect()).unwrap();

        let desired = halves(desired);
        prop_assert_eq!(dataplane.state().halves().into_iter().collect::<BTreeSet<_>>(), desired.clone());
        check_every_instant(&initial, &desired, &dataplane.state().events);

        let again = plan(&desired, &desired);
        prop_assert!(again.is_empty());
    }

    #[test]
    fn a_run_that_died_anywhere_is_finished_by_the_next(
        initial in any_actual(), desired in any_desired(), cut in 0..20_usize,
    ) {
        let mut dataplane = dataplane_with(&initial);
        let actual = dataplane.state().halves().into_iter().collect();
        let steps = plan(&halves(desired.iter().copied()), &actual);
        apply(&mut dataplane, steps.into_iter().take(cut)).unwrap();

        // The kernel has long quiesced when the next daemon comes.
        dataplane.quiesce().unwrap();
        everything(&mut dataplane, &desired.iter().copied().collect()).unwrap();
        let standing: BTreeSet<Half> = dataplane.state().halves().into_iter().collect();
        prop_assert_eq!(standing, halves(desired));
    }

    #[test]
    fn one_change_touches_only_its_own_addresses(
        desired in any_desired(), before in any_binding(), after in any_binding(), kind in 0..3_u8,
    ) {
        let (before, after) = match kind {
            0 => (Some(before), None),
            1 => (None, Some(after)),
            _ => (Some(before), Some(after)),
        };
        let others: Vec<Half> = halves(desired)
            .into_iter()
            .filter(|half| {
                let b = half.binding();
                before.iter().chain(&after).all(|t| t.public_ip != b.public_ip && t.private_ip != b.private_ip)
            })
            .collect();
        let mut dataplane = dataplane_with(&others);
        for half in halves(before) {
            put(&mut dataplane.state(), half);
        }
        let list = |binding: &Option<Binding>| binding.iter().copied().collect();
        change(&mut dataplane, list(&before), list(&after)).unwrap();

        let mut expected: BTreeSet<Half> = others.into_iter().collect();
        expected.extend(halves(after));
        prop_assert_eq!(dataplane.state().halves().into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn a_move_takes_the_old_away_waits_and_puts_the_new_in() {
    let (old, new) = (binding(7, 1, 0), binding(7, 2, 0));
    let steps = plan(&halves([new]), &halves([old]));
    assert_eq!(
        steps,
        [
            Step::Remove(Half::Inbound(old)),
            Step::Remove(Half::Outbound(old)),
            Step::Quiesce,
            Step::Insert(Half::Outbound(new)),
            Step::Insert(Half::Inbound(new)),
        ]
    );
}

#[test]
fn a_leftover_of_somebody_else_is_cleared_by_an_attach() {
    let (leftover, wanted) = (binding(9, 1, 3), binding(7, 1, 0));
    let mut dataplane = dataplane_with(&[Half::Outbound(leftover)]);
    change(&mut dataplane, vec![], vec![wanted]).unwrap();
    assert_eq!(dataplane.state().halves(), [Half::Inbound(wanted), Half::Outbound(wanted)]);
}

/// A VM that gets another address is without one for a part of the change only.
#[test]
fn a_large_change_is_done_in_parts() {
    let numbered = |public: u32, private: u32| Binding {
        public_ip: (0xcb00_0000 + public).into(),
        tenant: 0,
        private_ip: (0x0a00_0000 + private).into(),
        meter: public,
    };
    let count = 2 * u32::try_from(PART).unwrap();
    let before: Vec<Binding> = (0..count).map(|n| numbered(n, n)).collect();
    let after: Vec<Binding> = (0..count).map(|n| numbered(count + n, n)).collect();
    let mut dataplane = MemoryDataplane::new(2 * count);
    change(&mut dataplane, vec![], before.clone()).unwrap();
    dataplane.state().events.clear();
    change(&mut dataplane, before.clone(), after.clone()).unwrap();
    assert_eq!(dataplane.state().halves().into_iter().collect::<BTreeSet<_>>(), halves(after.clone()));
    let (mut missing, mut most) = (0_usize, 0);
    for event in &dataplane.state().events {
        match event {
            Event::Remove(Half::Inbound(_)) => missing += 1,
            Event::Insert(Half::Inbound(_)) => missing -= 1,
            _ => {}
        }
        most = most.max(missing);
    }
    assert!((1..=PART).contains(&most), "{most} VMs without an address at one time");

    // One public address that goes from the first private address to the last keeps all in one part.
    let mut swapped = after.clone();
    swapped.reverse();
    let moved: Vec<Binding> = after
        .iter()
        .zip(&swapped)
        .map(|(one, other)| Binding { private_ip: other.private_ip, ..*one })
        .collect();
    dataplane.state().events.clear();
    change(&mut dataplane, after, moved.clone()).unwrap();
    assert_eq!(dataplane.state().halves().into_iter().collect::<BTreeSet<_>>(), halves(moved));
    let pauses = dataplane.state().events.iter().filter(|event| **event == Event::Quiesce).count();
    assert_eq!(pauses, 1);
}

/// A model with these bindings, by way of an import.
fn model_of(count: u8) -> Model {
    let pool = PoolSpec {
        name: Name::default_one(),
        cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::ZERO,
    };
    let mut model = Model::new(Spec { pools: vec![pool], ..Spec::default() }, 64);
    let line = |n: u8| Line {
        number: n.into(),
        eip: [203, 0, 113, n].into(),
        private_ip: [10, 0, 0, n].into(),
        account: None,
    };
    let lines: Vec<Line> = (1..=count).map(line).collect();
    let change = model.plan_import(&lines, SystemTime::UNIX_EPOCH).unwrap();
    model.apply(change);
    model
}

/// How many rounds it takes at most until what has changed is found.
const FOUND_WITHIN: usize = 3;

proptest! {
    /// Whatever somebody else changes, whenever, and however few halves are read at a time.
    #[test]
    fn a_patrol_finds_every_change_soon(
        count in 0..20_u8,
        at_once in 1..8_u32,
        before in 0..50_usize,
        kind in 0..5_u8,
        which in any::<prop::sample::Index>(),
    ) {
        let model = model_of(count);
        let mut dataplane = MemoryDataplane::new(64);
        everything(&mut dataplane, model.bindings()).unwrap();
        let mut patrol = Patrol::reading(at_once);
        for _ in 0..before {
            prop_assert_eq!(patrol.look(&dataplane, &model).unwrap(), vec![], "nothing is wrong");
        }
        let stranger = binding(u8::try_from(which.index(250)).unwrap(), 200, 63);
        let victim = model.bindings().iter().min_by_key(|b| which.index(256) ^ usize::from(b.public_ip.octets()[3]));
        let wrong = {
            let mut state = dataplane.state();
            match (kind, victim) {
                (0, Some(victim)) => drop(state.inbound.remove(&victim.public_ip)),
                (1, Some(victim)) => drop(state.outbound.remove(&(0, victim.private_ip))),
                (2, Some(victim)) => put(&mut state, Half::Inbound(Binding { meter: 60, ..victim })),
                (3, _) | (_, None) => put(&mut state, Half::Inbound(stranger)),
                _ => put(&mut state, Half::Outbound(stranger)),
            }
            if kind < 3 { victim.unwrap_or(stranger).public_ip } else { stranger.public_ip }
        };
        let looks = FOUND_WITHIN * patrol.looks(&model);
        let found = (0..looks).flat_map(|_| patrol.look(&dataplane, &model).unwrap());
        prop_assert!(found.map(|b| b.public_ip).any(|found| found == wrong), "{} is not found", wrong);
    }

    /// Bindings that come and go by command while it looks are not taken for somebody else's.
    #[test]
    fn a_patrol_is_not_misled_by_commands(
        commands in vec((1..10_u8, 1..10_u8, any::<bool>()), 0..30),
        at_once in 1..4_u32,
    ) {
        let mut model = model_of(9);
        let mut dataplane = MemoryDataplane::new(64);
        everything(&mut dataplane, model.bindings()).unwrap();
        let mut patrol = Patrol::reading(at_once);
        for (public, private, attaches) in commands {
            let eip = [203, 0, 113, public].into();
            let target = Target::PrivateIp([10, 0, 0, private].into());
            let command = if attaches { Command::Attach { eip, target, reassign: true } } else { Command::Detach(eip) };
            if let Ok(change) = model.plan(&command, SystemTime::UNIX_EPOCH) {
                change.new_meters().for_each(|meter| patrol.forget(meter));
                let (before, after) = change.bindings();
                let (before, after) = (before.collect(), after.collect());
                model.apply(change);
                super::change(&mut dataplane, before, after).unwrap();
                let read: Vec<_> = model.closing().map(|closing| (closing.clone(), Meter::default())).collect();
                let close = model.plan_close(&read);
                model.apply(close);
            }
            prop_assert_eq!(patrol.look(&dataplane, &model).unwrap(), vec![]);
        }
    }
}
