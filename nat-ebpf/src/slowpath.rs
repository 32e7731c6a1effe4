//! The way to the slow path: an AF_XDP socket on each queue of each interface.
//!
//! All of it stands in BPF functions of its own, which the verifier checks once.

use core::arch::asm;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_REDIRECT};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, XskMap};
use aya_ebpf::programs::XdpContext;
use nat_common::abi::Port;
use nat_common::abi::slowpath::{
    BUCKETS_OF_PORT, BURST, Bucket, CUT, MAX_FRAME, MAX_PORTS, MAX_QUEUES, Note, OVERFLOW, Tally,
};
use nat_common::pipeline::Admission;
use nat_common::verdict::{Errand, Punt};

use crate::maps;
use crate::watch::Watch;

#[map]
static SOCKETS: XskMap = XskMap::pinned(MAX_PORTS * MAX_QUEUES, 0);

#[map]
static BUCKETS: Array<Bucket> = Array::pinned(MAX_PORTS * BUCKETS_OF_PORT, 0);

// Only the daemon uses this one. It stands here so that all maps are made alike.
#[map]
static TALLIES: Array<u64> = Array::pinned(Tally::COUNT, aya_ebpf::bindings::BPF_F_MMAPABLE);

/// How often a bucket is tried that other CPUs take from at the same time.
const ATTEMPTS: u32 = 4;

const TAKEN: u32 = 0;
const LIMITED: u32 = 1;
const ABSENT: u32 = 2;

/// Whether the slow path takes a packet. A trial takes no packet's place.
#[inline(always)]
pub(crate) fn admit(ctx: &XdpContext, punt: Punt, size: usize, egress: u32, watch: Watch) -> Admission {
    // Before Linux 6.6 a socket takes no frame that is in several buffers. Lengths are compared and not addresses, for Linux
    // 6.1 adds no number without a bound to one of those.
    if size > MAX_FRAME || size > linear(ctx) {
        return Admission::Kernel;
    }
    // SAFETY: the context is the one that the program was called with.
    match unsafe { eipnat_admit(ctx.ctx, Errand::Carry(punt).number(), egress, watch.place(0)) } {
        TAKEN => Admission::Taken,
        LIMITED => Admission::Limited,
        _ => Admission::Kernel,
    }
}

/// Sends a packet to the slow path that it has been [admitted](admit) to, and answers the program's action. If its socket has
/// gone in between, the packet is lost: it cannot be made what it was.
#[inline(always)]
pub(crate) fn hand_over(ctx: &XdpContext, errand: Errand) -> u32 {
    // SAFETY: the context is the one that the program was called with.
    unsafe { eipnat_hand_over(ctx.ctx, errand.number()) }
}

/// Sends a packet to the slow path that is dropped here and may be answered there. Answers the program's action.
#[inline(always)]
pub(crate) fn have_answered(ctx: &XdpContext, errand: Errand) -> u32 {
    // SAFETY: the context is the one that the program was called with.
    unsafe {
        let ingress = (*ctx.ctx).ingress_ifindex;
        if eipnat_admit(ctx.ctx, errand.number(), ingress, 0) != TAKEN {
            return XDP_DROP;
        }
        eipnat_hand_over(ctx.ctx, errand.number())
    }
}

/// How much of a frame is in its first buffer, in bytes.
#[inline(always)]
fn linear(ctx: &XdpContext) -> usize {
    let length: usize;
    // SAFETY: arithmetic on registers, of which the optimiser shall not make another comparison.
    unsafe {
        asm!(
            "{length} -= {start}",
            length = inout(reg) ctx.data_end() => length,
            start = in(reg) ctx.data(),
            options(pure, nomem, nostack),
        );
    }
    length
}

/// The interface's place in the slow path.
#[inline(always)]
fn port(ctx: *mut xdp_md) -> Option<Port> {
    // SAFETY: the context is the program's own.
    maps::port(unsafe { (*ctx).ingress_ifindex })
}

#[inline(always)]
fn socket(ctx: *mut xdp_md, port: &Port) -> Option<u32> {
    // SAFETY: the context is the program's own.
    port.socket(unsafe { (*ctx).rx_queue_index })
}

