//! The arrays, read as the program reads them, beside a model that has everything in two maps.

use std::collections::{BTreeMap, BTreeSet};

use nat_common::abi::AddressKind;
use proptest::prelude::*;

use super::*;

/// What the program finds of a public address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Unknown,
    Unbound,
    Bound(Ipv4Addr, u32),
}

fn arrays(count: u32) -> Arrays {
    let block = |stride: usize| Numbers::in_memory(count as usize * ENTRIES * stride);
    Arrays {
        directory: Numbers::in_memory((usize::from(u16::MAX) + 1) / 4),
        pages: Numbers::in_memory(PAGES as usize * PAGE),
        seats: Numbers::in_memory(SEATS * 2),
        inbound: block(4),
        outbound: block(1),
    }
}

impl Express {
    fn reads_place(&self, address: Ipv4Addr) -> Said {
        let page = self.page(upper(third(address)));
        if page == 0 { (Place::default(), [0; 4]) } else { self.written(page, third(address)) }
    }

    fn reads(blocks: &Blocks, block: u32, address: Ipv4Addr) -> Option<[u32; 2]> {
        let at = (block as usize * ENTRIES + usize::from(address.octets()[3])) * blocks.stride;
        (block != SPECIAL && block != 0).then(|| bytemuck::cast(blocks.memory.read(at)))
    }

    fn finds_inbound(&self, address: Ipv4Addr) -> Found {
        let (place, vacant) = self.reads_place(address);
        let (word, bit) = bit_of(address);
        if place.inbound & VACANT != 0 && vacant[word] & bit != 0 {
            return Found::Unbound;
        }
        match Self::reads(&self.inbound, place.inbound_block(), address) {
            Some([0, _]) | None => Found::Unknown,
            Some([private_ip, meter]) => Found::Bound(private_ip.to_ne_bytes().into(), meter),
        }
    }

    fn finds_outbound(&self, address: Ipv4Addr) -> Option<(Ipv4Addr, u32)> {
        let [eip, meter] = Self::reads(&self.outbound, self.reads_place(address).0.outbound, address)?;
        (eip != 0).then(|| (eip.to_ne_bytes().into(), meter))
    }

    fn takes_for_a_stranger(&self, address: Ipv4Addr) -> bool {
        let place = self.reads_place(address).0;
        let entry = Self::reads(&self.inbound, place.inbound_block(), address);
        place == Place::default() || place.outbound == 0 && entry == Some([0, InboundEntry::STRANGER])
    }
}

/// A few networks that lie in and beside each other.
fn kinds() -> impl Strategy<Value = Kinds> {
    let one = |text: &'static str, kind| (Just(text.parse::<Ipv4Net>().unwrap()), Just(kind), any::<bool>());
    let all = [
        one("203.0.0.0/16", AddressKind::Pooled),
        one("203.0.113.0/24", AddressKind::Pooled),
        one("203.0.113.64/28", AddressKind::Pooled),
        one("203.0.113.9/32", AddressKind::Other),
        one("203.0.113.1/32", AddressKind::Own),
        one("198.51.100.2/32", AddressKind::Own),
        one("127.0.0.1/32", AddressKind::Own),
        one("10.0.0.0/8", AddressKind::Inside),
        one("10.0.0.0/16", AddressKind::Inside),
        one("10.0.1.1/32", AddressKind::Own),
    ];
    all.to_vec().prop_map(|all| {
        let there = all.into_iter().filter(|(.., is_there)| *is_there).map(|(net, kind, _)| (net, kind));
        there.collect::<BTreeMap<_, _>>().into()
    })
}

fn public() -> impl Strategy<Value = Ipv4Addr> {
    (prop::sample::select(vec![0, 1, 112, 113]), 60..72u8)
        .prop_map(|(third, last)| Ipv4Addr::new(203, 0, third, last))
}

fn private() -> impl Strategy<Value = Ipv4Addr> {
    let net = prop::sample::select(vec![[10, 0, 0], [10, 0, 1], [10, 1, 0], [172, 16, 5], [127, 0, 0]]);
    (net, 0..6u8).prop_map(|([a, b, c], last)| Ipv4Addr::new(a, b, c, last))
}

#[derive(Clone, Debug)]
enum Change {
    Bind(Ipv4Addr, Ipv4Addr, u32),
    Unbind(prop::sample::Index),
    Kinds(Kinds),
    /// Another daemon takes over.
    Restart,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (public(), private(), 0..3u32).prop_map(|(public, private, meter)| Change::Bind(public, private, meter)),
        4 => any::<prop::sample::Index>().prop_map(Change::Unbind),
        1 => kinds().prop_map(Change::Kinds),
        1 => Just(Change::Restart),
    ]
}

/// The arrays, and what should be in them.
struct World {
    express: Express,
    count: u32,
    pages: u32,
    bindings: BTreeMap<Ipv4Addr, Binding>,
}

impl World {
    fn change(&mut self, change: &Change) {
        match change {
            Change::Bind(public_ip, private_ip, meter) => {
                let is_taken = |binding: &Binding| binding.private_ip == *private_ip;
                if self.bindings.contains_key(public_ip) || self.bindings.values().any(is_taken) {
                    return;
                }
                let binding =
                    Binding { public_ip: *public_ip, tenant: 0, private_ip: *private_ip, meter: *meter };
                self.express.insert(Half::Outbound(binding));
                self.express.insert(Half::Inbound(binding));
                self.bindings.insert(*public_ip, binding);
            }
            Change::Unbind(index) => {
                if self.bindings.is_empty() {
                    return;
                }
                let public_ip = *self.bindings.keys().nth(index.index(self.bindings.len())).unwrap();
                let binding = self.bindings.remove(&public_ip).unwrap();
                self.express.remove(Half::Inbound(binding));
                self.express.remove(Half::Outbound(binding));
                self.express.quiesced();
            }
            Change::Kinds(kinds) => self.express.set_kinds(kinds),
            Change::Restart => self.restart(),
        }
    }

