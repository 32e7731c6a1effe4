//! A packet's memory as the driver hands it over.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use nat_common::checksum;
use nat_common::frame::Frame;
use nat_common::verdict::Reject;
use nat_common::wire::ipv4;

/// Offsets are below this, a power of two: the verifier wants a bound, and no header begins further back.
const REACH: usize = 4096;

/// The first buffer of a frame.
pub(crate) struct XdpFrame {
    start: usize,
    end: usize,
    size: usize,
    ctx: *mut xdp_md,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        // SAFETY: the context is the one that the program was called with.
        let size = unsafe { bpf_xdp_get_buff_len(ctx.as_ptr().cast()) };
        Self { start: ctx.data(), end: ctx.data_end(), size: size as usize, ctx: ctx.ctx }
    }

    /// Writes a dropped packet to the daemon's log. At any log level below debug the verifier removes it.
    #[inline(always)]
    pub(crate) fn log_drop(&mut self, ctx: &XdpContext, reason: u32) {
        let Ok(&mut [s0, s1, s2, s3, d0, d1, d2, d3]) =
            self.at(nat_common::wire::ethernet::HEADER_LEN + ipv4::ADDRESSES)
        else {
            return;
        };
        let source = u32::from_be_bytes([s0, s1, s2, s3]);
        let destination = u32::from_be_bytes([d0, d1, d2, d3]);
        let ifindex = ctx.ingress_ifindex() as u32;
        debug!(ctx, "drop reason {} interface {}: {:i} -> {:i}", reason, ifindex, source, destination);
    }
}

impl Frame for XdpFrame {
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Reject> {
        let start: usize;
        // The verifier takes a bound as proven only for the very register that it saw compared or masked. In assembly
        // the optimiser can neither drop the mask, since it knows that offsets are small, nor fold neighbouring
        // offsets into one pointer and read backwards from that.
        // SAFETY: plain arithmetic on registers.
        unsafe {
            asm!(
                "{offset} &= {mask}",
                "{offset} += {base}",
                offset = inout(reg) offset => start,
                base = in(reg) self.start,
                mask = const REACH - 1,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        if start + N > self.end {
            return Err(Reject::FrameTruncated);
        }
        // SAFETY: the N bytes lie within the frame, whose memory is this program's alone while it runs, and the
        // borrow of self keeps a second reference away. Bytes need no alignment.
        Ok(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn size(&self) -> usize {
        self.size
    }

    #[inline(always)]
    fn sum(&mut self, from: usize, to: usize) -> Result<u64, Reject> {
        // SAFETY: the context is the one that the program was called with.
        match unsafe { eipnat_sum(self.ctx, from as u32, to as u32) } {
            TRUNCATED => Err(Reject::FrameTruncated),
            sum => Ok(sum),
        }
    }

    #[inline(always)]
    fn check_options(&mut self, from: usize, to: usize) -> Result<(), Reject> {
        // SAFETY: as above.
        match unsafe { eipnat_check_options(self.ctx, from as u32, to as u32) } {
            OPTIONS_GOOD => Ok(()),
            OPTIONS_SOURCE_ROUTE => Err(Reject::SourceRoute),
            _ => Err(Reject::IpHeader),
        }
    }
}

// BPF functions of their own: being global, the verifier checks each once, for any arguments, and not again for
// each way that leads to a call. Their arguments and results are plain numbers.

/// What [`eipnat_sum`] returns for [`Reject::FrameTruncated`]; no sum is that large.
const TRUNCATED: u64 = u64::MAX;

/// [`checksum::sum`].
///
/// # Safety
/// `ctx` must be the context that the program was called with.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_sum(ctx: *mut xdp_md, from: u32, to: u32) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    checksum::sum(&mut frame, from as usize, to as usize).unwrap_or(TRUNCATED)
}

const OPTIONS_GOOD: u64 = 0;
const OPTIONS_SOURCE_ROUTE: u64 = 1;
const OPTIONS_MALFORMED: u64 = 2;

/// [`ipv4::option::check`].
///
/// # Safety
/// As for [`eipnat_sum`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn eipnat_check_options(ctx: *mut xdp_md, from: u32, to: u32) -> u64 {
    let mut frame = XdpFrame::new(&XdpContext::new(ctx));
    match ipv4::option::check(&mut frame, from as usize, to as usize) {
        Ok(()) => OPTIONS_GOOD,
        Err(Reject::SourceRoute) => OPTIONS_SOURCE_ROUTE,
        Err(_) => OPTIONS_MALFORMED,
    }
}
