//! A kernel to drive [`Frames`] with, for tests and fuzzers: it takes frames and gives them back in any order and number.

use std::collections::VecDeque;

use crate::slowpath::frames::{Frame, Frames, Rings};

/// What a kernel has.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    filling: VecDeque<Frame>,
    received: VecDeque<Frame>,
    sending: VecDeque<Frame>,
    sent: VecDeque<Frame>,
    /// How many frames each ring takes at most; how many are given back at once.
    room: usize,
}

/// What may happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Packets come.
    Come(usize),
    /// Packets have been sent.
    Leave(usize),
    /// The worker looks after what has come.
    Receive,
    /// The worker sends.
    Send(usize),
    /// The worker takes back what was sent.
    Reclaim,
    /// The rings have more or less room.
    Room(usize),
}

impl Step {
    /// Any step, from any numbers.
    #[must_use]
    pub(crate) const fn of(kind: u8, amount: u8) -> Self {
        let amount = (amount % 24) as usize;
        match kind % 6 {
            0 => Self::Come(amount),
            1 => Self::Leave(amount),
            2 => Self::Receive,
            3 => Self::Send(amount),
            4 => Self::Reclaim,
            _ => Self::Room(amount),
        }
    }

    /// Does it.
    pub(crate) fn take(self, frames: &mut Frames, kernel: &mut Kernel) {
        match self {
            Self::Come(count) => kernel.come(count),
            Self::Leave(count) => kernel.leave(count),
            Self::Receive => frames.receive(kernel, |bytes| assert_eq!(bytes, b"frame")),
            Self::Send(count) => {
                for _ in 0..count {
                    let _ = frames.send(kernel, b"frame");
                }
            }
            Self::Reclaim => frames.reclaim(kernel),
            Self::Room(room) => kernel.room = room,
        }
    }
}

impl Kernel {
    fn come(&mut self, count: usize) {
        let count = count.min(self.filling.len());
        self.received.extend(self.filling.drain(..count));
    }

    fn leave(&mut self, count: usize) {
        // Not in the order in which they came.
        for _ in 0..count {
            self.sent.extend(self.sending.pop_back());
        }
    }

    /// Gives back a frame that it does not have, the next time.
    pub(crate) fn invent(&mut self, frame: Frame) {
        self.sent.push_back(frame);
    }

    /// Whether each frame has exactly one holder, and everybody agrees on how many have which.
    ///
    /// # Errors
    /// Says what does not fit.
    pub(crate) fn check(&self, frames: &Frames, count: u32) -> Result<(), String> {
        let shares = frames.shares();
        let receiving = self.filling.len() + self.received.len();
        let sending = self.sending.len() + self.sent.len();
        let mut held: Vec<Frame> = [&self.filling, &self.received, &self.sending, &self.sent]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        held.sort_unstable();
        let total = held.len();
        held.dedup();
        let fits = (shares.receiving, shares.sending) == (receiving, sending)
            && shares.free + receiving + sending == count as usize
            && held.len() == total
            && shares.strays == 0;
        if fits { Ok(()) } else { Err(format!("{shares:?} of {count} frames, and the kernel has {self:?}")) }
    }
}

impl Rings for Kernel {
    fn fill(&mut self, frames: &[Frame]) -> usize {
        let taken = frames.len().min(self.room);
        self.filling.extend(&frames[..taken]);
        taken
    }

    fn receive(&mut self, each: &mut dyn FnMut(Frame, &[u8])) {
        let count = self.received.len().min(self.room);
        self.received.drain(..count).for_each(|frame| each(frame, b"frame"));
    }

    fn send(&mut self, frame: Frame, _: &[u8]) -> bool {
        if self.sending.len() >= self.room {
            return false;
        }
        self.sending.push_back(frame);
        true
    }

    fn completed(&mut self, each: &mut dyn FnMut(Frame)) {
        self.sent.drain(..).for_each(each);
    }
}
