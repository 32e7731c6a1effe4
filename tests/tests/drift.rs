//! Somebody changes what the datapath stands on, behind the daemon's back: it is mended within [`IN_TIME`], or said.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya_obj::programs::XdpAttachType;
use nat_common::abi::{Inbound, Node, Outbound, OutboundKey, Port};
use nat_user::dataplane::xdp::XdpDataplane;
use nat_user::dataplane::{Binding, Dataplane as _, Half, Place};
use tests::lab::{
    Bed, Config, Daemon, EIP1, INTERNET, INTERNET_DEVICE, Lab, Sender, Setup, Sink, Topology, VM1, datapath,
    eipnat_binary, ping, pins,
};

/// How long the daemon may take to see and mend a change.
const IN_TIME: Duration = Duration::from_secs(5);

/// Waits until something is so.
fn soon(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + IN_TIME;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not within {IN_TIME:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn answered(bed: &Bed) -> Result<bool> {
    let lab = &bed.lab;
    Ok(ping(&lab.internet, EIP1, 1, &[])?.received == 1 && ping(&lab.vm1, INTERNET, 1, &[])?.received == 1)
}

/// What `status` says: its exit code and the problems.
fn status(bed: &Bed) -> Result<(Option<i32>, Vec<String>)> {
    let output = bed.daemon.cli(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let problems = status["problems"].as_array().into_iter().flatten();
    let problems: Vec<String> =
        problems.map(|problem| problem.as_str().unwrap_or_default().to_owned()).collect();
    ensure!(status["ready"] == problems.is_empty(), "{status}");
    Ok((output.status.code(), problems))
}

/// Traffic flows both ways again, and the daemon is content.
fn mended(bed: &Bed) -> Result<()> {
    soon("traffic flows again", || answered(bed))?;
    soon("status is ready again", || Ok(status(bed)? == (Some(0), vec![])))
}

/// The daemon says that something is wrong, and what.
fn told(bed: &Bed, problem: &str) -> Result<()> {
    soon(problem, || {
        let (code, problems) = status(bed)?;
        Ok(code == Some(1) && problems.iter().any(|said| said.contains(problem)))
    })
}

fn repairs(bed: &Bed) -> Vec<String> {
    let log = bed.daemon.log();
    log.lines().filter(|line| line.contains("repaired: ")).map(str::to_owned).collect()
}

fn pin(bed: &Bed, name: &str) -> PathBuf {
    bed.daemon.config().pin_path.join(name)
}

/// The pin of the link on an interface.
fn link_pin(bed: &Bed, interface: &str) -> Result<PathBuf> {
    let index = index_of(bed, interface)?;
    let pins = pins(bed.daemon.config())?;
    let pinned = pins.iter().find(|pin| pin.starts_with(&format!("link_{index}_")));
    Ok(pin(bed, pinned.with_context(|| format!("no link of {interface} among {pins:?}"))?))
}

fn index_of(bed: &Bed, interface: &str) -> Result<u32> {
    let links: serde_json::Value =
        serde_json::from_str(&bed.lab.node.succeed("ip", &["-j", "link", "show", interface])?)?;
    Ok(u32::try_from(links[0]["ifindex"].as_u64().context("no index")?)?)
}

#[test]
fn where_nothing_drifts_nothing_is_repaired() -> Result<()> {
    for (topology, mode) in
        [(Topology::TwoArmed, "native"), (Topology::TwoArmed, "generic"), (Topology::OneArmed, "native")]
    {
        Bed::run(Setup { topology, mode, ..Setup::default() }, |bed| {
            std::thread::sleep(IN_TIME);
            assert_eq!(repairs(bed), Vec::<String>::new());
            assert_eq!(status(bed)?, (Some(0), vec![]));
            bed.restart()?;
            std::thread::sleep(IN_TIME / 2);
            assert_eq!(repairs(bed), Vec::<String>::new());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_interface_goes_and_comes_back() -> Result<()> {
    for mode in ["native", "generic"] {
        Bed::run(Setup { mode, ..Setup::default() }, |bed| {
            let before = index_of(bed, "dn0")?;
            bed.lab.unplug_downlink()?;
            told(bed, "interface dn0 is gone")?;
            bed.lab.plug_downlink(None)?;
            ensure!(index_of(bed, "dn0")? != before, "it has the same index");
            mended(bed)?;
            let links: Vec<String> =
                pins(bed.daemon.config())?.into_iter().filter(|pin| pin.starts_with("link_")).collect();
            assert_eq!(links.len(), 2, "a link of the old interface stays: {links:?}");
            let ports: HashMap<_, u32, [u8; size_of::<Port>()]> =
                Map::HashMap(bed.map("PORTS")?).try_into()?;
            assert!(ports.get(&before, 0).is_err(), "the old interface is still known");
            assert_eq!(bed.lab.programs()?.len(), 2);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_interface_is_exchanged_at_once_for_one_with_the_same_index() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let index = index_of(bed, "dn0")?;
        bed.lab.unplug_downlink()?;
        bed.lab.plug_downlink(Some(index))?;
        assert_eq!(index_of(bed, "dn0")?, index);
        mended(bed)?;
        // And while there was no daemon.
        bed.daemon.stop()?;
        bed.lab.unplug_downlink()?;
        bed.lab.plug_downlink(Some(index))?;
        let config = bed.daemon.config().clone();
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
        assert_eq!(bed.lab.programs()?.len(), 2);
        Ok(())
    })
}

#[test]
fn the_program_is_detached() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        for interface in ["up0", "dn0"] {
            let pinned = link_pin(bed, interface)?;
            bed.lab.node.succeed("bpftool", &["link", "detach", "pinned", &pinned.to_string_lossy()])?;
            assert_eq!(bed.lab.programs()?.len(), 1);
            mended(bed)?;
            assert_eq!(bed.lab.programs()?.len(), 2);
            assert!(repairs(bed).iter().any(|line| line.contains(interface)), "{:?}", repairs(bed));
        }
        Ok(())
    })
}

#[test]
fn pins_are_removed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let link = link_pin(bed, "dn0")?;
        let (meters, program) = (pin(bed, "maps_1").join("METERS"), pin(bed, "program"));
        let programs = bed.lab.programs()?;
        for pin in [&link, &meters, &program] {
            fs::remove_file(pin)?;
        }
        assert!(answered(bed)?, "the daemon holds what is not pinned");
        soon("the pins are back", || Ok([&link, &meters, &program].iter().all(|pin| pin.exists())))?;
        assert_eq!(bed.lab.programs()?, programs);
        let carried = bed.daemon.meter(EIP1)?;
        assert!(carried.in_packets > 0);
        bed.daemon.stop()?;
        assert!(answered(bed)?, "without the daemon");
        Ok(())
    })
}

#[test]
fn the_bpffs_is_unmounted() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let pin_path = &bed.daemon.config().pin_path;
        let before = pins(bed.daemon.config())?;
        rustix::mount::unmount(pin_path, rustix::mount::UnmountFlags::DETACH)?;
        assert!(answered(bed)?, "the daemon holds what is not pinned");
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let before = sorted(before);
        soon("the pins are back", || Ok(sorted(pins(bed.daemon.config())?) == before))?;
        bed.daemon.stop()?;
        assert!(answered(bed)?, "without the daemon");
        Ok(())
    })
}

