use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use super::socket::Claim;
use crate::config::{Api, DEFAULT_RATE};
use crate::testing::TestDaemon;

fn request(method: &str, path: &str, body: &str) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json");
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn whatever_is_wrong_is_answered_in_json() {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate");
    let large = format!(r#"{{"account":"{}"}}"#, "a".repeat(1 << 20));
    for (method, path, body, status) in [
        ("GET", "/", "", 404),
        ("GET", "/v2/eips", "", 404),
        ("PATCH", "/v1/eips", "", 405),
        ("GET", "/v1/eips/203.0.113.1", "", 404),
        ("GET", "/v1/eips/no-address", "", 400),
        ("POST", "/v1/eips", "{", 400),
        ("POST", "/v1/eips", r#"{"colour":"red"}"#, 422),
        ("POST", "/v1/eips", r#"{"account":"A_B"}"#, 422),
        ("POST", "/v1/eips", r#"{"address":"192.0.2.1"}"#, 400),
        ("POST", "/v1/eips", r#"{"address":"203.0.113.0"}"#, 409),
        ("POST", "/v1/eips", large.as_str(), 413),
        ("PUT", "/v1/eips/203.0.113.0/target", r#"{"target":"127.0.0.1"}"#, 400),
        ("PUT", "/v1/eips/203.0.113.0/target", r#"{"target":"no such"}"#, 400),
        ("PUT", "/v1/eips/203.0.113.0/target", r#"{"target":"no-such"}"#, 404),
    ] {
        let answer = daemon.http(&request(method, path, body));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
        let failure: super::types::Failure = serde_json::from_str(body).unwrap();
        assert!(!failure.error.is_empty() && !failure.error.contains('\n'), "{failure:?}");
    }
    let unlabelled = daemon.http("POST /v1/eips HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}");
    assert!(unlabelled.starts_with("HTTP/1.1 415 "), "{unlabelled}");
    assert_eq!(daemon.done("eip list -o json").matches("eip").count(), 1);
}

/// The copy in the documentation is what the daemon answers. `UPDATE_DOCS=1` writes it anew.
#[test]
fn the_api_is_documented() {
    let document = super::openapi().to_pretty_json().unwrap() + "\n";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(file, &document).unwrap();
    }
    assert_eq!(
        fs::read_to_string(file).unwrap_or_default(),
        document,
        "write it anew with UPDATE_DOCS=1 cargo test"
    );
    let daemon = TestDaemon::start();
    let answer = daemon.http(&request("GET", "/v1/openapi.json", ""));
    let served: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(served, serde_json::from_str::<serde_json::Value>(&document).unwrap());
}

#[test]
fn who_asks_too_much_is_told_to_wait() {
    let rate = 5.try_into().unwrap();
    let daemon = TestDaemon::start_with(|config| config.api.rate = rate);
    let status = request("GET", "/v1/status", "");
    let answers: Vec<String> = (0..20).map(|_| daemon.http(&status)).collect();
    let refused = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 429 ")).collect::<Vec<_>>();
    assert!(!refused.is_empty(), "nobody was refused");
    let said = "more than 5 requests a second; ask again in a second";
    assert!(refused.iter().all(|answer| answer.contains(said)), "{refused:?}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    daemon.done("status");
}

#[test]
fn a_connection_carries_one_request() {
    let daemon = TestDaemon::start();
    let status = request("GET", "/v1/status", "");
    let answer = daemon.http(&(status.clone() + &status));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1);
    assert!(answer.contains("connection: close"));
    assert!(daemon.http(&request("POST", "/v1/eips", "{}")).starts_with("HTTP/1.1 201 "));
}

#[test]
fn idle_connections_lock_nobody_out() {
    let daemon = TestDaemon::start();
    let idle: Vec<UnixStream> =
        (0..100).map(|_| UnixStream::connect(&daemon.config.api.socket).unwrap()).collect();
    daemon.done("status");
    drop(idle);
}

#[test]
fn the_socket_is_for_root_and_its_group() {
    let daemon = TestDaemon::start();
    let socket = fs::metadata(&daemon.config.api.socket).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);

    let directory = tempfile::tempdir().unwrap();
    let group = nix::unistd::getgid();
    let name = nix::unistd::Group::from_gid(group).unwrap().unwrap().name;
    let claim =
        Claim::take(&Api { socket: directory.path().join("s"), group: Some(name), rate: DEFAULT_RATE })
            .unwrap();
    assert_eq!(fs::metadata(directory.path().join("s")).unwrap().gid(), group.as_raw());
    drop(claim);
    let unknown = Api {
        socket: directory.path().join("s"),
        group: Some("no-such-group".to_owned()),
        rate: DEFAULT_RATE,
    };
    assert!(Claim::take(&unknown).unwrap_err().to_string().starts_with("api.group: "));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() {
    let daemon = TestDaemon::start();
    let socket = daemon.config.api.socket.display().to_string();
    let error = Claim::take(&daemon.config.api).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("a daemon serves {socket} already; end it, or give this one another api.socket")
    );
    daemon.done("status");
}

#[test]
fn nothing_is_left_at_the_end() {
    let daemon = TestDaemon::start();
    daemon.done("eip allocate");
    let left: Vec<_> = daemon.stop().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(left, ["lib"], "the store alone");
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_other_files_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    fs::write(directory.path().join("api.sock.lock"), "").unwrap();
    drop(Claim::take(&Api { socket: socket.clone(), group: None, rate: DEFAULT_RATE }).unwrap());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    fs::write(&socket, "precious").unwrap();
    let error = Claim::take(&Api { socket: socket.clone(), group: None, rate: DEFAULT_RATE }).unwrap_err();
    let what = format!("{0} exists and is not a socket; remove it or write another path", socket.display());
    assert_eq!(error.to_string(), format!("api.socket: {what}"));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn nobody_connects_before_the_daemon_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let claim = Claim::take(&Api { socket: socket.clone(), group: None, rate: DEFAULT_RATE }).unwrap();
    let early = UnixStream::connect(&socket).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::ConnectionRefused);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _listener = runtime.block_on(async { claim.listen() }).unwrap();
    UnixStream::connect(&socket).unwrap();
}

#[test]
fn of_many_who_start_at_once_one_gets_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let api = Api { socket: directory.path().join("api.sock"), group: None, rate: DEFAULT_RATE };
    for _ in 0..50 {
        let barrier = std::sync::Barrier::new(4);
        let claims: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                Claim::take(&api).ok()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.len(), 1);
        drop(claims);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
