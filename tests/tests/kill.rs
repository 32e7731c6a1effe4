//! The daemon is killed again and again: nothing that it has acknowledged is lost, and no packet notices.

use std::collections::{BTreeMap, BTreeSet};
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

/// For how long the daemon is killed about every second.
const DURATION: Duration = Duration::from_mins(1);

/// The size of an echo request or reply of ping's, with its IPv4 header.
const ECHO: u64 = 84;

/// What of the download comes each second.
const RATE: usize = 256 << 10;

/// What an EIP or a VM may be: nothing, there, or attached to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Absent,
    There,
    At(Ipv4Addr),
}

/// What was acknowledged.
#[derive(Debug, Default)]
struct Acknowledged {
    /// By name, an address or a VM's: what it is now. Commands whose answer was cut off may or may not have been done.
    states: BTreeMap<String, BTreeSet<State>>,
    /// How often each kind of command was.
    commands: BTreeMap<String, u32>,
}

impl Acknowledged {
    /// Takes down a command that makes something be in a state.
    fn note(&mut self, command: &str, name: &str, state: State, is_acknowledged: bool) {
        let states = self.states.entry(name.to_owned()).or_insert_with(|| BTreeSet::from([State::Absent]));
        if is_acknowledged {
            states.clear();
            *self.commands.entry(command.to_owned()).or_default() += 1;
        }
        states.insert(state);
    }
}

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
    println!("acknowledged: {:?}", acknowledged.commands);
    ensure!(acknowledged.commands.values().sum::<u32>() >= 30, "only {:?}", acknowledged.commands);
    ensure!(acknowledged.commands.len() == KINDS, "not every kind: {:?}", acknowledged.commands);
    let there = listed(&daemon)?;
    for (name, states) in &acknowledged.states {
        let state = there.get(name).copied().unwrap_or(State::Absent);
        ensure!(states.contains(&state), "{name} is {state:?} and not one of {states:?}");
    }
    assert_eq!(ping(&lab.vm1, INTERNET, 3, &[])?.received, 3);
    // Nothing else but those pings has been sent to EIP1 or from it.
    let echoes = u64::from(count) + 3 + 3;
    let bytes = echoes * ECHO;
    let expected = Meter { in_bytes: bytes, in_packets: echoes, out_bytes: bytes, out_packets: echoes };
    assert_eq!(daemon.meter(EIP1)?, expected, "what EIP1 has carried");
    assert_eq!(daemon.usage(EIP1)?, expected, "what EIP1 is billed for");
    daemon.stop()?;
    daemon.unload()?;
    lab.remove()
}

/// What the daemon says of every EIP and VM.
fn listed(daemon: &Daemon) -> Result<BTreeMap<String, State>> {
    let mut all = BTreeMap::new();
    for eip in daemon.json(&["eip", "list"])?.as_array().context("no list")? {
        let at = eip["private_ip"].as_str().map(str::parse).transpose()?;
        all.insert(eip["eip"].as_str().unwrap_or_default().to_owned(), at.map_or(State::There, State::At));
    }
    for vm in daemon.json(&["vm", "list"])?.as_array().context("no list")? {
        all.insert(vm["name"].as_str().unwrap_or_default().to_owned(), State::There);
    }
    Ok(all)
}

/// How long each daemon lives: between 0.3 and 1.6 s, about a second on average, and the same sequence in every run.
///
/// A start takes nearly as long each time, and after it the daemon looks after its datapath every second. If all lived
/// equally long, all would be killed while they do the same. So no two of them do, and they end in every phase: just
/// started, between two looks, and at the second one.
fn lives() -> impl Iterator<Item = Duration> {
    // Each remainder once, since 1301 is a prime.
    (0..).map(|number| Duration::from_millis(300 + 500 * number % 1301))
}

/// Starts the daemon and kills it about a second later, whatever it is at.
fn kill_every_second(lab: &Lab, eipnat: &Path) -> Result<()> {
    let file = lab.file("eipnat.toml");
    let begin = Instant::now();
    for life in lives().take_while(|_| begin.elapsed() < DURATION) {
        let mut command = Command::new(eipnat);
        command.arg("run").arg("--config").arg(&file);
        let mut daemon = lab.node.spawn(command, lab.file("killed.log"))?;
        std::thread::sleep(life);
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

/// Kinds of commands in [`commands_about`].
const KINDS: usize = 7;

/// One EIP and one VM come, move and go, each as far as their number says: command, whom it is about, what it makes of it.
fn commands_about(number: u8) -> Vec<(String, String, State)> {
    let (eip, vm) = (format!("203.0.113.{number}"), format!("vm{number}"));
    let at = |network| Ipv4Addr::new(10, 0, network, number);
    let commands = [
        (format!("eip allocate --address {eip}"), &eip, State::There),
        (format!("eip attach {eip} {}", at(1)), &eip, State::At(at(1))),
        (format!("vm create {vm} --private-ip {} --no-public-ip", at(3)), &vm, State::There),
        (format!("eip attach {eip} {} --reassign", at(2)), &eip, State::At(at(2))),
        (format!("eip detach {eip}"), &eip, State::There),
        (format!("vm destroy {vm}"), &vm, State::Absent),
        (format!("eip release {eip}"), &eip, State::Absent),
    ];
    let far = 2 + usize::from(number) % (KINDS - 1);
    commands.into_iter().take(far).map(|(command, name, state)| (command, name.clone(), state)).collect()
}

/// Gives one command after the other, and watches that counters never go back.
fn command(lab: &Lab, eipnat: &Path, config: &Config, done: &AtomicBool) -> Result<Acknowledged> {
    let socket = config.socket().to_string_lossy().into_owned();
    let give = |args: &[&str]| -> Result<bool> {
        Ok(run_eipnat(&lab.node, eipnat, &[&["--socket", &socket], args].concat())?.status.success())
    };
    let mut acknowledged = Acknowledged::default();
    let mut before = Meter::default();
    let mut looks = 0;
    for number in 20..250 {
        if done.load(Ordering::Relaxed) {
            break;
        }
        for (args, name, state) in commands_about(number) {
            let args: Vec<&str> = args.split(' ').collect();
            let kind = if args.contains(&"--reassign") { "move" } else { args[1] };
            acknowledged.note(kind, &name, state, give(&args)?);
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
