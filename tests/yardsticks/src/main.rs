//! BPF programs that tests and benchmarks measure by.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "packet memory and BPF maps are raw pointers")]
#![expect(clippy::needless_pass_by_value, reason = "the entry point's signature is aya's")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "checksums are folded, and sizes of structures are small"
)]

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX};
use aya_ebpf::bindings::{TC_ACT_OK, bpf_fib_lookup as FibLookup};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_get_smp_processor_id, bpf_redirect};
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use yardsticks::{Binding, COUNTS, FRAME_LEN, Plan};

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
    let Some(frame) = frame(&ctx) else { return XDP_ABORTED };
    *frame = packet(plan, number);
    by(plan.ifindex)
}

/// Set by whoever loads the programs: the interface that frames leave by.
#[unsafe(no_mangle)]
static OUT: u32 = 0;

/// Whether the source address is the one that is translated or looked at, and not the destination.
#[unsafe(no_mangle)]
static IS_SOURCE: u32 = 0;

/// What a frame that arrives rightly has in that address: the bits of [`MASK`] are these, and the others are those of the address
/// that it was made with.
#[unsafe(no_mangle)]
static PREFIX: u32 = 0;
#[unsafe(no_mangle)]
static MASK: u32 = 0;

#[inline(always)]
fn set(setting: &'static u32) -> u32 {
    // SAFETY: a number that the loader has written, of which the compiler shall not know.
    unsafe { core::ptr::read_volatile(setting) }
}

/// The frames that have come, and how many of them were as they should be.
#[map]
static CAME: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Sends everything on, and looks at nothing.
#[xdp]
fn redirect(_: XdpContext) -> u32 {
    by(set(&OUT))
}

/// Drops everything.
#[xdp]
fn discard(_: XdpContext) -> u32 {
    XDP_DROP
}

/// Leaves everything to the kernel.
#[xdp]
fn pass(_: XdpContext) -> u32 {
    XDP_PASS
}

/// The port that the generator sends to.
const PORT: [u8; 2] = [0, 9];

/// Drops what the generator has made, and what is answered to that, which it counts; leaves all else to the kernel.
#[xdp]
fn sieve(ctx: XdpContext) -> u32 {
    let (Some(came), Some(frame)) = (CAME.get_ptr_mut(0), frame(&ctx)) else { return XDP_PASS };
    if !is_udp(frame) {
        return XDP_PASS;
    }
    if frame[34..36] == PORT {
        // SAFETY: as in `count`.
        unsafe { (*came)[0] += 1 }
        return XDP_DROP;
    }
    if frame[36..38] == PORT { XDP_DROP } else { XDP_PASS }
}

/// Sends what the generator has made back to whom it came from, and leaves all else to the kernel.
#[xdp]
fn answer(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else { return XDP_PASS };
    if !is_udp(frame) || frame[36..38] != PORT {
        return XDP_PASS;
    }
    // MAC addresses, addresses, ports; no checksum is another one then.
    for (one, other, length) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        for at in 0..length {
            frame.swap(one + at, other + at);
        }
    }
    XDP_TX
}

/// Counts what has come, and drops it.
#[xdp]
fn count(ctx: XdpContext) -> u32 {
    let (Some(came), Some(frame)) = (CAME.get_ptr_mut(0), frame(&ctx)) else { return XDP_DROP };
    // Hosts speak of themselves, too.
    if !is_udp(frame) {
        return XDP_DROP;
    }
    let address = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    // As it is, and as it was made.
    let (now, before) = if set(&IS_SOURCE) == 0 {
        (address(30), address(PAYLOAD + 4))
    } else {
        (address(26), address(PAYLOAD))
    };
    let is_right = now == set(&PREFIX) | (before & !set(&MASK))
        && sum(frame, 14, 34) == 0xffff
        // The pseudo-header: addresses, protocol and length.
        && fold(sum(frame, 26, FRAME_LEN) + 17 + 26) == 0xffff;
    // SAFETY: the element is this CPU's, and XDP programs do not interrupt each other on one.
    unsafe {
        (*came)[0] += 1;
        (*came)[1] += u64::from(is_right);
    }
    XDP_DROP
}

