//! Commands under hardship: a full disk, and many clients at once. Afterwards list, store, maps and wire agree.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use nat_common::abi::{Inbound, Outbound, OutboundKey, map};
use nat_user::model::Spec;
use nat_user::store::Store;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::lab::{
    Bed, Config, Daemon, EIP1, INTERNET, Lab, Received, Setup, Sink, Topology, VM_DEVICE, VM1, eipnat_binary,
    ping, refused, run_eipnat,
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
    // What was carried cannot be put on the bill, so the counters stay, without the program.
    let why = refused(&run_eipnat(&lab.node, &eipnat, &["unload", "--config", &file])?)?;
    ensure!(why.contains("the counters stay for another try") && why.contains("is full"), "{why}");
    assert_eq!(lab.programs()?, vec![]);
    fs::remove_file(&ballast)?;
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

/// Where the packets that tell go to.
const PORT: u16 = 5000;

/// Sends one packet that tells of an address, in the form of a [`Sender`](tests::lab::Sender)'s.
fn tell(socket: &UdpSocket, address: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    socket.send_to(&u64::from(address.to_bits()).to_be_bytes(), (to, PORT))?;
    // A queue on the way that is too short is not what is tested here.
    std::thread::sleep(Duration::from_millis(1));
    Ok(())
}

/// The address that a packet tells of.
fn told(packet: &Received) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::from_bits(u32::try_from(packet.number)?))
}

/// Where packets from the internet arrive: one is sent to each address of the pool, and says to which.
fn inwards_on_the_wire(lab: &Lab) -> Result<Bindings> {
    let sinks: Vec<_> = (0..ADDRESSES)
        .map(|number| Ok((private_ip(number), Sink::start_at(&lab.vm1, private_ip(number), PORT)?)))
        .collect::<Result<_>>()?;
    let socket = lab.internet.run(|| UdpSocket::bind((INTERNET, 0)))??;
    for last in 0..=255 {
        let public = Ipv4Addr::new(203, 0, 113, last);
        tell(&socket, public, public)?;
    }
    let mut all = Bindings::new();
    for (private, sink) in sinks {
        for packet in sink.stop()? {
            let public = told(&packet)?;
            assert_eq!(packet.source, socket.local_addr()?, "what was sent to {public}");
            ensure!(all.insert(public, private).is_none(), "what was sent to {public} has arrived twice");
        }
    }
    Ok(all)
}

/// From whom packets arrive on the internet: one is sent from each private address, and says from which.
fn outwards_on_the_wire(lab: &Lab) -> Result<Bindings> {
    let sink = Sink::start(&lab.internet, PORT)?;
    for private in (0..ADDRESSES).map(private_ip) {
        tell(&lab.vm1.run(|| UdpSocket::bind((private, 0)))??, private, INTERNET)?;
    }
    let mut all = Bindings::new();
    for packet in sink.stop()? {
        let IpAddr::V4(public) = packet.source.ip() else { bail!("{packet:?}") };
        ensure!(all.insert(public, told(&packet)?).is_none(), "packets from two have arrived from {public}");
    }
    Ok(all)
}

#[test]
fn sixteen_clients_at_random_leave_one_truth() -> Result<()> {
    Bed::run(Setup { bound: false, ..Setup::default() }, |bed| {
        for number in 0..ADDRESSES {
            bed.lab.vm1.ip(&[format!("address add {}/24 dev {VM_DEVICE}", private_ip(number))])?;
        }
        // Else fast clients have used the whole pool up before their time is over, and then all that is left is to destroy.
        bed.daemon.stop()?;
        let config = Config { reuse_delay: 0, ..bed.daemon.config().clone() };
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
        let daemon = &bed.daemon;
        let done = std::thread::scope(|scope| {
            let clients: Vec<_> = (1..=16).map(|seed| scope.spawn(move || client(daemon, seed))).collect();
            clients
                .into_iter()
                .map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .sum::<Result<usize>>()
        })?;
        ensure!(done > 500, "only {done} commands in {DURATION:?}");

        let listed = daemon.bindings()?;
        // Not all is bound, nor nothing, so that there is something to tell apart.
        ensure!((2..usize::from(ADDRESSES)).contains(&listed.len()), "{listed:?}");
        assert_eq!(listed, in_the_maps(daemon.config())?, "list and maps");
        assert_eq!(inwards_on_the_wire(&bed.lab)?, listed, "wire inwards and list, after {done} commands");
        assert_eq!(outwards_on_the_wire(&bed.lab)?, listed, "wire outwards and list, after {done} commands");
        // Every second the daemon mends what it finds otherwise. That is not why all agree.
        assert_eq!(daemon.metric("eipnat_repairs_total ")?, 0, "repairs");
        let revision = daemon.json(&["status"])?["revision"].as_u64();
        bed.daemon.stop()?;
        let store = Store::open(&bed.lab.file("store"), Spec::default(), 1024)?;
        let stored: Bindings =
            store.model().bindings().iter().map(|binding| (binding.public_ip, binding.private_ip)).collect();
        assert_eq!((stored, Some(store.revision())), (listed, revision), "store and list");
        assert_eq!(store.model().closing().count(), 0, "every meter is read");
        Ok(())
    })
}
