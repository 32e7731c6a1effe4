//! Packets of protocols that the kernel may know nothing of: sent and received as they are, by raw sockets.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::Ipv4Header;
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;
use crate::fixtures::Packet;

/// A way across the node, and how either end sees the other.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// Where packets are sent.
    pub from: &'a Namespace,
    /// Where they arrive.
    pub to: &'a Namespace,
    /// The sender's own address.
    pub sender: Ipv4Addr,
    /// The address that the sender sends to.
    pub target: Ipv4Addr,
    /// The sender's address as the receiver sees it.
    pub seen_sender: Ipv4Addr,
    /// The receiver's own address.
    pub seen_target: Ipv4Addr,
}

/// Sends a packet along the flow by a raw socket. It has to arrive as if it had been built with the addresses that the
/// receiver sees: nothing else may have changed.
///
/// # Errors
/// When it arrives otherwise, or not at all.
pub fn exchange_raw(flow: &Flow<'_>, build: impl Fn(Ipv4Addr, Ipv4Addr) -> Packet) -> Result<()> {
    let sent = build(flow.sender, flow.target);
    let expected = build(flow.seen_sender, flow.seen_target);
    let protocol = sent.ip.protocol;
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(protocol.0))));
    let mut receiver = flow.to.run(open)??;
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    let sender = flow.from.run(open)??;
    sender.send_to(&sent.payload, &SocketAddrV4::new(flow.target, 0).into())?;

    let mut buffer = [0; 2048];
    let length = receiver.read(&mut buffer);
    let length = length.with_context(|| format!("{protocol:?} to {} does not arrive", flow.target))?;
    let (header, payload) = Ipv4Header::from_slice(&buffer[..length])?;
    let addresses = [header.source, header.destination].map(Ipv4Addr::from);
    ensure!(
        addresses == [flow.seen_sender, flow.seen_target],
        "{protocol:?} to {} has arrived from and for {addresses:?}",
        flow.target
    );
    ensure!(
        payload == expected.payload,
        "{protocol:?} to {} has arrived as {payload:02x?}, not {:02x?}",
        flow.target,
        expected.payload
    );
    Ok(())
}