/// Runs the test with the pin of a program that drops everything: another daemon's, which knows no address.
fn with_another_program(test: impl FnOnce(&mut Bed, PathBuf) -> Result<()>) -> Result<()> {
    let other = Lab::new(Topology::TwoArmed)?;
    let mut stranger = Daemon::start(&other, &eipnat_binary()?, Config::of(&other))?;
    stranger.stop()?;
    let program = stranger.config().pin_path.join("program");
    Bed::run(Setup::default(), |bed| test(bed, program))?;
    stranger.unload()?;
    other.remove()
}

#[test]
fn another_program_is_put_on_the_link() -> Result<()> {
    with_another_program(|bed, program| {
        let mut theirs = Xdp::from_pin(program, XdpAttachType::Interface)?;
        let link = FdLink::from(PinnedLink::from_pin(link_pin(bed, "dn0")?)?);
        let id = theirs.attach_to_link(XdpLink::try_from(link)?)?;
        drop(theirs.take_link(id)?);
        mended(bed)?;
        let programs = bed.lab.programs()?;
        assert_eq!(programs[0].1, programs[1].1, "{programs:?}");
        Ok(())
    })
}

#[test]
fn while_another_program_is_in_the_way_no_private_address_gets_out() -> Result<()> {
    with_another_program(|bed, program| {
        let node = &bed.lab.node;
        let forwarding = || node.read_sysctl("net/ipv4/conf/dn0/forwarding");
        // It comes back with a program on it already.
        node.ip(&["link set dn0 down", "link set dn0 name elsewhere"])?;
        told(bed, "interface dn0 is gone")?;
        soon("the old name is forgotten", || Ok(bed.lab.programs()?.len() == 1))?;
        assert_eq!(node.read_sysctl("net/ipv4/conf/elsewhere/forwarding")?, "0");
        let program = program.to_string_lossy().into_owned();
        node.succeed("ip", &["link", "set", "dev", "elsewhere", "xdpdrv", "pinned", &program])?;
        node.sysctl("net/ipv4/conf/elsewhere/forwarding", "1")?;
        node.ip(&["link set elsewhere name dn0", "link set dn0 up"])?;
        told(bed, "dn0 runs another XDP program")?;
        soon("forwarding is off", || Ok(forwarding()? == "0"))?;
        node.ip(&["link set dev dn0 xdpdrv off"])?;
        mended(bed)?;
        assert_eq!(forwarding()?, "1");
        Ok(())
    })
}

