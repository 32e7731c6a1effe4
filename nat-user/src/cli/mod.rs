//! The command line: a client of the daemon's socket, and the way to start one.

mod args;
mod packets;
mod render;
mod rows;
mod top;
mod usage;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::client::{self, Client};
use crate::api::types;
use crate::config::{Config, DEFAULT_PIN_PATH, DEFAULT_STORE_PATH, KeyError};
use crate::control;
use crate::daemon;
use crate::dataplane::xdp;
use crate::store;
use args::{Cli, Command, Eip, Output, Pool, Store, Vm};
use rows::Rows;

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
        Command::Run { config, replace_program } => {
            daemon::run(config, *replace_program).map_err(|error| in_file(config, error))
        }
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
        Command::Top(options) => top::run(cli, options, out),
        Command::Explain(explain) => packets::explain(cli, explain, out),
        Command::Trace(trace) => packets::trace(cli, trace, out),
        Command::Capture(capture) => packets::capture(cli, capture, out),
        Command::Pool(Pool::List) => {
            let pools = ask(cli, async |daemon| daemon.pools().await)?;
            show_list(cli, out, &pools, render::pools)
        }
        Command::Usage { eip, account, from, to } => {
            let (account, after) = (account.clone(), None);
            usage::show(cli, types::UsageQuery { eip: *eip, account, from: *from, to: *to, after }, out)
        }
        Command::Eip(command) => eip(cli, command, out),
        Command::Vm(command) => vm(cli, command, out),
        Command::Store(command) => store(cli, command, out),
    }
}

fn eip(cli: &Cli, command: &Eip, out: &mut dyn Write) -> anyhow::Result<()> {
    let one = |eip: &types::Eip| render::eips()(std::slice::from_ref(eip));
    match command {
        Eip::Allocate { pool, address, account, request } => {
            let (pool, account, request) = (pool.clone(), account.clone(), request.clone());
            let wanted = types::Allocate { pool, address: *address, account, request };
            show(cli, out, &ask(cli, async |daemon| daemon.allocate(&wanted).await)?, one)
        }
        Eip::Attach { eip, target, reassign } => {
            show(cli, out, &ask(cli, async |daemon| daemon.attach(*eip, target, *reassign).await)?, one)
        }
        Eip::Import { file } => import(cli, file, out),
        Eip::Detach { eip } => show(cli, out, &ask(cli, async |daemon| daemon.detach(*eip).await)?, one),
        Eip::Release { eip } => {
            let released = ask(cli, async |daemon| daemon.release(*eip).await)?;
            show(cli, out, &released, |eip| format!("{} released\n", eip.eip))
        }
        Eip::List => show_stream(cli, out, async |daemon| daemon.eips().await, render::eips()),
        Eip::Show { eip } => {
            let (eip, counters, drops) = ask(cli, async |daemon| {
                Ok((daemon.eip(*eip).await?, daemon.counters(*eip).await?, daemon.drops(*eip).await?))
            })?;
            let shown = Shown { eip, drops };
            show(cli, out, &shown, |Shown { eip, drops }| render::eip(eip, &counters, drops))
        }
    }
}

/// What `eip show` tells programs.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    eip: types::Eip,
    /// Absent if there are none, as in a list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    drops: Vec<types::AddressDrops>,
}

fn vm(cli: &Cli, command: &Vm, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Vm::Create { name, private_ip, account, pool, no_public_ip } => {
            let wanted = types::CreateVm {
                private_ip: *private_ip,
                account: account.clone(),
                public_ip: !no_public_ip,
                pool: pool.clone(),
            };
            let created = ask(cli, async |daemon| daemon.create_vm(name, &wanted).await)?;
            show(cli, out, &created, |vm| render::vms()(std::slice::from_ref(vm)))
        }
        Vm::Destroy { name } => {
            let destroyed = ask(cli, async |daemon| daemon.destroy_vm(name).await)?;
            show(cli, out, &destroyed, |vm| format!("{} destroyed\n", vm.name))
        }
        Vm::List => show_stream(cli, out, async |daemon| daemon.vms().await, render::vms()),
    }
}

