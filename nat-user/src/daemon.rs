//! `eipnat run`: everything is checked before anything is changed, and the datapath outlives the daemon.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
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
            thread::Builder::new().name("xdp-log".to_owned()).spawn(|| carry_log(logger))?;
        }
        let served = serve(&config, sockets, store, Box::new(dataplane), either(terminate, interrupt)).await;
        if served.is_err() {
            // Nobody counts on it yet. Why it failed is what has to be told.
            if is_first {
                xdp::unload(&config.datapath.pin_path, |_| Ok(()))
                    .unwrap_or_else(|error| error!("{error:#}"));
            }
            made.remove();
        }
        served
    })
}

/// Everything that a second daemon could have taken.
pub struct Sockets {
    api: Claim,
    metrics: TcpListener,
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

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address).map_err(|error| {
        let what = format!("cannot listen on {address}: {error}; write another address or port");
        KeyError::new("metrics.listen", what)
    })?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// Serves `config` on `dataplane` until `shutdown`.
///
/// # Errors
/// If the datapath cannot be brought to the desired state, or the sockets cannot be served.
pub async fn serve(
    config: &Config,
    sockets: Sockets,
    store: Store,
    dataplane: Box<dyn Dataplane>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut dataplane = dataplane;
    let tracer = dataplane.take_tracer().context("the datapath reports to another daemon")?;
    let control = Control::start(store, dataplane, config.usage, SystemTime::now())
        .context("the datapath cannot be set up")?;
    let control = Shared::new(control);
    let api = sockets.api.listen()?;
    announce(config, &sockets)?;
    let (hub, tracing) = Hub::start(tracer)?;
    memory::give_back();

    let (stop, stopping) = watch::channel(());
    let stopped = || {
        let mut stopping = stopping.clone();
        async move { while stopping.changed().await.is_ok() {} }
    };
    // Each a task of its own, for a call of the control plane blocks whatever is in the same one.
    let mut tasks = JoinSet::new();
    let router = api::router(control.clone(), Arc::clone(&hub), config.api.rate);
    tasks.spawn(server::serve(api, router, api::MAX_CONNECTION, stopped()));
    let router = metrics::router(control.clone(), config.metrics);
    tasks.spawn(server::serve(sockets.metrics, router, metrics::MAX_CONNECTION, stopped()));
    tasks.spawn(keep_ticking(control.clone(), stopped()));
    tasks.spawn(keep_following(Arc::clone(&hub), control.clone(), stopped()));
    tokio::pin!(shutdown);
    tokio::select! {
        () = ready(&control) => {
            notify(NotifyState::Ready);
            (&mut shutdown).await;
        }
        () = &mut shutdown => {}
    }
    info!("ending; the datapath goes on forwarding");
    notify(NotifyState::Stopping);
    hub.end();
    drop(stop);
    tasks.join_all().await;
    // It ends in a moment, and leaves nothing switched on.
    if tokio::task::spawn_blocking(|| tracing.join()).await?.is_err() {
        error!("the trace has hit a bug");
    }
    // What was carried until now is on the bill, whatever becomes of the machine.
    let parts = control::call(&control, |control| control.flush_parts()).await?;
    for part in 0..parts {
        control::call(&control, |control| control.flush(part, SystemTime::now())).await?;
    }
    Ok(())
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

/// Returns when every binding forwards.
async fn ready(control: &Shared) {
    while control::call(control, |control| control.problems())
        .await
        .is_ok_and(|problems| !problems.is_empty())
    {
        sleep(Duration::from_millis(200)).await;
    }
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
async fn keep_ticking(control: Shared, stop: impl Future<Output = ()>) {
    let mut periods = Periods::of(TICK, stop);
    while periods.next().await {
        report(tick(&control).await);
    }
}

async fn tick(control: &Shared) -> anyhow::Result<()> {
    let rounds = control::call(control, |control| control.tick(SystemTime::now())).await?;
    for _ in 0..rounds.looks {
        control::call(control, Control::patrol).await?;
    }
    for part in 0..rounds.parts {
        control::call(control, |control| control.flush(part, SystemTime::now())).await?;
    }
    Ok(())
}

/// Looks again and again where bindings have moved to that are traced.
async fn keep_following(hub: Arc<Hub>, control: Shared, stop: impl Future<Output = ()>) {
    let mut periods = Periods::of(trace::RENEWAL, stop);
    while periods.next().await {
        report(trace::follow(&hub, &control).await);
    }
}

/// Work that fails is done again the next time.
fn report(worked: anyhow::Result<()>) {
    worked.unwrap_or_else(|error| error!("{error:#}"));
}

/// Periods that follow each other until something ends.
struct Periods<S> {
    ticks: Interval,
    stop: Pin<Box<S>>,
}

impl<S: Future<Output = ()>> Periods<S> {
    fn of(period: Duration, stop: S) -> Self {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, stop: Box::pin(stop) }
    }

    /// Waits for the next one; whether there is one.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.ticks.tick() => true,
            () = &mut self.stop => false,
        }
    }
}

async fn either(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