/// [`TAKEN`], [`LIMITED`] or [`ABSENT`]; `egress`: the interface that the packet leaves by; `trial`: zero for a packet.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_admit(ctx: *mut xdp_md, errand: u32, egress: u32, trial: u32) -> u32 {
    let Some(port) = port(ctx) else { return ABSENT };
    let Some(&errand) = Errand::ALL.get(errand as usize) else { return ABSENT };
    // Frames leave by an interface's first queue.
    let way_out = maps::port(egress).and_then(|port| port.socket(0));
    let is_there = |place: Option<u32>| place.is_some_and(|place| SOCKETS.get(place).is_some());
    if !is_there(socket(ctx, &port)) || !is_there(way_out) {
        return ABSENT;
    }
    if trial != 0 {
        return TAKEN;
    }
    let Some(interval) = maps::node().map(|node| u64::from(node.slow_path_interval)) else { return ABSENT };
    if port.bucket(errand).is_some_and(|place| takes(place, interval)) {
        return TAKEN;
    }
    // What can be finished at once the kernel may have, too, though not without end.
    if matches!(errand, Errand::Carry(Punt::Fragment | Punt::Trailer))
        && port.overflow().is_some_and(|place| takes(place, interval / OVERFLOW))
    {
        return ABSENT;
    }
    LIMITED
}

/// Whether a bucket has room for one more packet, of those that are so far apart on the long run.
#[inline(always)]
fn takes(place: u32, interval: u64) -> bool {
    let Some(bucket) = BUCKETS.get_ptr_mut(place) else { return false };
    // SAFETY: the element stays, and every CPU changes it by atomic instructions alone.
    unsafe {
        let now = bpf_ktime_get_ns();
        for _ in 0..ATTEMPTS {
            let due = (&raw const (*bucket).due).read_volatile();
            let next = (if due > now { due } else { now }) + interval;
            if next > now + BURST {
                break;
            }
            if replace(&raw mut (*bucket).due, due, next) == due {
                add_one(&raw mut (*bucket).sent);
                return true;
            }
        }
        add_one(&raw mut (*bucket).limited);
    }
    false
}

/// Puts a [`Note`] in front of the frame and sends both to the socket of its queue.
///
/// # Safety
/// As for [`eipnat_admit`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_hand_over(ctx: *mut xdp_md, errand: u32) -> u32 {
    let Some(socket) = port(ctx).and_then(|port| socket(ctx, &port)) else { return XDP_DROP };
    // SAFETY: helpers; the context is the program's own.
    let size = unsafe { bpf_xdp_get_buff_len(ctx) } as usize;
    let linear = linear(&XdpContext::new(ctx));
    if size > MAX_FRAME || size > linear {
        let cut = if linear < CUT { linear } else { CUT };
        // SAFETY: as above.
        let refused = unsafe { bpf_xdp_adjust_tail(ctx, cut as i32 - size as i32) };
        if refused != 0 {
            return XDP_DROP;
        }
    }
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_head(ctx, -(size_of::<Note>() as i32)) } != 0 {
        return XDP_DROP;
    }
    let ctx = XdpContext::new(ctx);
    let start = ctx.data();
    if start + size_of::<Note>() > ctx.data_end() {
        return XDP_DROP;
    }
    // SAFETY: the bytes lie within the frame.
    unsafe { (start as *mut Note).write_unaligned(Note { errand, size: size as u32 }) };
    SOCKETS.redirect(socket, u64::from(XDP_DROP)).map_or_else(|action| action, |_| XDP_REDIRECT)
}

/// Puts `new` where `old` stands, and answers what stood there.
///
/// # Safety
/// The place must be that of an aligned number in memory that the program may write to.
#[inline(always)]
unsafe fn replace(place: *mut u64, old: u64, new: u64) -> u64 {
    let stood: u64;
    // SAFETY: the caller's. core has no atomic function on this target.
    #[cfg(target_arch = "bpf")]
    unsafe {
        asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            place = in(reg) place,
            new = in(reg) new,
            inout("r0") old => stood,
            options(nostack),
        );
    }
    // Lints are checked as if for the machine that builds, which has no such register.
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = (place, new);
        stood = old;
    }
    stood
}

/// # Safety
/// As for [`replace`].
#[inline(always)]
pub(crate) unsafe fn add_one(place: *mut u64) {
    // SAFETY: the caller's. core has no atomic function on this target.
    unsafe {
        asm!(
            "lock *(u64 *)({place} + 0) += {one}",
            place = in(reg) place,
            one = in(reg) 1_u64,
            options(nostack, preserves_flags),
        );
    }
}
