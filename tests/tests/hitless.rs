//! Upgrades under live traffic: no packet is lost, none is counted twice or not at all, and there is a program on every
//! interface at every instant.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, ensure};
use aya::maps::MapInfo;
use nat_common::abi::{Inbound, map};
use nat_user::dataplane::xdp;
use nat_user::model::Spec;
use nat_user::store::Store;
use tests::changeover::{Changeover, Counts, generations, next_abi_eipnat};
use tests::lab::{
    Bed, Config, Daemon, EIP1, EIP2, FAR, INTERNET, Lab, Meter, Namespace, Sender, Setup, Sink, Topology,
    VM_DEVICE, VM1, VM2, eipnat_binary, ping, refused, run_eipnat,
};

/// Payload of each UDP packet, and what IPv4 and UDP headers add to it.
const PAYLOAD: usize = 200;
const DATAGRAM: u64 = 228;
/// An echo request of ping's, with its IPv4 header.
const ECHO: u64 = 84;

/// Traffic in both directions.
struct Traffic {
    inwards: (Sender, Sink),
    outwards: (Sender, Sink),
    pings: JoinHandle<Result<(u32, u32)>>,
    pings_end: Arc<AtomicBool>,
}

impl Traffic {
    /// Lets traffic flow until the end: 100 pings a second, and UDP packets in both directions.
    fn start(lab: &Lab) -> Result<Self> {
        // What the first packets wait for is not what is tested here.
        ping(&lab.internet, EIP1, 3, &[])?;
        ping(&lab.internet, EIP2, 3, &[])?;
        let pings_end = Arc::new(AtomicBool::new(false));
        let (internet, end) = (lab.internet.clone(), Arc::clone(&pings_end));
        let pings = std::thread::spawn(move || ping_until(&internet, &end));
        let inwards_sink = Sink::start(&lab.vm1, 5000)?;
        let outwards_sink = Sink::start(&lab.internet, 5001)?;
        Ok(Self {
            inwards: (Sender::start(&lab.internet, (EIP1, 5000), 1000, PAYLOAD)?, inwards_sink),
            outwards: (Sender::start(&lab.vm2, (FAR, 5001), 1000, PAYLOAD)?, outwards_sink),
            pings,
            pings_end,
        })
    }

    /// Ends it, and checks that everything has arrived. Returns how much should have been
    /// counted.
    fn end(self) -> Result<Counts> {
        self.pings_end.store(true, Ordering::Relaxed);
        let (pings, answered) = self.pings.join().map_err(|_| anyhow!("ping panicked"))??;
        let sent = (self.inwards.0.stop()?, self.outwards.0.stop()?);
        let received = (self.inwards.1.stop()?.len() as u64, self.outwards.1.stop()?.len() as u64);
        assert_eq!(received, sent, "UDP packets inwards and outwards");
        assert_eq!(answered, pings, "pings");
        let echoes = u64::from(pings) + 3;
        Ok(Counts {
            sent_on: sent.0 + sent.1 + 2 * echoes + 6,
            dropped: 0,
            meters: vec![
                [sent.0 + echoes, sent.0 * DATAGRAM + echoes * ECHO, echoes, echoes * ECHO],
                [3, 3 * ECHO, sent.1 + 3, sent.1 * DATAGRAM + 3 * ECHO],
            ],
        })
    }
}

/// Pings sent to [`EIP1`] and answered, in pieces of a second.
fn ping_until(internet: &Namespace, end: &AtomicBool) -> Result<(u32, u32)> {
    let mut all = (0, 0);
    while !end.load(Ordering::Relaxed) {
        let piece = ping(internet, EIP1, 100, &["-i", "0.01"])?;
        all = (all.0 + piece.sent, all.1 + piece.received);
    }
    Ok(all)
}

/// What should have been counted for [`EIP1`] and [`EIP2`], as `/metrics` shows it.
fn meters(counts: &Counts) -> Vec<Meter> {
    let meter = |&[in_packets, in_bytes, out_packets, out_bytes]: &[u64; 4]| Meter {
        in_bytes,
        in_packets,
        out_bytes,
        out_packets,
    };
    counts.meters.iter().map(meter).collect()
}

/// Does something while it is watched that a program runs on each interface at every instant.
fn watched(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<u32> {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let programs = lab.programs()?;
                ensure!(programs.len() == 2, "only {programs:?}");
                looks += 1;
            }
            Ok(looks)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let looks = watcher.join().map_err(|_| anyhow!("the watcher panicked"))?;
        worked?;
        ensure!(looks? > 10, "nobody watched");
        Ok(())
    })
}