#[test]
fn the_mac_address_is_changed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.lab.node.ip(&["link set dn0 address 02:00:00:00:77:01"])?;
        bed.lab.vm1.ip(&["neigh flush all"])?;
        mended(bed)?;
        assert!(repairs(bed).iter().any(|line| line.contains("dn0: described anew")));
        Ok(())
    })
}

#[test]
fn sysctls_are_changed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let node = &bed.lab.node;
        // The second takes forwarding off all interfaces.
        for value in ["1", "0"] {
            node.sysctl("net/ipv4/ip_forward", value)?;
        }
        mended(bed)?;
        let changes = [
            ("conf/up0/forwarding", "0", "1"),
            ("conf/dn0/forwarding", "0", "1"),
            ("conf/dn0/rp_filter", "1", "2"),
            ("conf/up0/rp_filter", "1", "2"),
            ("conf/up0/send_redirects", "1", "0"),
            ("conf/all/send_redirects", "1", "0"),
            ("ip_no_pmtu_disc", "0", "3"),
        ];
        for (key, value, right) in changes {
            let key = format!("net/ipv4/{key}");
            node.sysctl(&key, value)?;
            soon(&key, || Ok(node.read_sysctl(&key)? == right))?;
        }
        mended(bed)
    })
}

#[test]
fn entries_of_the_maps_are_changed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let index = index_of(bed, "dn0")?;
        let mut ports: HashMap<_, u32, [u8; size_of::<Port>()]> =
            Map::HashMap(bed.map("PORTS")?).try_into()?;
        let mut egress: DevMapHash<_> = Map::DevMapHash(bed.map("EGRESS")?).try_into()?;
        let mut addresses: LpmTrie<_, [u8; 4], u32> = Map::LpmTrie(bed.map("ADDRESSES")?).try_into()?;
        let mut node: Array<_, [u8; size_of::<Node>()]> = Map::Array(bed.map("NODE")?).try_into()?;

        ports.remove(&index)?;
        mended(bed)?;
        ports.insert(index, [0; size_of::<Port>()], 0)?;
        mended(bed)?;
        ports.insert(77, [3; size_of::<Port>()], 0)?;
        soon("a port of nobody's is removed", || Ok(ports.get(&77, 0).is_err()))?;
        egress.remove(index)?;
        mended(bed)?;
        egress.insert(index, index_of(bed, "up0")?, None, 0)?;
        mended(bed)?;

        let known = addresses.keys().collect::<Result<Vec<_>, _>>()?;
        addresses.remove(&known[0])?;
        let wrong = Key::new(8, [10, 0, 0, 0]);
        addresses.insert(&wrong, 1, 0)?;
        soon("what is known of addresses is right", || {
            Ok(addresses.get(&known[0], 0).is_ok() && addresses.get(&wrong, 0).is_err())
        })?;
        let settings = node.get(&0, 0)?;
        node.set(0, [0; size_of::<Node>()], 0)?;
        soon("the settings are right", || Ok(node.get(&0, 0)? == settings))?;
        mended(bed)?;

        // What unload puts back did not stand in the map alone.
        bed.daemon.unload()?;
        assert_eq!(bed.lab.node.read_sysctl("net/ipv4/conf/dn0/forwarding")?, "0");
        assert_eq!(bed.lab.node.read_sysctl("net/ipv4/conf/all/send_redirects")?, "1");
        assert_eq!(bed.lab.node.read_sysctl("net/ipv4/ip_no_pmtu_disc")?, "0");
        bed.daemon.wait()
    })
}

