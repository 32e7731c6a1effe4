//! What is read on one thread while what was read before is worked on by another: a million of anything comes in pieces.

use std::sync::mpsc::sync_channel;
use std::thread;

/// How many pieces are read ahead.
const AHEAD: usize = 2;

/// Has `read` send pieces from a thread of its own, each of which `work` is told, and answers what `read` came to. Where sending says
/// that nobody takes a piece any more, `work` has failed, and `read` ends.
///
/// # Errors
/// That of `work`, and else that of `read`.
///
/// # Panics
/// If either does, or there is no thread to be had.
pub(crate) fn read_ahead<P: Send, R: Send, E: Send>(
    read: impl FnOnce(&mut dyn FnMut(P) -> bool) -> Result<R, E> + Send,
    work: impl FnMut(P) -> Result<(), E>,
) -> Result<R, E> {
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(AHEAD);
        let reader = scope.spawn(move || read(&mut |piece| sender.send(piece).is_ok()));
        receiver.into_iter().try_for_each(work)?;
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    /// More pieces than are read ahead.
    fn count(send: &mut dyn FnMut(u32) -> bool) -> anyhow::Result<()> {
        anyhow::ensure!((0..10).all(send), "nobody takes them");
        Ok(())
    }

    #[test]
    fn pieces_come_in_order() {
        let mut seen = Vec::new();
        let work = |number| {
            seen.push(number);
            Ok(())
        };
        read_ahead(count, work).unwrap();
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn whoever_fails_or_panics_first_ends_both() {
        let fail = |number| if number < 3 { Ok(()) } else { Err(anyhow::anyhow!("at {number}")) };
        assert_eq!(read_ahead(count, fail).unwrap_err().to_string(), "at 3");
        let broken = |_: &mut dyn FnMut(()) -> bool| Err::<(), _>(anyhow::anyhow!("unreadable"));
        assert_eq!(read_ahead(broken, |()| Ok(())).unwrap_err().to_string(), "unreadable");
        catch_unwind(|| read_ahead(count, |number| panic!("at {number}"))).unwrap_err();
        let panics =
            |send: &mut dyn FnMut(()) -> bool| -> anyhow::Result<()> { panic!("sent: {}", send(())) };
        catch_unwind(|| read_ahead(panics, |()| Ok(()))).unwrap_err();
    }
}
