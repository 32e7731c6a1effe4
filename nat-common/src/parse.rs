//! Frame -> what a NAT has to know of it, or [`Reject`]. Nothing here writes.
//!
//! It comes in two steps, because packets of the node's own must reach the kernel whatever they carry: the IPv4
//! header first ([`Ipv4::parse`]), and the transport ([`Transport::parse`]) only once a binding wants the packet.

use crate::abi::Addr;
use crate::checksum::{self, Zero};
use crate::frame::Frame;
use crate::verdict::Reject;
use crate::wire::ipv4::{Header, MIN_HEADER_LEN, protocol};
use crate::wire::{dccp, ethernet, icmpv4, tcp, udp};

/// A valid IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Where the header begins in the frame.
    pub at: usize,
    /// Where the payload begins in the frame: the header's options come before it.
    pub payload: usize,
    /// Length of header and payload, in bytes.
    pub total_len: u16,
    /// DSCP and ECN.
    pub tos: u8,
    /// Hops left.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: u8,
    /// DF.
    pub dont_fragment: bool,
    /// MF.
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    /// Who sent it.
    pub source: Addr,
    /// For whom it is.
    pub destination: Addr,
}

impl Ipv4 {
    /// Reads and validates the header of the packet in an Ethernet frame (RFC 1812 §5.2.2). The frame may be longer
    /// than the packet, by padding.
    ///
    /// # Errors
    /// [`Reject::FrameTruncated`], [`Reject::IpHeader`], [`Reject::IpChecksum`].
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized>(frame: &mut F) -> Result<Self, Reject> {
        let ip = Self::header(frame, ethernet::HEADER_LEN)?;
        if frame.size() < ip.end() {
            return Err(Reject::FrameTruncated);
        }
        Ok(ip)
    }

    /// Reads and validates the header that begins at `at`, but not that the payload is all there.
    #[inline(always)]
    fn header<F: Frame + ?Sized>(frame: &mut F, at: usize) -> Result<Self, Reject> {
        let header = Header(frame.at(at)?);
        let header_len = header.header_len();
        if header.version() != 4
            || header_len < MIN_HEADER_LEN
            || usize::from(header.total_len()) < header_len
        {
            return Err(Reject::IpHeader);
        }
        let ip = Self {
            at,
            payload: at + header_len,
            total_len: header.total_len(),
            tos: header.tos(),
            ttl: header.ttl(),
            protocol: header.protocol(),
            dont_fragment: header.dont_fragment(),
            more_fragments: header.more_fragments(),
            fragment_offset: header.fragment_offset(),
            source: header.source(),
            destination: header.destination(),
        };
        let mut sum = header.sum();
        if header_len > MIN_HEADER_LEN {
            sum += frame.sum(at + MIN_HEADER_LEN, ip.payload)?;
        }
        if checksum::fold(sum) != 0xffff {
            return Err(Reject::IpChecksum);
        }
        Ok(ip)
    }

    /// Where the packet ends in the frame; padding may follow.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> usize {
        self.at + self.total_len as usize
    }

    /// Whether the payload begins with the transport's header.
    #[inline(always)]
    #[must_use]
    pub const fn is_first_fragment(&self) -> bool {
        self.fragment_offset == 0
    }
}

/// A checksum that covers the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Where it stands in the frame.
    pub at: usize,
    /// What zero means in it.
    pub zero: Zero,
}

/// What follows the IPv4 header, as far as a NAT has to care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A checksum has to follow the addresses.
    Covered(Covered),
    /// Nothing in it depends on the addresses; a later fragment, too.
    Opaque,
    /// An ICMP error: the packet that it quotes has to be translated, too.
    IcmpError(Quote),
}

/// The packet quoted in an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Its header.
    pub ip: Ipv4,
    /// Its transport's checksum, if it covers the addresses and was not cut off.
    pub covered: Option<Covered>,
}