type InboundMap = HashMap<MapData, [u8; 4], [u8; size_of::<Inbound>()]>;
type OutboundMap = HashMap<MapData, [u8; size_of::<OutboundKey>()], [u8; size_of::<Outbound>()]>;

/// The maps of bindings.
fn bindings(bed: &Bed) -> Result<(InboundMap, OutboundMap)> {
    let open = |name| Ok::<_, anyhow::Error>(Map::HashMap(bed.map(name)?));
    Ok((open("INBOUND")?.try_into()?, open("OUTBOUND")?.try_into()?))
}

/// The daemon has not seen yet that it is gone, and the express lane's arrays still say it.
#[test]
fn an_eip_is_detached_that_somebody_has_just_taken_out_of_a_map() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let (mut inbound, mut outbound) = bindings(bed)?;
        let came = || -> Result<bool> {
            let sink = Sink::start_at(&bed.lab.vm1, VM1, 7000)?;
            let sender = Sender::start(&bed.lab.internet, (EIP1, 7000), 500, 32)?;
            sender.send_more(20)?;
            sender.stop()?;
            Ok(!sink.stop()?.is_empty())
        };
        // From now on its next hop is known.
        assert!(came()?);
        inbound.remove(&EIP1.octets())?;
        outbound.remove(&bytemuck::cast(OutboundKey { tenant: 0, private_ip: VM1.octets() }))?;
        bed.daemon.ok(&["eip", "detach", &EIP1.to_string()])?;
        assert!(!came()?, "a detached EIP's packets are carried");
        Ok(())
    })
}

#[test]
fn bindings_are_changed() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let (mut inbound, mut outbound) = bindings(bed)?;
        let (eip, key) = (EIP1.octets(), bytemuck::cast(OutboundKey { tenant: 0, private_ip: VM1.octets() }));
        let (in_right, out_right) = (inbound.get(&eip, 0)?, outbound.get(&key, 0)?);

        inbound.remove(&eip)?;
        mended(bed)?;
        let stranger = [203, 0, 113, 200];
        inbound.insert(stranger, in_right, 0)?;
        soon("a binding of nobody's is removed", || Ok(inbound.get(&stranger, 0).is_err()))?;
        outbound.insert(key, [0; size_of::<Outbound>()], 0)?;
        mended(bed)?;
        assert_eq!((inbound.get(&eip, 0)?, outbound.get(&key, 0)?), (in_right, out_right));
        assert!(bed.daemon.metric("eipnat_repairs_total ")? >= 3);
        assert_eq!(bed.daemon.metric("eipnat_ready ")?, 1);
        Ok(())
    })
}

