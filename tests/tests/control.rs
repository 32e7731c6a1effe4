//! Commands: in force on the wire when they return, refused with one line, answered in the documented JSON.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::lab::{
    Bed, EIP_SPARE, EIP1, EIP2, INTERNET, NODE_DOWN, NODE_UP, Received, Sender, Setup, Sink, Topology, VM1,
    VM2, WebServer, download, ping, refused,
};

const RATE: u32 = 5000;
const BOUND: Setup = Setup { topology: Topology::TwoArmed, mode: "auto", bound: true };
const UNBOUND: Setup = Setup { topology: Topology::TwoArmed, mode: "auto", bound: false };

/// The first VM's traffic in both directions, numbered.
struct Flows {
    inward: Sender,
    outward: Sender,
    at_vm: Sink,
    at_internet: Sink,
}

/// What became of one of the [`Flows`].
struct Flow {
    sent: u64,
    received: Vec<Received>,
}

impl Flow {
    fn lost(&self) -> u64 {
        self.sent - self.received.len() as u64
    }
}

impl Flows {
    fn start(bed: &Bed) -> Result<Self> {
        let lab = &bed.lab;
        let at_vm = Sink::start(&lab.vm1, 7000)?;
        let at_internet = Sink::start(&lab.internet, 7000)?;
        let inward = Sender::start(&lab.internet, (EIP1, 7000), RATE, 64)?;
        let outward = Sender::start(&lab.vm1, (INTERNET, 7000), RATE, 64)?;
        Ok(Self { inward, outward, at_vm, at_internet })
    }

    fn send_more(&self, count: u64) -> Result<()> {
        self.inward.send_more(count)?;
        self.outward.send_more(count)
    }

    /// Every packet with these numbers or higher ones leaves from now on.
    fn next(&self) -> (u64, u64) {
        (self.inward.next(), self.outward.next())
    }

    fn stop(self) -> Result<(Flow, Flow)> {
        let (inward, outward) = (self.inward.stop()?, self.outward.stop()?);
        let (at_vm, at_internet) = (self.at_vm.stop()?, self.at_internet.stop()?);
        Ok((Flow { sent: inward, received: at_vm }, Flow { sent: outward, received: at_internet }))
    }
}

#[test]
fn a_detach_stops_the_very_next_packet() -> Result<()> {
    Bed::run(BOUND, |bed| {
        let flows = Flows::start(bed)?;
        flows.send_more(500)?;
        bed.daemon.ok(&["eip", "detach", &EIP1.to_string()])?;
        let (inward_cut, outward_cut) = flows.next();
        flows.send_more(1000)?;
        let (inward, outward) = flows.stop()?;
        for (flow, cut) in [(&inward, inward_cut), (&outward, outward_cut)] {
            assert!(flow.received.len() >= 500, "{} packets before the detach", flow.received.len());
            let late: Vec<_> = flow.received.iter().filter(|packet| packet.number >= cut).collect();
            assert!(late.is_empty(), "{} packets after the detach, the first {:?}", late.len(), late.first());
        }
        assert_eq!(bed.daemon.drops("eip_unbound")?, inward.lost());
        assert_eq!(bed.daemon.drops("source_unbound")?, outward.lost());
        // The other VM's traffic is not touched.
        let pings = ping(&bed.lab.internet, EIP2, 3, &[])?;
        assert_eq!(pings.received, 3);
        Ok(())
    })
}

#[test]
fn an_attach_carries_the_very_next_packet() -> Result<()> {
    Bed::run(UNBOUND, |bed| {
        bed.daemon.ok(&["eip", "allocate", "--address", &EIP1.to_string()])?;
        let flows = Flows::start(bed)?;
        flows.send_more(100)?;
        bed.daemon.ok(&["eip", "attach", &EIP1.to_string(), &VM1.to_string()])?;
        let (inward_cut, outward_cut) = flows.next();
        flows.send_more(1000)?;
        let (inward, outward) = flows.stop()?;
        for (flow, cut, source) in [(&inward, inward_cut, INTERNET), (&outward, outward_cut, EIP1)] {
            let numbers: BTreeSet<_> = flow.received.iter().map(|packet| packet.number).collect();
            let missing: Vec<_> = (cut..flow.sent).filter(|number| !numbers.contains(number)).collect();
            assert!(
                missing.is_empty(),
                "{} missing after the attach, the first {:?}",
                missing.len(),
                missing.first()
            );
            assert_eq!(numbers.len(), flow.received.len(), "none came twice");
            assert!(
                flow.received.iter().all(|packet| packet.source.ip() == IpAddr::V4(source)),
                "not from {source}"
            );
        }
        assert_eq!(bed.daemon.drops("eip_unbound")?, inward.lost());
        assert_eq!(bed.daemon.drops("source_unbound")?, outward.lost());
        Ok(())
    })
}

