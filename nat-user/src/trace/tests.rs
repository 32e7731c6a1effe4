use std::fs;
use std::io::{Read as _, Write as _};
use std::iter;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nat_common::abi::trace::{Event, HEAD};
use nat_common::verdict::{Counter, Reject};
use serde_json::Value;

use super::*;
use crate::packet::Spec;
use crate::testing::TestDaemon;

const X: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const EIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const VM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn frame(src: Ipv4Addr, dst: Ipv4Addr) -> Vec<u8> {
    let spec = Spec {
        src: Some(src),
        dst: Some(dst),
        proto: Some("udp".parse().unwrap()),
        length: Some(400),
        ..Spec::default()
    };
    spec.frame([2; 6]).unwrap()
}

/// What the program would report of a frame as it came and as it left.
fn report(counter: Counter, before: &[u8], after: &[u8]) -> Report {
    let mut head = [0xee; HEAD];
    let known = before.len().min(HEAD);
    head[..known].copy_from_slice(&before[..known]);
    let event = Event {
        time: 0,
        ingress: 1,
        counter: counter.index(),
        egress: if counter == Counter::Forward { 2 } else { 0 },
        length: u32::try_from(before.len()).unwrap(),
        captured: u32::try_from(after.len()).unwrap(),
        padding: 0,
        head,
    };
    Report { event, frame: after.to_vec() }
}

fn forwarded() -> Report {
    report(Counter::Forward, &frame(X, EIP), &frame(X, VM))
}

/// One of the longest frames that are captured.
fn jumbo() -> Report {
    let mut frame = frame(X, EIP);
    frame.resize(9014, 0);
    report(Counter::Forward, &frame, &frame)
}

fn dropped() -> Report {
    let frame = frame(X, Ipv4Addr::new(203, 0, 113, 2));
    report(Counter::Drop(Reject::EipUnbound), &frame, &frame)
}

fn bound() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate --address 203.0.113.1");
    daemon.done("eip attach 203.0.113.1 10.0.0.2");
    daemon
}

/// Lets the datapath report as soon as somebody wants to know; answers what was wanted.
fn report_when_wanted(daemon: &TestDaemon, reports: Vec<Report>, left_out: u64) -> JoinHandle<Wanted> {
    let dataplane = daemon.dataplane.clone();
    thread::spawn(move || {
        loop {
            let mut state = dataplane.state();
            if let Some(wanted) = state.trace.wanted.clone() {
                state.trace.reports.extend(reports);
                state.trace.left_out += left_out;
                return wanted;
            }
            drop(state);
            thread::sleep(Duration::from_millis(2));
        }
    })
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn packets_are_shown_a_line_each_and_the_trace_ends_with_its_client() {
    let daemon = bound();
    let wanted = report_when_wanted(&daemon, vec![forwarded(), dropped()], 0);
    let shown = daemon.done("trace --count 2");
    assert_eq!(wanted.join().unwrap().addresses, None);
    let lines: Vec<_> = shown.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    let there = "198.51.100.9:40000 > 203.0.113.1:80 => 198.51.100.9:40000 > 10.0.0.2:80 400 B forward";
    assert!(lines[0].contains(there), "{shown}");
    assert!(lines[1].ends_with("udp 198.51.100.9:40000 > 203.0.113.2:80 400 B drop eip_unbound"), "{shown}");
    wait_until("the trace goes on without a client", || daemon.dataplane.state().trace.wanted.is_none());
}

#[test]
fn a_client_sees_its_own_packets_only_and_those_as_they_came_too() {
    let daemon = bound();
    let wanted = report_when_wanted(&daemon, vec![dropped(), forwarded()], 0);
    let line = daemon.done("-o json trace --eip 203.0.113.1 --count 1");
    assert_eq!(wanted.join().unwrap().addresses, Some([EIP, VM].into()));
    let packet: Packet = serde_json::from_str(line.strip_prefix("{\"left_out\":0}\n").unwrap()).unwrap();
    assert_eq!(packet.before.unwrap().destination, EIP);
    assert_eq!(packet.after.unwrap().destination, VM);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("out.pcapng");
    wait_until("the trace goes on", || daemon.dataplane.state().trace.wanted.is_none());
    let wanted = report_when_wanted(&daemon, vec![forwarded()], 0);
    let said = daemon.done(&format!("capture --count 1 -w {}", file.display()));
    assert_eq!(said, format!("1 packets, at least 0 left out, in {}\n", file.display()));
    assert_eq!(wanted.join().unwrap().snap, 9216);
    let (before, after) = (frame(X, EIP), frame(X, VM));
    let bytes = fs::read(file).unwrap();
    for frame in [before, after] {
        assert!(bytes.windows(frame.len()).any(|window| window == frame), "a frame is not in the capture");
    }
}

#[test]
fn a_trace_that_fails_says_why_and_its_daemon_goes_on() {
    let daemon = bound();
    daemon.dataplane.state().broken = true;
    let failed = "error: packets cannot be traced: the datapath in memory was told to fail\n".to_owned();
    assert_eq!(daemon.eipnat("trace"), (1, String::new(), failed));
    daemon.dataplane.state().broken = false;
    let wanted = report_when_wanted(&daemon, vec![forwarded()], 0);
    daemon.done("trace --count 1");
    wanted.join().unwrap();
}

#[test]
fn bindings_are_followed() {
    let daemon = bound();
    let (stop, socket) = (Instant::now() + Duration::from_secs(20), daemon.config.api.socket.clone());
    let client =
        thread::spawn(move || crate::testing::eipnat(&socket, "-o json trace --eip 203.0.113.1 --count 1"));
    wait_until("nothing is wanted", || daemon.dataplane.state().trace.wanted.is_some());
    daemon.done("eip attach 203.0.113.1 10.0.0.3 --reassign");
    let moved = BTreeSet::from([EIP, Ipv4Addr::new(10, 0, 0, 3)]);
    wait_until("the move is not followed", || {
        daemon
            .dataplane
            .state()
            .trace
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.addresses.as_ref() == Some(&moved))
    });
    daemon.dataplane.state().trace.reports.push_back(forwarded());
    assert_eq!(client.join().unwrap().0, 0);
    assert!(Instant::now() < stop);
}

