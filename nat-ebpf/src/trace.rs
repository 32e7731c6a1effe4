//! Reporting of packets to the daemon (see [`nat_common::abi::trace`]).
//!
//! All but [`is_on`] stands in BPF functions of its own, which the verifier checks once.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::XdpContext;
use nat_common::abi::Addr;
use nat_common::abi::express::Front;
use nat_common::abi::trace::{EVENTS_SIZE, EVERYTHING, Event, HEAD, MAX_SNAP, MAX_TRACED, MIN_SNAP};
use nat_common::wire::{ethernet, ipv4};

use crate::maps;

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

#[map]
static TRACED: HashMap<Addr, u32> = HashMap::pinned(MAX_TRACED, 0);

#[map]
static EVENTS: RingBuf = RingBuf::pinned(EVENTS_SIZE, 0);

#[map]
static LEFT_OUT: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);

/// Where an event is put together; larger than the stack.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Scratch {
    event: Event,
    frame: [u8; MAX_SNAP],
    /// When this CPU's second began.
    second: u64,
    /// How many events it has written since.
    written: u64,
}

/// Whether packets are traced.
#[inline(always)]
pub(crate) fn is_on() -> bool {
    maps::front().is_some_and(is_asked_for)
}

/// Whether the daemon asks for it.
#[inline(always)]
pub(crate) fn is_asked_for(front: *mut Front) -> bool {
    // SAFETY: the element of a map, which stays; the daemon writes whole numbers.
    unsafe { (*front).trace.until != 0 }
}

/// Keeps the beginning of the frame as it came, if that can be.
#[inline(always)]
pub(crate) fn begin(ctx: &XdpContext) -> bool {
    let ctx = ctx.ctx;
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
    // SAFETY: the element belongs to this CPU, and XDP programs do not interrupt each other on one.
    let scratch = unsafe { &mut *scratch };
    let event = &mut scratch.event;
    // SAFETY: helpers; the context is the program's own.
    unsafe {
        event.time = bpf_ktime_get_ns();
        event.ingress = (*ctx).ingress_ifindex;
        event.length = bpf_xdp_get_buff_len(ctx) as u32;
    }
    let length = bounded(u64::from(event.length), HEAD as u64);
    // SAFETY: as many bytes as the buffer holds, and the frame.
    unsafe { bpf_xdp_load_bytes(ctx, 0, event.head.as_mut_ptr().cast(), length as u32) == 0 }
}

/// Reports the packet, if it is one that is wanted.
#[inline(always)]
pub(crate) fn end(ctx: &XdpContext, counter: u32, egress: u32) {
    let ctx = ctx.ctx;
    let (Some(front), Some(scratch)) = (maps::front(), SCRATCH.get_ptr_mut(0)) else { return };
    // SAFETY: the daemon's, whose parts are read one by one; this CPU's.
    let (settings, scratch) = unsafe { (&mut (*front).trace, &mut *scratch) };
    let event = &mut scratch.event;
    if settings.until < event.time {
        // Nobody has prolonged it.
        settings.until = 0;
        return;
    }
    let snap = if settings.snap < MIN_SNAP as u32 { MIN_SNAP as u64 } else { u64::from(settings.snap) };
    let snap = if snap < u64::from(event.length) { snap } else { u64::from(event.length) };
    let captured = bounded(snap, MAX_SNAP as u64);
    // SAFETY: as many bytes as the buffer holds, and the frame.
    let loaded = unsafe { bpf_xdp_load_bytes(ctx, 0, scratch.frame.as_mut_ptr().cast(), captured as u32) };
    if loaded != 0 || !is_wanted(event, &scratch.frame) {
        return;
    }
    // No shorter: a rate is asked for to see all of a short burst.
    if event.time.wrapping_sub(scratch.second) >= SECOND {
        scratch.second = event.time;
        scratch.written = 0;
    }
    scratch.written += 1;
    if scratch.written > u64::from(settings.rate) {
        return leave_out();
    }
    event.counter = counter;
    event.egress = egress;
    event.captured = captured as u32;
    event.padding = 0;
    let length = bounded(captured, MAX_SNAP as u64) + size_of::<Event>() as u64;
    // SAFETY: header and frame follow each other in the scratch, and both are written as far as the event reaches; bytes that
    // a shorter frame leaves in its head are an earlier one's, which the same reader may see.
    let bytes =
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(event).cast::<u8>(), length as usize) };
    if EVENTS.output::<[u8]>(bytes, 0).is_err() {
        leave_out();
    }
}

/// Whether one of the packet's addresses is traced.
#[inline(always)]
fn is_wanted(event: &Event, frame: &[u8; MAX_SNAP]) -> bool {
    const TYPE: usize = ethernet::HEADER_LEN - 2;
    const SOURCE: usize = ethernet::HEADER_LEN + ipv4::ADDRESSES;
    if is_traced(EVERYTHING) {
        return true;
    }
    if [frame[TYPE], frame[TYPE + 1]] != ethernet::TYPE_IPV4.to_be_bytes() || event.length < SOURCE as u32 + 8
    {
        return false;
    }
    let at = |bytes: &[u8], at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    is_traced(at(&event.head, SOURCE))
        || is_traced(at(&event.head, SOURCE + 4))
        || is_traced(at(frame, SOURCE))
        || is_traced(at(frame, SOURCE + 4))
}

#[inline(always)]
fn is_traced(addr: Addr) -> bool {
    TRACED.get_ptr(addr).is_some()
}

#[inline(always)]
fn leave_out() {
    if let Some(left_out) = LEFT_OUT.get_ptr_mut(0) {
        // SAFETY: as for the scratch.
        unsafe { *left_out += 1 };
    }
}

/// At least 1 and at most `most`, and the verifier knows it of the very register.
#[inline(always)]
fn bounded(length: u64, most: u64) -> u64 {
    let mut bounded = length;
    // SAFETY: comparisons of a register.
    unsafe {
        asm!(
            // Linux 6.1 learns nothing of a bound from `!=`.
            "if {length} > 0 goto 2f",
            "{length} = 1",
            "2:",
            "if {length} <= {most} goto 3f",
            "{length} = {most}",
            "3:",
            length = inout(reg) bounded,
            most = in(reg) most,
            options(pure, nomem, nostack),
        );
    }
    bounded
}
