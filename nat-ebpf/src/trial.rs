//! Trials: frames that nobody has sent (see [`nat_common::abi::trial`]).

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use nat_common::abi::trial::{LENGTH, Outcome, Ticket};
use nat_common::verdict::{Counter, Verdict};

use crate::maps;

/// Whether a packet is one, or has come from a wire.
#[derive(Clone, Copy)]
pub(crate) struct Trial {
    /// Zero for a trial.
    mark: u64,
}

impl Trial {
    /// A packet from a wire.
    pub(crate) const REAL: Self = Self { mark: 1 };

    /// Looks for a ticket in front of the frame.
    #[inline(always)]
    pub(crate) fn of(ctx: &XdpContext) -> Self {
        // From a wire it is 0, or -1 where the driver cannot put anything there.
        let length = ctx.metadata_end().wrapping_sub(ctx.metadata());
        let mut mark = (length ^ LENGTH) as u64;
        if mark == 0 {
            // SAFETY: the context is the one that the program was called with.
            mark = unsafe { eipnat_is_real(ctx.ctx) };
        }
        // Neither the compiler nor the verifier shall tell the two cases apart from here on: each would follow both ways
        // through the whole program.
        // SAFETY: it does nothing.
        unsafe { asm!("{mark} = {mark}", mark = inout(reg) mark, options(pure, nomem, nostack)) };
        Self { mark }
    }

    #[inline(always)]
    pub(crate) fn is_real(self) -> bool {
        self.mark != 0
    }

    /// Writes what has become of the frame in front of it.
    #[inline(always)]
    pub(crate) fn report(self, ctx: &XdpContext, verdict: &Verdict) {
        let egress = if let Verdict::Forward(egress) = verdict { egress.ifindex } else { 0 };
        // SAFETY: the context is the one that the program was called with.
        unsafe { eipnat_report(ctx.ctx, Counter::from(verdict).index(), egress) };
    }
}

/// Whether the frame came from a wire: 1, or 0 if the ticket in front of it is this node's.
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_is_real(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let start = ctx.metadata();
    if start + size_of::<Ticket>() > ctx.metadata_end() {
        return 1;
    }
    // SAFETY: the bytes lie between the beginning of the metadata and the frame. They need no alignment.
    let shown = unsafe { &(*(start as *const Ticket)).id };
    let Some(node) = maps::node() else { return 1 };
    let (mut differs, mut known) = (0, 0);
    for (shown, id) in shown.iter().zip(&node.id) {
        differs |= shown ^ id;
        known |= id;
    }
    u64::from(differs != 0 || known == 0)
}

/// Writes an [`Outcome`] in the place of the ticket.
///
/// # Safety
/// As for [`eipnat_is_real`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_report(ctx: *mut xdp_md, counter: u32, egress: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let start = ctx.metadata();
    if start + size_of::<Outcome>() > ctx.metadata_end() {
        return 1;
    }
    // SAFETY: as above. The kernel puts metadata at a multiple of four bytes.
    unsafe { *(start as *mut Outcome) = Outcome { magic: Outcome::MAGIC, counter, egress, padding: [0; 5] } };
    0
}
