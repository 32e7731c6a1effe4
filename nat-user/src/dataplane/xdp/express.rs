//! The express lane's arrays (see [`nat_common::abi::express`]), as the daemon writes them.
//!
//! They say no more than the maps of bindings and addresses say, and are written by whoever writes those. Where there is no room,
//! an address is left to the pipeline.

mod blocks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::Ipv4Addr;

use anyhow::{Context as _, bail};
use aya::Ebpf;
use aya::maps::Map;
use ipnet::Ipv4Net;
use nat_common::abi::express::{
    ENTRIES, InboundEntry, PAGES, Page, Place, SEATS, SPECIAL, SPECIAL_PAGE, Seat, UNBOUND_PAGE, VACANT,
};
use nat_common::abi::{self, Outbound, map};
use nat_common::pipeline::Direction;

use self::blocks::Blocks;
use super::front;
use super::kinds::{Class, Kinds};
use super::maps::failed;
use super::numbers::Numbers;
use crate::dataplane::{Binding, Half};

/// [`ENTRIES`], once more.
const COUNT: u32 = 256;
const _: () = assert!(COUNT as usize == ENTRIES);

/// Blocks more than bindings that stand close together need, for others that do not.
const SPARE_BLOCKS: u32 = 64;

/// How many blocks of a kind there are, the one that is none included.
pub(super) fn blocks(max_bindings: u32) -> u32 {
    max_bindings.div_ceil(COUNT) + SPARE_BLOCKS
}

/// The length of a [`Page`], and how far in it [`Page::vacant`] stands, in numbers.
const PAGE: usize = size_of::<Page>() / size_of::<u64>();
const VACANCIES: usize = offset_of!(Page, vacant) / size_of::<u64>();

/// What is said of a /24, and which of its addresses are in a pool and not bound.
type Said = (Place, [u64; 4]);

/// The bits of all addresses of a /24.
const ALL: [u64; 4] = [u64::MAX; 4];

/// The first page that is one /16's own.
const FIRST_PAGE: u32 = UNBOUND_PAGE + 1;

/// The memory of the arrays.
struct Arrays {
    directory: Numbers,
    pages: Numbers,
    seats: Numbers,
    inbound: Numbers,
    outbound: Numbers,
}

/// The arrays, and what is where in them.
#[derive(Debug)]
pub(super) struct Express {
    directory: Numbers,
    pages: Numbers,
    seats: Numbers,
    inbound: Blocks,
    outbound: Blocks,
    /// Pages by the upper half of their addresses.
    page_of: BTreeMap<u16, u32>,
    free_pages: BTreeSet<u32>,
    /// Those that packets under way may still look at.
    leaving_pages: Vec<u32>,
    kinds: Kinds,
    /// All bindings that stand have been inserted. Until then, what has not been may be bound all the same.
    is_settled: bool,
}

impl Express {
    /// Takes the arrays out of a loaded object, for so many bindings, of which none stands. `kinds`: what addresses are.
    ///
    /// What an earlier daemon has left in them goes on to hold, until [`settle`](Self::settle) is called.
    pub(super) fn take(ebpf: &mut Ebpf, capacity: u32, kinds: Kinds) -> anyhow::Result<Self> {
        let front = front::of(ebpf)?;
        let (directory, seats) = (front::directory(front)?, front::seats(front)?);
        let mut open = |name| match ebpf.take_map(name) {
            Some(Map::Array(data)) => Numbers::open(&data).with_context(|| failed(name)),
            _ => bail!("the program has no array {name}"),
        };
        let arrays = Arrays {
            directory,
            pages: open(map::PAGES)?,
            seats,
            inbound: open(map::INBOUND_BLOCKS)?,
            outbound: open(map::OUTBOUND_BLOCKS)?,
        };
        Ok(Self::new(arrays, blocks(capacity), PAGES, kinds))
    }

    fn new(arrays: Arrays, count: u32, pages: u32, kinds: Kinds) -> Self {
        let mut express = Self {
            directory: arrays.directory,
            pages: arrays.pages,
            seats: arrays.seats,
            inbound: Blocks::new::<InboundEntry>(arrays.inbound, 1..count),
            outbound: Blocks::new::<Outbound>(arrays.outbound, 1..count),
            page_of: BTreeMap::new(),
            free_pages: (FIRST_PAGE..pages).collect(),
            leaving_pages: Vec::new(),
            kinds,
            is_settled: false,
        };
        express.write_page(SPECIAL_PAGE, |_| (Place { inbound: SPECIAL, outbound: SPECIAL }, [0; 4]));
        express.write_page(UNBOUND_PAGE, |_| (Place { inbound: SPECIAL | VACANT, outbound: 0 }, ALL));
        for upper in 0..=u16::MAX {
            let page = express.page(upper);
            if express.free_pages.remove(&page) {
                express.page_of.insert(upper, page);
                for third in thirds(upper) {
                    let place = express.written(page, third).0;
                    express.inbound.adopt(third, place.inbound_block());
                    express.outbound.adopt(third, place.outbound);
                }
            }
        }
        express
    }

