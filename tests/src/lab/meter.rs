//! What an EIP has carried, as the daemon tells it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What one EIP has carried, from `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Bytes towards the VM.
    pub in_bytes: u64,
    /// Packets towards the VM.
    pub in_packets: u64,
    /// Bytes towards the internet.
    pub out_bytes: u64,
    /// Packets towards the internet.
    pub out_packets: u64,
}

impl Meter {
    /// Adds a record of `eipnat usage`.
    ///
    /// # Errors
    /// When one of its four counts is not there.
    pub fn add(&mut self, record: &Value) -> Result<()> {
        let Self { in_bytes, in_packets, out_bytes, out_packets } = self;
        let sums = [
            ("in_bytes", in_bytes),
            ("in_packets", in_packets),
            ("out_bytes", out_bytes),
            ("out_packets", out_packets),
        ];
        for (name, sum) in sums {
            *sum += record[name].as_u64().with_context(|| format!("no {name} in {record}"))?;
        }
        Ok(())
    }

    /// Finds an EIP's four counters in the text of `/metrics`.
    ///
    /// # Errors
    /// When one of them is not there exactly once.
    pub fn parse(metrics: &str, eip: Ipv4Addr) -> Result<Self> {
        let value = |name: &str, direction: &str| -> Result<u64> {
            let labels = [format!("eip=\"{eip}\""), format!("direction=\"{direction}\"")];
            let series = |line: &&str| {
                line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
            };
            let lines: Vec<_> = metrics.lines().filter(series).collect();
            ensure!(lines.len() == 1, "{} series {name} of {eip} {direction} in\n{metrics}", lines.len());
            Ok(lines[0].rsplit(' ').next().unwrap_or_default().parse()?)
        };
        let (bytes, packets) = ("eipnat_eip_bytes_total", "eipnat_eip_packets_total");
        Ok(Self {
            in_bytes: value(bytes, "in")?,
            in_packets: value(packets, "in")?,
            out_bytes: value(bytes, "out")?,
            out_packets: value(packets, "out")?,
        })
    }
}
