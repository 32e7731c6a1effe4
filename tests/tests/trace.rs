//! `eipnat trace` and `capture` with real traffic, read by real tools.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nat_common::abi::express::Front;
use nat_common::abi::trace::Settings;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::lab::{
    Bed, Daemon, EIP_SPARE, EIP1, EIP2, INTERNET, Process, Sender, Setup, Sink, VM1, VM2, WebServer,
    download, eipnat_binary, ping, refused,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const BEGUN: &str = "watching packets";

/// Starts to watch, and waits until packets are reported.
fn watch(bed: &Bed, args: &[&str], log: &str) -> Result<Process> {
    let mut process = bed.daemon.watch(args, bed.lab.file(log))?;
    process.wait_for(BEGUN, TIMEOUT)?;
    Ok(process)
}

/// Ends it as Ctrl-C does, and answers what it has said. What was left out is told once a second.
fn end(mut process: Process) -> Result<String> {
    std::thread::sleep(Duration::from_millis(1500));
    let status = process.stop(Signal::INT, TIMEOUT)?;
    let log = process.log();
    ensure!(status.success(), "it ended with {status}: {log}");
    Ok(log)
}

fn lines(log: &str) -> Result<Vec<Value>> {
    let json = log.lines().filter(|line| line.starts_with('{'));
    json.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn packets(log: &str) -> Result<Vec<Value>> {
    Ok(lines(log)?.into_iter().filter(|line| line.get("verdict").is_some()).collect())
}

fn address(packet: &Value, place: &str) -> String {
    packet.pointer(place).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[test]
fn every_packet_of_a_conversation_is_shown_and_no_other() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        ping(&lab.internet, EIP1, 2, &[])?;
        ping(&lab.internet, EIP2, 2, &[])?;
        let eip = EIP1.to_string();
        let trace = watch(bed, &["trace", "--eip", &eip, "-o", "json"], "trace.log")?;
        let everything = watch(bed, &["trace"], "everything.log")?;
        ping(&lab.internet, EIP1, 5, &[])?;
        ping(&lab.internet, EIP2, 5, &[])?;
        ping(&lab.vm1, INTERNET, 3, &[])?;
        ping(&lab.vm2, EIP1, 2, &[])?;
        ping(&lab.internet, EIP_SPARE, 2, &[])?;
        ping(&lab.internet, EIP1, 2, &["-t", "1"])?;
        let seen = packets(&end(trace)?)?;
        let count = |what: [&str; 3]| {
            let is = |packet: &&Value| {
                what == [
                    address(packet, "/direction"),
                    address(packet, "/verdict"),
                    address(packet, "/reason"),
                ]
            };
            seen.iter().filter(is).count()
        };
        assert_eq!(count(["in", "forward", ""]), 5 + 3, "{seen:#?}");
        assert_eq!(count(["out", "forward", ""]), 5 + 3);
        assert_eq!(count(["hairpin", "forward", ""]), 2 * 2);
        assert_eq!(count(["in", "drop", "ttl_expired"]), 2);
        assert_eq!(seen.len(), 16 + 4 + 2);
        let inwards = seen.iter().find(|packet| packet["direction"] == "in").context("nothing came in")?;
        assert_eq!(
            ["/on", "/to", "/before/source", "/before/destination", "/after/destination"]
                .map(|place| address(inwards, place)),
            ["up0", "dn0", &INTERNET.to_string(), &eip, &VM1.to_string()]
        );
        let other = EIP2.to_string();
        let is_others =
            |packet: &Value| packet["direction"] != "hairpin" && packet.to_string().contains(&other);
        assert!(!seen.iter().any(is_others), "{seen:#?}");
        let log = end(everything)?;
        let unbound = format!("icmp {INTERNET} > {EIP_SPARE} 84 B drop eip_unbound");
        assert_eq!(log.lines().filter(|line| line.contains(&unbound)).count(), 2, "{log}");
        assert!(
            log.contains(&format!("icmp {INTERNET} > {EIP2} => {INTERNET} > {VM2} 84 B forward")),
            "{log}"
        );
        Ok(())
    })
}

#[test]
fn a_trace_ends_after_so_many_and_follows_a_move() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let eip = EIP1.to_string();
        let args = ["trace", "--eip", &eip, "--count", "4", "-o", "json"];
        let mut trace = watch(bed, &args, "trace.log")?;
        bed.daemon.ok(&["eip", "detach", &EIP2.to_string()])?;
        bed.daemon.ok(&["eip", "attach", &eip, &VM2.to_string(), "--reassign"])?;
        // Bindings are looked after once a second.
        std::thread::sleep(Duration::from_millis(2500));
        ping(&bed.lab.vm2, INTERNET, 2, &[])?;
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        assert!(trace.wait(TIMEOUT)?.success());
        let seen = packets(&trace.log())?;
        assert_eq!(seen.len(), 4);
        assert_eq!(address(&seen[0], "/before/source"), VM2.to_string(), "{seen:#?}");
        Ok(())
    })
}

