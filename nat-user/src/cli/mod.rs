//! The command line: a client of the daemon's socket, and the way to start one.

mod args;
mod render;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use serde::Serialize;

use crate::api::client::{self, Client};
use crate::api::types;
use crate::config::{Config, DEFAULT_PIN_PATH, KeyError};
use crate::daemon;
use crate::dataplane::xdp;
use args::{Cli, Command, Eip, Output, Pool};

/// Exit code: it was refused, or failed.
const REFUSED: u8 = 1;
/// Exit code: there is no daemon at the socket.
const NO_DAEMON: u8 = 3;

/// The program `eipnat`.
#[must_use]
pub fn main() -> ExitCode {
    run(std::env::args_os(), &mut io::stdout().lock(), &mut io::stderr()).into()
}

/// Runs one command line, and answers its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    // Nobody is left to tell if these cannot be written.
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => {
            let _ = if usage.use_stderr() { write!(err, "{usage}") } else { write!(out, "{usage}") };
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    match execute(&cli, out) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(err, "error: {}", one_line(&format!("{error:#}")));
            match error.downcast_ref() {
                Some(client::Error::NoDaemon(_)) => NO_DAEMON,
                _ => REFUSED,
            }
        }
    }
}

fn execute(cli: &Cli, out: &mut dyn Write) -> anyhow::Result<()> {
    match &cli.command {
        Command::Run { config } => daemon::run(config).map_err(|error| in_file(config, error)),
        Command::Unload { config } => unload(config.as_deref()),
        Command::Status => {
            let status = ask(cli, async |daemon| daemon.status().await)?;
            show(cli, out, &status, render::status)?;
            if status.ready { Ok(()) } else { Err(anyhow!("not ready: {}", status.problems.join("; "))) }
        }
        Command::Stats { explain } => {
            let stats = ask(cli, async |daemon| daemon.stats().await)?;
            show(cli, out, &stats, |stats| render::stats(stats, *explain))
        }
        Command::Pool(Pool::List) => {
            let pools = ask(cli, async |daemon| daemon.pools().await)?;
            show(cli, out, &pools, |pools| render::pools(pools))
        }
        Command::Eip(command) => eip(cli, command, out),
    }
}

fn eip(cli: &Cli, command: &Eip, out: &mut dyn Write) -> anyhow::Result<()> {
    let one = |eip: &types::Eip| render::eips(std::slice::from_ref(eip));
    match command {
        Eip::Allocate { pool, address, account } => {
            let wanted = types::Allocate { pool: pool.clone(), address: *address, account: account.clone() };
            show(cli, out, &ask(cli, async |daemon| daemon.allocate(&wanted).await)?, one)
        }
        Eip::Attach { eip, target } => {
            show(cli, out, &ask(cli, async |daemon| daemon.attach(*eip, target).await)?, one)
        }
        Eip::Detach { eip } => show(cli, out, &ask(cli, async |daemon| daemon.detach(*eip).await)?, one),
        Eip::Release { eip } => {
            let released = ask(cli, async |daemon| daemon.release(*eip).await)?;
            show(cli, out, &released, |eip| format!("{} released\n", eip.eip))
        }
        Eip::List => {
            show(cli, out, &ask(cli, async |daemon| daemon.eips().await)?, |eips| render::eips(eips))
        }
        Eip::Show { eip } => {
            let ask_both = async |daemon: Client| Ok((daemon.eip(*eip).await?, daemon.counters(*eip).await?));
            let (eip, counters) = ask(cli, ask_both)?;
            show(cli, out, &eip, |eip| render::eip(eip, &counters))
        }
    }
}

fn unload(file: Option<&Path>) -> anyhow::Result<()> {
    let Some(file) = file else { return xdp::unload(Path::new(DEFAULT_PIN_PATH)) };
    // Not `load`: an interface that is gone by now is no reason to leave the rest.
    let config = Config::read(file).map_err(anyhow::Error::from);
    config.and_then(|config| xdp::unload(&config.datapath.pin_path)).map_err(|error| in_file(file, error))
}

/// Talks with the daemon.
fn ask<T>(cli: &Cli, talk: impl AsyncFnOnce(Client) -> Result<T, client::Error>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(talk(Client::new(&cli.socket)))?)
}

/// Prints an answer in the form that was asked for.
fn show<T: Serialize>(
    cli: &Cli,
    out: &mut dyn Write,
    answer: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = match cli.output {
        Output::Table => table(answer),
        Output::Json => serde_json::to_string(answer)? + "\n",
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has enough: `eipnat eip list | head -1`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Names the file where the error is about a key in it.
fn in_file(file: &Path, error: anyhow::Error) -> anyhow::Error {
    match error.chain().find_map(|cause| cause.downcast_ref::<KeyError>()) {
        Some(key) => anyhow!("{}: {key}", file.display()),
        None => error,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