    /// All bindings that stand are inserted once more: until [`settle`](Self::settle) nothing is taken for one that does.
    pub(super) fn begin_anew(&mut self) {
        self.is_settled = false;
        for blocks in [&mut self.inbound, &mut self.outbound] {
            blocks.of.values_mut().for_each(|block| block.taken = [0; 4]);
        }
    }

    /// To be called when all bindings that stand have been inserted: what is beyond them goes.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
        for (direction, blocks) in [(Direction::In, &self.inbound), (Direction::Out, &self.outbound)] {
            for (third, block) in &blocks.of {
                for address in addresses(*third).filter(|address| !block.is_taken(*address)) {
                    blocks.write(block.number, address, unbound(direction, address, &self.kinds));
                }
            }
        }
        let mixed: Vec<u16> = self.kinds.uppers().into_iter().filter(|upper| self.is_mixed(*upper)).collect();
        for third in mixed.iter().flat_map(|upper| thirds(*upper)) {
            if self.kinds.class(network(third)) == Class::Mixed {
                self.inbound.get_or_make(third, |address| unbound(Direction::In, address, &self.kinds));
            }
        }
        for blocks in [&mut self.inbound, &mut self.outbound] {
            let empty = blocks.of.iter().filter(|(_, block)| block.taken == [0; 4]).map(|(third, _)| *third);
            for third in empty.collect::<Vec<_>>() {
                if self.kinds.class(network(third)) != Class::Mixed {
                    blocks.leave(third);
                }
            }
        }
        self.write_pages();
    }

    /// Whether they say no more than what stands.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Makes them say what addresses are.
    pub(super) fn set_kinds(&mut self, kinds: &Kinds) {
        if self.kinds != *kinds {
            self.kinds = kinds.clone();
            if self.is_settled {
                self.settle();
            }
        }
    }

    /// The public addresses that are bound.
    pub(super) fn bound(&self) -> impl Iterator<Item = Ipv4Addr> {
        let blocks = self.inbound.of.iter();
        blocks.flat_map(|(third, block)| addresses(*third).filter(|address| block.is_taken(*address)))
    }

    /// As [`Dataplane::insert`](super::Dataplane::insert).
    pub(super) fn insert(&mut self, half: Half) {
        let Some((direction, address)) = key(half) else { return };
        let (blocks, entry) = match half {
            // The pipeline knows tenants.
            Half::Inbound(Binding { tenant: 1.., .. }) => (&mut self.inbound, 0),
            Half::Inbound(Binding { private_ip, meter, .. }) => (&mut self.inbound, entry(private_ip, meter)),
            Half::Outbound(Binding { public_ip, meter, .. }) => (&mut self.outbound, entry(public_ip, meter)),
        };
        let block = blocks.get_or_make(third(address), |other| unbound(direction, other, &self.kinds));
        let is_new = block.taken == [0; 4];
        block.take(address, true);
        let number = block.number;
        blocks.write(number, address, entry);
        if is_new {
            self.publish(third(address));
        } else if direction == Direction::In {
            self.write_vacancy(address);
        }
    }

    /// As [`Dataplane::remove`](super::Dataplane::remove).
    pub(super) fn remove(&mut self, half: Half) {
        let Some((direction, address)) = key(half) else { return };
        let blocks = match direction {
            Direction::In => &mut self.inbound,
            Direction::Out => &mut self.outbound,
        };
        let Some(block) = blocks.of.get_mut(&third(address)) else { return };
        block.take(address, false);
        let block = *block;
        blocks.write(block.number, address, unbound(direction, address, &self.kinds));
        if block.taken == [0; 4] && self.kinds.class(network(third(address))) != Class::Mixed {
            blocks.leave(third(address));
            self.publish(third(address));
        } else if direction == Direction::In {
            self.write_vacancy(address);
        }
    }

    /// No packet is under way any more that was when the last block was given up.
    pub(super) fn quiesced(&mut self) {
        for blocks in [&mut self.inbound, &mut self.outbound] {
            blocks.free.extend(blocks.leaving.drain(..));
        }
        self.free_pages.extend(self.leaving_pages.drain(..));
    }

    /// Makes an interface known, unless another one sits in its place.
    pub(super) fn seat(&mut self, ifindex: u32, port: &abi::Port) {
        let (at, sitting) = (seat_at(ifindex), self.sitting(ifindex));
        // The pipeline knows tenants. Where the program does not run, no packet comes from.
        if port.tenant != 0 || port.role == 0 {
            return self.unseat(ifindex);
        }
        if ![0, ifindex].contains(&sitting.ifindex) {
            return;
        }
        let seat = Seat { ifindex, mac: port.mac, role: port.role, ..Seat::default() };
        if seat != sitting {
            let [first, second]: [u64; 2] = bytemuck::cast(seat);
            self.seats.write(at, 0);
            self.seats.write(at + 1, second);
            self.seats.write(at, first);
        }
    }

    /// Makes an interface unknown.
    pub(super) fn unseat(&mut self, ifindex: u32) {
        if self.sitting(ifindex).ifindex == ifindex {
            self.seats.write(seat_at(ifindex), 0);
        }
    }

    /// Who sits in an interface's place.
    fn sitting(&self, ifindex: u32) -> Seat {
        let at = seat_at(ifindex);
        bytemuck::cast([self.seats.read(at), self.seats.read(at + 1)])
    }

    /// Writes all pages, and where they are found.
    fn write_pages(&mut self) {
        let blocks = self.inbound.of.keys().chain(self.outbound.of.keys());
        let mut own: BTreeSet<u16> = blocks.map(|third| upper(*third)).collect();
        let known = self.kinds.uppers();
        own.extend(known.iter().filter(|upper| self.is_mixed(**upper)));
        let pointed = (0..=u16::MAX).filter(|upper| self.page(*upper) != 0);
        for upper in known.into_iter().chain(pointed).chain(own.iter().copied()).collect::<BTreeSet<_>>() {
            if own.contains(&upper) {
                self.make_page(upper);
                continue;
            }
            self.set_page(upper, self.shared_page(upper).unwrap_or(SPECIAL_PAGE));
            self.leaving_pages.extend(self.page_of.remove(&upper));
        }
    }

    /// Makes known what is said of a /24.
    fn publish(&mut self, third: u32) {
        let upper = upper(third);
        if let Some(page) = self.page_of.get(&upper) {
            self.write_place(*page, third, self.place(third));
        } else {
            self.make_page(upper);
        }
    }

    /// Writes a /16's own page, if there is one left: without, its addresses are the pipeline's to judge.
    fn make_page(&mut self, upper: u16) {
        let own = self.page_of.get(&upper).copied();
        let Some(page) = own.or_else(|| self.free_pages.pop_first()) else {
            self.set_page(upper, SPECIAL_PAGE);
            return;
        };
        self.page_of.insert(upper, page);
        self.write_page(page, |at| self.place(u32::from(upper) << 8 | at));
        self.set_page(upper, page);
    }

    /// What is said of a /24.
    fn place(&self, third: u32) -> Said {
        let class = self.kinds.class(network(third));
        let inbound = self.inbound.of.get(&third);
        let taken = inbound.map_or([0; 4], |block| block.taken);
        let vacant = self.vacant(third, class, taken);
        let is_special = class != Class::Stranger;
        let block = inbound.map_or(if is_special { SPECIAL } else { 0 }, |block| block.number);
        let outbound = self.outbound.of.get(&third).map_or(0, |block| block.number);
        (Place { inbound: block | flag(vacant), outbound }, vacant)
    }

    /// Which addresses of a /24 are in a pool, and not bound.
    fn vacant(&self, third: u32, class: Class, taken: [u64; 4]) -> [u64; 4] {
        let mut pooled = match class {
            _ if !self.is_settled => return [0; 4],
            Class::Stranger | Class::Special => return [0; 4],
            Class::Pooled => ALL,
            Class::Mixed => {
                let mut pooled = [0; 4];
                for (word, bit) in addresses(third).filter(|at| self.kinds.is_pooled(*at)).map(bit_of) {
                    pooled[word] |= bit;
                }
                pooled
            }
        };
        pooled.iter_mut().zip(taken).for_each(|(pooled, taken)| *pooled &= !taken);
        pooled
    }

    /// Makes known whether an address of a /24 with a block of its own is in a pool and not bound.
    fn write_vacancy(&self, address: Ipv4Addr) {
        let third = third(address);
        let Some((page, block)) = self.page_of.get(&upper(third)).zip(self.inbound.of.get(&third)) else {
            return;
        };
        let is_vacant = self.is_settled && !block.is_taken(address) && self.kinds.is_pooled(address);
        let (mut place, mut vacant) = self.written(*page, third);
        let (word, bit) = bit_of(address);
        vacant[word] = if is_vacant { vacant[word] | bit } else { vacant[word] & !bit };
        place.inbound = place.inbound_block() | flag(vacant);
        self.write_place(*page, third, (place, vacant));
    }

    fn is_mixed(&self, upper: u16) -> bool {
        self.shared_page(upper).is_none()
    }

    /// The page of a /16 of which the same is said everywhere.
    fn shared_page(&self, upper: u16) -> Option<u32> {
        match self.kinds.class(Ipv4Net::new_assert(Ipv4Addr::from(u32::from(upper) << 16), 16)) {
            Class::Stranger => Some(0),
            Class::Pooled => Some(UNBOUND_PAGE),
            Class::Special => Some(SPECIAL_PAGE),
            Class::Mixed => None,
        }
    }

    fn write_page(&self, page: u32, said: impl Fn(u32) -> Said) {
        for at in 0..COUNT {
            self.write_place(page, at, said(at));
        }
    }

    fn write_place(&self, page: u32, third: u32, (place, vacant): Said) {
        // What is bound is not vacant any more before its block is known.
        for (at, bits) in (vacant_at(page, third)..).zip(vacant) {
            self.pages.write(at, bits);
        }
        self.pages.write(place_at(page, third), bytemuck::cast(place));
    }

    /// What a page says of a /24.
    fn written(&self, page: u32, third: u32) -> Said {
        let vacant = std::array::from_fn(|at| self.pages.read(vacant_at(page, third) + at));
        (bytemuck::cast(self.pages.read(place_at(page, third))), vacant)
    }

    fn page(&self, upper: u16) -> u32 {
        let four: [u16; 4] = bytemuck::cast(self.directory.read(usize::from(upper / 4)));
        four[usize::from(upper % 4)].into()
    }

    fn set_page(&self, upper: u16, page: u32) {
        let at = usize::from(upper / 4);
        let mut four: [u16; 4] = bytemuck::cast(self.directory.read(at));
        // There are fewer pages.
        four[usize::from(upper % 4)] = page.try_into().unwrap_or_default();
        self.directory.write(at, bytemuck::cast(four));
    }
}

