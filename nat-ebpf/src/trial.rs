//! Trials: frames that nobody has sent (see [`nat_common::abi::trial`]).

use aya_ebpf::programs::XdpContext;
use nat_common::abi::trial::{Outcome, Ticket};

use crate::maps;

/// Whether the ticket in front of the frame is this node's.
#[inline(always)]
pub(crate) fn is_one(ctx: &XdpContext) -> bool {
    let start = ctx.metadata();
    if start + size_of::<Ticket>() > ctx.metadata_end() {
        return false;
    }
    // SAFETY: the bytes lie between the beginning of the metadata and the frame. They need no alignment.
    let shown = unsafe { &(*(start as *const Ticket)).id };
    let Some(node) = maps::node() else { return false };
    let (mut differs, mut known) = (0, 0);
    for (shown, id) in shown.iter().zip(&node.id) {
        differs |= shown ^ id;
        known |= id;
    }
    differs == 0 && known != 0
}

/// Writes what has become of the frame in the place of the ticket.
#[inline(always)]
pub(crate) fn report(ctx: &XdpContext, counter: u32, egress: u32) {
    let start = ctx.metadata();
    if start + size_of::<Outcome>() > ctx.metadata_end() {
        return;
    }
    // SAFETY: as above. The kernel puts metadata at a multiple of four bytes.
    unsafe { *(start as *mut Outcome) = Outcome { magic: Outcome::MAGIC, counter, egress, padding: [0; 5] } };
}
