//! What addresses are to the node, by networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nat_common::abi::AddressKind;

/// What no packet on its way comes from or goes to, and what is the pipeline's to refuse (RFC 6890).
const MARTIANS: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// What all addresses of a network are, as far as no binding says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing is known of them.
    Stranger,
    /// In a pool.
    Pooled,
    /// Only the pipeline knows.
    Special,
    /// Not all the same.
    Mixed,
}

/// What is known of addresses. Of two networks the smaller one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kinds {
    of: BTreeMap<Ipv4Net, AddressKind>,
    /// The lengths of their prefixes, the longest first.
    lengths: Vec<u8>,
}

impl From<BTreeMap<Ipv4Net, AddressKind>> for Kinds {
    fn from(of: BTreeMap<Ipv4Net, AddressKind>) -> Self {
        let lengths: BTreeSet<u8> = of.keys().map(Ipv4Net::prefix_len).collect();
        Self { of, lengths: lengths.into_iter().rev().collect() }
    }
}

impl Kinds {
    /// Whether an address is no end of any packet on its way.
    pub(super) fn is_martian(address: Ipv4Addr) -> bool {
        MARTIANS.iter().any(|martians| martians.contains(&address))
    }

    /// All networks.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Ipv4Net, &AddressKind)> {
        self.of.iter()
    }

    /// What all of a network is.
    pub(super) fn class(&self, network: Ipv4Net) -> Class {
        // They are sorted by their first addresses, and those with the same by their lengths.
        let (first, last) = (host(network.network(), 0), host(network.broadcast(), 32));
        if self.of.range(first..=last).any(|(other, _)| network.contains(other) && *other != network) {
            return Class::Mixed;
        }
        if MARTIANS.iter().any(|martians| martians.contains(&network)) {
            return Class::Special;
        }
        match self.smallest(network) {
            None => Class::Stranger,
            Some(AddressKind::Pooled) => Class::Pooled,
            Some(_) => Class::Special,
        }
    }

    /// What the smallest network is that a network is in.
    pub(super) fn smallest(&self, network: Ipv4Net) -> Option<AddressKind> {
        let lengths = self.lengths.iter().filter(|length| **length <= network.prefix_len());
        lengths
            .map(|length| host(network.network(), *length).trunc())
            .find_map(|net| self.of.get(&net))
            .copied()
    }

    /// Whether an address is in a pool.
    pub(super) fn is_pooled(&self, address: Ipv4Addr) -> bool {
        self.smallest(address.into()) == Some(AddressKind::Pooled)
    }

    /// Whether nothing is known of an address.
    pub(super) fn is_stranger(&self, address: Ipv4Addr) -> bool {
        self.smallest(address.into()).is_none() && !Self::is_martian(address)
    }

    /// The upper halves of addresses that anything is known of.
    pub(super) fn uppers(&self) -> BTreeSet<u16> {
        let known = self.of.keys().chain(&MARTIANS);
        known.flat_map(|network| upper(network.network())..=upper(network.broadcast())).collect()
    }
}

/// The upper half of an address.
pub(super) fn upper(address: Ipv4Addr) -> u16 {
    let [first, second, ..] = address.octets();
    u16::from_be_bytes([first, second])
}

/// An address with the length of a prefix, of which there are 33.
fn host(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new(address, length).unwrap_or_default()
}