/// Where a half stands: not in the arrays where the pipeline alone may judge.
fn key(half: Half) -> Option<(Direction, Ipv4Addr)> {
    let (direction, address) = match half {
        Half::Inbound(binding) => (Direction::In, binding.public_ip),
        Half::Outbound(binding) if binding.tenant == 0 => (Direction::Out, binding.private_ip),
        Half::Outbound(_) => return None,
    };
    (!Kinds::is_martian(address)).then_some((direction, address))
}

/// The first number of the entry of an address that is not bound.
fn unbound(direction: Direction, address: Ipv4Addr, kinds: &Kinds) -> u64 {
    let state = match direction {
        Direction::In if kinds.is_stranger(address) => InboundEntry::STRANGER,
        Direction::In | Direction::Out => 0,
    };
    bytemuck::cast([0, state])
}

/// The first number of an entry.
fn entry(address: Ipv4Addr, meter: u32) -> u64 {
    let [a, b, c, d] = address.octets();
    bytemuck::cast([u32::from_ne_bytes([a, b, c, d]), meter])
}

/// The first three bytes of an address.
fn third(address: Ipv4Addr) -> u32 {
    u32::from(address) >> 8
}

/// The first two of three bytes.
fn upper(third: u32) -> u16 {
    let [_, first, second, _] = third.to_be_bytes();
    u16::from_be_bytes([first, second])
}

