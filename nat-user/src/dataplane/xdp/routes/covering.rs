//! Which routes cover whole /16s, whose addresses share one next hop then (see [`Front::covering`]): who answers a million clients by
//! one gateway asks the FIB once.
//!
//! **Invariant:** whatever the kernel routes otherwise than the rest of a /16 is known here, since it tells of every route that comes.
//! It does not tell of all that go, and of the others before they have gone; what is known too much only has destinations asked for
//! one by one.
//!
//! [`Front::covering`]: nat_common::abi::express::Front::covering

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use nat_common::abi::express::{COVERING, DIRECTORY};
use netlink_packet_core::{NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};

use super::super::kinds::upper;
use super::TABLES;

/// The longest prefix that covers a /16.
const UPPER: u8 = 16;

/// By what the kernel tells routes apart: length and address, table, TOS, priority. Some may have all in common (`ip route append`, `prepend`).
type Place = (u8, Ipv4Addr, u32, u8, u32);

#[derive(Clone, Copy, Debug)]
struct Route {
    /// All packets that take it have the same next hop.
    is_plain: bool,
    /// There may be others in its place.
    is_one_of_some: bool,
}

/// The routes of the tables that all packets go by.
#[derive(Debug, Default)]
pub(super) struct Covering {
    /// Those that cover a /16, the shortest prefixes first.
    short: BTreeMap<Place, Route>,
    /// All others.
    long: HashMap<Place, Route>,
    /// How many others there are in a /16.
    long_in: HashMap<u16, u32>,
    /// Those that are about to go.
    leaving: BTreeSet<Place>,
}

impl Covering {
    /// Notes a route of a list of all.
    pub(super) fn list(&mut self, message: &RouteMessage) {
        let is_another = place(message).is_some_and(|place| self.route(&place).is_some());
        self.note(message, is_another);
    }

    /// Notes a route that has come; `flags`: the message's.
    pub(super) fn insert(&mut self, message: &RouteMessage, flags: u16) {
        // kernel: fib_table_insert(). Where there was none in its place, or another has made way, the flags say so.
        self.note(message, flags & (NLM_F_EXCL | NLM_F_REPLACE) == 0);
    }

    fn note(&mut self, message: &RouteMessage, is_another: bool) {
        let Some(place) = place(message) else { return };
        self.leaving.remove(&place);
        let before = self.route(&place);
        let is_one_of_some = is_another || before.is_some_and(|before| before.is_one_of_some);
        let route = Route { is_plain: is_plain(message) && !is_one_of_some, is_one_of_some };
        if place.0 <= UPPER {
            self.short.insert(place, route);
        } else if self.long.insert(place, route).is_none() {
            *self.long_in.entry(upper(place.1)).or_default() += 1;
        }
    }

    /// Notes that a route is about to go, and answers whether it is known what is left. Until [`forget`](Self::forget) it counts.
    pub(super) fn remove(&mut self, message: &RouteMessage) -> bool {
        let Some(place) = place(message) else { return true };
        if self.route(&place).is_some_and(|route| route.is_one_of_some) {
            return false;
        }
        self.leaving.insert(place);
        true
    }

    /// The routes that were about to go have gone; answers whether there were any.
    pub(super) fn forget(&mut self) -> bool {
        let leaving = std::mem::take(&mut self.leaving);
        for place in &leaving {
            if self.long.remove(place).is_some() {
                self.long_in.entry(upper(place.1)).and_modify(|count| *count -= 1);
            }
            self.short.remove(place);
        }
        !leaving.is_empty()
    }

    fn route(&self, place: &Place) -> Option<Route> {
        self.short.get(place).or_else(|| self.long.get(place)).copied()
    }

    /// For each /16 the number of the route that covers it; 0: there is none, or its addresses have not all the same next hop.
    pub(super) fn numbers(&self) -> Vec<u8> {
        // The longest prefix that covers a /16, counted from 1. Who has it in common has all shorter ones in common, too.
        let mut by = vec![0; DIRECTORY];
        let mut is_plain = vec![true; DIRECTORY];
        for (number, ((length, first, ..), route)) in (1_usize..).zip(&self.short) {
            let from = usize::from(upper(*first));
            let covered = from..(from + (1 << (UPPER - length))).min(DIRECTORY);
            by[covered.clone()].fill(number);
            if !route.is_plain {
                is_plain[covered].fill(false);
            }
        }
        for (upper, _) in self.long_in.iter().filter(|(_, count)| **count > 0) {
            is_plain[usize::from(*upper)] = false;
        }
        let mut sizes = vec![0_u32; self.short.len() + 1];
        for (by, is_plain) in by.iter_mut().zip(is_plain) {
            *by *= usize::from(is_plain);
            sizes[*by] += 1;
        }
        // Where there are more than numbers, those get one that cover most.
        let mut prefixes: Vec<usize> = (1..sizes.len()).filter(|prefix| sizes[*prefix] > 0).collect();
        prefixes.sort_by_key(|prefix| u32::MAX - sizes[*prefix]);
        let mut number_of = vec![0; sizes.len()];
        for (number, prefix) in (1..COVERING).zip(prefixes) {
            number_of[prefix] = u8::try_from(number).unwrap_or_default();
        }
        by.into_iter().map(|prefix| number_of[prefix]).collect()
    }
}

/// Where a route stands, if packets may take it.
fn place(route: &RouteMessage) -> Option<Place> {
    let header = &route.header;
    // A list has what the kernel has learned of single destinations as well.
    if header.address_family != AddressFamily::Inet || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut first, mut table, mut priority) = (Ipv4Addr::UNSPECIFIED, u32::from(header.table), 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => first = *address,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => priority = *number,
            _ => {}
        }
    }
    let is_asked = TABLES.iter().any(|known| u32::from(*known) == table);
    is_asked.then_some((header.destination_prefix_length, first, table, header.tos, priority))
}

/// Whether all packets that take a route have the same next hop: one gateway, or none at all.
fn is_plain(route: &RouteMessage) -> bool {
    use RouteType::{BlackHole, Prohibit, Throw, Unicast, Unreachable};
    let has = |is_one: fn(&RouteAttribute) -> bool| route.attributes.iter().any(is_one);
    match route.header.kind {
        BlackHole | Prohibit | Throw | Unreachable => true,
        Unicast => {
            has(|attribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_)))
                && !has(|attribute| matches!(attribute, RouteAttribute::MultiPath(_)))
        }
        _ => false,
    }
}
