//! What the kernel says of the node's interfaces (rtnetlink(7)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use ipnet::Ipv4Net;
use nat_common::abi::Mac;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily as RouteFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::netlink;

/// A network interface.
#[derive(Clone, Debug, Default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    /// None if it is no Ethernet interface.
    pub(super) mac: Option<Mac>,
    /// Its addresses, each with the length of its network's prefix.
    pub(super) addresses: Vec<Ipv4Net>,
    /// The bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
    /// What a VLAN or macvlan stands on.
    pub(super) stands_on: Option<u32>,
    /// Whether it was switched on.
    pub(super) is_up: bool,
    /// Whether there is somebody at the other end.
    pub(super) has_carrier: bool,
    /// How many queues it has for what it receives; it may use fewer.
    pub(super) queues: u32,
    /// Ids of the XDP programs that run on it.
    pub(super) programs: Vec<u32>,
}

impl Interface {
    /// All interfaces of this network namespace.
    pub(super) fn all() -> anyhow::Result<Vec<Self>> {
        let mut interfaces = BTreeMap::<u32, Self>::new();
        for message in dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            if let RouteNetlinkMessage::NewLink(link) = message {
                interfaces.insert(link.header.index, Self::from(link));
            }
        }
        for message in dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(address) = message else { continue };
            let Some(interface) = interfaces.get_mut(&address.header.index) else { continue };
            // Of a point-to-point link, `Address` is the other end's.
            interface.addresses.extend(address.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(local)) => {
                    Ipv4Net::new(*local, address.header.prefix_len).ok()
                }
                _ => None,
            }));
        }
        Ok(interfaces.into_values().collect())
    }
}

/// The routers that the node's routes lead by.
pub(super) fn gateways() -> anyhow::Result<Vec<Ipv4Addr>> {
    let mut question = RouteMessage::default();
    question.header.address_family = RouteFamily::Inet;
    let routes = dump(&RouteNetlinkMessage::GetRoute(question))?;
    let gateway = |attribute: RouteAttribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(gateway),
        _ => None,
    };
    let of_route = |route| match route {
        RouteNetlinkMessage::NewRoute(route) => route.attributes,
        _ => Vec::new(),
    };
    Ok(routes.into_iter().flat_map(of_route).filter_map(gateway).collect())
}

/// The name of an interface.
pub(super) fn name(index: u32) -> Option<String> {
    netdevice::index_to_name(any_socket().ok()?, index).ok()
}

/// The index of an interface.
pub(super) fn index(name: &str) -> anyhow::Result<u32> {
    Ok(netdevice::name_to_index(any_socket()?, name)?)
}

fn any_socket() -> rustix::io::Result<OwnedFd> {
    socket(AddressFamily::INET, SocketType::DGRAM, None)
}

impl From<LinkMessage> for Interface {
    fn from(link: LinkMessage) -> Self {
        let mut interface = Self {
            index: link.header.index,
            is_up: link.header.flags.contains(LinkFlags::Up),
            has_carrier: link.header.flags.contains(LinkFlags::LowerUp),
            ..Self::default()
        };
        let (mut below, mut is_stacked) = (None, false);
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name = name,
                // Loopback and tunnels have zeros, or an address of another length.
                LinkAttribute::Address(mac) => {
                    interface.mac = Mac::try_from(mac).ok().filter(|mac| *mac != [0; 6]);
                }
                LinkAttribute::Xdp(facts) => {
                    interface.programs.extend(facts.iter().filter_map(|fact| match fact {
                        LinkXdp::ProgId(id) => Some(*id),
                        _ => None,
                    }));
                }
                LinkAttribute::NumRxQueues(queues) => interface.queues = queues,
                LinkAttribute::Controller(index) => interface.controller = Some(index),
                LinkAttribute::Link(index) => below = Some(index),
                // A veth's "link" is its other end.
                LinkAttribute::LinkInfo(info) => {
                    is_stacked |= info
                        .iter()
                        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan | InfoKind::MacVlan)));
                }
                _ => {}
            }
        }
        interface.stands_on = below.filter(|_| is_stacked);
        interface
    }
}

fn dump(request: &RouteNetlinkMessage) -> anyhow::Result<Vec<RouteNetlinkMessage>> {
    netlink::dump(NETLINK_ROUTE, request).context("cannot ask the kernel for its network interfaces")
}

/// Every interface below one of `ports`, at any depth, that is none of them: a bridge's ports, a bond's slaves, what
/// a VLAN stands on.
pub(super) fn below<'a>(interfaces: &'a [Interface], ports: &BTreeSet<u32>) -> Vec<&'a Interface> {
    let mut above = ports.clone();
    let mut found = BTreeSet::<u32>::new();
    while !above.is_empty() {
        let is_below = |interface: &&Interface| {
            interface.controller.is_some_and(|controller| above.contains(&controller))
                || interfaces
                    .iter()
                    .any(|upper| above.contains(&upper.index) && upper.stands_on == Some(interface.index))
        };
        let next = interfaces.iter().filter(is_below).map(|interface| interface.index);
        // What was found before is not looked at again, so this ends.
        above = next.filter(|index| !ports.contains(index) && !found.contains(index)).collect();
        found.extend(&above);
    }
    interfaces.iter().filter(|interface| found.contains(&interface.index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, controller: Option<u32>, stands_on: Option<u32>) -> Interface {
        Interface { index, controller, stands_on, ..Interface::default() }
    }

    #[test]
    fn all_that_is_below_a_port_and_no_port_itself() {
        // 1 and 2 in a bond 3, on which the VLAN 4 stands; 5 stands by itself; 6 and 7 name each other.
        let interfaces = [
            interface(1, Some(3), None),
            interface(2, Some(3), None),
            interface(3, None, None),
            interface(4, None, Some(3)),
            interface(5, None, None),
            interface(6, None, Some(7)),
            interface(7, None, Some(6)),
        ];
        let indices = |ports: &[u32]| -> Vec<u32> {
            let below = below(&interfaces, &ports.iter().copied().collect());
            below.iter().map(|interface| interface.index).collect()
        };
        assert_eq!(indices(&[4]), [1, 2, 3]);
        assert_eq!(indices(&[4, 1]), [2, 3]);
        assert_eq!(indices(&[5]), [0; 0]);
        assert_eq!(indices(&[6]), [7]);
    }
}