/// Native XDP redirects into nothing then, and no counter of the kernel's tells.
#[test]
fn the_other_end_of_a_veth_takes_no_redirected_packets() -> Result<()> {
    Bed::run(Setup { mode: "native", ..Setup::default() }, |bed| {
        let gro = |on| bed.lab.internet.succeed("ethtool", &["-K", INTERNET_DEVICE, "gro", on]).map(drop);
        gro("off")?;
        assert!(!answered(bed)?);
        told(bed, "up0 does not take what native XDP sends to it")?;
        gro("on")?;
        mended(bed)
    })
}

#[test]
fn an_interface_is_down_or_has_no_carrier() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        bed.lab.node.ip(&["link set dn0 down"])?;
        told(bed, "dn0 is down: ip link set dev dn0 up")?;
        bed.lab.node.ip(&["link set dn0 up"])?;
        mended(bed)?;
        bed.lab.switch.ip(&["link set node down"])?;
        told(bed, "dn0 has no carrier")?;
        bed.lab.switch.ip(&["link set node up"])?;
        mended(bed)
    })
}

#[test]
fn a_start_that_is_not_finished_is_undone() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let bpffs = lab.file("bpffs");
    fs::create_dir(&bpffs)?;
    rustix::mount::mount("bpf", &bpffs, "bpf", rustix::mount::MountFlags::empty(), None)?;
    let config = datapath(bpffs.join("some/where/eipnat"), 16);
    let dataplane = lab.node.run(|| XdpDataplane::start(&config, &[]))??;
    assert_eq!(lab.programs()?.len(), 2);
    lab.node.run(|| drop(dataplane))?;
    assert_eq!(lab.programs()?, []);
    assert!(!bpffs.join("some").exists(), "directories stay");
    assert!(bpffs.exists());
    lab.remove()
}

#[test]
fn unload_removes_the_directories_that_were_made() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let mut config = Config::of(&lab);
    fs::create_dir(lab.file("theirs"))?;
    config.pin_path = lab.file("theirs/ours/bpf");
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config.clone())?;
    daemon.stop()?;
    // A second start makes none, and forgets none.
    let mut daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
    daemon.stop()?;
    daemon.unload()?;
    assert!(lab.file("theirs").exists());
    assert!(!lab.file("theirs/ours").exists());
    lab.remove()
}

#[test]
fn bindings_are_all_read_whatever_is_read_at_a_time() -> Result<()> {
    const COUNT: u32 = 20_000;
    let lab = Lab::new(Topology::TwoArmed)?;
    lab.node.run(|| {
        let pin_path = lab.file("bpf");
        let mut dataplane = XdpDataplane::start(&datapath(pin_path.clone(), COUNT), &[])?;
        let binding = |n: u32| Binding {
            public_ip: (0xcb00_0000 + n).into(),
            tenant: 0,
            private_ip: (0x0a00_0000 + n).into(),
            meter: n,
        };
        let halves: BTreeSet<Half> =
            (0..COUNT).map(binding).flat_map(|b| [Half::Inbound(b), Half::Outbound(b)]).collect();
        dataplane.insert(&halves.iter().copied().collect::<Vec<_>>())?;
        // Also less than what hangs on one bucket.
        for count in [1, 7, 1000, 3 * COUNT] {
            let (mut all, mut next) = (Vec::new(), Some(Place::default()));
            while let Some(place) = next {
                let (some, after) = dataplane.some_halves(place, count)?;
                ensure!(some.len() <= 64 + count as usize, "{} at once", some.len());
                all.extend(some);
                next = after;
            }
            ensure!(all.len() == halves.len(), "{} by {count}", all.len());
            ensure!(all.into_iter().collect::<BTreeSet<_>>() == halves, "others, by {count}");
        }
        drop(dataplane);
        ensure!(!pin_path.exists(), "a start that is not finished is undone");
        Ok(())
    })??;
    lab.remove()
}
