//! Live reports of packets, from the program to as many clients as there may be.
//!
//! One thread reads the program's reports and gives them to the clients that want them. It never waits for one: who does not
//! keep up misses packets, and is told how many. Without clients the trace is off, and when the daemon dies it ends by itself.

mod client;
mod packet;

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;
use nat_common::abi::trace::{MAX_SNAP, MAX_TRACED};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use self::client::Client;
pub use self::client::Line;
pub use self::packet::{Address, Frames, Packet};
use crate::control::{self, Shared};
use crate::dataplane::trace::{Report, Tracer, Wanted};
use crate::dataplane::{Port, Role};

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 8;

/// Most packets a second that a client may ask for.
pub const MAX_RATE: u32 = 100_000;

/// How often it is looked whether the clients want something else.
const BEAT: Duration = Duration::from_millis(100);

/// How often the program is asked to go on, and it is looked where bindings have moved to.
pub const RENEWAL: Duration = Duration::from_secs(1);

/// How many reports are taken before the clients are looked after again.
const AT_ONCE: usize = 1024;

/// What a client wants to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Interest {
    /// The public addresses; none stands for all packets.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub eips: Vec<Ipv4Addr>,
    /// Most packets a second.
    pub rate: u32,
    /// How many bytes of each frame; 0 for none.
    #[serde(default)]
    pub snap: u32,
}

impl Interest {
    /// Whether it can be.
    ///
    /// # Errors
    /// Says what cannot.
    pub fn check(&self) -> Result<(), String> {
        // Each may have a private address besides.
        let most = MAX_TRACED as usize / 2 / MAX_CLIENTS;
        if self.eips.len() > most {
            return Err(format!(
                "{} EIPs at once, where {most} are the most; trace all packets",
                self.eips.len()
            ));
        }
        if !(1..=MAX_RATE).contains(&self.rate) {
            return Err(format!("rate: {} packets a second, where 1 to {MAX_RATE} are possible", self.rate));
        }
        if self.snap as usize > MAX_SNAP {
            return Err(format!("snap: {} bytes of each frame, where {MAX_SNAP} are the most", self.snap));
        }
        Ok(())
    }
}

/// The public addresses that clients are interested in, each with the addresses that it shows itself by now.
pub type Shown = HashMap<Ipv4Addr, Vec<Ipv4Addr>>;

/// Where clients come and go.
pub struct Hub {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    clients: Vec<Client>,
    has_ended: bool,
    /// Whether somebody has come or gone, or a binding has moved.
    has_changed: bool,
}

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There are as many as there may be.
    #[error("{MAX_CLIENTS} traces run, which are the most; end one")]
    Full,
    /// The daemon ends.
    #[error("the daemon is ending; start it again, and then the trace")]
    Ending,
}

impl Hub {
    /// Begins to serve, and answers the thread that does it, which ends after [`Hub::end`].
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(tracer: Box<dyn Tracer>) -> anyhow::Result<(Arc<Self>, JoinHandle<()>)> {
        let hub = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let served = Arc::clone(&hub);
        let thread = thread::Builder::new().name("trace".to_owned()).spawn(move || served.serve(tracer))?;
        Ok((hub, thread))
    }

