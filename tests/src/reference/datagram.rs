//! An IPv4 packet taken apart, changed and put together again, every checksum computed from scratch over all bytes.
//!
//! A checksum is taken apart into what is right and by how much it is off; put together, it is off by as much
//! again. So a corrupt packet stays corrupt, and a right one comes out right because it is computed, not because the
//! difference of two addresses was added somewhere. Where a quote is cut short, the bytes that are missing count as
//! zeros both times.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use nat_common::verdict::Reject;

/// An IPv4 packet, or as much of one as an ICMP error quotes.
#[derive(Clone, Debug)]
pub(super) struct Datagram {
    /// Its header. The checksum is not kept: it has been found right, and is computed again.
    pub(super) header: Ipv4Header,
    /// The flag that has no meaning. etherparse drops it; a router must not.
    reserved: bool,
    /// What follows the header.
    pub(super) payload: Vec<u8>,
    /// Whether it is what an ICMP error quotes.
    is_quote: bool,
}

/// What follows the header, as far as a NAT has to care.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A transport's header, or a part of the payload.
    Plain,
    /// An ICMP error.
    Error(Quote),
}

/// What an ICMP error quotes.
#[derive(Clone, Debug)]
pub(super) struct Quote {
    /// The packet.
    pub(super) packet: Datagram,
    /// Padding and extensions (RFC 4884).
    rest: Vec<u8>,
}

/// A transport's checksum that covers the addresses.
#[derive(Clone, Copy)]
struct Field {
    offset: usize,
    header_len: usize,
    /// What is written for a computed zero, and whether zero means "none".
    zero: Zero,
}

#[derive(Clone, Copy, PartialEq)]
enum Zero {
    Plain,
    Never,
    None,
}

impl Field {
    fn of(protocol: IpNumber) -> Option<Self> {
        let (offset, header_len, zero) = match protocol {
            IpNumber::TCP => (16, TcpHeader::MIN_LEN, Zero::Plain),
            IpNumber::DCCP => (6, 12, Zero::Plain),
            IpNumber::UDP => (6, UdpHeader::LEN, Zero::None),
            IpNumber::UDP_LITE => (6, UdpHeader::LEN, Zero::Never),
            _ => return None,
        };
        Some(Self { offset, header_len, zero })
    }
}

/// The internet checksum of some bytes (RFC 1071).
fn checksum(sum: &Sum16BitWords) -> u16 {
    sum.ones_complement().to_be()
}

impl Datagram {
    /// The packet at the beginning of `bytes`, which may go on with padding (RFC 1812 §5.2.2).
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Reject> {
        let (packet, _) = Self::read_header(bytes)?;
        let (header_len, total) = (packet.header.header_len(), usize::from(packet.header.total_len));
        let payload = bytes.get(header_len..total).ok_or(Reject::FrameTruncated)?.to_vec();
        Ok(Self { payload, ..packet })
    }

    /// A valid header, its packet still without payload, and the bytes behind it.
    fn read_header(bytes: &[u8]) -> Result<(Self, &[u8]), Reject> {
        let fixed = bytes.get(..Ipv4Header::MIN_LEN).ok_or(Reject::FrameTruncated)?;
        let header_len = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if fixed[0] >> 4 != 4 || header_len < Ipv4Header::MIN_LEN || total < header_len {
            return Err(Reject::IpHeader);
        }
        let (header, behind) = Ipv4Header::from_slice(bytes).map_err(|_| Reject::FrameTruncated)?;
        if checksum(&Sum16BitWords::new().add_slice(&bytes[..header_len])) != 0 {
            return Err(Reject::IpChecksum);
        }
        let reserved = fixed[6] & 0x80 != 0;
        Ok((Self { header, reserved, payload: Vec::new(), is_quote: false }, behind))
    }

    pub(super) fn source(&self) -> Ipv4Addr {
        self.header.source.into()
    }

    pub(super) fn destination(&self) -> Ipv4Addr {
        self.header.destination.into()
    }

    fn is_first(&self) -> bool {
        self.header.fragment_offset.value() == 0
    }

    /// Options that must not be forwarded: source routes would carry private addresses outside (RFC 3022 §4.6).
    pub(super) fn check_options(&self) -> Result<(), Reject> {
        let mut rest = self.header.options.as_slice();
        while let Some((&kind, behind)) = rest.split_first() {
            rest = match kind {
                0 => return Ok(()),
                1 => behind,
                0x83 | 0x89 => return Err(Reject::SourceRoute),
                _ => {
                    let length = usize::from(*behind.first().ok_or(Reject::IpHeader)?);
                    if length < 2 {
                        return Err(Reject::IpHeader);
                    }
                    rest.get(length..).ok_or(Reject::IpHeader)?
                }
            };
        }
        Ok(())
    }

    /// What follows the header, or why a NAT cannot carry it.
    pub(super) fn content(&self) -> Result<Content, Reject> {
        let protocol = self.header.protocol;
        if protocol == IpNumber::AUTHENTICATION_HEADER {
            return Err(Reject::AuthenticationHeader);
        }
        if !self.is_first() {
            let offset = self.header.fragment_offset.value();
            let overlaps = match protocol {
                IpNumber::TCP => offset == 1,
                // The addresses that an error quotes end at 28 bytes.
                IpNumber::ICMP => offset < 4,
                _ => false,
            };
            return if overlaps { Err(Reject::TinyFragment) } else { Ok(Content::Plain) };
        }
        if protocol == IpNumber::ICMP {
            return self.icmp();
        }
        match Field::of(protocol) {
            Some(field) if self.payload.len() < field.header_len => {
                let tiny = protocol == IpNumber::TCP && self.header.more_fragments;
                Err(if tiny { Reject::TinyFragment } else { Reject::TransportTruncated })
            }
            _ => Ok(Content::Plain),
        }
    }

