//! A packet from a few words.

use std::net::Ipv4Addr;
use std::str::FromStr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use nat_common::abi::Mac;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whom frames come from if nobody says otherwise: an address that no card has.
const SOMEBODY: Mac = [2, 0, 0, 0, 0, 1];

/// A packet in a few words. What is left out is chosen so that the packet is a plain one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The source address.
    #[schema(value_type = String, format = Ipv4)]
    pub src: Option<Ipv4Addr>,
    /// The destination address.
    #[schema(value_type = String, format = Ipv4)]
    pub dst: Option<Ipv4Addr>,
    /// `tcp`, `udp`, `icmp`, or a protocol's number.
    #[schema(value_type = String)]
    pub proto: Option<Protocol>,
    /// The source port.
    #[serde(default)]
    pub sport: Option<u16>,
    /// The destination port.
    #[serde(default)]
    pub dport: Option<u16>,
    /// Flags of TCP, of the letters FSRPAUEC; S if none are given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub tcp_flags: Option<Flags>,
    /// The type of an ICMP message: 8, an echo request, if none is given.
    #[serde(default)]
    pub icmp_type: Option<u8>,
    /// Its code.
    #[serde(default)]
    pub icmp_code: Option<u8>,
    /// Hops left: 64 if it is not given.
    #[serde(default)]
    pub ttl: Option<u8>,
    /// DSCP and ECN.
    #[serde(default)]
    pub tos: Option<u8>,
    /// IPv4 total length, in bytes; the payload is zeros.
    #[serde(default)]
    pub length: Option<u16>,
    /// Whether it must not be fragmented (DF): so if it is not given.
    #[serde(default)]
    pub df: Option<bool>,
    /// The frame's source MAC address.
    #[serde(default)]
    pub src_mac: Option<String>,
    /// The frame's destination MAC address: the interface's own if it is not given.
    #[serde(default)]
    pub dst_mac: Option<String>,
}

/// What a packet carries, by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Protocol(pub u8);

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "icmp" => Ok(Self(IpNumber::ICMP.0)),
            "tcp" => Ok(Self(IpNumber::TCP.0)),
            "udp" => Ok(Self(IpNumber::UDP.0)),
            number => {
                number.parse().map(Self).map_err(|_| "it is tcp, udp, icmp, or a number up to 255".to_owned())
            }
        }
    }
}

impl TryFrom<String> for Protocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Protocol> for String {
    fn from(Protocol(number): Protocol) -> Self {
        number.to_string()
    }
}

/// Flags of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Flags(u8);

/// Their letters, from the lowest bit on.
const LETTERS: &str = "FSRPAUEC";

impl FromStr for Flags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bit = |letter: char| LETTERS.find(letter.to_ascii_uppercase());
        text.chars()
            .try_fold(0, |flags, letter| bit(letter).map(|bit| flags | 1 << bit))
            .map(Self)
            .ok_or_else(|| format!("flags are of the letters {LETTERS}, such as SA"))
    }
}

