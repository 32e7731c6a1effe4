//! Commands under hardship: a full disk, and many clients at once. Afterwards list, store, maps and wire agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use nat_common::abi::{Inbound, Outbound, OutboundKey, map};
use nat_user::model::Spec;
use nat_user::store::Store;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tests::lab::{
    Bed, Config, Daemon, EIP1, Lab, Setup, Topology, VM_DEVICE, VM1, eipnat_binary, ping, refused, run_eipnat,
};

/// Public address -> private address.
type Bindings = BTreeMap<Ipv4Addr, Ipv4Addr>;

#[test]
fn on_a_full_disk_commands_are_refused_and_traffic_goes_on() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let store = lab.file("store");
    fs::create_dir(&store)?;
    mount("tmpfs", &store, "tmpfs", MountFlags::empty(), Some(c"size=1m"))?;
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
    daemon.bind(EIP1, VM1)?;

    let ballast = store.join("ballast");
    let full = fs::write(&ballast, vec![1; 2 << 20]).expect_err("2 MB do not fit into 1 MB");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // Pages that are there already have room for some.
    let output = (0..200)
        .map(|_| daemon.cli(&["eip", "allocate"]))
        .find(|output| output.as_ref().map_or(true, |output| !output.status.success()));
    let why = refused(&output.context("nothing is refused on a full disk")??)?;
    ensure!(why.contains("disk is full, and nothing has changed"), "{why}");
    let before = (daemon.json(&["eip", "list"])?, daemon.json(&["status"])?);
    refused(&daemon.cli(&["eip", "allocate", "--account", "acme"])?)?;
    assert_eq!((daemon.json(&["eip", "list"])?, daemon.json(&["status"])?), before);
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);

    // A restart finds everything, on the disk that is still full; and with room it goes on by itself.
    daemon.stop()?;
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, daemon.config().clone())?;
    assert_eq!(daemon.json(&["eip", "list"])?, before.0);
    fs::remove_file(&ballast)?;
    daemon.ok(&["eip", "allocate"])?;
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);
    daemon.stop()?;
    daemon.unload()?;
    unmount(&store, UnmountFlags::empty())?;
    lab.remove()
}

#[test]
fn on_a_full_disk_a_first_start_and_a_restore_are_refused_and_leave_nothing() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let (eipnat, config, file) = (eipnat_binary()?, Config::of(&lab), lab.file("full.toml"));
    let (store, backup) = (config.store(), lab.file("backup.db"));
    fs::create_dir(&store)?;
    mount("tmpfs", &store, "tmpfs", MountFlags::empty(), Some(c"size=1m"))?;
    fs::write(&file, config.to_toml())?;
    let file = file.to_string_lossy().into_owned();
    let ballast = store.join("ballast");
    let fill_up = || fs::write(&ballast, vec![1; 2 << 20]).expect_err("2 MB do not fit into 1 MB");
    let names = || -> Result<Vec<_>> { Ok(fs::read_dir(&store)?.collect::<Result<Vec<_>, _>>()?) };

    fill_up();
    let why = refused(&run_eipnat(&lab.node, &eipnat, &["run", "--config", &file])?)?;
    ensure!(why.contains("store.path") && why.contains("is full"), "{why}");
    assert_eq!((lab.programs()?, names()?.len()), (vec![], 1), "only what filled it");
    fs::remove_file(&ballast)?;

    let mut daemon = Daemon::start(&lab, &eipnat, config.clone())?;
    daemon.bind(EIP1, VM1)?;
    daemon.ok(&["store", "backup", &backup.to_string_lossy()])?;
    daemon.ok(&["eip", "allocate"])?;
    let eips = daemon.json(&["eip", "list"])?;
    daemon.stop()?;
    fill_up();
    let before = names()?.len();
    let restore = ["store", "restore", &backup.to_string_lossy(), "--config", &file];
    let why = refused(&run_eipnat(&lab.node, &eipnat, &restore)?)?;
    ensure!(why.contains("No space left"), "{why}");
    assert_eq!(names()?.len(), before);
    let mut daemon = Daemon::start(&lab, &eipnat, config)?;
    assert_eq!(daemon.json(&["eip", "list"])?, eips);
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);
    daemon.stop()?;
    daemon.unload()?;
    unmount(&store, UnmountFlags::empty())?;
    lab.remove()
}

/// Of how many addresses the clients make use.
const ADDRESSES: u8 = 24;

/// How long they do.
const DURATION: Duration = Duration::from_secs(30);

fn private_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 100 + number)
}

