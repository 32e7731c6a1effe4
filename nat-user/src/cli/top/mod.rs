//! `eipnat top`: who carries most just now, live on a terminal or once as a table.

mod draw;
mod units;
mod view;

use std::future::{Future, pending};
use std::io::{self, IsTerminal, Write};
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::args::{self, Cli, Output};
use super::{ask, show};
use crate::api::client::{Client, Error};
use crate::api::types::{Top, TopQuery};
use view::{Outcome, View};

pub(super) use draw::table as once;

/// How long after an error the daemon is asked again, at least.
const RETRY: Duration = Duration::from_millis(500);

pub(super) fn run(cli: &Cli, options: &args::Top, out: &mut dyn Write) -> anyhow::Result<()> {
    let query = TopQuery {
        interval_ms: u64::try_from(options.interval.as_millis())?,
        limit: options.limit.into(),
        sort: options.sort,
        reverse: options.reverse,
        account: options.account.clone(),
        filter: options.filter.clone(),
    };
    if options.once {
        let top = ask(cli, async |daemon| daemon.top(&query).await)?;
        return show(cli, out, &top, once);
    }
    if cli.output != Output::Table || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("a live view takes a terminal; write `eipnat top --once` to print one measurement");
    }
    // Without a daemon there is nothing to look at; one that goes later may come back.
    ask(cli, async |daemon| daemon.status().await)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Before the terminal is changed, which a signal that ends the process would leave so.
    let signals = runtime.block_on(async { signals() })?;
    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used")?;
    let daemon = Client::new(&cli.socket);
    let watched = runtime.block_on(watch(&mut terminal, &daemon, View::new(query), signals));
    drop(terminal);
    ratatui::try_restore()?;
    runtime.shutdown_background();
    watched
}

/// Those that end the view.
fn signals() -> io::Result<[Signal; 3]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::hangup())?, signal(SignalKind::interrupt())?])
}

/// Shows the view until it is left.
async fn watch(
    terminal: &mut DefaultTerminal,
    daemon: &Client,
    mut view: View,
    signals: [Signal; 3],
) -> anyhow::Result<()> {
    let [mut terminate, mut hangup, mut interrupt] = signals;
    let mut events = events();
    let mut answer = question(daemon, &view);
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut view))?;
        tokio::select! {
            event = events.recv() => {
                // After any other event than a key it is drawn anew, no more.
                if let Event::Key(key) = event.context("the terminal is gone")?? {
                    match view.key(key) {
                        Outcome::Quit => return Ok(()),
                        Outcome::Ask => answer = question(daemon, &view),
                        Outcome::Nothing => {}
                    }
                }
            }
            heard = &mut answer => {
                view.hear(heard.map_err(|error| error.to_string()));
                answer = question(daemon, &view);
            }
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Top, Error>> + 'a>>;

/// What the daemon says to what the view wants to know next; never, while it is paused.
fn question<'a>(daemon: &'a Client, view: &View) -> Answer<'a> {
    if view.paused {
        return Box::pin(pending());
    }
    let query = view.query.clone();
    let pause = if view.problem.is_some() { RETRY } else { Duration::ZERO };
    Box::pin(async move {
        sleep(pause).await;
        daemon.top(&query).await
    })
}

/// Keys, and changes of the terminal's size, as they come.
fn events() -> mpsc::Receiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::channel(16);
    // A thread that blocks, and ends with the process: a read of the terminal cannot be called off.
    std::thread::spawn(move || while sender.blocking_send(event::read()).is_ok() {});
    receiver
}

#[cfg(test)]
mod tests;
