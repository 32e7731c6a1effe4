//! The kernel's FIB, asked by the packet path and by a program for the daemon's questions.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use nat_common::abi::Addr;
use nat_common::abi::trial::{FibAnswer, FibQuestion};
use nat_common::pipeline::{Query, Route};
use nat_common::translate::Addresses;
use nat_common::verdict::Egress;

/// Linux's `AF_INET`.
const AF_INET: u8 = 2;

/// The way that the kernel would send the packet, and the next hop's address: all zero if it is none of IPv4.
#[inline(always)]
pub(crate) fn route(ctx: &XdpContext, query: &Query) -> (Route, Addr) {
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
    let result = unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size, 0) };
    // kernel: enum BPF_FIB_LKUP_RET_*, include/uapi/linux/bpf.h
    let route = match u32::try_from(result) {
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
            debug!(ctx, "bpf_fib_lookup: {}", result);
            Route::Failed
        }
    };
    // SAFETY: an integer, which this function or the kernel has written.
    let next_hop = unsafe { fib.__bindgen_anon_4.ipv4_dst };
    // A gateway of IPv6 makes it that family.
    (route, if fib.family == AF_INET { next_hop.to_ne_bytes() } else { [0; 4] })
}

/// Answers the question that stands in the place of a frame. It is never attached to an interface: the daemon loads it when it
/// explains a packet, and runs it by `BPF_PROG_TEST_RUN`.
#[xdp]
fn eipnat_fib(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + size_of::<FibQuestion>() > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: the bytes are the packet's, and this program's alone. The kernel's frames begin at a multiple of four bytes.
    let question = unsafe { *(start as *const FibQuestion) };
    let query = Query {
        ifindex: ctx.ingress_ifindex() as u32,
        addresses: Addresses { source: question.source, destination: question.destination },
        tos: question.tos,
        protocol: question.protocol,
        total_len: question.total_len,
    };
    let (route, next_hop) = route(&ctx, &query);
    // SAFETY: as above.
    unsafe { *(start as *mut FibAnswer) = FibAnswer::of(&route, next_hop) };
    XDP_PASS
}