/// One client: commands at random until the time is over. What is refused is as good as what is done; what is neither
/// is an error.
fn client(daemon: &Daemon, seed: u64) -> Result<usize> {
    let (mut state, mut done) = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, 0);
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % below
    };
    let begun = Instant::now();
    while begun.elapsed() < DURATION {
        let eip = format!("203.0.113.{}", 10 + random(u64::from(ADDRESSES)));
        let vm = format!("vm{}", random(u64::from(ADDRESSES)));
        let address = private_ip(u8::try_from(random(u64::from(ADDRESSES)))?).to_string();
        let output = daemon.cli(&match random(8) {
            0 => vec!["eip", "allocate", "--address", &eip],
            1 => vec!["eip", "attach", &eip, &vm],
            2 => vec!["eip", "attach", &eip, &vm, "--reassign"],
            3 => vec!["eip", "attach", &eip, &address, "--reassign"],
            4 => vec!["eip", "detach", &eip],
            5 => vec!["eip", "release", &eip],
            6 => vec!["vm", "create", &vm, "--private-ip", &address],
            _ => vec!["vm", "destroy", &vm],
        })?;
        if !output.status.success() {
            refused(&output)?;
        }
        done += 1;
    }
    Ok(done)
}

/// What the daemon lists.
fn listed(daemon: &Daemon) -> Result<Bindings> {
    let address = |value: &Value| value.as_str().map(str::parse::<Ipv4Addr>).transpose();
    let mut all = Bindings::new();
    let (eips, vms) = (daemon.json(&["eip", "list"])?, daemon.json(&["vm", "list"])?);
    for (list, public) in [(&eips, "eip"), (&vms, "public_ip")] {
        for entry in list.as_array().context("no list")? {
            if let (Some(public), Some(private)) = (address(&entry[public])?, address(&entry["private_ip"])?)
            {
                ensure!(all.insert(public, private).is_none(), "{public} is listed twice");
            }
        }
    }
    Ok(all)
}

/// What stands in the kernel's maps, which have to be each other's mirror.
fn in_the_maps(config: &Config) -> Result<Bindings> {
    let pin = |name| -> Result<Map> {
        Ok(Map::HashMap(MapData::from_pin(config.pin_path.join("maps_1").join(name))?))
    };
    let (inbound, outbound) = (pin(map::INBOUND)?, pin(map::OUTBOUND)?);
    let inbound: HashMap<_, [u8; 4], [u8; size_of::<Inbound>()]> = inbound.try_into()?;
    let outbound: HashMap<_, [u8; size_of::<OutboundKey>()], [u8; size_of::<Outbound>()]> =
        outbound.try_into()?;
    let mut mirror = Bindings::new();
    for entry in &outbound {
        let (key, value) = entry?;
        let (key, value): (OutboundKey, Outbound) = (bytemuck::cast(key), bytemuck::cast(value));
        mirror.insert(value.eip.into(), key.private_ip.into());
    }
    let mut all = Bindings::new();
    for entry in &inbound {
        let (key, value) = entry?;
        let value: Inbound = bytemuck::cast(value);
        all.insert(key.into(), value.private_ip.into());
    }
    ensure!(all == mirror, "INBOUND {all:?}, OUTBOUND {mirror:?}");
    Ok(all)
}

/// The addresses of the pool that answer to a ping from the internet.
fn on_the_wire(bed: &Bed) -> Result<BTreeSet<Ipv4Addr>> {
    let answers = |last: u8| {
        let public = Ipv4Addr::new(203, 0, 113, last);
        Ok((ping(&bed.lab.internet, public, 1, &["-W", "0.5"])?.received == 1).then_some(public))
    };
    let all: Vec<u8> = (0..=255).collect();
    std::thread::scope(|scope| {
        let shares: Vec<_> = all
            .chunks(16)
            .map(|share| {
                scope.spawn(move || share.iter().map(|last| answers(*last)).collect::<Result<Vec<_>>>())
            })
            .collect();
        let mut found = BTreeSet::new();
        for share in shares {
            let share = share.join().map_err(|_| anyhow::anyhow!("a ping panicked"))??;
            found.extend(share.into_iter().flatten());
        }
        Ok(found)
    })
}

#[test]
fn sixteen_clients_at_random_leave_one_truth() -> Result<()> {
    Bed::run(Setup { bound: false, ..Setup::default() }, |bed| {
        for number in 0..ADDRESSES {
            bed.lab.vm1.ip(&[format!("address add {}/24 dev {VM_DEVICE}", private_ip(number))])?;
        }
        let daemon = &bed.daemon;
        let done = std::thread::scope(|scope| {
            let clients: Vec<_> = (1..=16).map(|seed| scope.spawn(move || client(daemon, seed))).collect();
            clients
                .into_iter()
                .map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .sum::<Result<usize>>()
        })?;
        ensure!(done > 500, "only {done} commands in {DURATION:?}");

        let listed = listed(daemon)?;
        assert_eq!(listed, in_the_maps(daemon.config())?, "list and maps");
        assert_eq!(
            on_the_wire(bed)?,
            listed.keys().copied().collect(),
            "wire and list, after {done} commands"
        );
        let revision = daemon.json(&["status"])?["revision"].as_u64();
        bed.daemon.stop()?;
        let store = Store::open(&bed.lab.file("store"), Spec::default(), 1024)?;
        let stored: Bindings =
            store.model().bindings().map(|binding| (binding.public_ip, binding.private_ip)).collect();
        assert_eq!((stored, Some(store.revision())), (listed, revision), "store and list");
        assert_eq!(store.model().closing().count(), 0, "every meter is read");
        Ok(())
    })
}