#[map]
static BINDINGS: HashMap<[u8; 4], Binding> = HashMap::with_max_entries(1, 0);

#[map]
static COUNTERS: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// The least that a NAT in XDP has to do: one look-up, the kernel's FIB, a counter. It takes UDP without IP options, and nothing
/// else.
#[xdp]
fn nat(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else { return XDP_PASS };
    if !is_udp(frame) {
        return XDP_PASS;
    }
    let at = if set(&IS_SOURCE) == 0 { 30 } else { 26 };
    let old = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    // SAFETY: nobody takes bindings out while a benchmark runs.
    let binding = unsafe { BINDINGS.get(old) };
    let Some(binding) = binding else { return XDP_DROP };
    let new = binding.address;
    frame[at..at + 4].copy_from_slice(&new);
    let word = |high: u8, low: u8| u32::from(u16::from_be_bytes([high, low]));
    let change = (!word(old[0], old[1]) & 0xffff)
        + (!word(old[2], old[3]) & 0xffff)
        + word(new[0], new[1])
        + word(new[2], new[3]);
    // The TTL is the high half of its word.
    frame[22] -= 1;
    let header = checksum((!word(frame[24], frame[25]) & 0xffff) + change + 0xfeff);
    frame[24..26].copy_from_slice(&header);
    let datagram = checksum((!word(frame[40], frame[41]) & 0xffff) + change);
    frame[40..42].copy_from_slice(&present(datagram));
    // SAFETY: plain integers, for which zero is a value.
    let mut fib: FibLookup = unsafe { core::mem::zeroed() };
    fib.family = 2;
    fib.l4_protocol = 17;
    fib.ifindex = ctx.ingress_ifindex() as u32;
    fib.__bindgen_anon_1.tot_len = 46;
    fib.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes([frame[26], frame[27], frame[28], frame[29]]);
    fib.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([frame[30], frame[31], frame[32], frame[33]]);
    // SAFETY: the context is the program's own, and the structure lives through the call.
    if unsafe { bpf_fib_lookup(ctx.as_ptr(), &raw mut fib, size_of::<FibLookup>() as i32, 0) } != 0 {
        return XDP_DROP;
    }
    frame[..6].copy_from_slice(&fib.dmac);
    frame[6..12].copy_from_slice(&fib.smac);
    if let Some(counter) = COUNTERS.get_ptr_mut(binding.counter) {
        // SAFETY: as in `count`.
        unsafe {
            (*counter)[0] += 46;
            (*counter)[1] += 1;
        }
    }
    by(fib.ifindex)
}

/// Bytes and packets of one EIP: a lane for each CPU.
#[map]
static OWN: Array<[u64; 8]> = Array::with_max_entries(MAX_CPUS, 0);

/// The same, for all CPUs.
#[map]
static SHARED: Array<[u64; 8]> = Array::with_max_entries(1, 0);

/// Most CPUs that there are lanes for.
const MAX_CPUS: u32 = 1024;

/// Counts nothing: what a run costs by itself.
#[classifier]
fn count_none(_: TcContext) -> i32 {
    TC_ACT_OK
}

/// Counts packets as eipnat does.
#[classifier]
fn count_own(_: TcContext) -> i32 {
    for _ in 0..COUNTS {
        // SAFETY: it only reads a number of the CPU.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let Some(meter) = OWN.get_ptr_mut(cpu) else { return TC_ACT_OK };
        // SAFETY: this CPU's element; each is written as often as there are packets.
        unsafe {
            let (bytes, packets) = (&raw mut (*meter)[0], &raw mut (*meter)[1]);
            bytes.write_volatile(bytes.read_volatile() + 46);
            packets.write_volatile(packets.read_volatile() + 1);
        }
    }
    TC_ACT_OK
}

