//! What addresses are to the node.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nat_common::abi::AddressKind;

use super::interfaces::Interface;
use crate::model::PoolSpec;

/// Shared address space of carriers (RFC 6598).
const SHARED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// Whether an address may be shown outside: one that is not meant for a network of its own.
pub(crate) fn may_be_public(address: Ipv4Addr) -> bool {
    !address.is_private() && !address.is_link_local() && !address.is_loopback() && !SHARED.contains(&address)
}

/// What the program has to know. Of two CIDRs the longer one counts.
pub(super) fn kinds(
    uplinks: &[String],
    downlinks: &[String],
    pools: &[PoolSpec],
    public_ip: Option<Ipv4Addr>,
    interfaces: &[Interface],
) -> BTreeMap<Ipv4Net, AddressKind> {
    let networks = |names: &[String]| -> Vec<Ipv4Net> {
        let named = interfaces.iter().filter(|interface| names.contains(&interface.name));
        named.flat_map(|interface| &interface.addresses).map(Ipv4Net::trunc).collect()
    };
    let (outside, mut inside) = (networks(uplinks), networks(downlinks));
    let overlap = |one: &Ipv4Net, other: &Ipv4Net| one.contains(other) || other.contains(one);
    // Nor one-armed: who is inside there, addresses do not tell.
    inside.retain(|network| !outside.iter().any(|other| overlap(network, other)));

    let mut kinds: BTreeMap<Ipv4Net, AddressKind> = BTreeMap::new();
    kinds.extend(inside.into_iter().map(|network| (network, AddressKind::Inside)));
    for pool in pools {
        kinds.extend(pool.cidrs.iter().map(|cidr| (*cidr, AddressKind::Pooled)));
        kinds.extend(pool.reserve.iter().map(|address| (Ipv4Net::from(*address), AddressKind::Other)));
    }
    let own = interfaces.iter().flat_map(|interface| &interface.addresses).map(Ipv4Net::addr);
    kinds.extend(own.chain(public_ip).map(|address| (Ipv4Net::from(address), AddressKind::Own)));
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        Interface { name: name.to_owned(), addresses, ..Interface::default() }
    }

    #[test]
    fn the_longest_says_what_an_address_is() {
        let uplinks = ["up0", "arm0"].map(str::to_owned);
        let downlinks = ["arm0", "dn0", "dn1"].map(str::to_owned);
        let pool = PoolSpec {
            name: crate::model::Name::default_one(),
            cidrs: vec!["203.0.113.0/24".parse().unwrap()],
            reserve: ["203.0.113.1", "203.0.113.2"].map(|text| text.parse().unwrap()).into(),
            reuse_delay: std::time::Duration::ZERO,
        };
        let interfaces = [
            interface("lo", &["127.0.0.1/8", "203.0.113.1/32"]),
            interface("up0", &["192.0.2.2/24", "10.1.0.9/30"]),
            interface("dn0", &["10.0.0.1/16"]),
            interface("dn1", &["10.1.0.1/16"]),
            interface("arm0", &["10.9.0.1/24"]),
            interface("mgmt", &["172.16.0.5/24"]),
        ];
        let kinds = kinds(&uplinks, &downlinks, &[pool], None, &interfaces);
        let kind = |text: &str| {
            let address: Ipv4Addr = text.parse().unwrap();
            let longest = kinds
                .iter()
                .filter(|(cidr, _)| cidr.contains(&address))
                .max_by_key(|(cidr, _)| cidr.prefix_len());
            longest.map_or(AddressKind::Other, |(_, kind)| *kind)
        };
        for (address, expected) in [
            ("203.0.113.9", AddressKind::Pooled),
            ("203.0.113.2", AddressKind::Other),
            ("203.0.113.1", AddressKind::Own),
            ("10.0.0.1", AddressKind::Own),
            ("10.0.200.7", AddressKind::Inside),
            // An uplink's network lies in it.
            ("10.1.77.7", AddressKind::Other),
            ("10.9.0.7", AddressKind::Other),
            ("172.16.0.5", AddressKind::Own),
            ("172.16.0.6", AddressKind::Other),
            ("192.0.2.2", AddressKind::Own),
            ("192.0.2.1", AddressKind::Other),
        ] {
            assert_eq!(kind(address), expected, "{address}");
        }
    }

    #[test]
    fn what_may_be_shown_outside() {
        for (address, may) in [
            ("192.0.2.2", true),
            ("10.0.0.1", false),
            ("172.31.0.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("169.254.0.1", false),
        ] {
            assert_eq!(may_be_public(address.parse().unwrap()), may, "{address}");
        }
    }
}
