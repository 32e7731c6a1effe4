//! The bill: what the ledger says is what was on the wire, whatever became of the daemon.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::{
    Bed, Capture, Daemon, EIP_SPARE, EIP1, EIP2, INTERNET, INTERNET_DEVICE, Meter, Prometheus, Sender, Setup,
    Sink, VM1, VM2, WebServer, download, eipnat_binary, meters_on_the_wire, ping,
};

/// The records that are asked for.
fn records(daemon: &Daemon, options: &[&str]) -> Result<Vec<Value>> {
    let answer = daemon.json(&[&["usage"], options].concat())?;
    Ok(answer.as_array().context("no list")?.clone())
}

/// What so many pings come to that were answered.
const fn pings(count: u64) -> Meter {
    let bytes = count * 84;
    Meter { in_bytes: bytes, in_packets: count, out_bytes: bytes, out_packets: count }
}

#[test]
fn the_wire_metrics_prometheus_and_the_bill_are_equal() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let prometheus = Prometheus::start(lab, None)?;
        lab.capture_exactly()?;
        let capture = Capture::start(&lab.internet, INTERNET_DEVICE, "ip", lab.file("wan.pcap"))?;
        let _servers = [WebServer::start(&lab.vm1)?, WebServer::start(&lab.internet)?];
        download(&lab.internet, EIP1, 2_000_001)?;
        download(&lab.vm2, INTERNET, 333_333)?;
        ping(&lab.internet, EIP2, 5, &["-s", "777"])?;
        let wire = meters_on_the_wire(&capture.stop()?, &[EIP1, EIP2]);
        for (eip, seen) in &wire {
            assert!(seen.in_packets > 10 && seen.out_packets > 10, "{eip}: {seen:?}");
            assert_eq!(bed.daemon.meter(*eip)?, *seen, "/metrics, {eip}");
            assert_eq!(bed.daemon.usage(*eip)?, *seen, "usage, {eip}");
            let of = |family: &str, direction: &str| {
                format!("{family}{{eip=\"{eip}\",direction=\"{direction}\"}}")
            };
            for (promql, expected) in [
                (of("eipnat_eip_bytes_total", "in"), seen.in_bytes),
                (of("eipnat_eip_bytes_total", "out"), seen.out_bytes),
                (of("eipnat_eip_packets_total", "in"), seen.in_packets),
                (of("eipnat_eip_packets_total", "out"), seen.out_packets),
            ] {
                prometheus.expect(&promql, expected)?;
            }
        }
        // Accounts follow when the ledger is written.
        let all_in = wire.values().map(|seen| seen.in_bytes).sum();
        prometheus.expect("eipnat_account_bytes_total{account=\"default\",direction=\"in\"}", all_in)?;
        prometheus.expect("sum(eipnat_eip_bytes_total{direction=\"in\"})", all_in)?;
        let flushed = bed.daemon.metric("eipnat_usage_flushed_timestamp_seconds ")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        assert!((now - 30..=now).contains(&flushed), "{flushed} is not of late");
        prometheus.stop()
    })
}

