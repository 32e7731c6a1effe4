use std::time::Duration;

use proptest::prelude::*;

use super::*;

const DELAY: u64 = 60;

fn spec(name: &str, cidr: &str) -> PoolSpec {
    PoolSpec {
        name: name.parse().unwrap(),
        cidrs: vec![cidr.parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::from_secs(DELAY),
    }
}

fn model(pools: &[(&str, &str)], capacity: u32) -> Model {
    Model::new(pools.iter().map(|(name, cidr)| spec(name, cidr)).collect(), capacity)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn allocate(pool: Option<&str>, address: Option<&str>) -> Command {
    Command::Allocate {
        pool: pool.map(|name| name.parse().unwrap()),
        address: address.map(|address| address.parse().unwrap()),
        account: None,
    }
}

fn attach(eip: &str, target: &str) -> Command {
    Command::Attach(eip.parse().unwrap(), target.parse().unwrap())
}

fn detach(eip: &str) -> Command {
    Command::Detach(eip.parse().unwrap())
}

fn release(eip: &str) -> Command {
    Command::Release(eip.parse().unwrap())
}

/// Carries commands out and answers what the last one said, in the words that people see.
fn run(model: &mut Model, commands: &[(u64, Command)]) -> String {
    let mut said = String::new();
    for (seconds, command) in commands {
        said = match model.plan(command, at(*seconds)) {
            Ok(change) => {
                let what = change.to_string();
                model.apply(change);
                what
            }
            Err(refusal) => refusal.to_string(),
        };
    }
    said
}

#[test]
fn refusals_say_what_to_do() {
    let setup = [
        (0, allocate(None, None)),
        (0, allocate(None, None)),
        (0, attach("203.0.113.0", "10.0.0.2")),
        (0, attach("203.0.113.1", "10.0.0.3")),
        (0, allocate(None, Some("203.0.113.2"))),
        (0, release("203.0.113.2")),
    ];
    let cases = [
        (
            allocate(Some("no-such"), None),
            "there is no pool no-such; `eipnat pool list` shows those that are",
        ),
        (allocate(None, Some("192.0.2.1")), "192.0.2.1 is in no pool; `eipnat pool list` shows what is"),
        (
            allocate(Some("small"), Some("203.0.113.3")),
            "203.0.113.3 is in pool default and not in small; leave --pool out or name the right one",
        ),
        (
            allocate(None, Some("203.0.113.0")),
            "203.0.113.0 is allocated already, to account default; choose another address",
        ),
        (
            allocate(None, Some("203.0.113.2")),
            "203.0.113.2 was given back lately and is free again at 1970-01-01T00:01:00Z, in 50s; \
             choose another address or wait",
        ),
        (
            attach("203.0.113.3", "10.0.0.9"),
            "203.0.113.3 is not an EIP; `eipnat eip list` shows those that are",
        ),
        (detach("203.0.113.3"), "203.0.113.3 is not an EIP; `eipnat eip list` shows those that are"),
        (release("203.0.113.3"), "203.0.113.3 is not an EIP; `eipnat eip list` shows those that are"),
        (attach("203.0.113.0", "web-1"), "there is no VM web-1; name a private IP"),
        (
            attach("203.0.113.0", "10.0.0.9"),
            "203.0.113.0 is attached to 10.0.0.2; detach it first: eipnat eip detach 203.0.113.0",
        ),
        (
            attach("203.0.113.0", "224.0.0.1"),
            "224.0.0.1 is in 224.0.0.0/4 (multicast), which is never a VM's address; name the VM's private IP",
        ),
        (
            attach("203.0.113.0", "198.51.100.0"),
            "198.51.100.0 is a public address, of pool small; name the VM's private IP",
        ),
        (
            release("203.0.113.1"),
            "203.0.113.1 is attached to 10.0.0.3; detach it first: eipnat eip detach 203.0.113.1",
        ),
    ];
    for (command, said) in cases {
        let mut model = model(&[("default", "203.0.113.0/29"), ("small", "198.51.100.0/32")], 8);
        run(&mut model, &setup);
        assert_eq!(run(&mut model, &[(10, command)]), said);
    }
}

#[test]
fn a_private_ip_has_one_eip() {
    let mut model = model(&[("p", "203.0.113.0/30")], 8);
    let setup =
        [(0, allocate(None, None)), (0, allocate(None, None)), (0, attach("203.0.113.0", "10.0.0.2"))];
    run(&mut model, &setup);
    assert_eq!(
        run(&mut model, &[(0, attach("203.0.113.1", "10.0.0.2"))]),
        "10.0.0.2 has 203.0.113.0 already; detach that first: eipnat eip detach 203.0.113.0"
    );
}

#[test]
fn which_pool_is_meant() {
    let mut only = model(&[("blue", "203.0.113.0/30")], 8);
    assert_eq!(
        run(&mut only, &[(0, allocate(None, None))]),
        "203.0.113.0 of pool blue allocated to account default"
    );
    let mut named = model(&[("blue", "203.0.113.0/30"), ("default", "198.51.100.0/30")], 8);
    assert_eq!(
        run(&mut named, &[(0, allocate(None, None))]),
        "198.51.100.0 of pool default allocated to account default"
    );
    let mut unclear = model(&[("blue", "203.0.113.0/30"), ("red", "198.51.100.0/30")], 8);
    assert_eq!(
        run(&mut unclear, &[(0, allocate(None, None))]),
        "there are several pools and none is called default; name one with --pool"
    );
    assert_eq!(
        run(&mut unclear, &[(0, allocate(None, Some("198.51.100.3")))]),
        "198.51.100.3 of pool red allocated to account default"
    );
}

#[test]
fn an_exhausted_pool_says_when_it_will_not_be() {
    let mut model = model(&[("p", "203.0.113.0/31")], 8);
    run(&mut model, &[(0, allocate(None, None)), (0, allocate(None, None))]);
    let none = "pool p has no free address; release an EIP, or add CIDRs to the pool";
    assert_eq!(run(&mut model, &[(0, allocate(None, None))]), none);
    assert_eq!(
        run(&mut model, &[(5, release("203.0.113.1")), (6, allocate(None, None))]),
        "pool p has no free address (the next one is free in 59s); release an EIP, or add CIDRs to the pool"
    );
    assert_eq!(
        run(&mut model, &[(65, allocate(None, None))]),
        "203.0.113.1 of pool p allocated to account default"
    );
}

#[test]
fn what_is_so_already_changes_nothing() {
    let mut model = model(&[("p", "203.0.113.0/30")], 8);
    run(&mut model, &[(0, allocate(None, None)), (0, attach("203.0.113.0", "10.0.0.2"))]);
    assert!(model.plan(&attach("203.0.113.0", "10.0.0.2"), at(0)).unwrap().is_nothing());
    run(&mut model, &[(0, detach("203.0.113.0"))]);
    assert!(model.plan(&detach("203.0.113.0"), at(0)).unwrap().is_nothing());
}

#[test]
fn an_eip_keeps_its_meter_until_it_is_released() {
    let mut model = model(&[("p", "203.0.113.0/29")], 2);
    let eips = ["203.0.113.0", "203.0.113.1", "203.0.113.2"];
    run(&mut model, &[0, 0, 0].map(|now| (now, allocate(None, None))));
    run(
        &mut model,
        &[(0, attach(eips[0], "10.0.0.1")), (0, attach(eips[1], "10.0.0.2")), (0, detach(eips[0]))],
    );
    assert_eq!(
        run(&mut model, &[(0, attach(eips[2], "10.0.0.3"))]),
        "all 2 places for bindings are taken (an EIP keeps its own until it is released); \
         release an EIP, or raise datapath.max_bindings"
    );
    let again = model.plan(&attach(eips[0], "10.0.0.9"), at(0)).unwrap();
    assert_eq!((again.eip().meter, again.new_meter()), (Some(0), None));

    run(&mut model, &[(0, release(eips[0]))]);
    let other = model.plan(&attach(eips[2], "10.0.0.3"), at(0)).unwrap();
    assert_eq!((other.eip().meter, other.new_meter()), (Some(0), Some(0)));
}

fn any_command() -> impl Strategy<Value = Command> {
    let eip = || (0..6_u8).prop_map(|last| Ipv4Addr::new(203, 0, 113, last));
    let private = (0..4_u8).prop_map(|last| Target::PrivateIp(Ipv4Addr::new(10, 0, 0, last)));
    prop_oneof![
        3 => proptest::option::weighted(0.3, eip())
            .prop_map(|address| Command::Allocate { pool: None, address, account: None }),
        3 => (eip(), private).prop_map(|(eip, target)| Command::Attach(eip, target)),
        2 => eip().prop_map(Command::Detach),
        2 => eip().prop_map(Command::Release),
    ]
}

proptest! {
    /// Whatever people do, nothing is given twice, lost or leaked.
    #[test]
    fn invariants_hold_after_any_commands(
        commands in proptest::collection::vec((any_command(), 0..40_u64), 0..60),
    ) {
        const CAPACITY: u32 = 3;
        let mut model = model(&[("p", "203.0.113.0/30")], CAPACITY);
        let (mut now, mut released) = (0, HashMap::new());
        for (command, pause) in commands {
            now += pause;
            let Ok(change) = model.plan(&command, at(now)) else { continue };
            match &change {
                Change::Allocate(eip) => {
                    let earliest = released.remove(&eip.address).map_or(0, |since| since + DELAY);
                    prop_assert!(now >= earliest, "{} reused after {}", eip.address, now - earliest);
                }
                Change::Release { eip, .. } => drop(released.insert(eip.address, now)),
                Change::Update { .. } => {}
            }
            model.apply(change);

            let bindings: Vec<Binding> = model.bindings().collect();
            let distinct = |key: fn(&Binding) -> u32| {
                bindings.iter().map(key).collect::<std::collections::BTreeSet<_>>().len() == bindings.len()
            };
            prop_assert!(distinct(|b| b.public_ip.into()) && distinct(|b| b.private_ip.into()) && distinct(|b| b.meter));
            prop_assert!(bindings.iter().all(|binding| binding.meter < CAPACITY));
            prop_assert_eq!(model.bound(), bindings.len());
            let usage = model.pools(at(now)).next().unwrap();
            prop_assert_eq!(usage.allocated, model.eips().count() as u64);
            prop_assert_eq!(usage.allocated + usage.cooling + usage.free, usage.size);
        }
        // Nothing has leaked: in the end every address can be had and every meter be used.
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
        for last in 0..CAPACITY {
            let eip = Ipv4Addr::new(203, 0, 113, u8::try_from(last).unwrap());
            let change = model.plan(&Command::Attach(eip, Target::PrivateIp([10, 0, 0, eip.octets()[3]].into())), at(now));
            model.apply(change.unwrap());
        }
    }
}
