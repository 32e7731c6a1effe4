//! Upgrades under live traffic: no packet is lost, none is counted twice or not at all, and there is a program on every
//! interface at every instant.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nat_user::dataplane::xdp;
use tests::changeover::{Changeover, Counts, generations};
use tests::lab::{
    Bed, Daemon, EIP1, EIP2, FAR, INTERNET, Lab, Meter, Pings, Sender, Setup, Sink, Topology, eipnat_binary,
    ping, refused, run_eipnat,
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
    pings: JoinHandle<Result<Pings>>,
}

impl Traffic {
    /// Lets traffic flow: 100 pings a second for so long, and UDP packets in both directions until the end.
    fn start(lab: &Lab, duration: Duration) -> Result<Self> {
        // What the first packets wait for is not what is tested here.
        ping(&lab.internet, EIP1, 3, &[])?;
        ping(&lab.internet, EIP2, 3, &[])?;
        let internet = lab.internet.clone();
        let count = u32::try_from(duration.as_millis() / 10)?;
        let pings = std::thread::spawn(move || ping(&internet, EIP1, count, &["-i", "0.01"]));
        let inwards_sink = Sink::start(&lab.vm1, 5000)?;
        let outwards_sink = Sink::start(&lab.internet, 5001)?;
        Ok(Self {
            inwards: (Sender::start(&lab.internet, (EIP1, 5000), 1000, PAYLOAD)?, inwards_sink),
            outwards: (Sender::start(&lab.vm2, (FAR, 5001), 1000, PAYLOAD)?, outwards_sink),
            pings,
        })
    }

    /// Ends it, after the pings have, and checks that everything has arrived. Returns how much should have been
    /// counted.
    fn end(self) -> Result<Counts> {
        let pings = self.pings.join().map_err(|_| anyhow!("ping panicked"))??;
        let sent = (self.inwards.0.stop()?, self.outwards.0.stop()?);
        let received = (self.inwards.1.stop()?.len() as u64, self.outwards.1.stop()?.len() as u64);
        assert_eq!(received, sent, "UDP packets inwards and outwards");
        assert_eq!(pings.received, pings.sent, "pings");
        let echoes = u64::from(pings.sent) + 3;
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
    lab.node.run(|| xdp::unload(&Changeover::pin_path(&lab)))??;
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
    let begin = Instant::now();
    let traffic = Traffic::start(&lab, Duration::from_secs(15))?;
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
    ensure!(begin.elapsed() < Duration::from_secs(15), "the traffic had ended before the last step");
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
    let traffic = Traffic::start(&lab, Duration::from_secs(20))?;
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
        let traffic = Traffic::start(&bed.lab, Duration::from_secs(8))?;
        for max_bindings in [2048, 2, 1024] {
            let mut config = bed.daemon.config().clone();
            config.max_bindings = max_bindings;
            let before = bed.daemon.meter(EIP1)?;
            bed.daemon.stop()?;
            bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
            let after = bed.daemon.meter(EIP1)?;
            ensure!(after.in_packets > before.in_packets, "{before:?} became {after:?}");
        }
        let expected = traffic.end()?;
        let [in_packets, in_bytes, out_packets, out_bytes] = expected.meters[0];
        assert_eq!(bed.daemon.meter(EIP1)?, Meter { in_bytes, in_packets, out_bytes, out_packets });

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