#[test]
fn the_first_ping_after_each_command_feels_it() -> Result<()> {
    Bed::run(BOUND, |bed| {
        let (eip, vm) = (EIP1.to_string(), VM1.to_string());
        for round in 0..5 {
            let pings = ping(&bed.lab.internet, EIP1, 1, &[])?;
            assert_eq!(pings.received, 1, "attached, round {round}");
            bed.daemon.ok(&["eip", "detach", &eip])?;
            let pings = ping(&bed.lab.internet, EIP1, 1, &["-W", "0.1"])?;
            assert_eq!(pings.received, 0, "detached, round {round}");
            bed.daemon.ok(&["eip", "attach", &eip, &vm])?;
        }
        Ok(())
    })
}

#[test]
fn a_moved_address_goes_to_its_new_vm_only() -> Result<()> {
    Bed::run(BOUND, |bed| {
        let lab = &bed.lab;
        for eip in [EIP1, EIP2] {
            bed.daemon.ok(&["eip", "detach", &eip.to_string()])?;
        }
        bed.daemon.ok(&["eip", "attach", &EIP1.to_string(), &VM2.to_string()])?;
        let sinks = (Sink::start(&lab.vm1, 7000)?, Sink::start(&lab.vm2, 7000)?);
        let at_internet = Sink::start(&lab.internet, 7000)?;
        let senders = [
            Sender::start(&lab.internet, (EIP1, 7000), 1000, 64)?,
            Sender::start(&lab.vm1, (INTERNET, 7000), 1000, 64)?,
            Sender::start(&lab.vm2, (INTERNET, 7000), 1000, 64)?,
        ];
        senders.iter().try_for_each(|sender| sender.send_more(100))?;
        let [inward, from_vm1, from_vm2] = senders.map(Sender::stop);
        assert_eq!(sinks.0.stop()?, []);
        assert_eq!(sinks.1.stop()?.len() as u64, inward?);
        let seen = at_internet.stop()?;
        assert_eq!(seen.len() as u64, from_vm2?);
        assert!(seen.iter().all(|packet| packet.source.ip() == IpAddr::V4(EIP1)));
        assert_eq!(bed.daemon.drops("source_unbound")?, from_vm1?);
        Ok(())
    })
}

#[test]
fn what_belongs_to_nobody_is_dropped_by_reason() -> Result<()> {
    Bed::run(BOUND, |bed| {
        let lab = &bed.lab;
        bed.daemon.ok(&["eip", "detach", &EIP2.to_string()])?;
        // Allocated but not attached; never allocated; without a public address; at the end of its life.
        let cases = [
            (&lab.internet, EIP2, &[][..], "eip_unbound"),
            (&lab.internet, EIP_SPARE, &[], "eip_unbound"),
            (&lab.vm1, EIP_SPARE, &[], "eip_unbound"),
            (&lab.vm2, INTERNET, &[], "source_unbound"),
            (&lab.internet, EIP1, &["-t", "1"], "ttl_expired"),
        ];
        for (from, to, options, reason) in cases {
            let before = bed.daemon.drops(reason)?;
            let pings = ping(from, to, 3, options)?;
            assert_eq!(pings.received, 0, "{to} from {}", from.name());
            let metric =
                bed.daemon.metric(&format!("eipnat_dropped_packets_total{{reason=\"{reason}\"}}"))?;
            assert_eq!(bed.daemon.drops(reason)? - before, 3, "{reason} for {to} from {}", from.name());
            assert_eq!(metric, before + 3, "{reason} in /metrics");
        }
        Ok(())
    })
}

#[test]
fn the_nodes_own_traffic_passes() -> Result<()> {
    Bed::run(UNBOUND, |bed| {
        let lab = &bed.lab;
        let _servers =
            [WebServer::start(&lab.node)?, WebServer::start(&lab.internet)?, WebServer::start(&lab.vm1)?];
        // A VM without a public address reaches its gateway, and the node's other address behind it.
        let paths = [
            (&lab.internet, NODE_UP),
            (&lab.vm1, NODE_DOWN),
            (&lab.vm1, NODE_UP),
            (&lab.node, INTERNET),
            (&lab.node, VM1),
        ];
        for (from, to) in paths {
            let pings = ping(from, to, 3, &[])?;
            assert_eq!(pings.received, 3, "{to} from {}", from.name());
            download(from, to, 300_000)?;
        }
        Ok(())
    })
}

