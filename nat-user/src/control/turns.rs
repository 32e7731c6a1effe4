//! One control plane for many requests: each has its turn, in the order in which they came.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::task::block_in_place;

use super::Control;

/// A [`Control`] that many requests share.
#[derive(Clone)]
pub struct Shared(Arc<Turns>);

struct Turns {
    /// Who waits for his turn waits here, and not for the lock: he can give it up, and keeps no thread meanwhile.
    turn: Semaphore,
    /// Never waited for. It remembers that somebody has panicked while he had it.
    control: Mutex<Control>,
}

impl Shared {
    /// Shares a control plane.
    #[must_use]
    pub fn new(control: Control) -> Self {
        Self(Arc::new(Turns { turn: Semaphore::new(1), control: Mutex::new(control) }))
    }
}

/// Runs `work` on the control plane when it has its turn. Nothing is done if nobody waits for it any more by then; once it
/// has begun, it is finished. It may block, and does so on this thread (another one takes over what else the thread had to
/// do): to wake another one for it would take as long as the work. What runs beside it has to be a task of its own.
///
/// # Errors
/// If `work` panicked, or an earlier call did and left the state in doubt.
///
/// # Panics
/// On a runtime that has one thread alone.
pub async fn call<T>(control: &Shared, work: impl FnOnce(&mut Control) -> T) -> anyhow::Result<T> {
    let Shared(turns) = control;
    let turn = turns.turn.acquire().await;
    let locked = || turns.control.lock().ok().map(|mut control| work(&mut control));
    let done = block_in_place(|| catch_unwind(AssertUnwindSafe(locked)).ok().flatten());
    drop(turn);
    done.context("the daemon has hit a bug and its state is in doubt; see its log, and restart it")
}
