//! An AF_XDP socket on one queue of one interface, with memory of its own.
#![expect(unsafe_code, reason = "the kernel writes to the frames that it has been given")]

use std::num::NonZeroU32;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use nat_common::abi::slowpath::{MAX_FRAME, Note};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_error;
use xsk_rs::config::{BindFlags, FrameSize, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue, Umem};

use super::frames::{Frame, Frames, Rings, Shares};

/// Bytes of a frame in memory: a page, the most that the kernel takes.
const FRAME_SIZE: u32 = 4096;

/// What the kernel keeps free in front of each frame, in bytes (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;

/// How many frames are for what is sent.
const TO_SEND: u32 = 1024;

/// How many frames are taken at once.
const BATCH: usize = 64;

/// How often the kernel is asked to send what it has been given, at most. It sends 32 frames at a time.
const KICKS: usize = 2 * TO_SEND as usize / 32;

const _: () = assert!(MAX_FRAME + size_of::<Note>() + HEADROOM <= FRAME_SIZE as usize);

/// How the kernel moves frames between a socket and its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// It copies them.
    Copy,
    /// The driver writes to the socket's memory, and reads from it.
    ZeroCopy,
}

/// What the kernel has not put into a socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Since the worker did not take frames fast enough.
    pub ring_full: u64,
    /// Since it had no frames to receive into.
    pub no_frames: u64,
    /// For other reasons, such as the frame's length.
    pub dropped: u64,
}

/// What stands in a socket's rings just now: frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// For the kernel to receive into.
    pub fill: u32,
    /// Received, for the worker to look at.
    pub receive: u32,
    /// For the kernel to send.
    pub send: u32,
    /// Sent, for the worker to take back.
    pub completion: u32,
}

/// A socket.
#[derive(Debug)]
pub struct Socket {
    rings: Xsk,
    frames: Frames,
    copying: Copying,
    /// How many frames the fill ring holds.
    to_receive: u32,
    /// A second handle on it, to be waited for while the socket is in use by somebody else.
    readiness: Arc<OwnedFd>,
    /// Whether the kernel has frames to send that it has not been told of.
    is_to_kick: bool,
}

#[derive(Debug)]
struct Xsk {
    umem: Umem,
    /// All frames, by their numbers.
    descriptors: Vec<FrameDesc>,
    fill: FillQueue,
    completion: CompQueue,
    tx: TxQueue,
    rx: RxQueue,
}

impl Socket {
    /// Binds a socket to a queue that has none. `to_receive`, a power of two: how many frames the kernel is given to receive
    /// into.
    ///
    /// # Errors
    /// If the kernel refuses: because another socket has the queue, there is no such queue, or no memory.
    pub fn open(interface: &str, queue: u32, to_receive: u32, copying: Copying) -> anyhow::Result<Self> {
        let size = |size| QueueSize::new(size).map_err(|error| anyhow!("{error}"));
        let umem = UmemConfig::builder()
            .frame_size(FrameSize::new(FRAME_SIZE).map_err(|error| anyhow!("{error}"))?)
            .fill_queue_size(size(to_receive)?)
            .comp_queue_size(size(TO_SEND)?)
            .build()
            .map_err(|error| anyhow!("{error}"))?;
        let count = to_receive + TO_SEND;
        let frames = NonZeroU32::new(count).context("a socket without frames")?;
        let (umem, descriptors) = Umem::new(umem, frames, false).map_err(anyhow::Error::new)?;
        let how = match copying {
            Copying::Copy => BindFlags::XDP_COPY,
            Copying::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        };
        let config = SocketConfig::builder()
            .rx_queue_size(size(to_receive)?)
            .tx_queue_size(size(TO_SEND)?)
            // The program that sends frames here is on the interface already.
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(how | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let name = interface.parse().with_context(|| format!("{interface} is no name"))?;
        // SAFETY: the memory is shared with no other socket.
        let bound = unsafe { xsk_rs::Socket::new(config, &umem, &name, queue) };
        let (tx, rx, rings) = bound.map_err(anyhow::Error::new)?;
        let (fill, completion) = rings.context("the memory has rings already")?;
        // SAFETY: the descriptor is open as long as the queue, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
        let readiness = Arc::new(fcntl_dupfd_cloexec(fd, 0)?);
        let mut socket = Self {
            rings: Xsk { umem, descriptors, fill, completion, tx, rx },
            frames: Frames::new(count, to_receive),
            copying,
            to_receive,
            readiness,
            is_to_kick: false,
        };
        socket.frames.refill(&mut socket.rings);
        Ok(socket)
    }

    /// What becomes readable when there is something to receive.
    #[must_use]
    pub fn readiness(&self) -> &Arc<OwnedFd> {
        &self.readiness
    }

    /// How it moves frames.
    #[must_use]
    pub const fn copying(&self) -> Copying {
        self.copying
    }

    /// How its frames are shared out.
    #[must_use]
    pub const fn shares(&self) -> Shares {
        self.frames.shares()
    }

    /// What stands in its rings.
    pub fn occupancy(&mut self) -> Occupancy {
        let Xsk { fill, completion, tx, rx, .. } = &mut self.rings;
        Occupancy {
            fill: self.to_receive.saturating_sub(fill.nb_free_exact()),
            receive: rx.nb_avail_exact(),
            send: TO_SEND.saturating_sub(tx.nb_free_exact()),
            completion: completion.nb_avail_exact(),
        }
    }

    /// Whether its interface is still there. The kernel says so once, when that has gone.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(socket_error(&self.readiness), Ok(Ok(())))
    }

