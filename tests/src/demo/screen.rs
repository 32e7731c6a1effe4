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

/// One EIP's rates in a step: towards the VM and towards the internet.
#[derive(Clone, Copy, Debug)]
struct Rates {
    bits: [u64; 2],
    packets: [u64; 2],
}

/// Shows rates from one step to the next.
pub(crate) struct Live {
    terminal: bool,
    /// What the last step showed, to be drawn over.
    lines: u16,
    last: (Duration, Vec<Meter>),
    /// Bits a second towards the VM and towards the internet, for each EIP.
    history: Vec<[Vec<u64>; 2]>,
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
        let elapsed = now.saturating_sub(then);
        let mut rates = Vec::new();
        for ((history, before), meter) in self.history.iter_mut().zip(&before).zip(meters) {
            let bytes = [meter.in_bytes - before.in_bytes, meter.out_bytes - before.out_bytes];
            let packets = [meter.in_packets - before.in_packets, meter.out_packets - before.out_packets];
            let bits = bytes.map(|bytes| per_second(bytes * 8, elapsed));
            for (history, bits) in history.iter_mut().zip(bits) {
                history.push(bits);
                if history.len() > HISTORY {
                    history.remove(0);
                }
            }
            rates.push(Rates { bits, packets: packets.map(|packets| per_second(packets, elapsed)) });
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

    fn redraw(&mut self, now: Duration, meters: &[Meter], rates: &[Rates], board: &Board) -> Result<()> {
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
                    rate(rates[index].bits[direction]),
                    grouped(rates[index].packets[direction]),
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
            text = format!("{text}\n{}\n", board.table());
        }
        self.draw(&text)
    }
}

fn print_lines(now: Duration, rates: &[Rates]) -> Result<()> {
    for ((eip, _, vm), Rates { bits, packets }) in BINDINGS.iter().zip(rates) {
        println!(
            "{:3.0} s  {eip} ({vm})  in {:>11} {:>9} packets/s   out {:>11} {:>9} packets/s",
            now.as_secs_f64(),
            rate(bits[0]),
            grouped(packets[0]),
            rate(bits[1]),
            grouped(packets[1]),
        );
    }
    Ok(stdout().flush()?)
}

/// The past as bars, the highest one full.
fn sparkline(values: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| BARS[usize::try_from(value * 7 / highest).map_or(7, |bar| bar.min(7))];
    let bars: String = values.iter().map(bar).collect();
    format!("{bars:<HISTORY$}")
}

/// What is left of an amount in one second.
pub(crate) fn per_second(amount: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(amount) * 1000 / millis).unwrap_or(u64::MAX)
}

/// A rate from bits a second.
pub(crate) fn rate(bits: u64) -> String {
    scaled(bits, "bit/s")
}

/// An amount of bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, "B")
}

/// Three digits and a prefix.
fn scaled(value: u64, unit: &str) -> String {
    let prefixes = [(1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
    let Some((scale, prefix)) = prefixes.into_iter().find(|(scale, _)| value >= *scale) else {
        return format!("{value} {unit}");
    };
    let (whole, rest) = (value / scale, value % scale);
    match whole {
        0..10 => format!("{whole}.{:02} {prefix}{unit}", rest * 100 / scale),
        10..100 => format!("{whole}.{} {prefix}{unit}", rest * 10 / scale),
        _ => format!("{whole} {prefix}{unit}"),
    }
}

/// A number with commas between groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
