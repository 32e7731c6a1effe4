//! Answers the daemon's questions to the kernel's FIB. This program is attached to nothing: the daemon loads it beside the XDP
//! program, and runs it by `BPF_PROG_TEST_RUN`.
//!
//! It is a classifier, since the kernel runs one of those in a microsecond, while each run of an XDP program that is on no
//! interface has it rewrite its own code and wait until no CPU is in it any more (kernel: `bpf_prog_change_xdp`).
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packet memory and helpers are raw pointers")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "sizes of structures are small"
)]
#![expect(clippy::needless_pass_by_value, reason = "the entry point's signature is aya's")]

#[path = "../fib.rs"]
mod fib;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nat_common::abi::trial::{FibAnswer, FibQuestion};
use nat_common::pipeline::Query;
use nat_common::translate::Addresses;

/// Answers the question that stands in the place of a frame.
#[classifier]
fn eipnat_fib(ctx: TcContext) -> i32 {
    let start = ctx.data();
    if start + size_of::<FibQuestion>() > ctx.data_end() {
        return TC_ACT_SHOT;
    }
    // SAFETY: the bytes are the packet's, and this program's alone.
    let question = unsafe { (start as *const FibQuestion).read_unaligned() };
    let query = Query {
        ifindex: question.ifindex,
        addresses: Addresses { source: question.source, destination: question.destination },
        tos: question.tos,
        protocol: question.protocol,
        total_len: question.total_len,
    };
    // SAFETY: the context is the one that the program was called with.
    let Some((result, fib)) = (unsafe { fib::ask(ctx.as_ptr(), &query) }) else { return TC_ACT_SHOT };
    // SAFETY: integers, which the question or the kernel has written.
    let (v4, v6, mtu) = unsafe {
        (fib.__bindgen_anon_4.ipv4_dst, fib.__bindgen_anon_4.ipv6_dst, fib.__bindgen_anon_1.mtu_result)
    };
    // A gateway of IPv6 makes it that family.
    let [a, b, c, d] =
        if fib.family == fib::AF_INET { [0, 0, 0xffff_u32.to_be(), v4] } else { v6 }.map(u32::to_ne_bytes);
    let mut next_hop = [0; 16];
    next_hop[..4].copy_from_slice(&a);
    next_hop[4..8].copy_from_slice(&b);
    next_hop[8..12].copy_from_slice(&c);
    next_hop[12..].copy_from_slice(&d);
    let answer = FibAnswer::of(&fib::route(result, fib), next_hop, u32::from(mtu));
    // SAFETY: as above.
    unsafe { (start as *mut FibAnswer).write_unaligned(answer) };
    TC_ACT_OK
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing that can panic passes the verifier, so this is never linked in.
    loop {}
}

/// `bpf_fib_lookup` is only for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
