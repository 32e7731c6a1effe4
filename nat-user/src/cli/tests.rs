use std::io::{self, Write};
use std::path::Path;

use nat_common::verdict::Reject;

use crate::testing::{TestDaemon, eipnat};

#[test]
fn an_eip_lives() {
    let daemon = TestDaemon::start();
    assert_eq!(
        daemon.done("eip allocate -o json"),
        r#"{"eip":"203.0.113.0","state":"allocated","private_ip":null,"vm":null,"account":"default","pool":"default"}"#
            .to_owned()
            + "\n"
    );
    assert_eq!(
        daemon.done("-o json eip allocate --pool small --account acme"),
        r#"{"eip":"198.51.100.7","state":"allocated","private_ip":null,"vm":null,"account":"acme","pool":"small"}"#
            .to_owned()
            + "\n"
    );
    let attached = r#"{"eip":"203.0.113.0","state":"attached","private_ip":"10.0.0.2","vm":null,"account":"default","pool":"default"}"#;
    for command in
        ["eip attach 203.0.113.0 10.0.0.2", "eip attach 203.0.113.0 10.0.0.2", "eip show 203.0.113.0"]
    {
        assert_eq!(daemon.done(&format!("{command} -o json")).trim_end(), attached);
    }
    assert_eq!(daemon.dataplane.state().halves().len(), 2);
    let list = daemon.done("eip list -o json");
    assert!(
        list.starts_with(r#"[{"eip":"198.51.100.7","#) && list.ends_with(&format!("{attached}]\n")),
        "{list}"
    );
    assert_eq!(
        daemon.done("status -o json").trim_end(),
        concat!(
            r#"{"ready":true,"revision":3,"bindings":1,"interfaces":["#,
            r#"{"name":"up0","role":"uplink","mode":"native"},{"name":"dn0","role":"downlink","mode":"native"}]}"#
        )
    );
    daemon.done("eip detach 203.0.113.0");
    assert!(daemon.dataplane.state().halves().is_empty());
    assert_eq!(daemon.done("eip release 203.0.113.0"), "203.0.113.0 released\n");
    assert_eq!(
        daemon.done("pool list -o json").trim_end(),
        concat!(
            r#"[{"name":"default","cidrs":["203.0.113.0/30"],"size":4,"allocated":0,"cooling":1,"free":3},"#,
            r#"{"name":"small","cidrs":["198.51.100.7/32"],"size":1,"allocated":1,"cooling":0,"free":0}]"#
        )
    );
}

#[test]
fn tables_are_tidy() {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate --account acme");
    daemon.done("eip allocate");
    daemon.done("eip attach 203.0.113.1 10.0.0.2");
    assert_eq!(
        daemon.done("eip list"),
        "\
EIP          STATE      PRIVATE IP  VM  ACCOUNT  POOL
203.0.113.0  allocated  -           -   acme     default
203.0.113.1  attached   10.0.0.2    -   default  default
"
    );
    {
        let mut state = daemon.dataplane.state();
        state.meters[0].in_bytes = 1_234_567;
        state.meters[0].in_packets = 1_024;
        state.verdicts.forward = 1_024;
        state.verdicts.drops[0].1 = 7;
    }
    assert_eq!(
        daemon.done("eip show 203.0.113.1"),
        "\
eip         203.0.113.1
state       attached
private ip  10.0.0.2
vm          -
account     default
pool        default
in          1.23 MB in 1,024 packets
out         0 B in 0 packets
"
    );
    assert_eq!(
        daemon.done("pool list"),
        "\
POOL     CIDRS            SIZE  ALLOCATED  COOLING  FREE
default  203.0.113.0/30      4          2        0     2
small    198.51.100.7/32     1          0        0     1
"
    );
    assert_eq!(
        daemon.done("status"),
        "\
ready     yes
revision  3
bindings  1

INTERFACE  ROLE      XDP MODE
up0        uplink    native
dn0        downlink  native
"
    );
    assert_eq!(
        daemon.done("stats"),
        "\
VERDICT  PACKETS
forward    1,024
pass           0
punt           0
drop           7

DROP REASON      PACKETS
frame_truncated        7
"
    );
}

#[test]
fn a_vm_lives() {
    let daemon = TestDaemon::start();
    let created = r#"{"name":"web-1","private_ip":"10.0.0.2","public_ip":"203.0.113.0","eip":null,"account":"default"}"#;
    for _ in 0..2 {
        assert_eq!(daemon.done("vm create web-1 --private-ip 10.0.0.2 -o json").trim_end(), created);
    }
    daemon.done("eip allocate");
    daemon.done("vm create web-2 --private-ip 10.0.0.3 --no-public-ip");
    assert_eq!(
        daemon.done("eip attach 203.0.113.1 web-1"),
        "\
EIP          STATE     PRIVATE IP  VM     ACCOUNT  POOL
203.0.113.1  attached  10.0.0.2    web-1  default  default
"
    );
    assert_eq!(
        daemon.done("vm list"),
        "\
VM     PRIVATE IP  PUBLIC IP  EIP          ACCOUNT
web-1  10.0.0.2    -          203.0.113.1  default
web-2  10.0.0.3    -          -            default
"
    );
    let (code, _, said) = daemon.eipnat("eip attach 203.0.113.1 web-2");
    assert_eq!(code, 1, "{said}");
    daemon.done("eip attach 203.0.113.1 web-2 --reassign");
    assert_eq!(daemon.done("vm destroy web-2"), "web-2 destroyed\n");
    let list = daemon.done("vm list -o json");
    assert_eq!(
        list.trim_end(),
        r#"[{"name":"web-1","private_ip":"10.0.0.2","public_ip":"203.0.113.2","eip":null,"account":"default"}]"#
    );
    assert_eq!(daemon.dataplane.state().halves().len(), 2);
}

#[test]
fn an_import_says_what_it_did_and_where_it_went_wrong() {
    let daemon = TestDaemon::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let import = format!("eip import {}", file.path().display());
    std::fs::write(file.path(), "# all of them\n203.0.113.1,10.0.0.1\n203.0.113.2, 10.0.0.2, acme\n")
        .unwrap();
    assert_eq!(daemon.done(&import), "2 of 2 EIPs imported\n");
    assert_eq!(daemon.done(&format!("{import} -o json")), "{\"imported\":\"0 of 2 EIPs imported\"}\n");
    assert_eq!(daemon.dataplane.state().halves().len(), 4);
    std::fs::write(file.path(), "203.0.113.0,10.0.0.5\n203.0.113.1,10.0.0.6\n").unwrap();
    let said = format!(
        "error: {}: line 2: 203.0.113.1 is attached to 10.0.0.1; move it with --reassign, or detach it first: \
         eipnat eip detach 203.0.113.1; nothing was imported\n",
        file.path().display()
    );
    assert_eq!(daemon.eipnat(&import), (1, String::new(), said));
    assert_eq!(daemon.done("eip list -o json").matches("\"eip\"").count(), 2);
}

#[test]
fn a_backup_is_whole_and_can_be_restored() {
    let daemon = TestDaemon::start();
    daemon.done("vm create web-1 --private-ip 10.0.0.2");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backup.db");
    let said = daemon.done(&format!("store backup {}", file.display()));
    assert!(said.ends_with(&format!(" bytes in {}\n", file.display())), "{said}");
    let (code, _, said) = daemon.eipnat(&format!("store backup {}", file.display()));
    assert!(code == 1 && said.contains("exists"), "{said}");

    let (old, revision) = crate::store::restore(&directory.path().join("store"), &file).unwrap();
    assert_eq!((old, revision), (None, 1));
    let running = crate::store::restore(&daemon.config.store_path, &file).unwrap_err().to_string();
    assert!(running.contains("another daemon has"), "{running}");
    daemon.done("vm destroy web-1");
}

#[test]
fn stats_explain_themselves() {
    let daemon = TestDaemon::start();
    let explained = daemon.done("stats --explain");
    assert!(explained.contains("forward        0\n    Translated and sent on.\n"), "{explained}");
    for reason in Reject::ALL {
        let (row, texts) = (format!("\n{} ", reason.name()), [reason.meaning(), reason.remedy()]);
        let after = &explained[explained.find(&row).unwrap() + 1..];
        assert!(after.lines().skip(1).map(str::trim).take(2).eq(texts), "{after}");
    }
    let json: serde_json::Value = serde_json::from_str(&daemon.done("stats -o json")).unwrap();
    assert_eq!(json["verdicts"], serde_json::json!({"forward": 0, "pass": 0, "punt": 0, "drop": 0}));
    assert_eq!(json["drops"].as_object().unwrap().len(), Reject::ALL.len());
}

#[test]
fn a_refusal_is_one_line_and_exit_code_1() {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate");
    for (command, said) in [
        (
            "eip attach 203.0.113.9 10.0.0.2",
            "203.0.113.9 is not an EIP; `eipnat eip list` shows those that are",
        ),
        (
            "eip attach 203.0.113.0 Web_1",
            "\"Web_1\" is not a name (1 to 63 of a-z 0-9 - . that begin and end with a letter or digit, \
             and not an IP address)",
        ),
        (
            "eip allocate --address 203.0.113.0",
            "203.0.113.0 is allocated already, to account default; choose another address",
        ),
        ("eip show 203.0.113.1", "203.0.113.1 is not an EIP; `eipnat eip list` shows those that are"),
    ] {
        assert_eq!(daemon.eipnat(command), (1, String::new(), format!("error: {said}\n")), "{command}");
    }
}

#[test]
fn a_datapath_that_fails_shows_in_the_status() {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate");
    daemon.done("eip attach 203.0.113.0 10.0.0.2");
    daemon.dataplane.state().broken = true;
    let problem = "the datapath lags behind revision 3: the datapath in memory was told to fail";
    let said = format!("error: accepted, but not in force yet: {problem}\n");
    assert_eq!(daemon.eipnat("eip detach 203.0.113.0"), (1, String::new(), said));

    let (code, out, err) = daemon.eipnat("status -o json");
    assert_eq!((code, err), (1, format!("error: not ready: {problem}\n")));
    let status: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["ready"], &status["problems"][0]), (&false.into(), &problem.into()));
    assert!(daemon.eipnat("status").1.contains(&format!("problem   {problem}\n")));
}