#[test]
fn what_is_left_out_is_told() {
    let daemon = bound();
    let wanted = report_when_wanted(&daemon, vec![forwarded(); 5], 7);
    let socket = daemon.config.api.socket.clone();
    let client = thread::spawn(move || crate::testing::eipnat(&socket, "-o json trace --rate 3 --count 4"));
    assert_eq!(wanted.join().unwrap().rate, 3);
    thread::sleep(Duration::from_millis(1500));
    let mut later = forwarded();
    later.event.time = 5_000_000_000;
    daemon.dataplane.state().trace.reports.push_back(later);
    let (code, out, err) = client.join().unwrap();
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // 7 that the program had left out, and 2 of 5 within one second.
    assert_eq!(lines.iter().filter_map(|line| line["left_out"].as_u64()).sum::<u64>(), 9, "{out}");
    assert_eq!(lines.iter().filter(|line| line["verdict"] == "forward").count(), 4);
}

#[test]
fn a_trace_of_what_cannot_be_is_refused() {
    let daemon = bound();
    for (args, said) in [
        ("--eip 203.0.113.9", "203.0.113.9 is not an EIP; `eipnat eip list` shows those that are"),
        ("--rate 0", "rate: 0 packets a second, where 1 to 100000 are possible"),
        ("--count 0", "--count 0 would show nothing; leave it out to go on until Ctrl-C"),
    ] {
        assert_eq!(
            daemon.eipnat(&format!("trace {args}")),
            (1, String::new(), format!("error: {said}\n")),
            "{args}"
        );
    }
    let (code, _, said) = daemon.eipnat("capture -w /no/such/directory/file --count 1");
    assert!(code == 1 && said.starts_with("error: /no/such/directory/file: "), "{said}");
}

/// A client by itself, and the lines that it gets.
fn client(interest: &Interest) -> (Client, mpsc::UnboundedReceiver<Line>) {
    let (sender, lines) = mpsc::unbounded_channel();
    (Client::new(interest.clone(), &Shown::new(), HashMap::new(), sender), lines)
}

/// Gives a client a report.
fn give(client: &mut Client, report: &Report) {
    let packet = Packet::of(report, &packet::Clock::now(0), &mut packet::Names::default());
    client.take(report, &packet);
}

#[test]
fn what_came_before_a_trace_began_is_not_in_it() {
    let interest = Interest { eips: Vec::new(), rate: 10, snap: 400 };
    let (mut client, mut lines) = client(&interest);
    // Another client is there already, and the program reports.
    give(&mut client, &forwarded());
    client.begin(7);
    for time in [6, 7] {
        let mut report = forwarded();
        report.event.time = time;
        give(&mut client, &report);
    }
    assert_eq!(
        lines.try_recv().unwrap().into_bytes(),
        b"{\"left_out\":0}\n",
        "the first line says that it begins"
    );
    assert!(lines.try_recv().is_ok());
    assert!(lines.try_recv().is_err(), "it has more than what came at 7");
}

