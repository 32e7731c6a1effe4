//! The counters while they move: a table that is redrawn on a terminal, lines elsewhere.

use std::io::{Write, stdout};
use std::time::Duration;

use anyhow::Result;
use comfy_table::CellAlignment;
use crossterm::{cursor, queue, style, terminal};
use tests::lab::Meter;

use super::traffic::Board;
use super::{BINDINGS, plain_table};

/// How much of the past is drawn, in steps.
const HISTORY: usize = 20;

/// Columns that a terminal needs for everything.
const WIDE: u16 = 100;

/// Rows that a terminal needs for everything.
const HIGH: u16 = 20;

/// Shows rates from one step to the next.
pub(crate) struct Live {
    terminal: bool,
    /// What the last step showed, to be drawn over.
    lines: u16,
    last: (Duration, Vec<Meter>),
    /// Bits a second towards the VM and towards the internet, for each EIP.
    history: Vec<[Vec<f64>; 2]>,
}

impl Live {
    /// Starts from these counters.
    pub(crate) fn new(terminal: bool, meters: Vec<Meter>) -> Self {
        Self {
            terminal,
            lines: 0,
            last: (Duration::ZERO, meters),
            history: vec![Default::default(); BINDINGS.len()],
        }
    }

    /// Time from one step to the next.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 500 } else { 1000 })
    }

    /// Shows a step.
    pub(crate) fn show(&mut self, now: Duration, meters: &[Meter], board: &Board) -> Result<()> {
        let (then, before) = std::mem::replace(&mut self.last, (now, meters.to_vec()));
        let seconds = (now - then).as_secs_f64().max(0.001);
        let mut rates = Vec::new();
        for ((history, before), meter) in self.history.iter_mut().zip(&before).zip(meters) {
            let bytes = [meter.in_bytes - before.in_bytes, meter.out_bytes - before.out_bytes];
            let packets = [meter.in_packets - before.in_packets, meter.out_packets - before.out_packets];
            let bits = bytes.map(|bytes| bytes as f64 * 8.0 / seconds);
            for (history, bits) in history.iter_mut().zip(bits) {
                history.push(bits);
                if history.len() > HISTORY {
                    history.remove(0);
                }
            }
            rates.push((bits, packets.map(|packets| packets as f64 / seconds)));
        }
        if self.terminal { self.redraw(now, meters, &rates, board) } else { print_lines(now, &rates) }
    }

    /// Makes room for what comes after the last step: on a terminal in its place.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.terminal { self.draw("") } else { Ok(writeln!(stdout())?) }
    }

    /// Draws over what was drawn before.
    fn draw(&mut self, text: &str) -> Result<()> {
        let mut out = stdout().lock();
        if self.lines > 0 {
            queue!(out, cursor::MoveToPreviousLine(self.lines))?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown), style::Print(text))?;
        self.lines = u16::try_from(text.lines().count()).unwrap_or(0);
        Ok(out.flush()?)
    }

    fn redraw(
        &mut self,
        now: Duration,
        meters: &[Meter],
        rates: &[([f64; 2], [f64; 2])],
        board: &Board,
    ) -> Result<()> {
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        let mut header = vec!["EIP", "VM", "", "RATE", "PACKETS/S", "BYTES", "PACKETS"];
        if columns >= WIDE {
            header.push("LATELY");
        }
        let mut table = plain_table(&header);
        for (index, ((eip, _, vm), meter)) in BINDINGS.iter().zip(meters).enumerate() {
            let totals = [(meter.in_bytes, meter.in_packets), (meter.out_bytes, meter.out_packets)];
            for (direction, (bytes, packets)) in totals.into_iter().enumerate() {
                let first = direction == 0;
                let cells = [
                    if first { eip.to_string() } else { String::new() },
                    if first { (*vm).to_owned() } else { String::new() },
                    ["in", "out"][direction].to_owned(),
                    rate(rates[index].0[direction]),
                    grouped(rates[index].1[direction] as u64),
                    grouped(bytes),
                    grouped(packets),
                    sparkline(&self.history[index][direction]),
                ];
                table.add_row(cells.into_iter().take(header.len()));
            }
        }
        for column in table.column_iter_mut().skip(3).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{:.0} s; Ctrl-C ends\n\n{table}\n", now.as_secs_f64());
        if rows >= HIGH {
            text += &format!("\n{}\n", board.table());
        }
        self.draw(&text)
    }
}

fn print_lines(now: Duration, rates: &[([f64; 2], [f64; 2])]) -> Result<()> {
    for ((eip, _, vm), (bits, packets)) in BINDINGS.iter().zip(rates) {
        println!(
            "{:3.0} s  {eip} ({vm})  in {:>11} {:>9} packets/s   out {:>11} {:>9} packets/s",
            now.as_secs_f64(),
            rate(bits[0]),
            grouped(packets[0] as u64),
            rate(bits[1]),
            grouped(packets[1] as u64),
        );
    }
    Ok(stdout().flush()?)
}

/// The past as bars, the highest one full.
fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().fold(1.0, f64::max);
    let bar = |value: &f64| BARS[((value / highest * 7.0).round() as usize).min(7)];
    let bars: String = values.iter().map(bar).collect();
    format!("{bars:<HISTORY$}")
}

/// A rate from bits a second.
pub(crate) fn rate(bits: f64) -> String {
    scaled(bits, "bit/s")
}

/// An amount of bytes.
pub(crate) fn bytes(bytes: f64) -> String {
    scaled(bytes, "B")
}

fn scaled(value: f64, unit: &str) -> String {
    let (value, prefix) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let digits = match value {
        _ if prefix.is_empty() => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {prefix}{unit}")
}

/// A number with commas between groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
