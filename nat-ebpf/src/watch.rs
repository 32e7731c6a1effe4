//! How a packet is looked at: whether it is a trial, and whether it is traced. What is neither pays for two loads and a
//! branch.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use nat_common::abi::express::Front;
use nat_common::abi::trial::LENGTH;
use nat_common::verdict::{Counter, Verdict};

use crate::{trace, trial};

/// How a packet is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Watch {
    /// [`TRIAL`], [`TRACED`], or anything else.
    mark: u64,
    /// All ones for a trial, else zero: see [`Watch::place`].
    nowhere: u32,
}

// What stands in front of a frame is a multiple of four bytes long, or of none and told as -1, so no length is one of these.
const TRIAL: u64 = 33;
const TRACED: u64 = 35;

impl Watch {
    /// Like any packet.
    pub(crate) const PLAIN: Self = Self { mark: 0, nowhere: 0 };

    /// Whether nobody looks at the packet in any other way.
    #[inline(always)]
    pub(crate) fn is_plain(ctx: &XdpContext, front: *mut Front) -> bool {
        ctx.metadata_end().wrapping_sub(ctx.metadata()) != LENGTH && !trace::is_asked_for(front)
    }

    /// Before the packet is judged.
    #[inline(always)]
    pub(crate) fn begin(ctx: &XdpContext) -> Self {
        // From a wire it is 0, or -1 where the driver cannot put anything there.
        let length = ctx.metadata_end().wrapping_sub(ctx.metadata());
        let mut mark = length as u64;
        if length == LENGTH || trace::is_on() {
            // SAFETY: the context is the one that the program was called with.
            mark = unsafe { eipnat_watch(ctx.ctx) };
        }
        // Neither the compiler nor the verifier shall tell the cases apart from here on: each would follow all of them
        // through the whole program. So there is no branch in it either: of what is not zero, or of its negative, the
        // first bit is set.
        let nowhere: u64;
        // SAFETY: arithmetic on registers.
        unsafe {
            asm!(
                "{nowhere} = {mark}",
                "{nowhere} ^= {trial}",
                "{negative} = {nowhere}",
                "{negative} = -{negative}",
                "{nowhere} |= {negative}",
                "{nowhere} >>= 63",
                "{nowhere} += -1",
                mark = inout(reg) mark,
                nowhere = out(reg) nowhere,
                negative = out(reg) _,
                trial = const TRIAL,
                options(pure, nomem, nostack),
            );
        }
        Self { mark, nowhere: nowhere as u32 }
    }

    /// Where a packet is to be counted. A trial has no place there: it must not even add nothing, since packets may come in
    /// between.
    #[inline(always)]
    pub(crate) const fn place(self, index: u32) -> u32 {
        index | self.nowhere
    }

    #[inline(always)]
    pub(crate) const fn is_trial(self) -> bool {
        self.mark == TRIAL
    }

    /// When it has been judged.
    #[inline(always)]
    pub(crate) fn end(self, ctx: &XdpContext, verdict: &Verdict) {
        if self.mark | (TRIAL ^ TRACED) == TRACED {
            let egress = if let Verdict::Forward(egress) = verdict { egress.ifindex } else { 0 };
            // SAFETY: the context is the one that the program was called with.
            unsafe { eipnat_watched(ctx.ctx, self.mark, Counter::from(verdict).index(), egress) };
        }
    }
}

/// Whether the packet is a trial or traced, of which it keeps the beginning then.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_watch(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    if trial::is_one(&ctx) {
        TRIAL
    } else if trace::is_on() && trace::begin(&ctx) {
        TRACED
    } else {
        0
    }
}

/// Tells what has become of a trial, or of a packet that is traced.
///
/// # Safety
/// As for [`eipnat_watch`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_watched(ctx: *mut xdp_md, mark: u64, counter: u32, egress: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    if mark == TRIAL {
        trial::report(&ctx, counter, egress);
    } else {
        trace::end(&ctx, counter, egress);
    }
    0
}