impl Transport {
    /// Reads and validates what follows the header `ip`.
    ///
    /// # Errors
    /// The reasons for which a packet cannot be translated.
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4) -> Result<Self, Reject> {
        if ip.protocol == protocol::AH {
            return Err(Reject::AuthenticationHeader);
        }
        if !ip.is_first_fragment() {
            return match ip.protocol {
                // RFC 3128: a fragment at 8 bytes would overwrite the flags of the TCP header.
                protocol::TCP if ip.fragment_offset == 1 => Err(Reject::TinyFragment),
                // It could hold an address that an ICMP error quotes, and nothing says whether it is one's.
                protocol::ICMP if ip.fragment_offset * 8 <= icmpv4::QUOTED_ADDRESSES_END => {
                    Err(Reject::TinyFragment)
                }
                _ => Ok(Self::Opaque),
            };
        }
        if ip.protocol == protocol::ICMP {
            return Self::parse_icmp(frame, ip);
        }
        let Some((covered, header_len)) = covered(ip) else { return Ok(Self::Opaque) };
        if ip.payload + header_len > ip.end() {
            return Err(if ip.protocol == protocol::TCP && ip.more_fragments {
                Reject::TinyFragment
            } else {
                Reject::TransportTruncated
            });
        }
        // In the first buffer, too, of a frame in several: nothing is written unless all can be.
        frame.at::<2>(covered.at)?;
        Ok(Self::Covered(covered))
    }

    #[inline(always)]
    fn parse_icmp<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4) -> Result<Self, Reject> {
        if ip.payload + icmpv4::HEADER_LEN > ip.end() {
            return Err(Reject::TransportTruncated);
        }
        let header = *frame.at::<{ icmpv4::HEADER_LEN }>(ip.payload)?;
        match icmpv4::Kind::of(header[0]) {
            icmpv4::Kind::Other => Ok(Self::Opaque),
            icmpv4::Kind::Refused => Err(Reject::IcmpType),
            icmpv4::Kind::Error => {
                // The checksum covers the whole message, so a part of one cannot be judged.
                if ip.more_fragments {
                    return Err(Reject::IcmpQuote);
                }
                if ip.end() > ip.payload + checksum::MAX_SUM {
                    return Err(Reject::IcmpOversize);
                }
                if checksum::fold(frame.sum(ip.payload, ip.end())?) != 0xffff {
                    return Err(Reject::IcmpChecksum);
                }
                Quote::parse(frame, ip, usize::from(header[icmpv4::QUOTE_WORDS]) * 4)
                    .map(Self::IcmpError)
                    .map_err(|_| Reject::IcmpQuote)
            }
        }
    }
}

impl Quote {
    /// Reads the packet quoted in the error `outer`. `length`: of the quoted datagram, 0 where there are no
    /// extensions behind it (RFC 4884 §4).
    #[inline(always)]
    fn parse<F: Frame + ?Sized>(frame: &mut F, outer: &Ipv4, length: usize) -> Result<Self, Reject> {
        let start = outer.payload + icmpv4::HEADER_LEN;
        let ip = Ipv4::header(frame, start)?;
        // What is quoted may be cut short, and padded with zeros that are no part of it.
        let mut end = ip.end();
        if end > outer.end() {
            end = outer.end();
        }
        if length != 0 && end > start + length {
            end = start + length;
        }
        if ip.payload > end {
            return Err(Reject::IcmpQuote);
        }
        if ip.protocol == protocol::ICMP && ip.is_first_fragment() && ip.payload < end {
            // Errors are never sent about errors (RFC 1122 §3.2.2), so there is no second quote to translate.
            let message_type = frame.at::<1>(ip.payload)?[0];
            if !matches!(icmpv4::Kind::of(message_type), icmpv4::Kind::Other) {
                return Err(Reject::IcmpQuote);
            }
        }
        let covered = match covered(&ip) {
            Some((covered, _))
                if ip.is_first_fragment() && covered.at + 2 <= end && !is_padded_tcp(frame, &ip)? =>
            {
                Some(covered)
            }
            _ => None,
        };
        Ok(Self { ip, covered })
    }
}

/// Whether a quoted TCP header says that it is shorter than any, so that padding stands there: routers quote 8 bytes of it
/// (RFC 792) and may fill them up with zeros to 128 (RFC 4884 §5.5). The quote must reach that far.
#[inline(always)]
fn is_padded_tcp<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4) -> Result<bool, Reject> {
    Ok(ip.protocol == protocol::TCP
        && frame.at::<1>(ip.payload + tcp::DATA_OFFSET)?[0] >> 4 < tcp::MIN_DATA_OFFSET)
}

/// The checksum of a transport that covers the addresses, and the length of that transport's shortest header.
#[inline(always)]
fn covered(ip: &Ipv4) -> Option<(Covered, usize)> {
    let (offset, zero, header_len) = match ip.protocol {
        protocol::TCP => (tcp::CHECKSUM, Zero::Plain, tcp::MIN_HEADER_LEN),
        protocol::UDP => (udp::CHECKSUM, Zero::Absent, udp::HEADER_LEN),
        protocol::UDP_LITE => (udp::CHECKSUM, Zero::Forbidden, udp::HEADER_LEN),
        protocol::DCCP => (dccp::CHECKSUM, Zero::Plain, dccp::MIN_HEADER_LEN),
        _ => return None,
    };
    Some((Covered { at: ip.payload + offset, zero }, header_len))
}
