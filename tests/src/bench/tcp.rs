//! TCP by iperf3.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use serde_json::Value;

use super::device::Kind;
use super::figures::{Figure, Section, Target};
use super::line::attach;
use super::path::{Path, VM, WAN};
use super::{on_one_cpu, say};
use crate::lab::{Ground, YARDSTICKS};

/// The redirect tells what XDP on a veth makes of TCP in any case.
const KINDS: [Kind; 3] = [Kind::Routing, Kind::Redirect, Kind::Eipnat];

/// Streams at once, and the share of routing's throughput that there is to be.
const CASES: [(u32, f64); 2] = [(1, 1.0), (8, 0.95)];

pub(super) fn measure(quick: bool) -> Result<Section> {
    say("TCP");
    let (rounds, seconds) = if quick { (2, 1) } else { (8, 4) };
    let ground = Ground::new()?;
    let paths = KINDS.iter().map(|kind| Path::new(*kind, &ground)).collect::<Result<Vec<_>>>()?;
    let _passing = paths.iter().map(like_wires).collect::<Result<Vec<_>>>()?;
    let mut figures = Vec::new();
    for (streams, least) in CASES {
        let mut rates = KINDS.map(|_| Vec::new());
        on_one_cpu(|| {
            for _ in 0..rounds {
                for (path, rates) in paths.iter().zip(&mut rates) {
                    rates.push(throughput(path, &ground, streams, seconds)?);
                }
            }
            Ok(())
        })?;
        let case = if streams == 1 { "1 stream".to_owned() } else { format!("{streams} streams") };
        for (kind, rates) in KINDS.iter().zip(&rates) {
            let gigabits: Vec<_> = rates.iter().map(|rate| rate / 1e9).collect();
            figures.push(Figure::of(kind.name(), &case, "throughput", "Gbit/s", &gigabits));
        }
        for (kind, rates_of) in KINDS.iter().zip(&rates).skip(1) {
            let shares: Vec<_> =
                rates_of.iter().zip(&rates[0]).map(|(mine, routing)| mine / routing).collect();
            let share = Figure::of(kind.name(), &case, "share of routing", "", &shares);
            let is_aimed = *kind == Kind::Eipnat;
            figures.push(if is_aimed { share.target(Target::AtLeast(least)) } else { share });
        }
    }
    Ok(Section { name: "tcp", title: "TCP by iperf3, from the internet to a VM", figures })
}

/// Has every packet cross the node as it would be on a wire, where nothing is cut up late or put together early; and has both hosts
/// take packets by a program that passes all of them. Without, a veth takes none that XDP redirects to it. Besides, the kernel copies a
/// packet of a socket where a program first sees it: that way once for every device, while it would spare routing alone the copy.
fn like_wires(path: &Path) -> Result<Vec<Ebpf>> {
    let mut passing = Vec::new();
    for (host, device) in [(&path.client, WAN), (&path.vm, VM)] {
        host.succeed("ethtool", &["-K", device, "tso", "off", "gso", "off"])?;
        let mut program = Ebpf::load(YARDSTICKS)?;
        attach(&mut program, "pass", host, device)?;
        passing.push(program);
    }
    for device in ["up0", "dn0"] {
        path.node.succeed("ethtool", &["-K", device, "gro", "off"])?;
    }
    Ok(passing)
}

/// Bits a second.
fn throughput(path: &Path, ground: &Ground, streams: u32, seconds: u32) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]);
    let mut server = path.vm.spawn(command, ground.file(&format!("{}-iperf.log", path.kind.short())))?;
    server.wait_for("Server listening", Duration::from_secs(10))?;
    let mut command = Command::new("iperf3");
    command.args(["--json", "--connect-timeout", "10000", "--client", &path.target().to_string()]);
    command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
    let output = path.client.output(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = received(&text).with_context(|| format!("iperf3 through {}", path.kind.name()))?;
    server.wait(Duration::from_secs(10))?;
    Ok(rate)
}

/// Bits a second that the server has received of all streams.
fn received(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("iperf3 gives no JSON")?;
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 tells of no rate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_streams_have_brought_is_read() -> Result<()> {
        let report = r#"{"end": {"streams": [{}, {}],
            "sum_sent": {"bytes": 200, "bits_per_second": 1700.5},
            "sum_received": {"bytes": 190, "bits_per_second": 1600.5}}}"#;
        assert!((received(report)? - 1600.5).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn a_failed_run_is_no_rate() {
        let failed = r#"{"start": {}, "end": {}, "error": "unable to connect to server"}"#;
        assert!(received(failed).unwrap_err().to_string().contains("unable to connect"));
        assert!(received("").is_err());
        assert!(received(r#"{"end": {}}"#).is_err());
    }
}