/// Shows how far an import is, on a terminal.
fn import(cli: &Cli, file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let at = || format!("{}", file.display());
    let lines = fs::read(file).with_context(at)?;
    let bar = ProgressBar::new(lines.len() as u64).with_style(
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {elapsed}")?
            .progress_chars("=> "),
    );
    bar.set_message("sending");
    let shown = bar.clone();
    let progress = move |sent| {
        shown.set_position(sent);
        if shown.length() == Some(sent) {
            shown.set_style(ProgressStyle::default_spinner());
            shown.set_message("the daemon commits them and puts them in force");
            shown.enable_steady_tick(Duration::from_millis(100));
        }
    };
    let imported = ask(cli, async |daemon| daemon.import(lines, progress).await);
    bar.finish_and_clear();
    let imported = imported.map_err(|error| match error.downcast_ref::<client::Error>() {
        Some(client::Error::Refused(what)) => anyhow!("{}: {what}", file.display()),
        _ => error,
    })?;
    show(cli, out, &imported, |imported| format!("{}\n", imported.imported))
}

fn store(cli: &Cli, command: &Store, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        Store::Backup { file } => {
            let copy = ask(cli, async |daemon| daemon.backup().await)?;
            store::write_backup(file, &copy)?;
            Ok(writeln!(out, "{} bytes in {}", HumanCount(copy.len() as u64), file.display())?)
        }
        Store::Restore { file, config } => {
            let directory = match config {
                Some(config) => {
                    Config::read(config).map_err(|error| in_file(config, error.into()))?.store_path
                }
                None => DEFAULT_STORE_PATH.into(),
            };
            let (old, revision) = store::restore(&directory, file)?;
            let kept =
                old.map_or_else(String::new, |old| format!("; what was there is kept as {}", old.display()));
            Ok(writeln!(out, "the store in {} is at revision {revision}{kept}", directory.display())?)
        }
    }
}

fn unload(file: Option<&Path>) -> anyhow::Result<()> {
    let unload = |pins: &Path, store: &Path| xdp::unload(pins, |counts| control::settle(store, counts));
    let Some(file) = file else { return unload(Path::new(DEFAULT_PIN_PATH), Path::new(DEFAULT_STORE_PATH)) };
    // Not `load`: an interface that is gone by now is no reason to leave the rest.
    let config = Config::read(file).map_err(anyhow::Error::from);
    config
        .and_then(|config| unload(&config.datapath.pin_path, &config.store_path))
        .map_err(|error| in_file(file, error))
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
        Output::Csv => csv(std::slice::from_ref(answer))?,
    };
    put(out, &text)
}

/// Prints a list in the form that was asked for.
fn show_list<T: Serialize>(
    cli: &Cli,
    out: &mut dyn Write,
    list: &[T],
    table: impl FnOnce(&[T]) -> String,
) -> anyhow::Result<()> {
    match cli.output {
        Output::Csv => put(out, &csv(list)?),
        _ => show(cli, out, &list, |list| table(list)),
    }
}

/// Prints a list of any length as it comes.
fn show_stream<T: Serialize + DeserializeOwned>(
    cli: &Cli,
    out: &mut dyn Write,
    begin: impl AsyncFnOnce(Client) -> Result<client::List<T>, client::Error>,
    mut table: impl FnMut(&[T]) -> String,
) -> anyhow::Result<()> {
    ask(cli, async |daemon| {
        let (mut list, mut rows) = (begin(daemon).await?, Rows::new(cli.output, out));
        while let Some(some) = list.next().await? {
            match rows.put(&some, &mut table) {
                Ok(true) => {}
                ended => return Ok(ended.map(drop)),
            }
        }
        Ok(rows.end())
    })?
}

/// Rows as CSV, with a header line: its names are those of the JSON.
fn csv<T: Serialize>(rows: &[T]) -> anyhow::Result<String> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    for row in rows {
        csv.serialize(row).map_err(|_| anyhow!("this does not fit into lines and columns; use -o json"))?;
    }
    Ok(String::from_utf8(csv.into_inner()?)?)
}

fn put(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
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