    fn restart(&mut self) {
        let empty = Express::new(arrays(2), 2, PAGES, Kinds::default());
        let old = std::mem::replace(&mut self.express, empty);
        let kinds = old.kinds.clone();
        let arrays = Arrays {
            directory: old.directory,
            pages: old.pages,
            seats: old.seats,
            inbound: old.inbound.memory,
            outbound: old.outbound.memory,
        };
        self.express = Express::new(arrays, self.count, self.pages, kinds);
        for binding in self.bindings.values() {
            self.express.insert(Half::Inbound(*binding));
            self.express.insert(Half::Outbound(*binding));
        }
        self.express.settle();
        self.express.quiesced();
    }

    /// Whatever the arrays say is so; and with room enough they say it of every binding.
    fn check(&self, address: Ipv4Addr, has_room: bool) {
        let kind = self.express.kinds.smallest(address.into());
        let (inbound, martian) = (self.bindings.get(&address), Kinds::is_martian(address));
        match (self.express.finds_inbound(address), inbound) {
            (Found::Bound(private_ip, meter), Some(binding)) => {
                assert_eq!((private_ip, meter), (binding.private_ip, binding.meter), "{address}");
            }
            (Found::Unknown, Some(_)) => assert!(!has_room || martian, "{address} is not found"),
            (Found::Unbound, None) => assert_eq!(kind, Some(AddressKind::Pooled), "{address}"),
            (Found::Unknown, None) => {
                assert!(!has_room || kind != Some(AddressKind::Pooled), "{address} is in a pool");
            }
            (found, expected) => panic!("{address}: {found:?} in place of {expected:?}"),
        }
        let outbound = self.bindings.values().find(|binding| binding.private_ip == address);
        let found = self.express.finds_outbound(address);
        match (found, outbound) {
            (found @ Some(_), Some(binding)) => assert_eq!(found, Some((binding.public_ip, binding.meter))),
            (None, Some(_)) => assert!(!has_room || martian, "{address} is not found"),
            (found, expected) => assert_eq!(found, expected.map(|_| (address, 0)), "{address}"),
        }
        if self.express.takes_for_a_stranger(address) {
            let is_known = inbound.is_some() || outbound.is_some() || kind.is_some() || martian;
            assert!(!is_known, "{address} is no stranger");
        }
    }
}

fn run(count: u32, pages: u32, kinds: Kinds, changes: &[Change]) {
    let mut express = Express::new(arrays(count), count, pages, kinds);
    express.settle();
    let mut world = World { express, count, pages, bindings: BTreeMap::new() };
    let mut seen: BTreeSet<Ipv4Addr> =
        ["198.51.100.2", "198.51.100.3", "127.0.0.1", "127.0.0.9", "224.0.0.1", "8.8.8.8", "10.200.0.1"]
            .map(|text| text.parse().unwrap())
            .into();
    for change in changes {
        if let Change::Bind(public_ip, private_ip, _) = change {
            seen.extend([public_ip, private_ip]);
            seen.insert((u32::from(*public_ip) ^ 1).into());
        }
        world.change(change);
        for address in &seen {
            // Each pool and network needs a few blocks, and each binding two at most.
            world.check(*address, count > 64 && pages == PAGES);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn they_say_what_the_maps_say(kinds in kinds(), changes in prop::collection::vec(change(), 1..40)) {
        run(80, PAGES, kinds, &changes);
    }

    #[test]
    fn what_finds_no_room_is_left_to_the_pipeline(kinds in kinds(), changes in prop::collection::vec(change(), 1..40)) {
        run(4, PAGES, kinds, &changes);
    }

    #[test]
    fn what_finds_no_page_is_left_to_the_pipeline(kinds in kinds(), changes in prop::collection::vec(change(), 1..40)) {
        run(80, FIRST_PAGE + 1, kinds, &changes);
    }
}

#[test]
fn a_seat_is_the_first_ones_until_it_goes() {
    let other = 7 + u32::try_from(SEATS).unwrap();
    let mut express = Express::new(arrays(2), 2, PAGES, Kinds::default());
    let port = |last| abi::Port { role: 1, mac: [2, 0, 0, 0, 0, last], ..abi::Port::default() };
    let sits = Express::sitting;
    express.seat(7, &port(7));
    express.seat(other, &port(8));
    let seat = Seat { ifindex: 7, mac: [2, 0, 0, 0, 0, 7], role: 1, ..Seat::default() };
    assert_eq!(sits(&express, 7), seat);
    express.unseat(other);
    assert_eq!(sits(&express, 7), seat);
    express.seat(7, &port(9));
    assert_eq!(sits(&express, 7).mac[5], 9);
    express.unseat(7);
    for other in [abi::Port { tenant: 4, ..port(9) }, abi::Port { role: 0, ..port(9) }] {
        express.seat(9, &port(9));
        assert_eq!(sits(&express, 9).ifindex, 9);
        express.seat(9, &other);
        assert_eq!((sits(&express, 7).ifindex, sits(&express, 9).ifindex), (0, 0));
    }
}
