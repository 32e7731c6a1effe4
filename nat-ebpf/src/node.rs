//! What the pipeline asks its surroundings: maps, and the kernel's FIB.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use nat_common::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use nat_common::pipeline::{Admission, Direction, Node, Query, Route};
use nat_common::verdict::{Egress, Punt};

use crate::watch::Watch;
use crate::{express, fib, maps, slowpath};

/// The node that this program runs on.
pub(crate) struct KernelNode<'a> {
    ctx: &'a XdpContext,
    watch: Watch,
    /// The generation of next hops when the FIB was asked, and the MTU that it told.
    generation: u32,
    mtu: u16,
}

impl<'a> KernelNode<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext, watch: Watch) -> Self {
        Self { ctx, watch, generation: 0, mtu: 0 }
    }
}

impl Node for KernelNode<'_> {
    #[inline(always)]
    fn port(&mut self, ifindex: u32) -> Option<Port> {
        maps::port(ifindex)
    }

    #[inline(always)]
    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound> {
        maps::inbound(public_ip)
    }

    #[inline(always)]
    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound> {
        maps::outbound(key)
    }

    #[inline(always)]
    fn kind(&mut self, addr: Addr) -> AddressKind {
        maps::kind(addr)
    }

    #[inline(always)]
    fn public_ip(&mut self) -> Addr {
        maps::node().map_or([0; 4], |node| node.public_ip)
    }

    #[inline(always)]
    fn route(&mut self, query: &Query) -> Route {
        self.generation = express::generation(express::now());
        // SAFETY: the context is the one that the program was called with.
        let Some((result, fib)) = (unsafe { fib::ask(self.ctx.as_ptr(), query) }) else {
            return Route::Failed;
        };
        // SAFETY: a number, which the kernel has written.
        self.mtu = unsafe { fib.__bindgen_anon_1.mtu_result };
        let route = fib::route(result, fib);
        if matches!(route, Route::Failed) {
            debug!(self.ctx, "bpf_fib_lookup: {}", result);
        }
        route
    }

    #[inline(always)]
    fn admit(&mut self, punt: Punt, size: usize, egress: u32) -> Admission {
        slowpath::admit(self.ctx, punt, size, egress, self.watch)
    }

    #[inline(always)]
    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        maps::bill(meter, direction, bytes, self.watch);
    }

    #[inline(always)]
    fn learn(&mut self, to: Addr, public_ip: Option<Addr>, egress: &Egress) {
        // Nothing comes of a trial.
        let generation = self.generation & !self.watch.place(0);
        express::learn(to, public_ip, egress, self.mtu, generation);
    }
}