fn unload(lab: Lab) -> Result<()> {
    lab.node.run(|| xdp::unload(&Changeover::pin_path(&lab), |_| Ok(())))??;
    assert_eq!(lab.programs()?, []);
    assert_eq!(lab.node.read_sysctl("net/ipv4/conf/dn0/forwarding")?, "0");
    assert_eq!(lab.node.read_sysctl("net/ipv4/conf/all/send_redirects")?, "1");
    lab.remove()
}

#[test]
fn an_upgrade_loses_no_packet_and_no_count() -> Result<()> {
    let (this, next) = (Changeover::this_version()?, Changeover::next_abi()?);
    let steps = [
        ("another program", Changeover { log: "debug", ..this.clone() }),
        ("another ABI", next.clone()),
        ("the same again", next.clone()),
        ("back", this.clone()),
        ("fewer bindings", Changeover { max_bindings: 2, ..this.clone() }),
        ("more bindings", Changeover { max_bindings: 4096, ..this.clone() }),
        ("another ABI and size", next),
    ];
    let lab = Lab::new(Topology::TwoArmed)?;
    this.run(&lab)?;
    let traffic = Traffic::start(&lab)?;
    watched(&lab, || {
        let mut before = this.run(&lab)?;
        for (what, step) in &steps {
            let programs = lab.programs()?;
            let counts = step.run(&lab)?;
            // The same program on the same maps has no reason to be replaced.
            let stays = *what == "the same again";
            ensure!(
                (lab.programs()? == programs) == stays,
                "{what}: {programs:?} became {:?}",
                lab.programs()?
            );
            let grows =
                counts.meters.iter().flatten().zip(before.meters.iter().flatten()).all(|(a, b)| a >= b);
            ensure!(grows && counts.sent_on >= before.sent_on, "{what}: {before:?} became {counts:?}");
            assert_eq!(generations(&Changeover::pin_path(&lab))?.len(), 1, "{what}");
            before = counts;
        }
        Ok(())
    })?;
    let expected = traffic.end()?;
    assert_eq!(this.run(&lab)?, expected);
    unload(lab)
}

/// System calls of a changeover that it is worth being killed at, by name and number: before each interface changes
/// over, before the first sum is carried, half-way, before the new maps are marked as current, and while the old ones
/// are removed.
fn instants(calls: &[String]) -> Result<Vec<(&'static str, usize)>> {
    // strace counts from one.
    let of = |what: &str| (1..).zip(calls).filter(|(_, call)| call.contains(what)).map(|(n, _)| n).collect();
    let (links, writes): (Vec<usize>, Vec<usize>) = (of("BPF_LINK_UPDATE"), of("BPF_MAP_UPDATE_ELEM"));
    ensure!(links.len() == 2, "{} links are updated", links.len());
    let carried: Vec<usize> = writes.into_iter().filter(|write| *write > links[1]).collect();
    ensure!(carried.len() > 10, "{} sums are carried", carried.len());
    let (first, half, mark) = (carried[0], carried[carried.len() / 2], carried[carried.len() - 1]);
    let calls = [links[0], links[1], first, half, mark].map(|number| ("bpf", number));
    Ok([&calls[..], &[("unlink", 2), ("unlink", 7)]].concat())
}

#[test]
fn an_upgrade_that_is_killed_at_any_instant_loses_no_packet_and_no_count() -> Result<()> {
    let small = |version: Changeover| Changeover { max_bindings: 2, ..version };
    let (this, next) = (small(Changeover::this_version()?), small(Changeover::next_abi()?));
    let lab = Lab::new(Topology::TwoArmed)?;
    this.run(&lab)?;
    let pin_path = Changeover::pin_path(&lab);
    let traffic = Traffic::start(&lab)?;
    watched(&lab, || {
        // Both leave what they have found, so that the calls are the same each time.
        let forth = instants(&next.run_traced(&lab)?)?;
        let back = instants(&this.run_traced(&lab)?)?;
        for (forth, back) in forth.into_iter().zip(back) {
            // The same version goes on with it; or the earlier one goes back, or both are killed in the middle.
            for (killed, other, (call, number)) in [(&next, &this, forth), (&this, &next, back)] {
                ensure!(killed.run_and_kill_at(&lab, call, number)?, "not killed at {call} {number}");
                ensure!(generations(&pin_path)?.len() == 2, "{call} {number}: not between two generations");
                killed.run(&lab)?;
                assert_eq!(generations(&pin_path)?.len(), 1, "{call} {number}");
                ensure!(other.run_and_kill_at(&lab, call, number)?, "not killed at {call} {number}");
                killed.run_and_kill_at(&lab, "bpf", 200)?;
                other.run(&lab)?;
                killed.run_and_kill_at(&lab, call, number)?;
                other.run(&lab)?;
                killed.run(&lab)?;
                assert_eq!(generations(&pin_path)?.len(), 1, "{call} {number}");
            }
        }
        Ok(())
    })?;
    let expected = traffic.end()?;
    assert_eq!(this.run(&lab)?, expected);
    unload(lab)
}

