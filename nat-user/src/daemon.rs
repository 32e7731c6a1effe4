//! `eipnat run`: everything is checked before anything is changed, and the datapath outlives the daemon.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use axum::Router;
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::api::socket::Claim;
use crate::api::{self, server};
use crate::config::{Config, KeyError};
use crate::control::{self, Control, Shared};
use crate::dataplane::Dataplane;
use crate::dataplane::xdp::{self, ProgramLogger, XdpDataplane};
use crate::store::Store;
use crate::trace::{self, Hub};
use crate::{memory, metrics};

/// How often it is looked at what time has brought, and the datapath is compared with what it has to be.
const TICK: Duration = Duration::from_secs(1);

/// For how long bindings are looked at in one turn, at most.
const MAX_PATROL: Duration = Duration::from_millis(10);

/// Runs the daemon of a configuration file until SIGTERM or SIGINT. A program that runs already is replaced where it is
/// another one, or in any case.
///
/// # Errors
/// If it cannot start; then nothing is changed and nothing left behind. A [`KeyError`] is among the causes where
/// another configuration would mend it.
pub fn run(file: &Path, replace_program: bool) -> anyhow::Result<()> {
    let mut config = Config::load(file)?;
    config.datapath.replace_program = replace_program;
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).try_init()?;
    memory::share_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let sockets = Sockets::claim(&config)?;
        let store = Store::open(&config.store_path, config.spec.clone(), config.datapath.max_bindings)?;
        let made = store.made();
        let mut dataplane =
            XdpDataplane::start(&config.datapath, &config.spec.pools).inspect_err(|_| made.remove())?;
        let is_first = dataplane.is_first();
        if let Some(logger) = dataplane.take_logger() {
            let thread = thread::Builder::new().name("xdp-log".to_owned());
            thread.spawn(|| carry_log(logger)).inspect_err(|_| made.remove())?;
        }
        let service = Service::start(&config, &sockets, store, Box::new(dataplane)).inspect_err(|_| {
            // Nobody counts on it yet. Why it failed is what has to be told.
            if is_first {
                xdp::unload(&config.datapath.pin_path, |_| Ok(()))
                    .unwrap_or_else(|error| error!("{error:#}"));
            }
            made.remove();
        })?;
        service.run(either(terminate, interrupt)).await
    })
}

/// Everything that a second daemon could have taken.
pub struct Sockets {
    api: Claim,
    metrics: std::net::TcpListener,
}

impl Sockets {
    /// Takes the sockets, without serving them yet.
    ///
    /// # Errors
    /// If somebody else has them, or they cannot be had here. Nothing is left behind then.
    pub fn claim(config: &Config) -> anyhow::Result<Self> {
        Ok(Self { api: Claim::take(&config.api)?, metrics: bind(config.metrics.listen)? })
    }

