//! What the pipeline asks its surroundings: maps, and the kernel's FIB.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use nat_common::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use nat_common::pipeline::{Direction, Node, Query, Route};
use nat_common::verdict::Egress;

use crate::maps;

/// Linux's `AF_INET`.
const AF_INET: u8 = 2;

/// The node that this program runs on.
pub(crate) struct KernelNode<'a> {
    ctx: &'a XdpContext,
}

impl<'a> KernelNode<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
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
        // SAFETY: plain integers, for which zero is a value.
        let mut fib: FibLookup = unsafe { core::mem::zeroed() };
        fib.family = AF_INET;
        fib.l4_protocol = query.protocol;
        fib.ifindex = query.ifindex;
        fib.__bindgen_anon_1.tot_len = query.total_len;
        fib.__bindgen_anon_2.tos = query.tos;
        fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.addresses.source);
        fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.addresses.destination);
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: the context is the program's own, and the structure lives through the call.
        let result = unsafe { bpf_fib_lookup(self.ctx.as_ptr(), &raw mut fib, size, 0) };
        // kernel: enum BPF_FIB_LKUP_RET_*, include/uapi/linux/bpf.h
        match u32::try_from(result) {
            Ok(BPF_FIB_LKUP_RET_SUCCESS) => {
                Route::Via(Egress { ifindex: fib.ifindex, destination: fib.dmac, source: fib.smac })
            }
            Ok(BPF_FIB_LKUP_RET_NO_NEIGH) => Route::Unresolved(fib.ifindex),
            Ok(BPF_FIB_LKUP_RET_NOT_FWDED) => Route::NotForwarded,
            Ok(BPF_FIB_LKUP_RET_FWD_DISABLED) => Route::Disabled,
            Ok(BPF_FIB_LKUP_RET_FRAG_NEEDED) => Route::TooBig,
            Ok(BPF_FIB_LKUP_RET_BLACKHOLE | BPF_FIB_LKUP_RET_UNREACHABLE | BPF_FIB_LKUP_RET_PROHIBIT) => {
                Route::Unreachable
            }
            _ => {
                debug!(self.ctx, "bpf_fib_lookup: {}", result);
                Route::Failed
            }
        }
    }

    #[inline(always)]
    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        maps::bill(meter, direction, bytes);
    }
}
