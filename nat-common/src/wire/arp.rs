//! ARP for IPv4 over Ethernet (RFC 826).

use crate::abi::{Addr, Mac};

/// Length of a packet.
pub const LEN: usize = 28;

/// A request.
pub const REQUEST: u16 = 1;

/// How a packet for IPv4 over Ethernet begins: hardware 1, protocol 0x0800, and the lengths of their addresses.
const IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a>(pub &'a [u8; LEN]);

impl Packet<'_> {
    /// Whether it is one for IPv4 over Ethernet.
    #[inline(always)]
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.0[0] == IPV4[0]
            && self.0[1] == IPV4[1]
            && self.0[2] == IPV4[2]
            && self.0[3] == IPV4[3]
            && self.0[4] == IPV4[4]
            && self.0[5] == IPV4[5]
    }

    /// [`REQUEST`], a reply (2), or something else.
    #[must_use]
    pub fn operation(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }

    /// The MAC address of who sends it (`sha`).
    #[must_use]
    pub fn sender_mac(&self) -> Mac {
        [self.0[8], self.0[9], self.0[10], self.0[11], self.0[12], self.0[13]]
    }

    /// The address of who sends it (`spa`); all zero in a probe (RFC 5227 §2.1.1).
    #[inline(always)]
    #[must_use]
    pub fn sender(&self) -> Addr {
        [self.0[14], self.0[15], self.0[16], self.0[17]]
    }

    /// The address that it asks for (`tpa`).
    #[inline(always)]
    #[must_use]
    pub fn target(&self) -> Addr {
        [self.0[24], self.0[25], self.0[26], self.0[27]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_request() {
        let bytes: [u8; LEN] =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 9];
        let packet = Packet(&bytes);
        assert!(packet.is_ipv4());
        assert_eq!(packet.operation(), REQUEST);
        assert_eq!(packet.sender_mac(), [2, 0, 0, 0, 0, 1]);
        assert_eq!((packet.sender(), packet.target()), ([192, 0, 2, 1], [192, 0, 2, 9]));
        let mut other = bytes;
        other[5] = 6;
        assert!(!Packet(&other).is_ipv4());
    }
}