    /// Where `/metrics` is served.
    ///
    /// # Errors
    /// If the socket does not say.
    pub fn metrics_address(&self) -> io::Result<SocketAddr> {
        self.metrics.local_addr()
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).map_err(|error| {
        let what = format!("cannot listen on {address}: {error}; write another address or port");
        KeyError::new("metrics.listen", what)
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A daemon that forwards, and answers as soon as it [runs](Self::run).
pub struct Service {
    api: (UnixListener, Router),
    metrics: (TcpListener, Router),
    control: Shared,
    hub: Arc<Hub>,
    tracing: thread::JoinHandle<()>,
}

impl Service {
    /// Brings `dataplane` to what `store` says, and takes connections. `sockets` are to be kept until the end: they keep a second
    /// daemon off.
    ///
    /// # Errors
    /// If the datapath cannot be brought to the desired state, or the sockets cannot be served.
    pub fn start(
        config: &Config,
        sockets: &Sockets,
        store: Store,
        mut dataplane: Box<dyn Dataplane>,
    ) -> anyhow::Result<Self> {
        let tracer = dataplane.take_tracer().context("the datapath reports to another daemon")?;
        let control = Control::start(store, dataplane, config.usage, SystemTime::now())
            .context("the datapath cannot be set up")?;
        let control = Shared::new(control);
        let api = sockets.api.listen()?;
        let metrics = TcpListener::from_std(sockets.metrics.try_clone()?)?;
        announce(config, sockets)?;
        let (hub, tracing) = Hub::start(tracer)?;
        memory::give_back();
        Ok(Self {
            api: (api, api::router(control.clone(), Arc::clone(&hub), config.api.rate)),
            metrics: (metrics, metrics::router(control.clone(), config.metrics)),
            control,
            hub,
            tracing,
        })
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// If it has hit a bug. What it forwards and remembers stays as it is.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self { api: (api, api_router), metrics: (metrics, metrics_router), control, hub, tracing } = self;
        let (stop, stopping) = watch::channel(());
        let stopped = || {
            let mut stopping = stopping.clone();
            async move { while stopping.changed().await.is_ok() {} }
        };
        // Each a task of its own, for a call of the control plane blocks whatever is in the same one.
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(api, api_router, api::MAX_CONNECTION, stopped()));
        tasks.spawn(server::serve(metrics, metrics_router, metrics::MAX_CONNECTION, stopped()));
        let loops = [
            tasks.spawn(keep_ticking(control.clone())),
            tasks.spawn(keep_following(Arc::clone(&hub), control.clone())),
            tasks.spawn(tell_when_ready(control.clone())),
        ];
        tasks.spawn_blocking(|| tracing.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let served = tokio::select! {
            () = shutdown => Ok(()),
            // None ends by itself.
            _ = tasks.join_next() => Err(bug()),
        };
        info!("ending; the datapath goes on forwarding");
        notify(NotifyState::Stopping);
        hub.end();
        drop(stop);
        // Between two calls, so nothing is half done.
        loops.iter().for_each(AbortHandle::abort);
        let ended = all_ended(&mut tasks).await;
        // What was carried until now is on the bill, whatever becomes of the machine.
        let parts = control::call(&control, |control| control.flush_parts()).await?;
        flush(&control, parts).await?;
        served.and(ended)
    }
}

fn announce(config: &Config, sockets: &Sockets) -> anyhow::Result<()> {
    info!(
        "eipnat {} on {}: API at {}, metrics at http://{}/metrics",
        env!("CARGO_PKG_VERSION"),
        config.node_name,
        config.api.socket.display(),
        sockets.metrics_address()?,
    );
    Ok(())
}

/// Waits until all have ended; an error if any did by a panic.
async fn all_ended(tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let mut all = Ok(());
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err_and(|error| error.is_panic()) {
            all = Err(bug());
        }
    }
    all
}

fn bug() -> anyhow::Error {
    anyhow!("a part of the daemon has hit a bug; see its log, and restart it")
}

/// Tells the service manager when every binding forwards.
async fn tell_when_ready(control: Shared) {
    loop {
        match control::call(&control, |control| control.problems()).await {
            Ok(problems) if problems.is_empty() => break,
            Ok(_) => sleep(Duration::from_millis(200)).await,
            // The ticks tell of it.
            Err(_) => return pending().await,
        }
    }
    notify(NotifyState::Ready);
    pending::<()>().await;
}

/// Tells the service manager, where there is one.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!("the service manager cannot be told: {error}");
    }
}

/// Carries the XDP program's log into the daemon's, for as long as the process lives.
fn carry_log(mut logger: ProgramLogger) {
    loop {
        match poll(&mut [PollFd::new(&logger, PollFlags::IN)], None) {
            Ok(_) => logger.flush(),
            Err(Errno::INTR) => {}
            Err(error) => return warn!("the XDP program's log cannot be read any more: {error}"),
        }
    }
}

/// Does again and again what time brings.
async fn keep_ticking(control: Shared) {
    let mut periods = periods(TICK);
    loop {
        periods.tick().await;
        report(tick(&control).await);
    }
}

async fn tick(control: &Shared) -> anyhow::Result<()> {
    let rounds = control::call(control, |control| control.tick(SystemTime::now())).await?;
    let (began, mut looks) = (Instant::now(), 0);
    // What is left is for the next time: it goes on where this one has ended.
    while looks < rounds.looks && began.elapsed() < TICK {
        let (asked, left) = (Instant::now(), rounds.looks - looks);
        looks += control::call(control, |control| patrol(control, left, asked.elapsed())).await?;
    }
    flush(control, rounds.parts).await
}

/// Writes the bill, a part at a time.
async fn flush(control: &Shared, parts: u32) -> anyhow::Result<()> {
    for part in 0..parts {
        control::call(control, |control| control.flush(part, SystemTime::now())).await?;
    }
    Ok(())
}

/// Looks at some bindings, and answers how many times: once, and where many others want their turn, for as long as a quarter of the
/// time that it was waited for.
fn patrol(control: &mut Control, at_most: usize, waited: Duration) -> usize {
    let (began, enough) = (Instant::now(), (waited / 4).min(MAX_PATROL));
    let mut looks = 0;
    while looks == 0 || looks < at_most && began.elapsed() < enough {
        control.patrol();
        looks += 1;
    }
    looks
}

/// Looks again and again where bindings have moved to that are traced.
async fn keep_following(hub: Arc<Hub>, control: Shared) {
    let mut periods = periods(trace::RENEWAL);
    loop {
        periods.tick().await;
        report(trace::follow(&hub, &control).await);
    }
}

fn periods(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Work that fails is done again the next time.
fn report(worked: anyhow::Result<()>) {
    worked.unwrap_or_else(|error| error!("{error:#}"));
}

async fn either(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
