//! Who has each frame of a socket's memory: nobody, or one of the kernel's two rings that lead to it.
//!
//! A frame that nobody gives back is one less for good, and a socket without frames is dead. So every way that a frame takes
//! stands here, without a kernel, where a fuzzer can drive it (`nat-common/fuzz`).

/// A frame's number in its socket's memory.
pub type Frame = u32;

/// The four rings of an AF_XDP socket (kernel: `Documentation/networking/af_xdp.rst`).
pub trait Rings {
    /// Gives the kernel frames to receive into, and answers how many it has taken: the first ones.
    fn fill(&mut self, frames: &[Frame]) -> usize;
    /// Takes frames that the kernel has filled. The bytes are the frame's until the function returns.
    fn receive(&mut self, each: &mut dyn FnMut(Frame, &[u8]));
    /// Gives the kernel a frame with these bytes to send. Answers whether it has taken it.
    fn send(&mut self, frame: Frame, bytes: &[u8]) -> bool;
    /// Takes frames that the kernel has sent.
    fn completed(&mut self, each: &mut dyn FnMut(Frame));
}

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// The kernel, to receive into.
    Receiver,
    /// The kernel, to send.
    Sender,
}

/// How the frames of a socket are shared out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Nobody's.
    pub free: usize,
    /// The kernel's, to receive into, or received and not looked at yet.
    pub receiving: usize,
    /// The kernel's, to send, or sent and not taken back yet.
    pub sending: usize,
    /// How often the kernel gave back what it did not have. Never, if it is right.
    pub strays: u64,
}

/// The frames of a socket.
#[derive(Debug)]
pub struct Frames {
    holders: Vec<Holder>,
    free: Vec<Frame>,
    /// How many the kernel is to have to receive into.
    to_receive: usize,
    shares: Shares,
}

impl Frames {
    /// So many, of which the kernel is to have some to receive into.
    #[must_use]
    pub fn new(count: u32, to_receive: u32) -> Self {
        let holders = vec![Holder::Nobody; count as usize];
        let free = (0..count).rev().collect();
        let shares = Shares { free: holders.len(), ..Shares::default() };
        Self { holders, free, to_receive: to_receive as usize, shares }
    }

    /// How they are shared out just now.
    #[must_use]
    pub const fn shares(&self) -> Shares {
        self.shares
    }

    /// Takes what has been received, and gives the kernel as many frames again.
    pub fn receive(&mut self, rings: &mut impl Rings, mut each: impl FnMut(&[u8])) {
        rings.receive(&mut |frame, bytes| {
            // What a stray frame holds may be written to by the kernel at this moment.
            if self.give_back(frame, Holder::Receiver) {
                each(bytes);
            }
        });
        self.refill(rings);
    }

    /// Gives the kernel frames to receive into.
    pub fn refill(&mut self, rings: &mut impl Rings) {
        let missing = self.to_receive.saturating_sub(self.shares.receiving).min(self.free.len());
        let offered = self.free.split_off(self.free.len() - missing);
        let taken = rings.fill(&offered).min(offered.len());
        let (taken, left) = offered.split_at(taken);
        self.free.extend(left);
        for frame in taken {
            self.hold(*frame, Holder::Receiver);
        }
    }

    /// Sends bytes, if there is a frame for them and the kernel takes it.
    #[must_use]
    pub fn send(&mut self, rings: &mut impl Rings, bytes: &[u8]) -> bool {
        if self.free.is_empty() {
            self.reclaim(rings);
        }
        let Some(frame) = self.free.pop() else { return false };
        if !rings.send(frame, bytes) {
            self.free.push(frame);
            return false;
        }
        self.hold(frame, Holder::Sender);
        true
    }

    /// Takes back what has been sent.
    pub fn reclaim(&mut self, rings: &mut impl Rings) {
        rings.completed(&mut |frame| {
            self.give_back(frame, Holder::Sender);
        });
    }

    fn hold(&mut self, frame: Frame, holder: Holder) {
        if let Some(held) = self.holders.get_mut(frame as usize) {
            *held = holder;
            self.shares.free -= 1;
            *self.count(holder) += 1;
        }
    }

    /// Whether the kernel had the frame.
    fn give_back(&mut self, frame: Frame, holder: Holder) -> bool {
        match self.holders.get_mut(frame as usize) {
            Some(held) if *held == holder => {
                *held = Holder::Nobody;
                self.shares.free += 1;
                *self.count(holder) -= 1;
                self.free.push(frame);
                true
            }
            _ => {
                self.shares.strays += 1;
                false
            }
        }
    }

    fn count(&mut self, holder: Holder) -> &mut usize {
        match holder {
            Holder::Nobody => &mut self.shares.free,
            Holder::Receiver => &mut self.shares.receiving,
            Holder::Sender => &mut self.shares.sending,
        }
    }
}