#[test]
fn unload_takes_half_an_upgrade_off_too() -> Result<()> {
    let (this, next) = (Changeover::this_version()?, Changeover::next_abi()?);
    for number in [100, 180, 220, 250] {
        let lab = Lab::new(Topology::TwoArmed)?;
        this.run(&lab)?;
        ensure!(next.run_and_kill_at(&lab, "bpf", number)?, "it has ended before {number} calls");
        assert_eq!(generations(&Changeover::pin_path(&lab))?.len(), 2);
        assert_eq!(ping(&lab.vm1, INTERNET, 3, &[])?.received, 3, "at call {number}");
        unload(lab)?;
    }
    Ok(())
}

#[test]
fn max_bindings_below_what_is_in_use_is_refused() -> Result<()> {
    let this = Changeover::this_version()?;
    let lab = Lab::new(Topology::TwoArmed)?;
    this.run(&lab)?;
    let programs = lab.programs()?;
    let error = Changeover { max_bindings: 1, ..this }.run(&lab).expect_err("it fits");
    ensure!(error.to_string().contains("datapath.max_bindings: 2 bindings stand"), "{error:#}");
    assert_eq!(lab.programs()?, programs);
    assert_eq!(generations(&Changeover::pin_path(&lab))?.len(), 1);
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);
    unload(lab)
}

#[test]
fn a_daemon_with_room_for_more_or_fewer_bindings_takes_over() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let traffic = Traffic::start(&bed.lab)?;
        while bed.daemon.meter(EIP1)?.in_packets < 20 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // A record ends: what it has come to must not be billed again by whoever takes the meter over.
        bed.daemon.ok(&["vm", "create", "one", "--private-ip", &VM1.to_string(), "--no-public-ip"])?;
        for max_bindings in [2048, 2, 1024] {
            let mut config = bed.daemon.config().clone();
            config.max_bindings = max_bindings;
            let before = bed.daemon.meter(EIP1)?;
            bed.daemon.stop()?;
            bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
            let after = bed.daemon.meter(EIP1)?;
            ensure!(after.in_packets > before.in_packets, "{before:?} became {after:?}");
        }
        let expected = meters(&traffic.end()?);
        assert_eq!(bed.daemon.meter(EIP1)?, expected[0]);
        assert_eq!(bed.daemon.usage(EIP1)?, expected[0]);

        bed.daemon.stop()?;
        let mut config = bed.daemon.config().clone();
        config.max_bindings = 1;
        let file = bed.lab.file("small.toml");
        std::fs::write(&file, config.to_toml())?;
        let output =
            run_eipnat(&bed.lab.node, &eipnat_binary()?, &["run", "--config", &file.to_string_lossy()])?;
        let complaint = refused(&output)?;
        ensure!(complaint.contains("max_bindings"), "{complaint}");
        assert_eq!(ping(&bed.lab.internet, EIP1, 3, &[])?.received, 3);
        Ok(())
    })
}

/// An EIP that is attached and detached while the daemons change, and the addresses that it comes to: one of each VM.
const EIP3: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 12);
const MORE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 20), Ipv4Addr::new(10, 0, 0, 21)];

/// What [`EIP3`] has carried after so many echoes that its VM answered, and as many that it sent.
fn carried(echoes: u64) -> Meter {
    let (in_packets, out_packets) = (2 * echoes, 2 * echoes);
    Meter { in_bytes: in_packets * ECHO, in_packets, out_bytes: out_packets * ECHO, out_packets }
}

/// EIPs that are attached, and to what.
type Attached = BTreeMap<Ipv4Addr, Ipv4Addr>;

fn attached(third: Option<Ipv4Addr>) -> Attached {
    let third = third.map(|private| (EIP3, private));
    [(EIP1, VM1), (EIP2, VM2)].into_iter().chain(third).collect()
}

/// The only generation of maps, and how large a value of INBOUND is in it, which tells one ABI from the other.
fn generation(config: &Config) -> Result<(String, usize)> {
    let mut names = generations(&config.pin_path)?;
    ensure!(names.len() == 1, "{names:?} stand side by side");
    let name = names.remove(0);
    let inbound = MapInfo::from_pin(config.pin_path.join(&name).join(map::INBOUND))?;
    Ok((name, usize::try_from(inbound.value_size())?))
}

