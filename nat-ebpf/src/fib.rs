//! The kernel's FIB, asked by the packet path and, for the daemon's questions, by `bin/fib.rs`.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup as FibLookup,
};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use nat_common::pipeline::{Query, Route};
use nat_common::verdict::Egress;

/// Linux's `AF_INET`.
pub(crate) const AF_INET: u8 = 2;

/// Where a question is put together: the stack has little room.
#[map]
static FIB: PerCpuArray<FibLookup> = PerCpuArray::with_max_entries(1, 0);

/// Asks which way the kernel would send a packet. Answers what the helper returns, and the structure that it has filled, which is
/// the next question's as well.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[inline(always)]
pub(crate) unsafe fn ask(ctx: *mut c_void, query: &Query) -> Option<(i64, &'static FibLookup)> {
    let fib = FIB.get_ptr_mut(0)?;
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: the element is this CPU's, on which programs do not interrupt each other, but for a trial before Linux 6.3, of which
    // nothing comes; its fields are integers, for which any bits are a value. The context is the program's own.
    unsafe {
        fib.write_bytes(0, 1);
        let question = &mut *fib;
        question.family = AF_INET;
        question.l4_protocol = query.protocol;
        question.ifindex = query.ifindex;
        question.__bindgen_anon_1.tot_len = query.total_len;
        question.__bindgen_anon_2.tos = query.tos;
        question.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.addresses.source);
        question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.addresses.destination);
        let result = bpf_fib_lookup(ctx, fib, size, 0);
        Some((result, &*fib))
    }
}

/// What the answer means.
#[inline(always)]
pub(crate) fn route(result: i64, fib: &FibLookup) -> Route {
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
        _ => Route::Failed,
    }
}
