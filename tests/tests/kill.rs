//! The daemon is killed again and again: nothing that it has acknowledged is lost, and no packet notices.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tests::lab::{
    Config, Daemon, EIP1, EIP2, FAR, INTERNET, Lab, METRICS, Meter, Topology, VM1, VM2, WebServer, content,
    curl, eipnat_binary, ping, run_eipnat,
};

/// How long the daemon is killed every second.
const DURATION: Duration = Duration::from_mins(1);

/// What of the download comes each second.
const RATE: usize = 256 << 10;

/// What was acknowledged: the private address of each EIP, if any.
type Acknowledged = BTreeMap<Ipv4Addr, Option<Ipv4Addr>>;

#[test]
fn a_daemon_killed_every_second_loses_no_packet_no_count_and_no_command() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let eipnat = eipnat_binary()?;
    let daemon = Daemon::start(&lab, &eipnat, config.clone())?;
    daemon.bind(EIP1, VM1)?;
    daemon.bind(EIP2, VM2)?;
    assert_eq!(ping(&lab.internet, EIP1, 3, &[])?.received, 3);
    assert_eq!(ping(&lab.vm2, FAR, 3, &[])?.received, 3);
    drop(daemon);

    let _server = WebServer::start(&lab.internet)?;
    let seconds = usize::try_from(DURATION.as_secs())?;
    let count = u32::try_from(seconds * 100)?;
    let done = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| -> Result<Acknowledged> {
        let pings = scope.spawn(|| ping_for_long(&lab, count));
        let stream = scope.spawn(|| {
            let (limit, longest) = (RATE.to_string(), (2 * seconds).to_string());
            let url = format!("http://{FAR}/{}", RATE * seconds);
            curl(&lab.vm2, &url, &["--limit-rate", &limit, "--max-time", &longest])
        });
        let commands = scope.spawn(|| command(&lab, &eipnat, &config, &done));
        let killed = kill_every_second(&lab, &eipnat);
        done.store(true, Ordering::Relaxed);
        let acknowledged = commands.join().map_err(|_| anyhow!("the commands panicked"))?;
        let pings = pings.join().map_err(|_| anyhow!("ping panicked"))?;
        let stream = stream.join().map_err(|_| anyhow!("curl panicked"))?;
        killed?;
        assert_eq!(pings?, (count, count), "pings sent and answered");
        ensure!(stream? == content(RATE * seconds), "the stream was damaged");
        acknowledged
    })?;

    let mut daemon = Daemon::start(&lab, &eipnat, config)?;
    let eips = daemon.json(&["eip", "list"])?;
    let eips: BTreeMap<&str, Option<&str>> = eips
        .as_array()
        .context("no list")?
        .iter()
        .map(|eip| (eip["eip"].as_str().unwrap_or_default(), eip["private_ip"].as_str()))
        .collect();
    println!("{} commands were acknowledged", acknowledged.len());
    ensure!(acknowledged.len() >= 10, "only {acknowledged:?} came through");
    for (eip, private_ip) in acknowledged {
        let listed = eips.get(&*eip.to_string()).with_context(|| format!("{eip} is lost: {eips:?}"))?;
        if let Some(private_ip) = private_ip {
            assert_eq!(*listed, Some(&*private_ip.to_string()), "{eip}");
        }
    }
    assert_eq!(ping(&lab.vm1, INTERNET, 3, &[])?.received, 3);
    daemon.stop()?;
    daemon.unload()?;
    lab.remove()
}

/// Starts the daemon and kills it a second later, whatever it is at.
fn kill_every_second(lab: &Lab, eipnat: &Path) -> Result<()> {
    let file = lab.file("eipnat.toml");
    let begin = Instant::now();
    while begin.elapsed() < DURATION {
        let mut command = Command::new(eipnat);
        command.arg("run").arg("--config").arg(&file);
        let mut daemon = lab.node.spawn(command, lab.file("killed.log"))?;
        std::thread::sleep(Duration::from_secs(1));
        let ended = daemon.try_wait()?;
        ensure!(ended.is_none(), "the daemon ended by itself ({ended:?}):\n{}", daemon.log());
    }
    Ok(())
}

/// 100 pings a second: how many were sent and answered.
fn ping_for_long(lab: &Lab, count: u32) -> Result<(u32, u32)> {
    // In pieces that end within the patience for one command.
    const PIECE: u32 = 1000;
    let mut all = (0, 0);
    while all.0 < count {
        let pings = ping(&lab.internet, EIP1, PIECE.min(count - all.0), &["-i", "0.01"])?;
        all = (all.0 + pings.sent, all.1 + pings.received);
    }
    Ok(all)
}

/// Gives one command after the other, and watches that counters never go back.
fn command(lab: &Lab, eipnat: &Path, config: &Config, done: &AtomicBool) -> Result<Acknowledged> {
    let socket = config.socket().to_string_lossy().into_owned();
    let give = |args: &[&str]| -> Result<bool> {
        Ok(run_eipnat(&lab.node, eipnat, &[&["--socket", &socket], args].concat())?.status.success())
    };
    let mut acknowledged = Acknowledged::new();
    let mut before = Meter::default();
    let mut looks = 0;
    for number in 20..250 {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let (eip, private_ip) = (Ipv4Addr::new(203, 0, 113, number), Ipv4Addr::new(10, 0, 0, number));
        if give(&["eip", "allocate", "--address", &eip.to_string()])? {
            acknowledged.insert(eip, None);
            if give(&["eip", "attach", &eip.to_string(), &private_ip.to_string()])? {
                acknowledged.insert(eip, Some(private_ip));
            }
        }
        let url = format!("http://{METRICS}/metrics");
        if let Ok(metrics) = curl(&lab.node, &url, &[]) {
            let now = Meter::parse(&String::from_utf8(metrics)?, EIP1)?;
            ensure!(
                now.in_bytes >= before.in_bytes
                    && now.in_packets >= before.in_packets
                    && now.out_bytes >= before.out_bytes
                    && now.out_packets >= before.out_packets,
                "counters went back: {before:?}, {now:?}"
            );
            before = now;
            looks += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    ensure!(looks >= 10, "the counters were seen {looks} times");
    Ok(acknowledged)
}
