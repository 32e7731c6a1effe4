use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::testing::TestDaemon;

fn top(daemon: &TestDaemon, query: &str) -> Result<Top, String> {
    let answer = daemon.http(&format!("GET /v1/top?{query} HTTP/1.1\r\nHost: test\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if head.starts_with("HTTP/1.1 200 ") { Ok(serde_json::from_str(body).unwrap()) } else { Err(answer) }
}

fn order(top: &Top) -> Vec<u8> {
    top.rows.iter().map(|row| row.eip.octets()[3]).collect()
}

/// Three EIPs of two accounts, on the meters 0 to 2.
fn populated() -> TestDaemon {
    let daemon = TestDaemon::start();
    daemon.done("vm create web-1 --private-ip 10.0.0.1 --account acme --no-public-ip");
    for (eip, account, target) in [(0, "acme", "web-1"), (1, "acme", "10.0.0.2"), (2, "umbrella", "10.1.0.3")]
    {
        daemon.done(&format!("eip allocate --address 203.0.113.{eip} --account {account}"));
        daemon.done(&format!("eip attach 203.0.113.{eip} {target}"));
    }
    daemon
}

/// Counts traffic as long as `look` takes: most on the last meter, and drops.
fn under_traffic<T>(daemon: &TestDaemon, look: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let mut state = daemon.dataplane.state();
                for (meter, bytes) in state.meters.iter_mut().zip([100, 200, 300]) {
                    meter.in_bytes += bytes;
                    meter.in_packets += 1;
                }
                state.verdicts.drops[2].1 += 1;
                drop(state);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let seen = look();
        stop.store(true, Ordering::Relaxed);
        seen
    })
}

#[test]
fn the_daemon_answers_who_carries_most() {
    let daemon = populated();
    let seen = under_traffic(&daemon, || top(&daemon, "interval_ms=200").unwrap());
    assert_eq!(order(&seen), [2, 1, 0]);
    assert!(seen.interval_ms >= 200 && seen.status.ready, "{seen:?}");
    assert_eq!((seen.eips, seen.matching, seen.status.bindings), (3, 3, 3));
    let [first, second, third] = &seen.rows[..] else { panic!("{seen:?}") };
    assert_eq!(third.vm.as_ref().map(Name::as_str), Some("web-1"));
    assert_eq!((first.vm.as_ref(), first.private_ip.to_string().as_str()), (None, "10.1.0.3"));
    assert_eq!(second.account.as_str(), "acme");
    // 300 bytes a packet, whatever the time was.
    assert!((first.rates.in_bps / first.rates.in_pps - 2400.0).abs() < 1.0, "{seen:?}");
    let total: f64 = seen.rows.iter().map(|row| row.rates.in_bps).sum();
    assert!(total > 0.0 && (seen.total.in_bps - total).abs() < 1.0, "{seen:?}");
    let drops: Vec<&str> = seen.packets.drops.keys().map(String::as_str).collect();
    assert_eq!(drops, ["ip_checksum"]);
    assert!(seen.packets.drop > 0.0 && seen.packets.forward <= 0.0);

    let last = under_traffic(&daemon, || top(&daemon, "interval_ms=100&limit=1&reverse=true").unwrap());
    assert_eq!((order(&last), last.matching), (vec![0], 3));
}

#[test]
fn filters_go_by_addresses_accounts_and_vms() {
    let daemon = populated();
    for (query, expected) in [
        ("account=acme", &[0, 1][..]),
        ("account=nobody", &[]),
        ("filter=203.0.113.1", &[1]),
        ("filter=203.0.113", &[0, 1, 2]),
        ("filter=203.0.113.0%2F31", &[0, 1]),
        ("filter=10.1.", &[2]),
        ("filter=WEB", &[0]),
        ("filter=brella", &[2]),
        ("filter=&account=umbrella", &[2]),
        ("filter=10.0.0.2&account=umbrella", &[]),
    ] {
        let seen = top(&daemon, &format!("interval_ms=100&sort=eip&{query}")).unwrap();
        assert_eq!(
            (order(&seen), seen.matching, seen.eips),
            (expected.to_vec(), expected.len(), 3),
            "{query}"
        );
    }
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let daemon = TestDaemon::start();
    for (query, said) in [
        ("interval_ms=99", "interval_ms=99 is not between 100 and 10000"),
        ("interval_ms=10001", "interval_ms=10001 is not between 100 and 10000"),
        ("limit=0", "limit=0 is not between 1 and 1000"),
        ("limit=1001", "limit=1001 is not between 1 and 1000"),
        ("sort=colour", "unknown variant `colour`"),
        ("colour=red", "unknown field `colour`"),
    ] {
        let answer = top(&daemon, query).unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(said), "{query}: {answer}");
    }
}

#[test]
fn so_many_look_at_one_time_and_commands_go_on() {
    let daemon = TestDaemon::start();
    thread::scope(|scope| {
        let looks: Vec<_> = (0..8).map(|_| scope.spawn(|| top(&daemon, "interval_ms=2000"))).collect();
        daemon.done("eip allocate");
        let (seen, refused): (Vec<_>, Vec<_>) =
            looks.into_iter().map(|look| look.join().unwrap()).partition(Result::is_ok);
        assert!(seen.len() >= 4 && !refused.is_empty(), "{seen:?}, {refused:?}");
        for answer in refused {
            let answer = answer.unwrap_err();
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        }
    });
    // Their places are free again.
    top(&daemon, "interval_ms=100").unwrap();
}