#[test]
fn a_move_under_load_splits_the_bill_and_kills_cost_nothing() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let eip = EIP1.to_string();
        for (name, private_ip) in [("one", VM1), ("two", VM2)] {
            let private_ip = private_ip.to_string();
            bed.daemon.ok(&["vm", "create", name, "--private-ip", &private_ip, "--no-public-ip"])?;
        }
        bed.daemon.ok(&["eip", "detach", &EIP2.to_string()])?;
        let sinks = [Sink::start(&bed.lab.vm1, 7000)?, Sink::start(&bed.lab.vm2, 7000)?];
        let sender = Sender::start(&bed.lab.internet, (EIP1, 7000), 500, 333)?;
        for target in ["two", "one", "two"] {
            sender.send_more(200)?;
            bed.daemon.kill()?;
            sender.send_more(200)?;
            bed.start_again()?;
            bed.daemon.ok(&["eip", "attach", &eip, target, "--reassign"])?;
        }
        sender.send_more(100)?;
        bed.daemon.kill()?;
        bed.start_again()?;
        sender.stop()?;
        let records = records(&bed.daemon, &["--eip", &eip])?;
        let mut billed = BTreeMap::<&str, Meter>::new();
        for record in &records {
            billed.entry(record["vm"].as_str().context("no VM")?).or_default().add(record)?;
        }
        // IPv4 and UDP headers are 28 bytes.
        for (sink, vm) in sinks.into_iter().zip(["one", "two"]) {
            let packets = sink.stop()?.len() as u64;
            let expected = Meter { in_bytes: packets * (333 + 28), in_packets: packets, ..Meter::default() };
            assert_eq!(billed[vm], expected, "{vm}");
        }
        assert_eq!(bed.daemon.meter(EIP1)?, bed.daemon.usage(EIP1)?);
        assert!(records.len() >= 4, "a record for each attachment: {records:?}");
        for record in &records {
            let time = |name: &str| humantime::parse_rfc3339(record[name].as_str().unwrap_or_default());
            assert!(time("from")? <= time("to")?, "{record}");
            assert_eq!(record["account"], "default");
        }
        Ok(())
    })
}

#[test]
fn unload_puts_the_last_byte_on_the_bill() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        bed.daemon.stop()?;
        // Nobody looks on.
        ping(&bed.lab.internet, EIP1, 4, &[])?;
        bed.daemon.unload()?;
        bed.start_again()?;
        assert_eq!(bed.daemon.usage(EIP1)?, pings(7));
        assert_eq!(bed.daemon.meter(EIP1)?, Meter::default(), "counters begin anew");
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        assert_eq!(bed.daemon.usage(EIP1)?, pings(9));
        assert!(!bed.daemon.log().contains("is on no bill"), "{}", bed.daemon.log());
        Ok(())
    })
}

/// What a power cut does to a node: the kernel's state is gone, the disk is there.
#[test]
fn a_power_cut_costs_what_came_after_the_last_writing_and_says_so() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        let flushed = bed.daemon.metric("eipnat_usage_flushed_timestamp_seconds ")?;
        // Until a writing that has begun after the pings.
        let deadline = SystemTime::now() + Duration::from_secs(30);
        while bed.daemon.metric("eipnat_usage_flushed_timestamp_seconds ")? < flushed + 10 {
            ensure!(SystemTime::now() < deadline, "the ledger is not written every 10 s");
            std::thread::sleep(Duration::from_millis(100));
        }
        bed.daemon.kill()?;
        // Another store is none of the node's, so nothing is settled.
        let store = bed.daemon.config().store();
        let away = store.with_extension("away");
        std::fs::rename(&store, &away)?;
        bed.daemon.unload()?;
        std::fs::rename(&away, &store)?;
        bed.start_again()?;
        assert_eq!(bed.daemon.usage(EIP1)?, pings(3));
        assert!(bed.daemon.log().contains("when the ledger was written last, and their end is on no bill"));
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        assert_eq!(bed.daemon.usage(EIP1)?, pings(5));
        Ok(())
    })
}

#[test]
fn usage_as_table_json_and_csv_and_by_time() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let daemon = &bed.daemon;
        assert_eq!(daemon.ok(&["-o", "json", "usage"])?, "[]\n");
        let before = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        let eip = EIP1.to_string();
        let csv = daemon.ok(&["-o", "csv", "usage"])?;
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], "eip,account,vm,from,to,in_bytes,in_packets,out_bytes,out_packets");
        assert!(
            lines[1].starts_with(&format!("{eip},default,,")) && lines[1].ends_with(",252,3,252,3"),
            "{csv}"
        );
        let table = daemon.ok(&["usage", "--eip", &eip])?;
        assert!(table.starts_with("EIP ") && table.lines().count() == 2, "{table}");
        let count = |options: &[&str]| records(daemon, options).map(|records| records.len());
        assert_eq!(count(&["--from", "1h"])?, 1, "attached within the hour");
        assert_eq!(count(&["--from", "2000-01-01", "--to", "2001-01-01"])?, 0);
        assert_eq!(count(&["--from", &before, "--eip", &EIP2.to_string()])?, 0);
        assert_eq!(count(&["--account", "default"])?, 1);
        assert_eq!(count(&["--account", "nobody"])?, 0);
        let wrong = daemon.cli(&["usage", "--from", "yesterday"])?;
        assert_eq!(wrong.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("is no time; write it in UTC as in"));
        Ok(())
    })
}

