//! eipnat's fast path: the XDP program.
//!
//! What happens to a packet is decided in nat-common's pipeline. Here stand only its surroundings: the packet's
//! memory ([`frame`]), the maps ([`maps`]), the kernel's FIB ([`node`]), and the one place where a verdict becomes
//! an XDP action.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "packet memory, BPF maps and helpers are raw pointers")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "offsets and sizes of a packet are small, and BPF's usize has 64 bits"
)]
#![expect(clippy::needless_pass_by_value, reason = "the entry point's signature is aya's")]

mod express;
mod fib;
mod frame;
mod maps;
mod node;
mod slowpath;
mod trace;
mod trial;
mod watch;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use nat_common::pipeline::{self, Direction};
use nat_common::verdict::{Counter, Errand, Reject, Verdict};

use crate::frame::XdpFrame;
use crate::node::KernelNode;
use crate::watch::Watch;

/// Entry point on every uplink and downlink. `frags`: it also takes frames that span several buffers (jumbo MTUs);
/// all headers stand in the first.
///
/// What it calls are BPF functions, so that they share the stack, and none saves what another needs: see those in [`frame`].
#[xdp(frags)]
fn eipnat(ctx: XdpContext) -> u32 {
    // SAFETY: the context is the one that the program was called with.
    let action = unsafe { eipnat_express(ctx.ctx) };
    if action != express::UNKNOWN {
        return action;
    }
    // SAFETY: as above.
    let action = unsafe { eipnat_judge(ctx.ctx) };
    match action.checked_sub(DROPPED).and_then(|number| Reject::ALL.get(number as usize)) {
        Some(reject) => dropped(&ctx, *reject),
        None => action,
    }
}

/// See [`express::process`].
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_express(ctx: *mut xdp_md) -> u32 {
    express::process(&XdpContext::new(ctx))
}

/// In place of the program's action, from here on: why the packet is dropped.
const DROPPED: u32 = 256;

/// What becomes of any packet: the program's action, or behind [`DROPPED`] the number of the reason for which it is dropped.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_judge(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let watch = Watch::begin(&ctx);
    let mut frame = XdpFrame::new(&ctx);
    let mut node = KernelNode::new(&ctx, watch);
    let verdict = pipeline::process(&mut frame, ctx.ingress_ifindex() as u32, &mut node);
    maps::count(watch.place(Counter::from(&verdict).index()));
    watch.end(&ctx, &verdict);
    match verdict {
        Verdict::Forward(egress) => maps::send_by(egress.ifindex),
        // The kernel finishes what it got translated: it asks for the neighbour, or fragments.
        Verdict::Pass | Verdict::Finish(_) => XDP_PASS,
        // A trial is nobody's packet: it is told what would have become of it.
        Verdict::Punt(_) if watch.is_trial() => XDP_REDIRECT,
        Verdict::Drop(_) if watch.is_trial() => XDP_DROP,
        Verdict::Punt(punt) => slowpath::hand_over(&ctx, Errand::Carry(punt)),
        Verdict::Drop(reject) => DROPPED + reject as u32,
    }
}

/// What else is done about a dropped packet; the program's action.
#[inline(always)]
fn dropped(ctx: &XdpContext, reject: Reject) -> u32 {
    // SAFETY: the context is the one that the program was called with.
    unsafe {
        eipnat_log_drop(ctx.ctx, reject as u32);
        eipnat_remember_drop(ctx.ctx, reject as u32, 1);
        eipnat_remember_drop(ctx.ctx, reject as u32, 0);
    }
    Errand::of(&Verdict::Drop(reject)).map_or(XDP_DROP, |errand| slowpath::have_answered(ctx, errand))
}

/// Writes a dropped packet to the daemon's log.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_log_drop(ctx: *mut xdp_md, reason: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    XdpFrame::new(&ctx).log_drop(&ctx, reason);
    0
}

/// Remembers whom a dropped packet concerns, inwards or outwards. A BPF function of its own: see those in [`frame`].
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_remember_drop(ctx: *mut xdp_md, reason: u32, inwards: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (mut frame, ifindex) = (XdpFrame::new(&ctx), ctx.ingress_ifindex() as u32);
    let direction = if inwards == 0 { Direction::Out } else { Direction::In };
    let mut node = KernelNode::new(&ctx, Watch::PLAIN);
    let concerned = pipeline::concerned(&mut frame, ifindex, reason, direction, &mut node);
    if let Some((address, is_bound)) = concerned {
        maps::remember_drop(address, is_bound, reason, express::now());
    }
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing that can panic passes the verifier, so this is never linked in.
    loop {}
}

/// `bpf_fib_lookup` and others are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