impl TryFrom<String> for Flags {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Flags> for String {
    fn from(Flags(flags): Flags) -> Self {
        LETTERS
            .chars()
            .enumerate()
            .filter(|(bit, _)| flags & 1 << bit != 0)
            .map(|(_, letter)| letter)
            .collect()
    }
}

impl Spec {
    /// The frame, as it comes by an interface with the MAC address `to`. All its checksums are right.
    ///
    /// # Errors
    /// Says in a few words what cannot be.
    pub fn frame(&self, to: Mac) -> Result<Vec<u8>, String> {
        let (Some(source), Some(destination), Some(protocol)) = (self.src, self.dst, self.proto) else {
            return Err("a packet takes src, dst and proto".to_owned());
        };
        let is = |number: IpNumber| protocol.0 == number.0;
        let has_ports = is(IpNumber::TCP) || is(IpNumber::UDP);
        if !has_ports && (self.sport.is_some() || self.dport.is_some()) {
            return Err("only tcp and udp have ports".to_owned());
        }
        if !is(IpNumber::TCP) && self.tcp_flags.is_some() {
            return Err("only tcp has flags".to_owned());
        }
        if !is(IpNumber::ICMP) && (self.icmp_type.is_some() || self.icmp_code.is_some()) {
            return Err("only icmp has a type and a code".to_owned());
        }
        let mut ip = Ipv4Header {
            protocol: IpNumber(protocol.0),
            source: source.octets(),
            destination: destination.octets(),
            time_to_live: self.ttl.unwrap_or(64),
            dont_fragment: self.df.unwrap_or(true),
            ..Ipv4Header::default()
        };
        let payload = self.payload(&ip, protocol)?;
        ip.set_payload_len(payload.len()).map_err(|error| error.to_string())?;
        let mut bytes = ip.to_bytes().to_vec();
        // As one byte: whatever is in it.
        bytes[1] = self.tos.unwrap_or(0);
        bytes[10..12].fill(0);
        let sum = Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        let ethernet = Ethernet2Header {
            source: self.src_mac.as_deref().map_or(Ok(SOMEBODY), mac)?,
            destination: self.dst_mac.as_deref().map_or(Ok(to), mac)?,
            ether_type: EtherType::IPV4,
        };
        Ok([&ethernet.to_bytes()[..], &bytes, &payload].concat())
    }

    /// All that follows the IPv4 header.
    fn payload(&self, ip: &Ipv4Header, protocol: Protocol) -> Result<Vec<u8>, String> {
        let (sport, dport) = (self.sport.unwrap_or(40000), self.dport.unwrap_or(80));
        match IpNumber(protocol.0) {
            IpNumber::TCP => {
                let data = self.data(TcpHeader::MIN_LEN)?;
                let mut header = TcpHeader::new(sport, dport, 1, 64240);
                let Flags(flags) = self.tcp_flags.unwrap_or(Flags(2));
                let has = |bit: u8| flags & 1 << bit != 0;
                (header.fin, header.syn, header.rst, header.psh) = (has(0), has(1), has(2), has(3));
                (header.ack, header.urg, header.ece, header.cwr) = (has(4), has(5), has(6), has(7));
                header.checksum = header.calc_checksum_ipv4(ip, &data).map_err(|error| error.to_string())?;
                Ok([&header.to_bytes(), data.as_slice()].concat())
            }
            IpNumber::UDP => {
                let data = self.data(UdpHeader::LEN)?;
                let header = UdpHeader::with_ipv4_checksum(sport, dport, ip, &data);
                Ok([&header.map_err(|error| error.to_string())?.to_bytes()[..], &data].concat())
            }
            IpNumber::ICMP => {
                let (kind, code) = (self.icmp_type.unwrap_or(8), self.icmp_code.unwrap_or(0));
                // Errors quote; queries have a number and count.
                let (rest, quote) = match kind {
                    3 | 4 | 5 | 11 | 12 => ([0; 4], quoted(ip)),
                    _ => ([0, 1, 0, 1], Vec::new()),
                };
                let head = [&[kind, code, 0, 0], &rest[..], &quote].concat();
                let mut message = [head.as_slice(), &self.data(head.len())?].concat();
                let sum = Sum16BitWords::new().add_slice(&message).ones_complement().to_be();
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                Ok(message)
            }
            _ => self.data(0),
        }
    }

    /// As many zeros as fill the packet up, with so many bytes of the transport's header.
    fn data(&self, header: usize) -> Result<Vec<u8>, String> {
        let least = Ipv4Header::MIN_LEN + header;
        let length = self.length.map_or(least, usize::from);
        let data =
            length.checked_sub(least).ok_or_else(|| format!("its length is {least} bytes at least"))?;
        Ok(vec![0; data])
    }
}

/// What an ICMP error to the destination is about: a datagram that it has sent to whom the error comes from.
fn quoted(error: &Ipv4Header) -> Vec<u8> {
    let mut ip = Ipv4Header {
        protocol: IpNumber::UDP,
        source: error.destination,
        destination: error.source,
        time_to_live: 1,
        total_len: 28,
        ..Ipv4Header::default()
    };
    ip.header_checksum = ip.calc_header_checksum();
    // Without a checksum, which UDP allows.
    let udp = UdpHeader { source_port: 40000, destination_port: 33434, length: 8, checksum: 0 };
    [&ip.to_bytes()[..], &udp.to_bytes()].concat()
}

fn mac(text: &str) -> Result<Mac, String> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text:?} is no MAC address such as 02:00:00:00:00:01"))
}

