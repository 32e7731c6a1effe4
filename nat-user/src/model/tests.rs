use std::time::Duration;

use nat_common::abi::Meter;

use super::*;

mod properties;

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
    let pools = pools.iter().map(|(name, cidr)| spec(name, cidr)).collect();
    Model::new(Spec { pools, ..Spec::default() }, capacity)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn allocate(pool: Option<&str>, address: Option<&str>) -> Command {
    Command::Allocate(Allocation {
        pool: pool.map(|name| name.parse().unwrap()),
        address: address.map(|address| address.parse().unwrap()),
        ..Allocation::default()
    })
}

fn attach(eip: &str, target: &str) -> Command {
    Command::Attach { eip: eip.parse().unwrap(), target: target.parse().unwrap(), reassign: false }
}

fn reassign(eip: &str, target: &str) -> Command {
    Command::Attach { eip: eip.parse().unwrap(), target: target.parse().unwrap(), reassign: true }
}

fn create(name: &str, private_ip: &str, account: &str, public_ip: bool) -> Command {
    Command::CreateVm {
        name: name.parse().unwrap(),
        private_ip: private_ip.parse().unwrap(),
        account: Some(account.parse().unwrap()),
        public_ip,
        pool: None,
    }
}

fn destroy(name: &str) -> Command {
    Command::DestroyVm(name.parse().unwrap())
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
        (attach("203.0.113.0", "web-1"), "there is no VM web-1; `eipnat vm list` shows those that are"),
        (
            attach("203.0.113.0", "10.0.0.9"),
            "203.0.113.0 is attached to 10.0.0.2; move it with --reassign, or detach it first: eipnat eip detach 203.0.113.0",
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
            "203.0.113.1 is attached to 10.0.0.3; move it with --reassign, or detach it first: eipnat eip detach 203.0.113.1",
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
fn bindings_are_limited_and_meters_are_free_again() {
    let mut model = model(&[("p", "203.0.113.0/29")], 2);
    let eips = ["203.0.113.0", "203.0.113.1", "203.0.113.2"];
    run(&mut model, &[0, 0, 0].map(|now| (now, allocate(None, None))));
    run(&mut model, &[(0, attach(eips[0], "10.0.0.1")), (0, attach(eips[1], "10.0.0.2"))]);
    let full =
        "all 2 places for bindings are taken; detach an EIP, destroy a VM, or raise datapath.max_bindings";
    assert_eq!(run(&mut model, &[(0, attach(eips[2], "10.0.0.3"))]), full);
    assert_eq!(run(&mut model, &[(0, create("vm", "10.0.0.3", "default", true))]), full);
    run(&mut model, &[(0, detach(eips[0]))]);
    let closing: Vec<Closing> = model.closing().cloned().collect();
    assert_eq!(closing.iter().map(|closing| closing.meter).collect::<Vec<_>>(), [0]);
    let other = model.plan(&attach(eips[2], "10.0.0.3"), at(0)).unwrap();
    assert_eq!(other.new_meters().collect::<Vec<_>>(), [2], "a meter that was not read is not used again");
    let carried = Meter { in_bytes: 7, ..Meter::default() };
    let close = model.plan_close(&[(closing[0].clone(), carried)]);
    model.apply(close);
    assert_eq!(model.eip(eips[0].parse().unwrap()).unwrap().carried.get().unwrap().in_bytes, 7);
    let other = model.plan(&attach(eips[2], "10.0.0.3"), at(0)).unwrap();
    assert_eq!(other.new_meters().collect::<Vec<_>>(), [0]);
}

/// The VM's public address, what the EIP stands for, and whether the VM waits.
fn vm(model: &Model, name: &str) -> (Option<String>, bool) {
    let vm = model.vm(&name.parse().unwrap()).unwrap();
    let public = vm.public_ip.map(|public_ip| public_ip.address);
    let public = public.or_else(|| model.eip_of(vm.private_ip).map(|eip| eip.address));
    (public.map(|address| address.to_string()), vm.waiting_since.is_some())
}

#[test]
fn a_vm_has_one_public_address_whatever_happens() {
    let mut model = model(&[("p", "203.0.113.0/30")], 8);
    assert_eq!(
        run(&mut model, &[(0, create("web", "10.0.0.2", "acme", true))]),
        "VM web of account acme created at 10.0.0.2 with 203.0.113.0"
    );
    let account = |command| match command {
        Command::Allocate(wanted) => {
            Command::Allocate(Allocation { account: Some("acme".parse().unwrap()), ..wanted })
        }
        other => other,
    };
    run(&mut model, &[(1, account(allocate(None, None)))]);
    assert_eq!(
        run(&mut model, &[(2, attach("203.0.113.1", "web"))]),
        "203.0.113.1 attached to VM web (10.0.0.2)"
    );
    assert_eq!(vm(&model, "web"), (Some("203.0.113.1".into()), false));
    assert_eq!(model.bound(), 1);

    // The EIP moves in one step; the VM that it leaves has a public IP again.
    run(&mut model, &[(3, create("db", "10.0.0.3", "acme", true))]);
    assert_eq!(
        run(&mut model, &[(4, reassign("203.0.113.1", "db"))]),
        "203.0.113.1 attached to VM db (10.0.0.3) (before: 10.0.0.2)"
    );
    assert_eq!(vm(&model, "web"), (Some("203.0.113.3".into()), false));
    assert_eq!(vm(&model, "db"), (Some("203.0.113.1".into()), false));

    // Nothing is left but what cools down: the VM waits, and gets it when its time has come.
    run(&mut model, &[(5, detach("203.0.113.1"))]);
    assert_eq!(vm(&model, "db"), (None, true));
    assert_eq!(model.plan_waiting(at(61)), None);
    let served = model.plan_waiting(at(62)).unwrap();
    assert_eq!(served.to_string(), "VM db has waited and gets 203.0.113.0");
    model.apply(served);
    assert_eq!(vm(&model, "db"), (Some("203.0.113.0".into()), false));
    assert_eq!(model.plan_waiting(at(62)), None);

    // With the VM goes its public IP, and its EIP stays with the account.
    run(&mut model, &[(63, attach("203.0.113.1", "db")), (64, destroy("db"))]);
    assert_eq!(model.eip([203, 0, 113, 1].into()).unwrap().attached, None);
    assert_eq!(run(&mut model, &[(65, destroy("web"))]), "VM web destroyed, 10.0.0.2 is free");
    let usage = model.pools(at(65)).next().unwrap();
    assert_eq!((usage.allocated, usage.cooling, usage.free), (1, 2, 1));
    assert_eq!(model.bound(), 0);
}

#[test]
fn vms_are_refused_in_words() {
    let setup = [
        (0, create("web", "10.0.0.2", "acme", false)),
        (0, allocate(None, None)),
        (0, attach("203.0.113.0", "10.0.0.9")),
        (0, create("pub", "10.0.0.5", "acme", true)),
    ];
    let cases = [
        (
            attach("203.0.113.0", "web"),
            "203.0.113.0 is of account default and VM web of account acme; name a VM of the same account",
        ),
        (
            create("other", "10.0.0.9", "acme", true),
            "203.0.113.0 is of account default and VM other of account acme; name a VM of the same account",
        ),
        (
            create("other", "10.0.0.2", "acme", true),
            "10.0.0.2 is VM web's; choose another address, or destroy that VM first",
        ),
        (
            create("web", "10.0.0.3", "acme", false),
            "there is a VM web already, at 10.0.0.2 or of other properties; choose another name",
        ),
        (create("web", "10.0.0.2", "acme", false), ""),
        (destroy("nobody"), "there is no VM nobody; `eipnat vm list` shows those that are"),
        (
            allocate(None, Some("203.0.113.1")),
            "203.0.113.1 is a VM's public IP; choose another address, or attach an EIP to that VM first",
        ),
        (
            allocate(None, Some("203.0.113.3")),
            "account default has 1 EIPs, which is its quota; release one, or raise [quota] eips",
        ),
        (
            create("third", "10.0.0.7", "acme", false),
            "account acme has 2 VMs, which is its quota; destroy one, or raise [quota] vms",
        ),
    ];
    for (command, said) in cases {
        let spec = Spec {
            pools: vec![spec("p", "203.0.113.0/30")],
            default_quota: Quota { eips: Some(1), vms: Some(9) },
            quotas: [("acme".parse().unwrap(), Quota { eips: None, vms: Some(2) })].into(),
        };
        let mut model = Model::new(spec, 8);
        run(&mut model, &setup);
        assert_eq!(run(&mut model, &[(10, command)]), said);
    }
}

fn line(number: u64, eip: &str, private_ip: &str, account: Option<&str>) -> Line {
    let account = account.map(|account| account.parse().unwrap());
    Line { number, eip: eip.parse().unwrap(), private_ip: private_ip.parse().unwrap(), account }
}

#[test]
fn an_import_is_whole_or_not_at_all() {
    let mut model = model(&[("p", "203.0.113.0/29")], 8);
    run(
        &mut model,
        &[
            (0, allocate(None, Some("203.0.113.4"))),
            (0, attach("203.0.113.4", "10.0.0.4")),
            (0, allocate(None, Some("203.0.113.5"))),
            (0, allocate(None, Some("203.0.113.6"))),
            (0, release("203.0.113.6")),
        ],
    );
    let good = [
        line(1, "203.0.113.1", "10.0.0.1", None),
        line(3, "203.0.113.4", "10.0.0.4", None),
        line(4, "203.0.113.5", "10.0.0.5", None),
        line(5, "203.0.113.2", "10.0.0.2", Some("acme")),
    ];
    let cases = [
        (
            line(9, "203.0.113.4", "10.0.0.9", None),
            "line 9: 203.0.113.4 stands in line 3 as well; keep one of them; nothing was imported",
        ),
        (
            line(9, "203.0.113.0", "10.0.0.1", None),
            "line 9: 10.0.0.1 has 203.0.113.1 already; detach that first: eipnat eip detach 203.0.113.1; nothing was imported",
        ),
        (
            line(9, "203.0.113.6", "10.0.0.6", None),
            "line 9: 203.0.113.6 was given back lately and is free again at 1970-01-01T00:01:00Z, in 1m; choose another address or wait; nothing was imported",
        ),
        (
            line(9, "192.0.2.1", "10.0.0.6", None),
            "line 9: 192.0.2.1 is in no pool; `eipnat pool list` shows what is; nothing was imported",
        ),
    ];
    for (bad, said) in cases {
        let lines: Vec<Line> = good.iter().cloned().chain([bad]).collect();
        assert_eq!(model.plan_import(&lines, at(0)).unwrap_err().to_string(), said);
    }
    let foreign = [line(1, "203.0.113.5", "10.0.0.5", Some("acme"))];
    assert_eq!(
        model.plan_import(&foreign, at(0)).unwrap_err().to_string(),
        "line 1: 203.0.113.5 is allocated already, to account default; choose another address; nothing was imported"
    );
    let change = model.plan_import(&good, at(0)).unwrap();
    assert_eq!(change.to_string(), "3 of 4 EIPs imported");
    assert_eq!(change.edits().len(), 3, "one a record");
    model.apply(change);
    assert_eq!(model.bound(), 4);
    assert!(model.plan_import(&good, at(0)).unwrap().is_nothing());
}

/// A client that has not heard the answer asks again.
#[test]
fn the_same_request_gets_the_same_eip_once() {
    let mut model = model(&[("default", "203.0.113.0/29"), ("small", "198.51.100.0/32")], 8);
    let request = |account: &str, pool: Option<&str>, address: Option<&str>| {
        Command::Allocate(Allocation {
            pool: pool.map(|name| name.parse().unwrap()),
            address: address.map(|address| address.parse().unwrap()),
            account: Some(account.parse().unwrap()),
            request: Some("web".parse().unwrap()),
        })
    };
    let acme = request("acme", None, None);
    assert_eq!(
        run(&mut model, &[(0, acme.clone())]),
        "203.0.113.0 of pool default allocated to account acme"
    );
    let again = model.plan(&acme, at(0)).unwrap();
    assert!(again.is_nothing());
    assert!(matches!(&again.subject, Subject::Eip(eip) if eip.address == Ipv4Addr::new(203, 0, 113, 0)));
    assert!(model.plan(&request("acme", Some("default"), Some("203.0.113.0")), at(0)).unwrap().is_nothing());
    for (pool, address) in [(Some("small"), None), (None, Some("203.0.113.5"))] {
        let said = run(&mut model, &[(0, request("acme", pool, address))]);
        assert_eq!(said, "the request web has got 203.0.113.0 already; name another one");
    }
    let other = run(&mut model, &[(0, request("other", None, None))]);
    assert_eq!(other, "203.0.113.1 of pool default allocated to account other");
    let after_release = run(&mut model, &[(0, release("203.0.113.0")), (0, acme)]);
    assert_eq!(after_release, "203.0.113.2 of pool default allocated to account acme");
}

/// What one line gives back another one may take, where the pool keeps nothing.
#[test]
fn an_import_may_take_what_it_gives_back() {
    let pool = PoolSpec { reuse_delay: Duration::ZERO, ..spec("p", "203.0.113.0/30") };
    let mut model = Model::new(Spec { pools: vec![pool], ..Spec::default() }, 8);
    run(&mut model, &[(0, create("web", "10.0.0.1", "default", true))]);
    let line = |number, eip: &str, private_ip: &str| Line {
        number,
        eip: eip.parse().unwrap(),
        private_ip: private_ip.parse().unwrap(),
        account: None,
    };
    let early = line(1, "203.0.113.0", "10.0.0.2");
    let lines = [line(2, "203.0.113.1", "10.0.0.1"), line(3, "203.0.113.0", "10.0.0.2")];
    assert_eq!(
        model.plan_import(&[early], at(0)).unwrap_err().refusal,
        Refusal::HeldByVm([203, 0, 113, 0].into())
    );
    let change = model.plan_import(&lines, at(0)).unwrap();
    assert!(!change.edits().iter().any(|edit| matches!(edit.after, Some(Record::Returned(_)))));
    model.apply(change);
    assert_eq!((model.eips().count(), model.bound(), model.pools(at(0)).next().unwrap().free), (2, 2, 2));
}

#[test]
fn equal_names_in_the_model_are_one() {
    let mut model = model(&[("p", "203.0.113.0/30")], 8);
    let account = || Some("acme".parse().unwrap());
    for _ in 0..2 {
        let wanted = Allocation { account: account(), ..Allocation::default() };
        run(&mut model, &[(0, Command::Allocate(wanted))]);
    }
    let [one, other] = [0, 1].map(|n| model.eip([203, 0, 113, n].into()).unwrap());
    assert!(one.account.is_copy_of(&other.account) && one.pool.is_copy_of(&other.pool));
}