/// The names in a JSON object.
fn keys(object: &Value) -> Result<BTreeSet<&str>> {
    Ok(object
        .as_object()
        .with_context(|| format!("no object: {object}"))?
        .keys()
        .map(String::as_str)
        .collect())
}

#[test]
fn answers_are_the_documented_json() -> Result<()> {
    Bed::run(UNBOUND, |bed| {
        let daemon = &bed.daemon;
        let (eip, vm) = (EIP1.to_string(), VM1.to_string());
        let allocated = daemon.json(&["eip", "allocate", "--address", &eip])?;
        let account = allocated["account"].as_str().context("no account")?;
        let expected = json!({"eip": eip, "state": "allocated", "private_ip": null, "vm": null, "account": account, "pool": "default"});
        assert_eq!(allocated, expected);
        let attached = daemon.json(&["eip", "attach", &eip, &vm])?;
        let expected = json!({"eip": eip, "state": "attached", "private_ip": vm, "vm": null, "account": account, "pool": "default"});
        assert_eq!(attached, expected);
        assert_eq!(daemon.json(&["eip", "show", &eip])?, expected);
        assert_eq!(daemon.json(&["eip", "list"])?, json!([expected]));

        let node = daemon.json(&["status"])?;
        assert_eq!(keys(&node)?, BTreeSet::from(["bindings", "interfaces", "ready", "revision"]));
        assert_eq!((&node["ready"], &node["bindings"]), (&json!(true), &json!(1)));
        assert!(node["revision"].is_u64());
        for interface in node["interfaces"].as_array().context("no interfaces")? {
            assert_eq!(keys(interface)?, BTreeSet::from(["mode", "name", "role"]));
        }
        let stats = daemon.json(&["stats"])?;
        assert_eq!(keys(&stats)?, BTreeSet::from(["drops", "punts", "slow_path", "verdicts"]));
        for part in ["drops", "verdicts"] {
            let counters = stats[part].as_object().context("no object")?;
            assert!(counters.values().all(Value::is_u64), "{counters:?}");
        }
        assert!(stats["verdicts"]["forward"].is_u64());
        let pools = daemon.json(&["pool", "list"])?;
        assert_eq!(pools[0]["name"], "default");

        let picked = daemon.json(&["eip", "allocate", "--account", "acme", "--pool", "default"])?;
        assert_eq!((&picked["account"], &picked["state"]), (&json!("acme"), &json!("allocated")));
        let picked: Ipv4Addr = picked["eip"].as_str().context("no eip")?.parse()?;
        assert!(picked != EIP1 && picked.octets()[..3] == [203, 0, 113], "{picked}");
        // Without -o json the same for people.
        let table = daemon.ok(&["eip", "list"])?;
        assert!(table.contains(&eip) && table.contains(&vm) && table.contains("acme"), "{table}");
        Ok(())
    })
}

#[test]
fn a_refused_command_says_why_and_changes_nothing() -> Result<()> {
    Bed::run(BOUND, |bed| {
        let daemon = &bed.daemon;
        let before = (daemon.json(&["eip", "list"])?, daemon.json(&["status"])?);
        let (eip1, eip2, spare) = (EIP1.to_string(), EIP2.to_string(), EIP_SPARE.to_string());
        let (vm1, vm2) = (VM1.to_string(), VM2.to_string());
        let refusals: [&[&str]; 12] = [
            &["eip", "allocate", "--address", &eip1],
            &["eip", "allocate", "--address", "192.0.2.1"],
            &["eip", "allocate", "--pool", "other"],
            &["eip", "release", &eip1],
            &["eip", "release", &spare],
            &["eip", "detach", &spare],
            &["eip", "show", &spare],
            &["eip", "attach", &spare, "10.0.0.12"],
            &["eip", "attach", &eip1, "10.0.0.12"],
            &["eip", "attach", &eip1, &vm2],
            &["eip", "attach", &eip2, &vm1],
            &["eip", "attach", &eip1, &eip2],
        ];
        for args in refusals {
            let why = refused(&daemon.cli(args)?).with_context(|| args.join(" "))?;
            assert!(why.len() > 10, "eipnat {}: {why}", args.join(" "));
        }
        assert_eq!((daemon.json(&["eip", "list"])?, daemon.json(&["status"])?), before);
        let pings = ping(&bed.lab.internet, EIP1, 3, &[])?;
        assert_eq!(pings.received, 3);
        Ok(())
    })
}
