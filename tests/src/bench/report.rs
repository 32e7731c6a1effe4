//! What has been measured, as a table, as JSON and as a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::cores::Cost;

/// A device, a direction and a number of EIPs.
#[derive(Debug)]
pub(super) struct Row {
    device: &'static str,
    direction: &'static str,
    eips: u32,
    rates: Vec<f64>,
    shares: Vec<f64>,
}

impl Row {
    pub(super) const fn new(device: &'static str, direction: &'static str, eips: u32) -> Self {
        Self { device, direction, eips, rates: Vec::new(), shares: Vec::new() }
    }

    /// Adds a round: packets a second, and those of the bare redirect.
    pub(super) fn add(&mut self, rate: f64, bare: f64) {
        self.rates.push(rate);
        self.shares.push(rate / bare);
    }

    /// Nanoseconds a packet more than the bare redirect takes.
    fn added(&self) -> f64 {
        let differences = self.rates.iter().zip(&self.shares).map(|(rate, share)| (1.0 - share) / rate * 1e9);
        quantile(&differences.collect::<Vec<_>>(), 0.5)
    }
}

/// All rows, and where they come from.
#[derive(Debug)]
pub(super) struct Report {
    quick: bool,
    pub(super) rows: Vec<Row>,
    /// What counting costs.
    pub(super) costs: Vec<Cost>,
}

impl Report {
    pub(super) const fn new(quick: bool) -> Self {
        Self { quick, rows: Vec::new(), costs: Vec::new() }
    }

    pub(super) fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["EIPS", "DIRECTION", "DEVICE", "PACKETS/S", "SHARE", "10 %", "90 %", "ADDED NS"]);
        for row in &self.rows {
            table.add_row([
                row.eips.to_string(),
                row.direction.to_owned(),
                row.device.to_owned(),
                format!("{:.0}", quantile(&row.rates, 0.5)),
                format!("{:.3}", quantile(&row.shares, 0.5)),
                format!("{:.3}", quantile(&row.shares, 0.1)),
                format!("{:.3}", quantile(&row.shares, 0.9)),
                format!("{:.0}", row.added()),
            ]);
        }
        for column in [0, 3, 4, 5, 6, 7] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{table}");
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["COUNTERS", "ONE CPU, NS", "TWO CPUS, NS"]);
        for cost in &self.costs {
            table.add_row([
                cost.name.to_owned(),
                format!("{:.1}", cost.alone),
                format!("{:.1}", cost.together),
            ]);
        }
        println!("{table}");
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let (json, svg) = (directory.join("results.json"), directory.join("shares.svg"));
        fs::write(&json, serde_json::to_string_pretty(&self.json()?)? + "\n")?;
        fs::write(&svg, self.svg())?;
        println!("bench: written to {} and {}", json.display(), svg.display());
        Ok(())
    }

    fn json(&self) -> Result<Value> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let cpus = cpu.lines().filter(|line| line.starts_with("processor")).count();
        let cpu = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name);
        let rows = self.rows.iter().map(|row| {
            json!({
                "device": row.device, "direction": row.direction, "eips": row.eips,
                "packets_per_second": quantile(&row.rates, 0.5),
                "share_of_bare_redirect": quantile(&row.shares, 0.5),
                "share_10": quantile(&row.shares, 0.1), "share_90": quantile(&row.shares, 0.9),
                "added_ns": row.added(), "rounds": row.rates.len(),
            })
        });
        let costs = self.costs.iter().map(
            |cost| json!({ "counters": cost.name, "one_cpu_ns": cost.alone, "two_cpus_ns": cost.together }),
        );
        Ok(json!({
            "machine": cpu, "cpus": cpus, "kernel": kernel.trim(),
            "date": humantime(), "quick": self.quick, "rows": rows.collect::<Vec<_>>(),
            "counters": costs.collect::<Vec<_>>(),
        }))
    }

    /// Bars of shares, a row each.
    fn svg(&self) -> String {
        const LINE: usize = 18;
        let height = self.rows.len() * LINE + 30;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
             <text x=\"10\" y=\"16\">Share of what a bare XDP redirect carries, 64-byte packets</text>\n"
        );
        for (number, row) in self.rows.iter().enumerate() {
            let (y, share) = (number * LINE + 38, quantile(&row.shares, 0.5));
            let colour = if row.device == "eipnat" { "#1f6feb" } else { "#9aa4b2" };
            let _ = writeln!(
                svg,
                "<text x=\"10\" y=\"{y}\">{} EIPs, {}, {}</text><rect x=\"290\" y=\"{}\" width=\"{:.0}\" height=\"12\" \
                 fill=\"{colour}\"/><text x=\"{:.0}\" y=\"{y}\">{share:.2}</text>",
                row.eips,
                row.direction,
                row.device,
                y - 10,
                share * 400.0,
                share * 400.0 + 296.0,
            );
        }
        svg + "</svg>\n"
    }
}

/// Today.
fn humantime() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}

/// A quantile of some values; not a number if there are none.
pub(super) fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "some dozens of values"
    )]
    let at = (quantile * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        for (at, expected) in [(0.0, 1.0), (0.5, 3.0), (1.0, 5.0)] {
            assert!((quantile(&values, at) - expected).abs() < 1e-9, "{at}");
        }
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn what_a_packet_takes_more_is_told_in_nanoseconds() {
        let mut row = Row::new("eipnat", "in", 1);
        // 200 ns a packet, and 250.
        row.add(4e6, 5e6);
        assert!((row.added() - 50.0).abs() < 1e-6, "{}", row.added());
        assert!((quantile(&row.shares, 0.5) - 0.8).abs() < 1e-9);
    }
}