/// Fields of the frames in a capture, a line each. tshark warns nobody of a wrong checksum unless asked to look.
fn tshark(bed: &Bed, file: &Path, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let file = file.to_string_lossy();
    let mut args = vec!["-r", &file, "-n", "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"];
    for check in ["ip", "tcp", "udp"] {
        args.extend([
            "-o",
            match check {
                "ip" => "ip.check_checksum:TRUE",
                "tcp" => "tcp.check_checksum:TRUE",
                _ => "udp.check_checksum:TRUE",
            },
        ]);
    }
    for field in fields {
        args.extend(["-e", field]);
    }
    let text = bed.lab.node.succeed("tshark", &args)?;
    Ok(text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect())
}

#[test]
fn tshark_reads_what_was_captured() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let _server = WebServer::start(&lab.vm1)?;
        let sink = Sink::start(&lab.vm1, 7000)?;
        ping(&lab.internet, EIP1, 2, &[])?;
        lab.capture_exactly()?;
        let begun = SystemTime::now();
        let file = lab.file("out.pcapng");
        let path = file.to_string_lossy().into_owned();
        let eip = EIP1.to_string();
        let capture =
            watch(bed, &["capture", "--eip", &eip, "-w", &path, "--rate", "100000"], "capture.log")?;
        ping(&lab.internet, EIP1, 3, &["-s", "1400"])?;
        ping(&lab.internet, EIP2, 3, &[])?;
        download(&lab.internet, EIP1, 100_000)?;
        let sender = Sender::start(&lab.internet, (EIP1, 7000), 1000, 1200)?;
        sender.send_more(20)?;
        let sent = sender.stop()?;
        assert_eq!(sink.stop()?.len() as u64, sent);
        ping(&lab.internet, EIP1, 2, &["-t", "1"])?;
        let log = end(capture)?;
        assert!(log.contains(", at least 0 left out, in "), "{log}");

        let ended = SystemTime::now();

        let fields = [
            "frame.time_epoch",
            "frame.interface_name",
            "frame.packet_flags_direction",
            "frame.comment",
            "ip.src",
            "ip.dst",
            "ip.checksum.status",
            "tcp.checksum.status",
            "udp.checksum.status",
            "icmp.checksum.status",
            "ip.proto",
            "frame.cap_len",
            "frame.len",
        ];
        let frames = tshark(bed, &file, &fields)?;
        let number = |text: &str, what: &str| -> Result<usize> {
            let before = text.split(what).next().and_then(|before| before.split_whitespace().last());
            before.and_then(|number| number.parse().ok()).context("no number")
        };
        let packets = number(&log, " packets,")?;
        let (mut came, mut left, mut dropped, mut datagrams) = (0, 0, 0, 0);
        for frame in &frames {
            let [time, interface, direction, comment, source, destination, checks @ ..] = frame.as_slice()
            else {
                bail!("{frame:?}")
            };
            let [ip, tcp, udp, icmp, protocol, captured, length] = checks else { bail!("{frame:?}") };
            let time = SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(time.parse()?)?;
            assert!((begun..ended).contains(&time), "{frame:?}: not between {begun:?} and {ended:?}");
            for status in [ip, tcp, udp, icmp] {
                assert!(status.is_empty() || status == "1" || status == "Good", "a bad checksum: {frame:?}");
            }
            assert_eq!(captured, length);
            let ends: BTreeSet<&str> = [source.as_str(), destination.as_str()].into();
            let outside = INTERNET.to_string();
            let shown =
                |address: Ipv4Addr| ends == BTreeSet::from([outside.as_str(), address.to_string().as_str()]);
            // As it is on that interface's side.
            assert!(if interface == "up0" { shown(EIP1) } else { shown(VM1) }, "{frame:?}");
            let is_inbound = direction.ends_with('1');
            if is_inbound {
                came += 1;
                let forwarded = comment.starts_with("forward; ")
                    && comment.ends_with(&format!("; public address {EIP1}"));
                let expired = comment == "drop ttl_expired; in";
                assert!(forwarded || expired, "{frame:?}");
                dropped += usize::from(expired);
                datagrams += u64::from(protocol == "17");
            } else {
                left += 1;
                assert!(comment.starts_with("sent; came by "), "{frame:?}");
            }
        }
        assert_eq!((came, left, dropped, datagrams), (packets, packets - 2, 2, sent));
        assert!(packets > 60, "{packets}");
        // And the next command reads it as well.
        let told = bed.daemon.json(&["explain", "--pcap", &path])?;
        assert_eq!((&told["verdict"], &told["on"]), (&"forward".into(), &"up0".into()), "{told}");
        let said = refused(&bed.daemon.cli(&["explain", "--pcap", &path, "--frame", "2"])?)?;
        assert!(said.contains(": frame 2 is one that left; "), "{said}");
        Ok(())
    })
}

