//! The kernel's neighbours (rtnetlink(7)): it asks for their MAC addresses, and tells what it has learnt.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context as _;
use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::waiting::Neighbour;

/// kernel: `RTNLGRP_NEIGH`
const GROUP: u32 = 3;

/// A conversation with the kernel.
#[derive(Debug)]
pub(super) struct Neighbours(Socket);

impl Neighbours {
    /// Begins to listen.
    pub(super) fn open() -> anyhow::Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.add_membership(GROUP)?;
            socket.set_non_blocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        open().map(Self).context("the kernel's neighbours cannot be listened to")
    }

    /// Has the kernel ask for a neighbour, like for a packet of its own (`NTF_USE`).
    pub(super) fn resolve(&self, (ifindex, address): Neighbour) -> anyhow::Result<()> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header = NeighbourHeader {
            family: if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
            ifindex,
            flags: NeighbourFlags::Use,
            ..NeighbourHeader::default()
        };
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        neighbour.attributes.push(NeighbourAttribute::Destination(destination));
        let mut message = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::from(RouteNetlinkMessage::NewNeighbour(neighbour)),
        );
        message.header.flags = NLM_F_REQUEST | NLM_F_CREATE;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// The neighbours of which there is news, without waiting for any. Where some news was lost, `false`.
    pub(super) fn news(&self) -> (Vec<Neighbour>, bool) {
        let mut news = Vec::new();
        loop {
            match self.0.recv_from_full() {
                Ok((datagram, _)) => read(&datagram, &mut news),
                Err(error) => return (news, error.kind() == std::io::ErrorKind::WouldBlock),
            }
        }
    }
}

fn read(datagram: &[u8], news: &mut Vec<Neighbour>) {
    let mut rest = datagram;
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        let length = header.length() as usize;
        if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            && let NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour),
            ) = message.payload
        {
            news.extend(neighbour.attributes.iter().filter_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                    Some((neighbour.header.ifindex, IpAddr::from(*address)))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                    Some((neighbour.header.ifindex, IpAddr::from(*address)))
                }
                _ => None,
            }));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

impl AsFd for Neighbours {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