/// Counts packets where all CPUs share the numbers.
#[classifier]
fn count_shared(_: TcContext) -> i32 {
    for _ in 0..COUNTS {
        let Some(meter) = SHARED.get_ptr_mut(0) else { return TC_ACT_OK };
        // SAFETY: the element stays, and is changed by atomic instructions alone.
        unsafe {
            add(&raw mut (*meter)[0], 46);
            add(&raw mut (*meter)[1], 1);
        }
    }
    TC_ACT_OK
}

/// # Safety
/// The place must be a map's, at a multiple of eight bytes.
#[inline(always)]
unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: the caller's. core has no atomic function on this target.
    unsafe {
        asm!(
            "lock *(u64 *)({place} + 0) += {value}",
            place = in(reg) place,
            value = in(reg) value,
            options(nostack, preserves_flags),
        );
    }
}

#[inline(always)]
fn by(ifindex: u32) -> u32 {
    // SAFETY: a helper.
    if unsafe { bpf_redirect(ifindex, 0) } == i64::from(XDP_REDIRECT) { XDP_REDIRECT } else { XDP_ABORTED }
}

/// The frame, if it is as long as the generator's.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "it is the context's frame, and asked for once")]
fn frame(ctx: &XdpContext) -> Option<&mut [u8; FRAME_LEN]> {
    let start = ctx.data();
    if start + FRAME_LEN > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie within the frame, whose memory is this program's alone, and each program asks for it once.
    Some(unsafe { &mut *(start as *mut [u8; FRAME_LEN]) })
}

/// Whether it is UDP in IPv4 without options.
#[inline(always)]
fn is_udp(frame: &[u8; FRAME_LEN]) -> bool {
    frame[12..15] == [8, 0, 0x45] && frame[23] == 17
}

/// The sum of some bytes, folded.
#[inline(always)]
fn sum(frame: &[u8; FRAME_LEN], from: usize, to: usize) -> u32 {
    let mut sum = 0;
    let mut at = from;
    while at < to {
        sum += u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        at += 2;
    }
    fold(sum)
}

#[inline(always)]
fn fold(sum: u32) -> u32 {
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum >> 16) + (sum & 0xffff)
}

/// Where a frame has the addresses that it was made with once more, which nobody translates.
const PAYLOAD: usize = 42;

#[inline(always)]
fn packet(plan: &Plan, number: u64) -> [u8; FRAME_LEN] {
    // Neighbours in time are far apart in memory, as in real traffic.
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [s0, s1, s2, s3] = (plan.source ^ ((mixed >> 32) as u32 & plan.source_mask)).to_be_bytes();
    let [d0, d1, d2, d3] = (plan.destination ^ ((mixed >> 20) as u32 & plan.destination_mask)).to_be_bytes();
    let [p0, p1] = (1024 | (mixed as u16 & plan.port_mask)).to_be_bytes();
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&plan.mac);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..34].copy_from_slice(&[
        8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, plan.ttl, 17, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3,
    ]);
    // UDP, 26 bytes of it.
    frame[34..42].copy_from_slice(&[p0, p1, 0, 9, 0, 26, 0, 0]);
    frame[PAYLOAD..PAYLOAD + 8].copy_from_slice(&[s0, s1, s2, s3, d0, d1, d2, d3]);
    let word = |high: u8, low: u8| u32::from(u16::from_be_bytes([high, low]));
    let addresses = word(s0, s1) + word(s2, s3) + word(d0, d1) + word(d2, d3);
    let header = 0x4500 + 46 + word(plan.ttl, 17) + addresses;
    let datagram = 2 * addresses + 17 + 26 + word(p0, p1) + 9 + 26;
    frame[24..26].copy_from_slice(&checksum(header));
    frame[40..42].copy_from_slice(&present(checksum(datagram)));
    frame
}

#[inline(always)]
fn checksum(sum: u32) -> [u8; 2] {
    (!(fold(sum) as u16)).to_be_bytes()
}

/// A checksum of UDP as it is sent: zero would say that there is none (RFC 768).
#[inline(always)]
fn present(checksum: [u8; 2]) -> [u8; 2] {
    if checksum == [0, 0] { [0xff, 0xff] } else { checksum }
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
