//! BPF programs that tests and benchmarks measure by.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packet memory and BPF maps are raw pointers")]
#![expect(clippy::needless_pass_by_value, reason = "the entry point's signature is aya's")]
#![expect(clippy::cast_possible_truncation, reason = "checksums are folded")]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_REDIRECT};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use yardsticks::{FRAME_LEN, Plan};

#[map]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);

/// How many frames were made.
#[map]
static MADE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Makes a packet and sends it by an interface. It is run by `BPF_PROG_TEST_RUN` on live frames, which come back as whoever
/// got them left them: so every byte is written anew.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    let (Some(plan), Some(made)) = (PLAN.get(0), MADE.get_ptr_mut(0)) else { return XDP_ABORTED };
    // SAFETY: the element is this CPU's, and the program is not interrupted by itself.
    let number = unsafe {
        *made += 1;
        *made
    };
    let start = ctx.data();
    if start + FRAME_LEN > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: the bytes lie within the frame, whose memory is this program's alone.
    let frame = unsafe { &mut *(start as *mut [u8; FRAME_LEN]) };
    *frame = packet(plan, number);
    // SAFETY: a helper.
    if unsafe { bpf_redirect(plan.ifindex, 0) } == i64::from(XDP_REDIRECT) {
        XDP_REDIRECT
    } else {
        XDP_ABORTED
    }
}

#[inline(always)]
fn packet(plan: &Plan, number: u64) -> [u8; FRAME_LEN] {
    // Neighbours in time are far apart in memory, as in real traffic.
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [s0, s1, s2, s3] = (plan.source ^ ((mixed >> 32) as u32 & plan.source_mask)).to_be_bytes();
    let [d0, d1, d2, d3] = (plan.destination ^ ((mixed >> 20) as u32 & plan.destination_mask)).to_be_bytes();
    let [p0, p1] = (1024 | mixed as u16).to_be_bytes();
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&plan.mac);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..34].copy_from_slice(&[
        8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, plan.ttl, 17, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3,
    ]);
    // UDP, 26 bytes of it.
    frame[34..42].copy_from_slice(&[p0, p1, 0, 9, 0, 26, 0, 0]);
    let word = |high: u8, low: u8| u32::from(u16::from_be_bytes([high, low]));
    let addresses = word(s0, s1) + word(s2, s3) + word(d0, d1) + word(d2, d3);
    let header = 0x4500 + 46 + word(plan.ttl, 17) + addresses;
    let datagram = addresses + 17 + 26 + word(p0, p1) + 9 + 26;
    frame[24..26].copy_from_slice(&checksum(header));
    frame[40..42].copy_from_slice(&checksum(datagram));
    frame
}

#[inline(always)]
fn checksum(sum: u32) -> [u8; 2] {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (!(sum as u16)).to_be_bytes()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing that can panic passes the verifier, so this is never linked in.
    loop {}
}

/// For helpers that are only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
