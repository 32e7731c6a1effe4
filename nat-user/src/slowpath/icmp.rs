//! ICMP errors that the node makes (RFC 792, RFC 1812 §4.3).

use std::net::Ipv4Addr;

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header};
use nat_common::parse::Ipv4;
use nat_common::wire::{ethernet, icmpv4};

/// Most bytes of an error, the IP header included (RFC 1812 §4.3.2.3).
const MAX_LEN: usize = 576;

/// Hops that an error may take.
const TTL: u8 = 64;

/// The DSCP of what keeps a network running: internetwork control (RFC 1812 §4.3.2.5).
const DSCP: u8 = 48;

/// Why a packet did not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Its hops were used up.
    TimeExceeded,
    /// It is larger than the next hop takes, and must not be fragmented.
    FragmentationNeeded {
        /// What the next hop takes, in bytes (RFC 1191 §4).
        mtu: u16,
    },
    /// The next hop, which may be the host itself, does not answer.
    HostUnreachable,
}

/// Whether a packet may be answered with an error at all (RFC 1812 §4.3.2.7, RFC 1122 §3.2.2). That it was no broadcast and
/// comes from a possible source has been checked by the fast path.
#[must_use]
pub fn may_be_answered(frame: &[u8], ip: &Ipv4) -> bool {
    if !ip.is_first_fragment() {
        return false;
    }
    // Of messages that nobody knows, nobody knows whether they are errors.
    let is_query = |kind: &u8| matches!(kind, 0 | 8 | 13..=18);
    u32::from(ip.protocol) != 1 || frame.get(ip.payload).is_some_and(is_query)
}

/// An error about a packet as its sender has sent it, from `source`, as a frame whose MAC addresses are still to be written.
///
/// # Errors
/// Never, as long as an error fits into an IP packet.
pub fn error(frame: &[u8], ip: &Ipv4, cause: Cause, source: Ipv4Addr, id: u16) -> anyhow::Result<Vec<u8>> {
    let kind = match cause {
        Cause::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Cause::FragmentationNeeded { mtu } => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu,
            })
        }
        Cause::HostUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host),
    };
    let room = MAX_LEN - Ipv4Header::MIN_LEN - icmpv4::HEADER_LEN;
    let end = ip.end().min(frame.len()).min(ip.at + room);
    let quoted = frame.get(ip.at..end).unwrap_or_default();
    let message = Icmpv4Header::with_checksum(kind, quoted);
    let payload = u16::try_from(icmpv4::HEADER_LEN + quoted.len())?;
    let mut header = Ipv4Header::new(payload, TTL, IpNumber::ICMP, source.octets(), ip.source)
        .map_err(anyhow::Error::new)?;
    header.dont_fragment = false;
    header.identification = id;
    header.dscp = DSCP.try_into().map_err(anyhow::Error::new)?;
    header.header_checksum = header.calc_header_checksum();

    let mut error = vec![0; ethernet::HEADER_LEN];
    error[ethernet::HEADER_LEN - 2..].copy_from_slice(&ethernet::TYPE_IPV4.to_be_bytes());
    header.write(&mut error)?;
    message.write(&mut error)?;
    error.extend_from_slice(quoted);
    Ok(error)
}