#[test]
fn an_eip_tells_why_its_packets_died() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let (lab, daemon) = (&bed.lab, &bed.daemon);
        let reasons = |eip: Ipv4Addr| -> Result<Vec<(String, u64)>> {
            let shown = daemon.json(&["eip", "show", &eip.to_string()])?;
            let drops = shown["drops"].as_array().cloned().unwrap_or_default();
            let one = |drop: &Value| Some((drop["reason"].as_str()?.to_owned(), drop["packets"].as_u64()?));
            drops.iter().map(|drop| one(drop).context("no drop")).collect()
        };
        assert_eq!(reasons(EIP1)?, []);
        // From outside with too little time to live, from inside to what is in no state to be reached.
        ping(&lab.internet, EIP1, 3, &["-t", "1"])?;
        ping(&lab.vm1, EIP_SPARE, 2, &[])?;
        assert_eq!(reasons(EIP1)?, [("ttl_expired".to_owned(), 3), ("eip_unbound".to_owned(), 2)]);
        assert_eq!(reasons(EIP2)?, []);
        // One that is held, and stands for nothing.
        let spare = EIP_SPARE.to_string();
        ping(&lab.internet, EIP_SPARE, 4, &[])?;
        daemon.ok(&["eip", "allocate", "--address", &spare])?;
        assert_eq!(reasons(EIP_SPARE)?, [], "what came before is nobody's");
        ping(&lab.internet, EIP_SPARE, 5, &[])?;
        assert_eq!(reasons(EIP_SPARE)?, [("eip_unbound".to_owned(), 5)]);
        let table = daemon.ok(&["eip", "show", &spare])?;
        assert!(table.contains("DROP REASON") && table.contains("eip_unbound"), "{table}");
        Ok(())
    })
}

/// As many EIPs as a /16 has, on the wire and in a scrape.
#[test]
fn a_scrape_of_65536_eips_is_whole_and_right() -> Result<()> {
    const EIPS: usize = 65_536;
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        bed.daemon.stop()?;
        let mut config = bed.daemon.config().clone();
        config.max_bindings = 1 << 17;
        config.cidrs.push("192.88.0.0/16".to_owned());
        bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
        let line = |number: usize| {
            format!("192.88.{0}.{1},172.16.{0}.{1},account-{2}\n", number / 256, number % 256, number % 100)
        };
        let file = bed.lab.file("eips.csv");
        std::fs::write(&file, (0..EIPS).map(line).collect::<String>())?;
        bed.daemon.ok(&["eip", "import", &file.to_string_lossy()])?;
        let text = bed.daemon.metrics()?;
        let count =
            |family: &str| text.lines().filter(|line| line.starts_with(&format!("{family}{{"))).count();
        // In both directions, and those of the lab.
        assert_eq!(count("eipnat_eip_bytes_total"), 2 * (EIPS + 2));
        assert_eq!(count("eipnat_eip_packets_total"), 2 * (EIPS + 2));
        assert_eq!(text.lines().filter(|line| line.starts_with("# TYPE eipnat_eip_")).count(), 2);
        assert_eq!(Meter::parse(&text, EIP1)?, pings(3), "carried over to maps of another size");
        assert_eq!(bed.daemon.usage(EIP1)?, pings(3));
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        assert_eq!(bed.daemon.meter(EIP1)?, pings(5));
        Ok(())
    })
}
