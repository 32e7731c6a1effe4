//! The express lane's arrays (see [`nat_common::abi::express`]).

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use nat_common::abi::express::{
    Adjacency, ENTRIES, Front, InboundEntry, NEXT_HOPS_LANE, NextHop, PAGES as PAGE_COUNT, Page, Place, Seat,
    VACANT,
};
use nat_common::abi::{Addr, Outbound};
use nat_common::express::{self, Known, Outcome, Public};
use nat_common::pipeline::Direction;
use nat_common::verdict::{Counter, Egress, Reject};

use crate::frame::XdpFrame;
use crate::maps::{self, SET_BY_DAEMON};
use crate::watch::Watch;

#[map]
static PAGES: Array<Page> = Array::pinned(PAGE_COUNT, BPF_F_MMAPABLE);

#[map]
static INBOUND_BLOCKS: Array<[InboundEntry; ENTRIES]> = Array::pinned(SET_BY_DAEMON, BPF_F_MMAPABLE);

#[map]
static OUTBOUND_BLOCKS: Array<[Outbound; ENTRIES]> = Array::pinned(SET_BY_DAEMON, BPF_F_MMAPABLE);

#[map]
static NEXT_HOPS: Array<NextHop> = Array::pinned(SET_BY_DAEMON, 0);

/// The time, in nanoseconds of `CLOCK_MONOTONIC`, as of the last tick.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: it only reads the clock.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The generation of next hops that holds; 0 if none does.
#[inline(always)]
pub(crate) fn generation(now: u64) -> u32 {
    maps::front().map_or(0, |front| generation_at(front, now))
}

#[inline(always)]
fn generation_at(front: *mut Front, now: u64) -> u32 {
    // SAFETY: the element of a map, which stays.
    unsafe { (*front).routing.at(now) }
}

/// In place of the program's action: the pipeline has to judge the packet.
pub(crate) const UNKNOWN: u32 = u32::MAX;

/// What becomes of an ordinary packet: the program's action, or [`UNKNOWN`].
#[inline(always)]
pub(crate) fn process(ctx: &XdpContext) -> u32 {
    let Some(front) = maps::front().filter(|front| Watch::is_plain(ctx, *front)) else { return UNKNOWN };
    let mut arrays = Arrays { front, now: now() };
    match express::process(&mut XdpFrame::new(ctx), ctx.ingress_ifindex() as u32, &mut arrays) {
        Outcome::Forward(ifindex) => {
            maps::count(Counter::Forward.index());
            maps::send_by(ifindex)
        }
        // The log is the pipeline's to write.
        Outcome::Unbound(_) if level_enabled(Level::Debug) => UNKNOWN,
        Outcome::Unbound(address) => {
            let reject = Reject::EipUnbound;
            maps::count(Counter::Drop(reject).index());
            maps::remember_drop(address, false, reject as u32, arrays.now);
            XDP_DROP
        }
        Outcome::Unknown => UNKNOWN,
    }
}

struct Arrays {
    front: *mut Front,
    now: u64,
}

impl Known for Arrays {
    #[inline(always)]
    fn seat(&mut self, ifindex: u32) -> Option<Seat> {
        // SAFETY: the element of a map, which stays. Of one that is being written the MAC address may be half another one's, which
        // is no frame's.
        let seat = unsafe { *at(&raw mut (*self.front).seats, ifindex as u16) };
        (seat.ifindex == ifindex).then_some(seat)
    }

    #[inline(always)]
    fn is_stranger(&mut self, addr: Addr) -> bool {
        let place = match page(self.front, addr) {
            Found::Page(page) => place(page, addr),
            Found::Nothing => return true,
            Found::Missing => return false,
        };
        if place == Place::default() {
            return true;
        }
        // In the network of an uplink, say, where the node has an address itself.
        let block =
            if place.outbound == 0 { INBOUND_BLOCKS.get_ptr_mut(place.inbound_block()) } else { None };
        block.is_some_and(|block| {
            // SAFETY: as in `inbound`.
            let entry = unsafe { &*at(block, addr[3].into()) };
            entry.private_ip == [0; 4] && entry.meter == InboundEntry::STRANGER
        })
    }

    #[inline(always)]
    fn inbound(&mut self, public_ip: Addr) -> Public {
        let Found::Page(page) = page(self.front, public_ip) else { return Public::Unknown };
        let (place, [.., third, last]) = (place(page, public_ip), public_ip);
        if place.inbound & VACANT != 0 {
            // SAFETY: a number of a map's element, which stays.
            let bits = unsafe { *at(at(&raw mut (*page).vacant, third.into()), u16::from(last >> 6)) };
            if bits >> (last & 63) & 1 != 0 {
                return Public::Vacant;
            }
        }
        match INBOUND_BLOCKS.get_ptr_mut(place.inbound_block()) {
            // SAFETY: the entry stays memory of the map, whosever it is; the daemon writes it in words.
            Some(block) => Public::Entry(unsafe { *at(block, last.into()) }),
            None => Public::Unknown,
        }
    }