#[test]
fn without_a_daemon_the_exit_code_is_3() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for socket in [stale.as_path(), &directory.path().join("missing.sock")] {
        let mend = "start it with `eipnat run`, or name its socket with --socket";
        let said = format!("error: no daemon at {}; {mend}\n", socket.display());
        assert_eq!(eipnat(socket, "status"), (3, String::new(), said));
    }
    let (code, _, said) = eipnat(Path::new(&format!("/tmp/{}", "s".repeat(200))), "eip list");
    assert_eq!((code, said.lines().count()), (3, 1), "{said}");
}

#[test]
fn somebody_else_at_the_socket_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other.sock");
    let other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    });
    let (code, _, said) = eipnat(&socket, "status");
    answering.join().unwrap();
    assert_eq!((code, said.lines().count()), (1, 1), "{said}");
    assert!(said.starts_with(&format!("error: the daemon at {} gave no answer", socket.display())), "{said}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let nowhere = Path::new("/no/such/socket");
    for args in
        ["", "eip", "eip show", "eip show 203.0.113.256", "eip allocate --pool A_B", "eip list -o xml", "fly"]
    {
        let (code, out, err) = eipnat(nowhere, args);
        assert_eq!((code, out.as_str()), (2, ""), "{args}");
        assert!(!err.is_empty());
    }
    let (code, out, err) = eipnat(nowhere, "eip allocate --help");
    assert!(code == 0 && err.is_empty() && out.contains("--address <ADDRESS>"));
}

/// A pipe that nobody reads any more.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let daemon = TestDaemon::start();
    let args = ["eipnat", "--socket", daemon.config.api.socket.to_str().unwrap(), "eip", "list"];
    let mut err = Vec::new();
    let code = super::run(args.map(Into::into), &mut Closed, &mut err);
    assert_eq!((code, err.as_slice()), (0, b"".as_slice()));
}