fn network(third: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(third << 8), 24)
}

fn addresses(third: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..=u32::from(u8::MAX)).map(move |last| Ipv4Addr::from(third << 8 | last))
}

fn thirds(upper: u16) -> impl Iterator<Item = u32> {
    (0..COUNT).map(move |at| u32::from(upper) << 8 | at)
}

/// Where in the memory of the pages what is said of a /24 stands.
fn place_at(page: u32, third: u32) -> usize {
    page as usize * PAGE + third as usize % ENTRIES
}

/// Where the bits of its addresses begin there.
fn vacant_at(page: u32, third: u32) -> usize {
    page as usize * PAGE + VACANCIES + third as usize % ENTRIES * size_of::<[u64; 4]>() / size_of::<u64>()
}

/// [`VACANT`], if any bit says so.
fn flag(vacant: [u64; 4]) -> u32 {
    if vacant == [0; 4] { 0 } else { VACANT }
}

/// Which bit of 256 is an address's, and in which of their four numbers.
fn bit_of(address: Ipv4Addr) -> (usize, u64) {
    let last = address.octets()[3];
    (usize::from(last / 64), 1 << (last % 64))
}

fn seat_at(ifindex: u32) -> usize {
    ifindex as usize % SEATS * size_of::<Seat>() / size_of::<u64>()
}