#[test]
fn what_waits_for_a_client_that_stalls_takes_so_much_memory_and_no_more() {
    let interest = Interest { eips: Vec::new(), rate: MAX_RATE, snap: 9216 };
    let (mut client, mut lines) = client(&interest);
    client.begin(0);
    let report = jumbo();
    (0..1000).for_each(|_| give(&mut client, &report));
    let waiting: Vec<Vec<u8>> = iter::from_fn(|| lines.try_recv().ok()).map(Line::into_bytes).collect();
    let bytes: usize = waiting.iter().map(Vec::len).sum();
    assert!(bytes <= client::QUEUE && bytes > client::QUEUE / 2, "{bytes} bytes wait");
    // There is room again, and it is told what was missed.
    give(&mut client, &report);
    assert!(lines.try_recv().is_ok());
    thread::sleep(Duration::from_millis(1100));
    client.tell_left_out(0);
    let told: Value = serde_json::from_slice(&lines.try_recv().unwrap().into_bytes()).unwrap();
    assert_eq!(told["left_out"], 1000 - (waiting.len() - 1), "{told}");
}

#[test]
fn bindings_that_were_asked_for_before_a_client_came_are_not_its_own() {
    let interest = Interest { eips: vec![EIP], rate: 10, snap: 0 };
    let (sender, _lines) = mpsc::unbounded_channel();
    let shown = Shown::from([(EIP, vec![EIP, VM])]);
    let mut client = Client::new(interest, &shown, HashMap::new(), sender);
    client.follow(&Shown::from([(X, vec![X])]));
    assert_eq!(client.addresses(), &BTreeSet::from([EIP, VM]));
    client.follow(&Shown::from([(EIP, vec![EIP])]));
    assert_eq!(client.addresses(), &BTreeSet::from([EIP]));
}

#[test]
fn what_is_left_out_for_want_of_room_counts_for_the_rate() {
    let interest = Interest { eips: Vec::new(), rate: 300, snap: 9216 };
    let (mut client, mut lines) = client(&interest);
    client.begin(0);
    let report = jumbo();
    (0..300).for_each(|_| give(&mut client, &report));
    assert!(iter::from_fn(|| lines.try_recv().ok()).count() < 300, "there is room for all");
    give(&mut client, &report);
    assert!(lines.try_recv().is_err(), "one more within the second");
}

#[test]
fn a_capture_that_does_not_begin_leaves_the_file_as_it_is() {
    let daemon = bound();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("yesterday.pcapng");
    fs::write(&file, "yesterday's").unwrap();
    for args in ["--eip 203.0.113.9", "--rate 0", "--count 0"] {
        let (code, ..) = daemon.eipnat(&format!("capture -w {} {args}", file.display()));
        assert_eq!(code, 1, "{args}");
        assert_eq!(fs::read(&file).unwrap(), b"yesterday's", "{args}");
    }
    let nobody = directory.path().join("no-daemon.sock");
    let (code, ..) = crate::testing::eipnat(&nobody, &format!("capture -w {}", file.display()));
    assert_eq!((code, fs::read(&file).unwrap().as_slice()), (3, b"yesterday's".as_slice()));
}

/// Begins a trace and lets it wait, if it is let in.
fn sit_down(daemon: &TestDaemon) -> Option<UnixStream> {
    let request = concat!(
        "POST /v1/trace HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n",
        "Content-Length: 10\r\n\r\n{\"rate\":1}"
    );
    let mut stream = UnixStream::connect(&daemon.config.api.socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    (&head == b"HTTP/1.1 200").then_some(stream)
}

#[test]
fn there_are_so_many_places_and_all_streams_end_with_the_daemon() {
    let daemon = bound();
    let mut clients: Vec<UnixStream> = (0..MAX_CLIENTS).map(|_| sit_down(&daemon).unwrap()).collect();
    let full = format!("error: {MAX_CLIENTS} traces run, which are the most; end one\n");
    assert_eq!(daemon.eipnat("trace"), (1, String::new(), full));
    // One that goes makes room.
    clients.pop();
    wait_until("there is no room", || {
        thread::sleep(Duration::from_millis(50));
        clients.extend(sit_down(&daemon));
        clients.len() == MAX_CLIENTS
    });
    // Ordinary commands have their turn.
    daemon.done("eip list");
    let begun = Instant::now();
    daemon.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "the daemon waits for streams");
    for mut client in clients {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"\r\n0\r\n\r\n"), "the answer was cut off");
    }
}

#[test]
fn a_trace_says_that_its_daemon_has_ended() {
    let daemon = bound();
    let socket = daemon.config.api.socket.clone();
    let client = thread::spawn(move || crate::testing::eipnat(&socket, "trace"));
    wait_until("nothing is wanted", || daemon.dataplane.state().trace.wanted.is_some());
    daemon.stop();
    let ended = "error: the daemon has ended, and the trace with it\n".to_owned();
    assert_eq!(client.join().unwrap(), (1, String::new(), ended));
}
