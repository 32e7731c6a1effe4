//! What is read on one thread while what was read before is worked on by another: a million of anything comes in pieces.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

/// How many pieces are read ahead.
const AHEAD: usize = 2;

/// Has `read` send pieces from a thread of its own, each of which `work` is told, and answers what `read` came to. It may take it as
/// no error of its own that nobody takes a piece any more: then `work` has failed.
///
/// # Errors
/// That of `work`, and else that of `read`.
pub(crate) fn read_ahead<P: Send, R: Send, E: Send>(
    read: impl FnOnce(&SyncSender<P>) -> Result<R, E> + Send,
    work: impl FnMut(P) -> Result<(), E>,
) -> Result<R, E> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || read(&sender));
        receiver.into_iter().try_for_each(work)?;
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_in_order_and_whoever_fails_first_is_told_of() {
        let count = |sender: &SyncSender<u32>| {
            let all = (0..10).all(|number| sender.send(number).is_ok());
            anyhow::Ok(if all { "all" } else { "some" })
        };
        let mut seen = Vec::new();
        let work = |number| {
            seen.push(number);
            Ok(())
        };
        assert_eq!(read_ahead(count, work).unwrap(), "all");
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let fail = |number| if number < 3 { Ok(()) } else { Err(anyhow::anyhow!("at {number}")) };
        let failed = read_ahead(count, fail).unwrap_err();
        assert_eq!(failed.to_string(), "at 3");
        let broken = |_: &SyncSender<()>| Err::<(), _>(anyhow::anyhow!("unreadable"));
        assert_eq!(read_ahead(broken, |()| Ok(())).unwrap_err().to_string(), "unreadable");
    }
}