#[cfg(test)]
mod tests {
    use nat_common::checksum;
    use nat_common::parse::{Ipv4, Transport};

    use super::*;

    fn spec(proto: &str) -> Spec {
        Spec {
            src: Some(Ipv4Addr::new(198, 51, 100, 7)),
            dst: Some(Ipv4Addr::new(203, 0, 113, 10)),
            proto: Some(proto.parse().unwrap()),
            ..Spec::default()
        }
    }

    /// Parses the frame as the translator does, and verifies the transport's checksum.
    fn check(spec: &Spec) -> (Ipv4, Transport) {
        let mut frame = spec.frame([2; 6]).unwrap();
        let ip = Ipv4::parse(frame.as_mut_slice()).unwrap();
        let transport = Transport::parse(frame.as_mut_slice(), &ip).unwrap();
        assert_eq!(ip.end(), frame.len());
        let payload = &frame[ip.payload..];
        let mut sum = Sum16BitWords::new().add_slice(payload);
        if matches!(transport, Transport::Covered(_)) {
            let length = u16::try_from(payload.len()).unwrap();
            sum = sum.add_4bytes(ip.source).add_4bytes(ip.destination);
            sum = sum.add_2bytes([0, ip.protocol]).add_2bytes(length.to_be_bytes());
        }
        if ip.protocol != 50 {
            assert_eq!(sum.ones_complement(), 0);
        }
        assert_eq!(checksum::fold(0xffff), 0xffff);
        (ip, transport)
    }

    #[test]
    fn what_is_built_is_valid() {
        assert!(matches!(check(&spec("tcp")).1, Transport::Covered(_)));
        assert!(matches!(check(&spec("udp")).1, Transport::Covered(_)));
        assert_eq!(check(&spec("icmp")).1, Transport::Opaque);
        assert_eq!(check(&spec("50")).1, Transport::Opaque);
        let error = Spec { icmp_type: Some(3), icmp_code: Some(4), ..spec("icmp") };
        let (ip, transport) = check(&error);
        let Transport::IcmpError(quote) = transport else { panic!("{transport:?}") };
        assert_eq!((quote.ip.source, quote.ip.destination), (ip.destination, ip.source));
        let long = Spec { length: Some(1500), ttl: Some(1), tos: Some(0xb8), df: Some(false), ..spec("udp") };
        let (ip, _) = check(&long);
        assert_eq!((ip.total_len, ip.ttl, ip.tos, ip.dont_fragment), (1500, 1, 0xb8, false));
    }

    #[test]
    fn what_cannot_be_is_said() {
        let refused = |spec: Spec| spec.frame([2; 6]).unwrap_err();
        assert_eq!(refused(Spec::default()), "a packet takes src, dst and proto");
        assert_eq!(refused(Spec { sport: Some(1), ..spec("icmp") }), "only tcp and udp have ports");
        assert_eq!(refused(Spec { length: Some(39), ..spec("tcp") }), "its length is 40 bytes at least");
        assert_eq!(
            refused(Spec { dst_mac: Some("2:0".to_owned()), ..spec("tcp") }),
            "\"2:0\" is no MAC address such as 02:00:00:00:00:01"
        );
        assert!("xyz".parse::<Flags>().is_err() && "256".parse::<Protocol>().is_err());
        assert_eq!(String::from("as".parse::<Flags>().unwrap()), "SA");
    }
}