    #[inline(always)]
    fn outbound(&mut self, private_ip: Addr) -> Option<Outbound> {
        let Found::Page(page) = page(self.front, private_ip) else { return None };
        let block = OUTBOUND_BLOCKS.get_ptr_mut(place(page, private_ip).outbound)?;
        // SAFETY: as in `inbound`.
        Some(unsafe { *at(block, private_ip[3].into()) })
    }

    #[inline(always)]
    fn next_hop(&mut self, destination: Addr) -> Option<(Addr, Adjacency)> {
        let (whose, next_hop) = next_hop(self.front, destination)?;
        // SAFETY: the element is in this CPU's lane.
        let next_hop = unsafe { *next_hop };
        (next_hop.address == whose).then_some((whose, next_hop.adjacency))
    }

    #[inline(always)]
    fn generation(&mut self) -> u32 {
        generation_at(self.front, self.now)
    }

    #[inline(always)]
    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16) {
        maps::bill(meter, direction, bytes, Watch::PLAIN);
    }
}

/// An element of an array whose length is a power of two. The verifier sees the bound of the very register, whatever the compiler
/// has made of the index before.
#[inline(always)]
fn at<T, const N: usize>(array: *mut [T; N], index: u16) -> *mut T {
    const { assert!(N.is_power_of_two()) };
    let mut bounded = usize::from(index);
    // SAFETY: arithmetic on a register.
    unsafe {
        asm!("{index} &= {mask}", index = inout(reg) bounded, mask = const N - 1, options(pure, nomem, nostack));
    }
    array.cast::<T>().wrapping_add(bounded)
}

/// Where something is said of an address.
enum Found {
    Page(*mut Page),
    /// Nowhere: nothing is known of it.
    Nothing,
    /// There is no such page.
    Missing,
}

#[inline(always)]
fn page(front: *mut Front, addr: Addr) -> Found {
    let upper = u16::from_be_bytes([addr[0], addr[1]]);
    // SAFETY: an element of an array that stays; whoever writes it writes the whole.
    let page = unsafe { *at(&raw mut (*front).directory, upper) };
    if page == 0 {
        return Found::Nothing;
    }
    match PAGES.get_ptr_mut(page.into()) {
        Some(page) => Found::Page(page),
        None => Found::Missing,
    }
}

/// What a page says of an address's /24.
#[inline(always)]
fn place(page: *mut Page, addr: Addr) -> Place {
    // SAFETY: a part of a map's element, which stays; whoever writes it writes the whole.
    unsafe { *at(&raw mut (*page).places, addr[2].into()) }
}

#[inline(always)]
fn inbound(front: *mut Front, public_ip: Addr) -> Option<*mut InboundEntry> {
    let Found::Page(page) = page(front, public_ip) else { return None };
    let block = INBOUND_BLOCKS.get_ptr_mut(place(page, public_ip).inbound_block())?;
    Some(at(block, public_ip[3].into()))
}

/// Where the next hop to a destination is remembered, and whose that is.
#[inline(always)]
fn next_hop(front: *mut Front, destination: Addr) -> Option<(Addr, *mut NextHop)> {
    let upper = u16::from_be_bytes([destination[0], destination[1]]);
    // SAFETY: as in `page`.
    let covering = unsafe { *at(&raw mut (*front).covering, upper) };
    let (place, whose) = NextHop::whose(destination, covering);
    Some((whose, NEXT_HOPS.get_ptr_mut(maps::lane() * NEXT_HOPS_LANE + place)?))
}

/// Remembers a next hop to `to`; `generation`: the one that held before the FIB was asked. `public_ip`: the address by which a VM is
/// found.
#[inline(always)]
pub(crate) fn learn(to: Addr, public_ip: Option<Addr>, egress: &Egress, mtu: u16, generation: u32) {
    if generation == 0 {
        return;
    }
    let Some(front) = maps::front() else { return };
    let mut adjacency = Adjacency {
        generation,
        ifindex: egress.ifindex,
        destination: egress.destination,
        check: 0,
        source: egress.source,
        mtu,
    };
    if let Some(public_ip) = public_ip {
        adjacency.check = adjacency.mark(to);
        if let Some(entry) = inbound(front, public_ip) {
            // SAFETY: another CPU may write at the same time, or the daemon: the mark tells.
            let known = unsafe { &mut (*entry).adjacency };
            // Only what is new is written: packets that the pipeline judges on many CPUs would else take the entry from each other.
            let is_known = known.check == adjacency.check
                && (known.generation, known.ifindex) == (adjacency.generation, adjacency.ifindex);
            if !is_known {
                *known = adjacency;
            }
        }
    } else if let Some((whose, next_hop)) = next_hop(front, to) {
        adjacency.check = adjacency.mark(whose);
        // SAFETY: the element is in this CPU's lane.
        let next_hop = unsafe { &mut *next_hop };
        // What many have in common is not learned again from each of them: of a route to some of them that has just come the daemon
        // may not have been told yet. But the one that it was learned from may have had a narrower path.
        let stands =
            whose != to && next_hop.address == whose && next_hop.adjacency.carries(whose, mtu, generation);
        if !stands {
            *next_hop = NextHop { address: whose, padding: 0, adjacency };
        }
    }
}
