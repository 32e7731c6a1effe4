//! One control plane for many requests: each has its turn, in the order in which they came.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use tokio::sync::Mutex;
use tokio::task::block_in_place;

use super::Control;

/// A [`Control`] that many requests share.
#[derive(Clone)]
pub struct Shared(Arc<Turns>);

struct Turns {
    /// Whoever waits for it can give up, and keeps no thread meanwhile.
    control: Mutex<Control>,
    /// Somebody has panicked while it was his turn.
    is_in_doubt: AtomicBool,
}

impl Shared {
    /// Shares a control plane.
    #[must_use]
    pub fn new(control: Control) -> Self {
        Self(Arc::new(Turns { control: Mutex::new(control), is_in_doubt: AtomicBool::new(false) }))
    }
}

/// Runs `work` on the control plane when it has its turn. Nothing is done if nobody waits for it any more by then; once it
/// has begun, it is finished. It may block, and does so on this thread, so that no request waits for another one to wake: what
/// else this one had to do goes on elsewhere, except what is in the same task.
///
/// # Errors
/// If `work` panicked, or an earlier call did and left the state in doubt.
///
/// # Panics
/// On a runtime of the current-thread kind.
pub async fn call<T>(control: &Shared, work: impl FnOnce(&mut Control) -> T) -> anyhow::Result<T> {
    let Shared(turns) = control;
    let mut control = turns.control.lock().await;
    if !turns.is_in_doubt.load(Ordering::Relaxed) {
        match block_in_place(|| catch_unwind(AssertUnwindSafe(|| work(&mut control)))) {
            Ok(done) => return Ok(done),
            Err(_) => turns.is_in_doubt.store(true, Ordering::Relaxed),
        }
    }
    bail!("the daemon has hit a bug and its state is in doubt; see its log, and restart it")
}