/// Checks by pings, so many each, that [`EIP3`] is answered if it is attached, and that of [`MORE`] the address that it is
/// attached to reaches the internet and no other one does.
fn third_on_the_wire(lab: &Lab, private: Option<Ipv4Addr>, echoes: u32) -> Result<()> {
    let answered = |is_bound: bool| if is_bound { echoes } else { 0 };
    let patience = ["-W", "0.5"];
    assert_eq!(ping(&lab.internet, EIP3, echoes, &patience)?.received, answered(private.is_some()));
    for (vm, address) in [&lab.vm1, &lab.vm2].into_iter().zip(MORE) {
        let from = address.to_string();
        let pings = ping(vm, INTERNET, echoes, &[&patience[..], &["-I", &from]].concat())?;
        assert_eq!(pings.received, answered(private == Some(address)), "{address} beside {private:?}");
    }
    Ok(())
}

#[test]
fn daemons_of_two_abis_take_over_from_each_other_and_obey() -> Result<()> {
    const ECHOES: u32 = 2;
    let builds = [next_abi_eipnat()?, eipnat_binary()?];
    let [first, second] = MORE;
    // Whether the daemon before is killed, what the next one is told, and where EIP3 is then. Each of the two is left in
    // either way.
    let changes = [
        (false, "attach", Some(first)),
        (true, "detach", None),
        (true, "attach", Some(second)),
        (false, "attach --reassign", Some(first)),
        (false, "detach", None),
        (true, "attach", Some(second)),
    ];
    Bed::run(Setup::default(), |bed| {
        for (vm, address) in [&bed.lab.vm1, &bed.lab.vm2].into_iter().zip(MORE) {
            vm.ip(&[format!("address add {address}/24 dev {VM_DEVICE}")])?;
        }
        // It has a series of its own from the first attach on.
        bed.daemon.bind(EIP3, second)?;
        bed.daemon.ok(&["eip", "detach", &EIP3.to_string()])?;
        let (mut before, mut echoes) = (generation(bed.daemon.config())?, 0);
        let (mut third, this_size) = (None, before.1);
        assert_eq!(this_size, size_of::<Inbound>());
        let traffic = Traffic::start(&bed.lab)?;
        watched(&bed.lab, || {
            for ((is_killed, command, private), (build, is_this)) in
                changes.into_iter().zip(builds.iter().zip([false, true]).cycle())
            {
                if is_killed {
                    bed.daemon.kill()?;
                } else {
                    bed.daemon.stop()?;
                }
                bed.daemon = Daemon::start(&bed.lab, build, bed.daemon.config().clone())?;
                let now = generation(bed.daemon.config())?;
                ensure!(now.0 != before.0, "{} has stayed", now.0);
                ensure!((now.1 == this_size) == is_this, "{now:?} after {before:?}");
                assert_eq!(bed.daemon.bindings()?, attached(third), "found by {}", build.display());
                assert_eq!(bed.daemon.meter(EIP3)?, carried(echoes), "found by {}", build.display());

                let target = private.map(|address| address.to_string());
                let command = format!("eip {command} {EIP3} {}", target.unwrap_or_default());
                bed.daemon.ok(&command.split_whitespace().collect::<Vec<_>>())?;
                assert_eq!(bed.daemon.bindings()?, attached(private), "after {command}");
                third_on_the_wire(&bed.lab, private, ECHOES)?;
                echoes += if private.is_some() { u64::from(ECHOES) } else { 0 };
                assert_eq!(bed.daemon.meter(EIP3)?, carried(echoes), "after {command}");
                assert_eq!(generation(bed.daemon.config())?, now);
                (before, third) = (now, private);
            }
            Ok(())
        })?;
        let expected = meters(&traffic.end()?);
        assert_eq!(vec![bed.daemon.meter(EIP1)?, bed.daemon.meter(EIP2)?], expected);

        let revision = bed.daemon.json(&["status"])?["revision"].as_u64();
        bed.daemon.stop()?;
        let store = Store::open(&bed.lab.file("store"), Spec::default(), 1024)?;
        let stored = store.model().bindings().iter().map(|binding| (binding.public_ip, binding.private_ip));
        assert_eq!((stored.collect(), Some(store.revision())), (attached(third), revision));
        assert_eq!(store.model().closing().count(), 0, "every meter is read");
        Ok(())
    })
}
