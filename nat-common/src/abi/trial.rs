//! Trials: the program and the kernel's FIB on a packet that nobody has sent (`BPF_PROG_TEST_RUN`).
//!
//! A frame is a trial if [`Ticket`] stands in front of it, where no frame from a wire has anything. Such a frame is judged like
//! any other, but neither billed, counted, logged nor traced; and [`Outcome`] takes the place of the ticket.

use bytemuck::{Pod, Zeroable};

use super::{Addr, Mac};
use crate::pipeline::Route;
use crate::verdict::Egress;

/// Length of what stands in front of a trial's frame, in bytes: the most that Linux 6.1 takes.
pub const LENGTH: usize = 32;

/// What makes a frame a trial.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ticket {
    /// [`Node::id`](super::Node::id): whoever can write another program's metadata in front of a frame does not know it,
    /// and so cannot avoid the bill.
    pub id: [u8; 16],
    /// Zero.
    pub padding: [u8; 16],
}

/// What became of a trial's frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Outcome {
    /// [`Outcome::MAGIC`]: the program has seen that it was a trial.
    pub magic: u32,
    /// The place of the [`Counter`](crate::verdict::Counter) that would have counted it.
    pub counter: u32,
    /// Index of the interface that it would leave by; 0 if it would not.
    pub egress: u32,
    /// Zero.
    pub padding: [u32; 5],
}

impl Outcome {
    /// Not what a ticket begins with, unless by a chance of one in four thousand million.
    pub const MAGIC: u32 = 0x4549_504e;
}

/// A question to the kernel's FIB: what a [`Query`](crate::pipeline::Query) is, as a packet for the program `eipnat_fib`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FibQuestion {
    /// The packet's source.
    pub source: Addr,
    /// Its destination.
    pub destination: Addr,
    /// IPv4 total length, in bytes, in the machine's byte order; 0 asks without regard to the MTU.
    pub total_len: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Index of the interface that the packet came by.
    pub ifindex: u32,
    /// Zero. The answer is no longer than the question.
    pub padding: [u8; 32],
}

/// The FIB's answer, in the place of the question: a [`Route`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FibAnswer {
    /// Which [`Route`] it is.
    kind: u32,
    /// Index of the interface that the route leads to, if it leads to one.
    ifindex: u32,
    /// The next hop's MAC address.
    destination: Mac,
    /// The interface's.
    source: Mac,
    /// The most that the way out takes, in bytes of an IP packet; 0 where the kernel does not tell.
    pub mtu: u32,
    /// The next hop's address: the gateway's, or the destination itself; one of IPv6 (RFC 8950), or of IPv4 as one of those
    /// (RFC 4291 §2.5.5.2). All zero if there is none.
    pub next_hop: [u8; 16],
    /// Zero.
    padding: [u8; 8],
}

impl FibAnswer {
    const VIA: u32 = 1;
    const UNRESOLVED: u32 = 2;
    const NOT_FORWARDED: u32 = 3;
    const DISABLED: u32 = 4;
    const TOO_BIG: u32 = 5;
    const UNREACHABLE: u32 = 6;
    const FAILED: u32 = 7;

    /// A route as an answer.
    #[inline(always)]
    #[must_use]
    pub const fn of(route: &Route, next_hop: [u8; 16], mtu: u32) -> Self {
        let (kind, ifindex, destination, source) = match *route {
            Route::Via(egress) => (Self::VIA, egress.ifindex, egress.destination, egress.source),
            Route::Unresolved(ifindex) => (Self::UNRESOLVED, ifindex, [0; 6], [0; 6]),
            Route::NotForwarded => (Self::NOT_FORWARDED, 0, [0; 6], [0; 6]),
            Route::Disabled => (Self::DISABLED, 0, [0; 6], [0; 6]),
            Route::TooBig => (Self::TOO_BIG, 0, [0; 6], [0; 6]),
            Route::Unreachable => (Self::UNREACHABLE, 0, [0; 6], [0; 6]),
            Route::Failed => (Self::FAILED, 0, [0; 6], [0; 6]),
        };
        Self { kind, ifindex, destination, source, mtu, next_hop, padding: [0; 8] }
    }

    /// The route; `None` if this is no answer.
    #[must_use]
    pub const fn route(&self) -> Option<Route> {
        Some(match self.kind {
            Self::VIA => Route::Via(Egress {
                ifindex: self.ifindex,
                destination: self.destination,
                source: self.source,
            }),
            Self::UNRESOLVED => Route::Unresolved(self.ifindex),
            Self::NOT_FORWARDED => Route::NotForwarded,
            Self::DISABLED => Route::Disabled,
            Self::TOO_BIG => Route::TooBig,
            Self::UNREACHABLE => Route::Unreachable,
            Self::FAILED => Route::Failed,
            _ => return None,
        })
    }
}

const _: () = assert!(size_of::<Ticket>() == LENGTH && size_of::<Outcome>() == LENGTH);
const _: () = assert!(size_of::<FibQuestion>() == 48 && size_of::<FibAnswer>() == 48);
const _: () = assert!(core::mem::offset_of!(FibAnswer, next_hop) == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_comes_back_from_its_answer() {
        let egress = Egress { ifindex: 7, destination: [1; 6], source: [2; 6] };
        for route in [
            Route::Via(egress),
            Route::Unresolved(7),
            Route::NotForwarded,
            Route::Disabled,
            Route::TooBig,
            Route::Unreachable,
            Route::Failed,
        ] {
            assert_eq!(FibAnswer::of(&route, [1; 16], 1500).route(), Some(route));
        }
        assert_eq!(FibAnswer::zeroed().route(), None);
    }
}
