//! The slow path: what the fast path cannot do, or should not (`docs/architecture.md`).
//!
//! One thread has all AF_XDP sockets. It sleeps until one of them has a packet, a neighbour has answered, or time is up; then
//! it holds the lock for a turn. So whoever has had the lock knows that no packet is under way that was judged before.
//!
//! - [`router`]: what becomes of a packet, without a socket, a clock or a thread;
//! - [`arp`], [`icmp`], [`fragment`], [`waiting`], [`limits`]: its parts;
//! - [`frames`]: who has each frame of a socket's memory; [`socket`]: a socket; `ports`: all of them.

pub mod arp;
pub mod fragment;
pub mod frames;
pub mod icmp;
mod judge;
#[cfg(test)]
mod kernel;
pub mod limits;
mod neighbours;
mod ports;
pub mod router;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod waiting;
mod worker;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::warn;
use nat_common::abi::Mac;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use self::limits::Limits;
use self::neighbours::Neighbours;
use self::ports::Ports;
pub use self::ports::{Interface, SocketState};
use self::router::{Kernel, Router};
use self::worker::Worker;
use crate::config;

/// For how long a conflict is shown after the last sign of it.
pub const CONFLICT_SHOWN: Duration = Duration::from_mins(10);

/// How long the thread stands back for others.
const PAUSE: Duration = Duration::from_micros(50);

/// The slow path, from outside.
pub struct SlowPath {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    worker: Mutex<Worker>,
    /// How many others want the lock.
    others: AtomicUsize,
    neighbours: Neighbours,
    /// Wakes the thread.
    wake: OwnedFd,
}

impl Shared {
    /// The worker, for itself.
    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker, for others.
    fn lock(&self) -> MutexGuard<'_, Worker> {
        self.others.fetch_add(1, Ordering::Relaxed);
        let worker = self.worker();
        self.others.fetch_sub(1, Ordering::Relaxed);
        worker
    }

    /// Waits until nobody else wants the lock: whoever has just released it would be the first to get it again.
    fn let_others_in(&self) {
        while self.others.load(Ordering::Relaxed) > 0 {
            thread::sleep(PAUSE);
        }
    }

    fn wake(&self) {
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// How the slow path does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Its sockets.
    pub sockets: Vec<SocketState>,
    /// How many packets wait for a neighbour.
    pub waiting: usize,
    /// Who else has claimed an EIP of late.
    pub conflicts: Vec<Claim>,
}

/// Somebody else's claim to an EIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The EIP.
    pub eip: Ipv4Addr,
    /// Who claims it.
    pub mac: Mac,
    /// How long ago that was.
    pub ago: Duration,
}

impl SlowPath {
    /// Starts the thread, which has nothing to do until it is given interfaces.
    ///
    /// # Errors
    /// If the kernel's neighbours cannot be listened to, or there is no thread to be had.
    pub fn start(kernel: Box<dyn Kernel>, config: &config::SlowPath) -> anyhow::Result<Self> {
        let router = Router::new(Limits::new(config.icmp_rate, config.icmp_rate_to_one));
        let worker = Mutex::new(Worker::new(kernel, router, Ports::new(config.zero_copy)));
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let neighbours = Neighbours::open()?;
        let shared = Arc::new(Shared { worker, others: AtomicUsize::new(0), neighbours, wake });
        let (served, cpu) = (Arc::clone(&shared), config.cpu);
        let thread = thread::Builder::new().name("slow-path".to_owned()).spawn(move || {
            pin(cpu);
            if catch_unwind(AssertUnwindSafe(|| worker::run(&served))).is_err() {
                // Whoever is sent packets to is gone: they are the kernel's.
                served.lock().close();
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sees to it that each of these interfaces has sockets, and calls `register` for each with its interface, its queue and
    /// the descriptor that the fast path finds it by. Answers whether EIPs are to be announced anew.
    ///
    /// # Errors
    /// Those of `register`.
    pub fn serve(
        &self,
        interfaces: &[Interface],
        public_ip: Option<Ipv4Addr>,
        mut register: impl FnMut(&Interface, u32, &OwnedFd) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut worker = self.shared.lock();
        let changes = worker.serve(interfaces, public_ip);
        for (interface, queue, socket) in worker.sockets() {
            register(interface, queue, socket.readiness())?;
        }
        drop(worker);
        if changes.sockets {
            self.shared.wake();
        }
        Ok(changes.links)
    }

    /// Whether the thread still works.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Tells the uplinks' networks that these EIPs are here, as far as they are in one (RFC 5227 §2.3).
    pub fn announce(&self, eips: impl IntoIterator<Item = Ipv4Addr>) {
        self.shared.lock().announce(eips);
        self.shared.wake();
    }

    /// Whether a queue of an interface has a socket.
    #[must_use]
    pub fn serves(&self, ifindex: u32, queue: u32) -> bool {
        self.shared.lock().sockets().any(|(interface, of, _)| interface.ifindex == ifindex && of == queue)
    }

    /// Returns when no packet is under way any more that was judged before.
    pub fn quiesce(&self) {
        drop(self.shared.lock());
    }

    /// How it does.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.lock().state()
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        self.shared.lock().end();
        self.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the slow path has hit a bug");
        }
    }
}

/// Keeps the thread on one CPU, the last that it may use unless one is configured, so that its caches stay warm and
/// it disturbs no more than that one.
fn pin(cpu: Option<u32>) {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu));
    let Some(cpu) = cpu.and_then(|cpu| usize::try_from(cpu).ok()).or(last) else { return };
    let mut one = CpuSet::new();
    one.set(cpu);
    if let Err(error) = sched_setaffinity(None, &one) {
        warn!("the slow path cannot be kept on CPU {cpu}: {error}; set slow_path.cpu to one that there is");
    }
}