    /// Lets a client in. It gets lines of JSON until it drops the receiver, the trace fails, or the daemon ends.
    ///
    /// # Errors
    /// If there is no place.
    pub fn join(
        &self,
        interest: &Interest,
        shown: &Shown,
        ports: &[Port],
    ) -> Result<mpsc::UnboundedReceiver<Line>, Refused> {
        let mut state = self.lock();
        state.clients.retain(|client| !client.is_gone());
        if state.has_ended {
            return Err(Refused::Ending);
        }
        if state.clients.len() >= MAX_CLIENTS {
            return Err(Refused::Full);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let roles: HashMap<String, Role> = ports.iter().map(|port| (port.name.clone(), port.role)).collect();
        state.clients.push(Client::new(interest.clone(), shown, roles, sender));
        state.has_changed = true;
        self.changed.notify_all();
        Ok(receiver)
    }

    /// The public addresses that clients are interested in.
    #[must_use]
    pub fn interests(&self) -> BTreeSet<Ipv4Addr> {
        self.lock().clients.iter().flat_map(Client::eips).collect()
    }

    /// Tells by which addresses these show themselves now.
    pub fn follow(&self, shown: &Shown) {
        let mut state = self.lock();
        for client in &mut state.clients {
            client.follow(shown);
        }
        state.has_changed = true;
    }

    /// Ends all streams, at once.
    pub fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
        state.clients.clear();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut tracer: Box<dyn Tracer>) {
        // What a daemon before this one has left.
        let mut ended = tracer.end();
        while self.has_clients() {
            if let Err(error) = ended.and_then(|()| self.serve_clients(&mut *tracer)) {
                warn!("packets cannot be traced: {error:#}");
                self.lock().clients.drain(..).for_each(|client| client.fail(&error));
            }
            ended = tracer.end();
        }
    }

    /// Waits for clients; `false` if there will be none.
    fn has_clients(&self) -> bool {
        let state =
            self.changed.wait_while(self.lock(), |state| state.clients.is_empty() && !state.has_ended);
        !state.unwrap_or_else(PoisonError::into_inner).has_ended
    }

    /// Serves clients until there are none.
    fn serve_clients(&self, tracer: &mut dyn Tracer) -> anyhow::Result<()> {
        // Reports that nobody has read were for others.
        while tracer.next().is_some() {}
        let mut left_out = tracer.left_out()?;
        let mut renewed: Option<Instant> = None;
        let mut names = packet::Names::default();
        loop {
            let mut state = self.lock();
            let before = state.clients.len();
            state.clients.retain(|client| !client.is_gone());
            if state.clients.is_empty() {
                return Ok(());
            }
            let due = renewed.is_none_or(|renewed| renewed.elapsed() >= RENEWAL);
            if std::mem::take(&mut state.has_changed) || due || state.clients.len() != before {
                // Under the lock: one who came in between would be told that packets are reported which are not.
                tracer.report(&state.wanted())?;
                let now = tracer.now();
                state.clients.iter_mut().for_each(|client| client.begin(now));
                renewed = Some(Instant::now());
                names.forget();
            }
            drop(state);
            tracer.wait(BEAT)?;
            let reports: Vec<Report> = std::iter::from_fn(|| tracer.next()).take(AT_ONCE).collect();
            let now_left_out = tracer.left_out()?;
            let clock = packet::Clock::now(tracer.now());
            for report in &reports {
                let packet = Packet::of(report, &clock, &mut names);
                // Locked for each anew: whoever comes does not wait until all lines are written.
                self.lock().clients.iter_mut().for_each(|client| client.take(report, &packet));
            }
            for client in &mut self.lock().clients {
                client.tell_left_out(now_left_out - left_out);
            }
            left_out = now_left_out;
        }
    }
}

impl State {
    /// What the clients want all together.
    fn wanted(&self) -> Wanted {
        let everything = self.clients.iter().any(Client::wants_everything);
        let addresses = self.clients.iter().flat_map(Client::addresses).copied().collect();
        let most = |of: fn(&Interest) -> u32| self.clients.iter().map(|client| of(client.interest())).max();
        Wanted {
            addresses: (!everything).then_some(addresses),
            rate: most(|interest| interest.rate).unwrap_or(1),
            snap: most(|interest| interest.snap).unwrap_or(0),
        }
    }
}

/// Looks where bindings have moved to that are traced.
///
/// # Errors
/// If the control plane cannot be asked.
pub async fn follow(hub: &Hub, control: &Shared) -> anyhow::Result<()> {
    let interests = hub.interests();
    if interests.is_empty() {
        return Ok(());
    }
    let shown = control::call(control, move |control| -> Shown {
        // One that has been released since shows itself by nothing else.
        interests.into_iter().map(|eip| (eip, control.shown_by(eip).unwrap_or_else(|_| vec![eip]))).collect()
    });
    hub.follow(&shown.await?);
    Ok(())
}

#[cfg(test)]
mod tests;
