//! The fast path's judgement, anew: by the same pipeline, on what is true now.

use nat_common::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use nat_common::frame::Frame;
use nat_common::pipeline::{self, Admission, Direction, Node, Query, Route};
use nat_common::verdict::{Punt, Reject, Verdict};

use super::router::{Around, Kernel, Packet};

/// What the fast path would do with a packet now.
pub(super) struct Judged {
    /// Its frame as it would leave.
    pub(super) frame: Vec<u8>,
    /// Whom it is billed to if it leaves.
    pub(super) bills: Vec<(u32, Direction, u16)>,
    /// What the way out takes, if it was too large for that.
    pub(super) mtu: u16,
}

/// Judges a packet like the fast path, which has to finish everything here.
pub(super) fn judge(packet: &Packet, around: &mut Around<'_>) -> (Verdict, Judged) {
    let mut frame = packet.bytes.clone();
    let mut judge = Judge::new(around.kernel);
    let verdict =
        pipeline::process(&mut Cut { bytes: &mut frame, size: packet.size }, packet.ifindex, &mut judge);
    let Judge { bills, mtu, .. } = judge;
    (verdict, Judged { frame, bills, mtu })
}

/// A frame of which only the beginning may be there.
pub(super) struct Cut<'a> {
    pub(super) bytes: &'a mut [u8],
    /// How many bytes it had.
    pub(super) size: usize,
}

impl Frame for Cut<'_> {
    fn at<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Reject> {
        self.bytes.at(offset)
    }

    fn size(&self) -> usize {
        self.size
    }
}

/// The kernel as the pipeline sees it: everything is finished here, and nobody is billed yet.
pub(super) struct Judge<'a> {
    kernel: &'a mut dyn Kernel,
    bills: Vec<(u32, Direction, u16)>,
    mtu: u16,
}

impl<'a> Judge<'a> {
    pub(super) fn new(kernel: &'a mut dyn Kernel) -> Self {
        Self { kernel, bills: Vec::new(), mtu: 0 }
    }
}

impl Node for Judge<'_> {
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        self.kernel.port(ifindex)
    }

    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        self.kernel.inbound(public_ip)
    }

    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        self.kernel.outbound(key)
    }

    fn kind(&mut self, addr: Addr) -> AddressKind {
        self.kernel.kind(addr)
    }

    fn public_ip(&mut self) -> Addr {
        self.kernel.public_ip()
    }

    fn route(&mut self, query: &Query) -> Route {
        let way = self.kernel.way(query);
        if way.route == Route::TooBig {
            self.mtu = way.mtu;
        }
        way.route
    }

    fn admit(&mut self, _: Punt, _: usize, _: u32) -> Admission {
        Admission::Here
    }

    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        self.bills.push((meter, direction, bytes));
    }
}