#[test]
fn a_flood_is_cut_and_every_packet_that_is_left_out_is_counted() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        ping(&lab.internet, EIP1, 2, &[])?;
        let eip = EIP1.to_string();
        let trace = watch(bed, &["trace", "--eip", &eip, "--rate", "50", "-o", "json"], "trace.log")?;
        let sink = Sink::start(&lab.vm1, 7000)?;
        let sender = Sender::start(&lab.internet, (EIP1, 7000), 20_000, 64)?;
        sender.send_more(30_000)?;
        // Commands have their turn.
        bed.daemon.ok(&["eip", "list"])?;
        let sent = sender.stop()?;
        assert_eq!(sink.stop()?.len() as u64, sent, "a trace costs no packet");
        let log = end(trace)?;
        let shown = packets(&log)?.len() as u64;
        let left_out: u64 = lines(&log)?.iter().filter_map(|line| line["left_out"].as_u64()).sum();
        assert_eq!(shown + left_out, sent, "{shown} shown, {left_out} left out");
        assert!(shown >= 50 && left_out > sent / 2, "{shown} shown, {left_out} left out");
        Ok(())
    })
}

#[test]
fn a_burst_within_the_rate_is_shown_as_a_whole() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        let trace =
            watch(bed, &["trace", "--eip", &EIP1.to_string(), "--rate", "20", "-o", "json"], "trace.log")?;
        ping(&bed.lab.internet, EIP1, 10, &["-i", "0.002"])?;
        let log = end(trace)?;
        assert_eq!(packets(&log)?.len(), 20, "{log}");
        Ok(())
    })
}

/// The settings of the trace, in the program's maps.
fn settings(bed: &Bed) -> Result<Settings> {
    bed.front(offset_of!(Front, trace))
}

#[test]
fn a_trace_does_not_outlive_its_daemon_for_long() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let mut trace = watch(bed, &["trace"], "trace.log")?;
        assert_ne!(settings(bed)?.until, 0);
        bed.daemon.kill()?;
        let status = trace.wait(TIMEOUT)?;
        assert_eq!(status.code(), Some(1));
        assert!(trace.log().contains("error: the daemon is gone, and the trace with it"), "{}", trace.log());
        // The program looks at it with each packet.
        std::thread::sleep(Duration::from_secs(6));
        let pings = ping(&bed.lab.internet, EIP1, 3, &[])?;
        assert_eq!(pings.received, 3);
        assert_eq!(settings(bed)?.until, 0);
        let config = bed.daemon.config().clone();
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
        let trace = watch(bed, &["trace"], "trace-2.log")?;
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        bed.daemon.stop()?;
        drop(trace);
        assert_eq!(settings(bed)?.until, 0, "it ends with the daemon");
        Ok(())
    })
}

/// The real program, whose output nobody needs to read.
fn eipnat(socket: &Path, args: &[&str]) -> Result<Child> {
    let mut command = Command::new(eipnat_binary()?);
    command.arg("--socket").arg(socket).args(args).stdout(Stdio::piped()).stderr(Stdio::null());
    Ok(command.spawn()?)
}

/// The signal that has ended a process. It is killed if none does in time.
fn ended_by(mut child: Child) -> Result<Option<i32>> {
    let deadline = Instant::now() + TIMEOUT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            bail!("it goes on: {:?}", child.wait()?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait()?.signal())
}

#[test]
fn a_signal_ends_a_trace_whose_daemon_does_not_answer() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("api.sock");
    let daemon = UnixListener::bind(&socket)?;
    for signal in [Signal::INT, Signal::TERM] {
        let child = eipnat(&socket, &["trace"])?;
        let (mut asked, _) = daemon.accept()?;
        asked.read_exact(&mut [0; 16])?;
        kill_process(Pid::from_child(&child), signal)?;
        assert_eq!(ended_by(child)?, Some(signal.as_raw()));
    }
    Ok(())
}

#[test]
fn a_second_signal_ends_a_trace_that_nobody_reads() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        let mut child = eipnat(&bed.daemon.config().socket(), &["trace", "-o", "json", "--rate", "100000"])?;
        let mut said = child.stdout.take().context("no pipe")?;
        // It has begun. The rest is left in the pipe, which has no room for most of what comes.
        said.read_exact(&mut [0; 10])?;
        let sender = Sender::start(&bed.lab.internet, (EIP1, 7000), 20_000, 64)?;
        sender.send_more(10_000)?;
        sender.stop()?;
        std::thread::sleep(Duration::from_millis(500));
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::INT)?;
        std::thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait()?.is_none(), "the pipe has room");
        kill_process(pid, Signal::INT)?;
        assert_eq!(ended_by(child)?, Some(Signal::INT.as_raw()));
        Ok(())
    })
}
