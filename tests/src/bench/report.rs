//! What has been measured, as a table, as JSON and as a picture.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use super::figures::{Section, Target, number, quantile, told};

/// A device, a direction and a number of EIPs.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) device: &'static str,
    direction: &'static str,
    eips: u32,
    /// Packets a second, in each round.
    pub(super) rates: Vec<f64>,
    shares: Vec<f64>,
}

impl Row {
    pub(super) const fn new(device: &'static str, direction: &'static str, eips: u32) -> Self {
        Self { device, direction, eips, rates: Vec::new(), shares: Vec::new() }
    }

    const HEADER: [&'static str; 10] =
        ["EIPS", "DIRECTION", "DEVICE", "PACKETS/S", "SHARE", "10 %", "90 %", "ADDED NS", "TARGET", ""];

    /// Adds a round: packets a second, and those of the bare redirect.
    pub(super) fn add(&mut self, rate: f64, bare: f64) {
        self.rates.push(rate);
        self.shares.push(rate / bare);
    }

    /// What the median share is to be.
    fn target(&self) -> Option<Target> {
        let least = match (self.device, self.eips, self.direction) {
            ("eipnat", 1, _) => 0.75,
            ("eipnat", 0x1_0000, "in") => 0.45,
            ("eipnat", 0x1_0000, _) => 0.35,
            ("eipnat", 1_000_000, "in") => 0.40,
            ("eipnat", 1_000_000, _) => 0.20,
            _ => return None,
        };
        Some(Target::AtLeast(least))
    }

    /// Nanoseconds a packet more than the bare redirect takes.
    fn added(&self) -> f64 {
        let differences = self.rates.iter().zip(&self.shares).map(|(rate, share)| (1.0 - share) / rate * 1e9);
        quantile(&differences.collect::<Vec<_>>(), 0.5)
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.eips.to_string(),
            self.direction.to_owned(),
            self.device.to_owned(),
            format!("{:.0}", quantile(&self.rates, 0.5)),
            format!("{:.3}", quantile(&self.shares, 0.5)),
            format!("{:.3}", quantile(&self.shares, 0.1)),
            format!("{:.3}", quantile(&self.shares, 0.9)),
            format!("{:.0}", self.added()),
        ]
        .into_iter()
        .chain(told(self.target(), quantile(&self.shares, 0.5)))
        .collect()
    }

    /// For the table of all targets.
    fn aim(&self) -> Option<Vec<String>> {
        let share = quantile(&self.shares, 0.5);
        let what = format!("{} EIPs, {}: share of the bare redirect", self.eips, self.direction);
        self.target()?;
        Some([what, number(share)].into_iter().chain(told(self.target(), share)).collect())
    }

    fn json(&self) -> Value {
        json!({
            "device": self.device, "direction": self.direction, "eips": self.eips,
            "packets_per_second": quantile(&self.rates, 0.5),
            "share_of_bare_redirect": quantile(&self.shares, 0.5),
            "share_10": quantile(&self.shares, 0.1), "share_90": quantile(&self.shares, 0.9),
            "added_ns": self.added(), "rounds": self.rates.len(), "target": self.target().map(Target::text),
        })
    }
}

/// A table of the report.
struct Told {
    title: &'static str,
    header: &'static [&'static str],
    /// The columns that hold numbers.
    numbers: &'static [usize],
    rows: Vec<Vec<String>>,
}

impl Told {
    fn print(&self) {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(self.header).add_rows(&self.rows);
        for column in self.numbers {
            if let Some(column) = table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("\n{}\n{table}", self.title);
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = (0..self.header.len()).map(|at| if self.numbers.contains(&at) { "--:" } else { "---" });
        let header: Vec<_> = self.header.iter().map(|name| name.to_lowercase()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        let rule: Vec<_> = rule.map(str::to_owned).collect();
        format!("### {}\n\n{}{}{rows}\n", self.title, line(&header), line(&rule))
    }
}

/// All rows, and where they come from.
#[derive(Debug)]
pub(super) struct Report {
    quick: bool,
    runs: u32,
    rows: Vec<Row>,
    sections: Vec<Section>,
}

impl Report {
    pub(super) const fn new(quick: bool, runs: u32) -> Self {
        Self { quick, runs, rows: Vec::new(), sections: Vec::new() }
    }

    /// Takes rates of packets in; another run's count as further rounds.
    pub(super) fn add_rows(&mut self, rows: Vec<Row>) {
        for row in rows {
            let key = |row: &Row| (row.device, row.direction, row.eips);
            match self.rows.iter_mut().find(|mine| key(mine) == key(&row)) {
                Some(mine) => {
                    mine.rates.extend(row.rates);
                    mine.shares.extend(row.shares);
                }
                None => self.rows.push(row),
            }
        }
    }

    /// Takes a section in, or another run of it.
    pub(super) fn add(&mut self, section: Section) {
        match self.sections.iter_mut().find(|mine| mine.name == section.name) {
            Some(mine) => mine.merge(section),
            None => self.sections.push(section),
        }
    }

    pub(super) fn print(&self) {
        self.tables().iter().for_each(Told::print);
    }

    /// All tables; the last one has everything of which it is known what it is to be.
    fn tables(&self) -> Vec<Told> {
        let rates = Told {
            title: "Packets a second, as shares of the bare XDP redirect's",
            header: &Row::HEADER,
            numbers: &[0, 3, 4, 5, 6, 7],
            rows: self.rows.iter().map(Row::cells).collect(),
        };
        let sections = self.sections.iter().map(|section| Told {
            title: section.title,
            header: &Section::HEADER,
            numbers: &[3, 4, 5],
            rows: section.cells().collect(),
        });
        let aims = self.sections.iter().flat_map(Section::aims);
        let targets = Told {
            title: "Targets",
            header: &["WHAT", "MEASURED", "TARGET", ""],
            numbers: &[1, 2],
            rows: self.rows.iter().filter_map(Row::aim).chain(aims).collect(),
        };
        let tables = [rates].into_iter().chain(sections).chain([targets]);
        tables.filter(|table| !table.rows.is_empty()).collect()
    }

    /// All tables, as docs/benchmarks.md has them.
    fn markdown(&self) -> String {
        let mut tables = self.tables();
        // Whoever reads begins with what is wanted.
        tables.rotate_right(1);
        tables.iter().map(Told::markdown).collect()
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let svg = (!self.rows.is_empty()).then(|| ("shares.svg", self.svg()));
        let json = serde_json::to_string_pretty(&self.json()?)? + "\n";
        for (name, text) in [("results.json", json), ("tables.md", self.markdown())].into_iter().chain(svg) {
            let file = directory.join(name);
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            println!("bench: written to {}", file.display());
        }
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
        let rows: Vec<_> = self.rows.iter().map(Row::json).collect();
        let sections = self.sections.iter().map(|section| (section.name.to_owned(), section.json().into()));
        Ok(json!({
            "machine": cpu, "cpus": cpus, "kernel": kernel.trim(), "date": humantime(),
            "quick": self.quick, "runs": self.runs, "rows": rows,
            "sections": sections.collect::<Map<String, Value>>(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packet_takes_more_is_told_in_nanoseconds() {
        let mut row = Row::new("eipnat", "in", 1);
        // 200 ns a packet, and 250.
        row.add(4e6, 5e6);
        assert!((row.added() - 50.0).abs() < 1e-6, "{}", row.added());
        assert!((quantile(&row.shares, 0.5) - 0.8).abs() < 1e-9);
    }
}
