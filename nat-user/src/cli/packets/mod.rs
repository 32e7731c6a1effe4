//! `eipnat explain`, `trace` and `capture`.

mod args;
mod files;
mod render;

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{SignalKind, signal};

use self::args::Watched;
pub(super) use self::args::{Capture, Explain, Trace};
use self::files::{Recorded, Recorder};
use super::args::{Cli, Output};
use super::{ask, show};
use crate::api::client::{self, Client};
use crate::explain::{self, Question};
use crate::packet::{from_hex, to_hex};
use crate::trace::{Interest, Packet};

/// Explains a packet.
pub(super) fn explain(cli: &Cli, args: &Explain, out: &mut dyn Write) -> anyhow::Result<()> {
    no_csv(cli)?;
    let (frame, packet, recorded_on) = if let Some(file) = &args.pcap {
        let Recorded { frame, interface } =
            files::frame(file, args.frame).with_context(|| file.display().to_string())?;
        (Some(frame), None, interface)
    } else if let Some(hex) = &args.hex {
        (Some(from_hex(&digits(hex)?).map_err(|what| anyhow!("the frame: {what}"))?), None, None)
    } else {
        (None, Some(args.spec.packet()), None)
    };
    let on = args.on.clone().or(recorded_on);
    let on = on.ok_or_else(|| anyhow!("which interface does it come by? name it with --on"))?;
    if let Some(frame) = &frame {
        // The API would only say that the question is too long.
        explain::check_length(frame.len()).map_err(anyhow::Error::msg)?;
    }
    let question = Question { on, frame: frame.as_deref().map(to_hex), packet };
    let explanation = ask(cli, async |daemon| daemon.explain(&question).await)?;
    show(cli, out, &explanation, render::explanation)
}

fn no_csv(cli: &Cli) -> anyhow::Result<()> {
    if matches!(cli.output, Output::Csv) {
        bail!("packets make no rows of CSV; use -o table or -o json");
    }
    Ok(())
}

/// Hexadecimal digits, from standard input if it is `-`.
fn digits(hex: &str) -> anyhow::Result<String> {
    if hex != "-" {
        return Ok(hex.to_owned());
    }
    let mut text = String::new();
    io::stdin().lock().take(MAX_DIGITS).read_to_string(&mut text).context("standard input")?;
    Ok(text)
}

/// More than the longest frame that can be explained takes, whatever stands between its digits.
const MAX_DIGITS: u64 = 1 << 20;

/// A line of the daemon's.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Told {
    /// The last one.
    Failed {
        error: String,
    },
    Seen(Line),
}

/// What comes while packets are watched.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    LeftOut { left_out: u64 },
    Packet(Box<Packet>),
}

/// Shows packets as they come.
pub(super) fn trace(cli: &Cli, args: &Trace, out: &mut dyn Write) -> anyhow::Result<()> {
    no_csv(cli)?;
    watch(cli, &args.watched, 0, |bytes, line| {
        match (cli.output, &line) {
            (Output::Json | Output::Csv, _) => out.write_all(bytes)?,
            (Output::Table, Line::Packet(packet)) => writeln!(out, "{}", render::packet(packet))?,
            (Output::Table, Line::LeftOut { left_out: 0 }) => {}
            (Output::Table, Line::LeftOut { left_out }) => writeln!(out, "… {left_out} packets left out")?,
        }
        out.flush()
    })
}

/// Writes packets to a file as they come.
pub(super) fn capture(cli: &Cli, args: &Capture, out: &mut dyn Write) -> anyhow::Result<()> {
    let is_stdout = args.write == Path::new("-");
    let at = || if is_stdout { "standard output".to_owned() } else { args.write.display().to_string() };
    let (mut packets, mut left_out) = (0_u64, 0);
    let mut stdout = is_stdout.then_some(&mut *out);
    let mut open = || -> io::Result<_> {
        let sink: Box<dyn Write + '_> = match stdout.take() {
            Some(stdout) => Box::new(stdout),
            None => Box::new(io::BufWriter::new(File::create(&args.write)?)),
        };
        Recorder::new(sink, args.snaplen)
    };
    let mut recorder = None;
    watch(cli, &args.watched, args.snaplen, |_, line| {
        let recorder = match &mut recorder {
            Some(recorder) => recorder,
            // Not before packets are watched: what stands in the file is lost by it.
            none => none.insert(open()?),
        };
        match line {
            Line::Packet(packet) => {
                recorder.write(&packet)?;
                packets += 1;
            }
            Line::LeftOut { left_out: more } => left_out += more,
        }
        recorder.flush()
    })
    .map_err(|error| if error.is::<io::Error>() { error.context(at()) } else { error })?;
    // It ended before it began.
    if recorder.map(drop).is_none() {
        return Ok(());
    }
    // It is told once a second, so some of the last second may not be among them.
    let summary = format!("{packets} packets, at least {left_out} left out");
    if is_stdout {
        eprintln!("{summary}");
    } else {
        writeln!(out, "{summary}, in {}", args.write.display())?;
    }
    Ok(())
}

/// Watches packets until there were enough, a signal comes, or nobody reads what is shown.
fn watch(
    cli: &Cli,
    watched: &Watched,
    snap: u32,
    mut seen: impl FnMut(&[u8], Line) -> io::Result<()>,
) -> anyhow::Result<()> {
    let interest = Interest { eips: watched.eips.clone(), rate: watched.rate, snap };
    let mut left = watched.count.unwrap_or(u64::MAX);
    if left == 0 {
        bail!("--count 0 would show nothing; leave it out to go on until Ctrl-C");
    }
    ask(cli, async |daemon: Client| -> Result<anyhow::Result<()>, client::Error> {
        let failed = |error: io::Error| client::Error::Broken(error.into());
        let mut lines = daemon.trace(&interest).await?;
        // Not before: as long as the daemon is waited for, signals do what they always do.
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        end_by_second_signal().map_err(failed)?;
        let mut has_begun = false;
        while left > 0 {
            let line = tokio::select! {
                line = lines.next() => line?,
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
            };
            let Some(bytes) = line else {
                return Ok(Err(anyhow!("the daemon has ended, and the trace with it")));
            };
            let line = match serde_json::from_slice(&bytes) {
                Ok(Told::Seen(line)) => line,
                Ok(Told::Failed { error }) => {
                    return Ok(Err(anyhow!("packets cannot be traced: {error}")));
                }
                Err(_) => {
                    let said = String::from_utf8_lossy(&bytes);
                    return Ok(Err(anyhow!("the daemon is of another version: it says {said}")));
                }
            };
            left -= u64::from(matches!(line, Line::Packet(_)));
            match seen(&bytes, line) {
                Ok(()) if !has_begun => {
                    has_begun = true;
                    eprintln!("watching packets; Ctrl-C ends it");
                }
                Ok(()) => {}
                // Whoever reads has enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Ok(Err(error.into())),
            }
        }
        Ok(Ok(()))
    })?
}

/// Lets a second signal end the process at once: the first is not heard while nobody reads what is shown.
fn end_by_second_signal() -> io::Result<()> {
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first would set what the other looks at.
        flag::register_conditional_default(signal, Arc::clone(&is_second))?;
        flag::register(signal, Arc::clone(&is_second))?;
    }
    Ok(())
}
