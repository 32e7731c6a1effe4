//! The counters that bills are made from, against a judge on the wire and a real Prometheus server.

use anyhow::{Context, Result};
use tests::lab::{
    Bed, Capture, EIP_SPARE, EIP1, EIP2, FAR, INTERNET, INTERNET_DEVICE, Meter, Prometheus, Sender, Setup,
    Sink, Topology, VM1, WebServer, download, meters_on_the_wire, ping,
};

#[test]
fn counters_are_what_a_capture_on_the_wire_sums_up_to() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        for eip in [EIP1, EIP2] {
            assert_eq!(
                bed.daemon.meter(eip)?,
                Meter::default(),
                "the series stand at zero from the attach on"
            );
        }
        lab.capture_exactly()?;
        let capture = Capture::start(&lab.internet, INTERNET_DEVICE, "ip", lab.file("wan.pcap"))?;
        let _servers = [WebServer::start(&lab.vm1)?, WebServer::start(&lab.internet)?];
        download(&lab.internet, EIP1, 1_000_001)?;
        download(&lab.vm2, INTERNET, 333_333)?;
        ping(&lab.internet, EIP2, 5, &["-s", "777"])?;
        ping(&lab.vm1, FAR, 5, &["-R"])?;
        // Dropped, so not billed.
        ping(&lab.internet, EIP_SPARE, 2, &[])?;
        ping(&lab.internet, EIP1, 2, &["-t", "1"])?;
        let mut packets = capture.stop()?;
        packets.retain(|packet| packet.destination != EIP1 || packet.bytes[8] != 1);
        for (eip, seen) in meters_on_the_wire(&packets, &[EIP1, EIP2]) {
            assert!(seen.in_packets > 10 && seen.out_packets > 10, "{eip}: {seen:?}");
            assert_eq!(bed.daemon.meter(eip)?, seen, "{eip}");
        }
        Ok(())
    })
}

/// Hairpin bytes never reach the uplink: counted by arithmetic.
fn hairpin_is_metered_at_both_ends(topology: Topology) -> Result<()> {
    Bed::run(Setup { topology, ..Setup::default() }, |bed| {
        let lab = &bed.lab;
        let sink = Sink::start(&lab.vm2, 7000)?;
        let sender = Sender::start(&lab.vm1, (EIP2, 7000), 2000, 333)?;
        sender.send_more(300)?;
        let sent = sender.stop()?;
        assert_eq!(sink.stop()?.len() as u64, sent);
        // IPv4 and UDP headers are 28 bytes.
        let bytes = sent * (333 + 28);
        let expected = Meter { out_bytes: bytes, out_packets: sent, ..Meter::default() };
        assert_eq!(bed.daemon.meter(EIP1)?, expected);
        let expected = Meter { in_bytes: bytes, in_packets: sent, ..Meter::default() };
        assert_eq!(bed.daemon.meter(EIP2)?, expected);
        Ok(())
    })
}

#[test]
fn hairpin_is_out_for_the_sender_and_in_for_the_receiver() -> Result<()> {
    hairpin_is_metered_at_both_ends(Topology::TwoArmed)
}

#[test]
fn hairpin_is_out_for_the_sender_and_in_for_the_receiver_one_armed() -> Result<()> {
    hairpin_is_metered_at_both_ends(Topology::OneArmed)
}

#[test]
fn metrics_and_stats_tell_the_same() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 10, &[])?;
        ping(&bed.lab.internet, EIP_SPARE, 2, &[])?;
        let stats = bed.daemon.json(&["stats"])?;
        let text = bed.daemon.metrics()?;
        let families = [
            ("verdicts", "eipnat_packets_total", "verdict"),
            ("drops", "eipnat_dropped_packets_total", "reason"),
        ];
        for (part, family, label) in families {
            let counters = stats[part].as_object().context("no object")?;
            assert!(!counters.is_empty());
            for (name, _) in counters {
                let line = format!("{family}{{{label}=\"{name}\"}} ");
                assert!(text.lines().any(|candidate| candidate.starts_with(&line)), "no {line} in\n{text}");
            }
        }
        let forwarded = stats["verdicts"]["forward"].as_u64().context("no forward")?;
        assert!((18..=20).contains(&forwarded), "{forwarded}: 20, less those that waited for a neighbour");
        assert_eq!(stats["drops"]["eip_unbound"], 2);
        assert_eq!(bed.daemon.metric("eipnat_bindings ")?, 2);
        let revision = bed.daemon.json(&["status"])?["revision"].as_u64();
        assert_eq!(Some(bed.daemon.metric("eipnat_revision ")?), revision);
        assert!(text.contains("eipnat_build_info{version=\""), "{text}");
        Ok(())
    })
}

#[test]
fn series_stay_across_a_detach_and_end_with_the_release() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 5, &[])?;
        let pinged = |count: u64| {
            let bytes = count * 84;
            Meter { in_bytes: bytes, in_packets: count, out_bytes: bytes, out_packets: count }
        };
        assert_eq!(bed.daemon.meter(EIP1)?, pinged(5));
        let (eip, vm) = (EIP1.to_string(), VM1.to_string());
        bed.daemon.ok(&["eip", "detach", &eip])?;
        assert_eq!(bed.daemon.meter(EIP1)?, pinged(5), "after the detach");
        bed.daemon.ok(&["eip", "attach", &eip, &vm])?;
        ping(&bed.lab.internet, EIP1, 1, &[])?;
        assert_eq!(bed.daemon.meter(EIP1)?, pinged(6), "goes on after the attach");
        bed.daemon.ok(&["eip", "detach", &eip])?;
        bed.daemon.ok(&["eip", "release", &eip])?;
        let text = bed.daemon.metrics()?;
        assert!(!text.contains(&format!("\"{eip}\"")), "{text}");
        Ok(())
    })
}

#[test]
fn prometheus_answers_with_the_bytes_that_were_sent() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let prometheus = Prometheus::start(lab, None)?;
        prometheus.expect("up{job=\"eipnat\"}", 1)?;
        let sink = Sink::start(&lab.vm1, 7000)?;
        let sender = Sender::start(&lab.internet, (EIP1, 7000), 2000, 1000)?;
        sender.send_more(1500)?;
        let sent = sender.stop()?;
        assert_eq!(sink.stop()?.len() as u64, sent);
        let bytes = sent * 1028;
        prometheus.expect(&format!("eipnat_eip_bytes_total{{eip=\"{EIP1}\",direction=\"in\"}}"), bytes)?;
        prometheus.expect(&format!("sum by (eip) (eipnat_eip_packets_total{{eip=\"{EIP1}\"}})"), sent)?;
        prometheus.expect("sum(eipnat_eip_bytes_total)", bytes)?;
        prometheus.expect("count(eipnat_eip_bytes_total)", 4)?;
        prometheus.stop()
    })
}