    /// What has not come into it.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn lost(&self) -> anyhow::Result<Lost> {
        let statistics = self.rings.rx.fd().xdp_statistics()?;
        Ok(Lost {
            ring_full: statistics.rx_ring_full(),
            no_frames: statistics.rx_fill_ring_empty_descs(),
            dropped: statistics.rx_dropped(),
        })
    }

    /// Takes some of what has come.
    pub fn receive(&mut self, each: impl FnMut(&[u8])) {
        self.frames.receive(&mut self.rings, each);
    }

    /// Sends a frame with the next [`kick`](Self::kick). Answers whether there was room for it.
    #[must_use]
    pub fn send(&mut self, frame: &[u8]) -> bool {
        if !self.frames.send(&mut self.rings, frame) {
            self.kick();
            if !self.frames.send(&mut self.rings, frame) {
                return false;
            }
        }
        self.is_to_kick = true;
        true
    }

    /// Has the kernel send what it has been given, and takes back what it has sent. Answers whether everything is on its way: an
    /// interface that is busy or down keeps its frames until the next time.
    pub fn kick(&mut self) -> bool {
        if self.is_to_kick {
            for _ in 0..KICKS {
                if self.rings.tx.nb_free_exact() == TO_SEND {
                    break;
                }
                if !self.rings.tx.needs_wakeup() || self.rings.tx.wakeup().is_err() {
                    break;
                }
            }
            self.is_to_kick = self.rings.tx.nb_free_exact() < TO_SEND;
        }
        self.frames.reclaim(&mut self.rings);
        !self.is_to_kick
    }
}

impl Rings for Xsk {
    fn fill(&mut self, frames: &[Frame]) -> usize {
        let descriptors: Vec<FrameDesc> =
            frames.iter().filter_map(|frame| self.descriptors.get(*frame as usize)).copied().collect();
        // SAFETY: the descriptors are this memory's, and nobody's frames are looked at by nobody (`Frames`).
        let taken = unsafe { self.fill.produce(&descriptors) };
        if taken > 0 && self.fill.needs_wakeup() {
            // It is woken by the next frame in any case.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
        taken
    }

    fn receive(&mut self, each: &mut dyn FnMut(Frame, &[u8])) {
        let mut descriptors = [FrameDesc::default(); BATCH];
        // SAFETY: the descriptors are overwritten with this memory's.
        let count = unsafe { self.rx.consume(&mut descriptors) };
        for descriptor in descriptors.iter().take(count) {
            // SAFETY: the kernel has given the frame back, and it is given to nobody before this function returns.
            let data = unsafe { self.umem.data(descriptor) };
            each(number(descriptor), data.contents());
        }
    }

    fn send(&mut self, frame: Frame, bytes: &[u8]) -> bool {
        let Some(descriptor) = self.descriptors.get(frame as usize) else { return false };
        let mut descriptor = *descriptor;
        // SAFETY: the frame is nobody's, so neither the kernel nor anybody else looks at it.
        let mut data = unsafe { self.umem.data_mut(&mut descriptor) };
        let mut cursor = data.cursor();
        cursor.set_pos(0);
        if std::io::Write::write_all(&mut cursor, bytes).is_err() {
            return false;
        }
        // SAFETY: the descriptor is this memory's, and the frame is the kernel's from here on.
        unsafe { self.tx.produce_one(&descriptor) == 1 }
    }

    fn completed(&mut self, each: &mut dyn FnMut(Frame)) {
        let mut descriptors = [FrameDesc::default(); BATCH];
        loop {
            // SAFETY: the descriptors are overwritten with this memory's.
            let count = unsafe { self.completion.consume(&mut descriptors) };
            descriptors.iter().take(count).map(number).for_each(&mut *each);
            if count < BATCH {
                return;
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "there are some thousand frames")]
fn number(descriptor: &FrameDesc) -> Frame {
    (descriptor.addr() / FRAME_SIZE as usize) as Frame
}