    fn icmp(&self) -> Result<Content, Reject> {
        let message = &self.payload;
        if message.len() < Icmpv4Header::MIN_LEN {
            return Err(Reject::TransportTruncated);
        }
        match message[0] {
            // RFC 6633, RFC 5508 REQ-10b.
            4 | 5 => return Err(Reject::IcmpType),
            3 | 11 | 12 => {}
            _ => return Ok(Content::Plain),
        }
        if self.header.more_fragments {
            return Err(Reject::IcmpQuote);
        }
        if message.len() > LONGEST_ERROR {
            return Err(Reject::IcmpOversize);
        }
        if checksum(&Sum16BitWords::new().add_slice(message)) != 0 {
            return Err(Reject::IcmpChecksum);
        }
        Quote::read(message).map(Content::Error).ok_or(Reject::IcmpQuote)
    }

    /// Gives it other addresses.
    pub(super) fn readdress(&mut self, source: Ipv4Addr, destination: Ipv4Addr) {
        let field = Field::of(self.header.protocol)
            .filter(|field| self.is_first() && field.offset + 2 <= self.payload.len() && !self.is_padded());
        let off = field.map(|field| self.off(field));
        (self.header.source, self.header.destination) = (source.octets(), destination.octets());
        if let (Some(field), Some(Some(off))) = (field, off) {
            // One's complement arithmetic is arithmetic modulo 65535, and 0 the way to write its zero.
            let value = (u32::from(self.right(field)) + off) % 0xffff;
            let value = match (field.zero, u16::try_from(value).expect("below 65535")) {
                (Zero::Never | Zero::None, 0) => 0xffff,
                (_, value) => value,
            };
            self.payload[field.offset..field.offset + 2].copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Whether it is TCP whose header says that it is shorter than any: then what stands there is no header, but
    /// what fills up a short quote. A whole packet with such a header is as corrupt with its checksum mended as without.
    fn is_padded(&self) -> bool {
        self.is_quote && self.header.protocol == IpNumber::TCP && self.payload[12] < 5 << 4
    }

    /// By how much the transport's checksum is off, modulo 65535. None: there is no checksum.
    fn off(&self, field: Field) -> Option<u32> {
        let value = u16::from_be_bytes([self.payload[field.offset], self.payload[field.offset + 1]]);
        if value == 0 && field.zero == Zero::None {
            return None;
        }
        Some((u32::from(value) + 0xffff - u32::from(self.right(field))) % 0xffff)
    }

    /// The transport's checksum as it ought to be, with the pseudo-header (RFC 9293 §3.1).
    fn right(&self, field: Field) -> u16 {
        let mut payload = self.payload.clone();
        payload[field.offset..field.offset + 2].fill(0);
        let length = self.header.total_len - u16::try_from(self.header.header_len()).expect("60 at most");
        checksum(
            &Sum16BitWords::new()
                .add_4bytes(self.header.source)
                .add_4bytes(self.header.destination)
                .add_2bytes([0, self.header.protocol.0])
                .add_2bytes(length.to_be_bytes())
                .add_slice(&payload),
        )
    }

    /// Puts another quote into an ICMP error, and computes its checksum. As long as no checksum changes within the
    /// quote, that is the checksum which it has.
    pub(super) fn requote(&mut self, before: &Quote, after: &Quote) {
        let header = &self.payload[..Icmpv4Header::MIN_LEN];
        let mut message = [header, &after.packet.bytes(), &after.rest].concat();
        if before.packet.payload != after.packet.payload {
            message[2..4].fill(0);
            let checksum = checksum(&Sum16BitWords::new().add_slice(&message));
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        self.payload = message;
    }

    /// The bytes of the packet.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut header = self.header.to_bytes().to_vec();
        header[6] |= u8::from(self.reserved) << 7;
        header[10..12].fill(0);
        let checksum = checksum(&Sum16BitWords::new().add_slice(&header));
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        [&header, self.payload.as_slice()].concat()
    }
}

/// An ICMP error longer than this, in bytes, is not looked through. RFC 1812 §4.3.2.3 allows 548.
const LONGEST_ERROR: usize = 1536;

impl Quote {
    /// The packet quoted in an ICMP error message.
    fn read(message: &[u8]) -> Option<Self> {
        let kind = Icmpv4Header::from_slice(message).ok()?.0.icmp_type;
        debug_assert!(!matches!(kind, Icmpv4Type::EchoRequest(_)), "an error");
        let (quoted, mut end) = (&message[Icmpv4Header::MIN_LEN..], message.len() - Icmpv4Header::MIN_LEN);
        // RFC 4884 §4: the length of what is quoted, in words, where extensions follow.
        if message[5] != 0 {
            end = end.min(usize::from(message[5]) * 4);
        }
        let (mut packet, _) = Datagram::read_header(quoted).ok()?;
        end = end.min(usize::from(packet.header.total_len));
        packet.payload = quoted.get(packet.header.header_len()..end)?.to_vec();
        packet.is_quote = true;
        let is_icmp = packet.header.protocol == IpNumber::ICMP && packet.is_first();
        // Errors are never sent about errors (RFC 1122 §3.2.2).
        if is_icmp && matches!(packet.payload.first(), Some(3 | 4 | 5 | 11 | 12)) {
            return None;
        }
        Some(Self { packet, rest: quoted[end..].to_vec() })
    }

    /// The quote of the packet with other addresses.
    pub(super) fn readdressed(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        let mut quote = self.clone();
        quote.packet.readdress(source, destination);
        quote
    }
}
