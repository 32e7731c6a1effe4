//! IPv4 (RFC 791).

use crate::abi::Addr;

/// Length of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Offset of the TTL, which shares its checksummed word with the protocol.
pub const TTL: usize = 8;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address; the destination follows it.
pub const ADDRESSES: usize = 12;

/// Protocol numbers (IANA).
pub mod protocol {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4340.
    pub const DCCP: u8 = 33;
    /// Authentication header, RFC 4302.
    pub const AH: u8 = 51;
    /// RFC 3828.
    pub const UDP_LITE: u8 = 136;
}

/// Options (RFC 791 §3.1).
pub mod option {
    use crate::frame::Frame;
    use crate::verdict::Reject;

    /// Longest run of options, in bytes.
    pub const MAX_LEN: usize = 40;

    /// Type: end of the list.
    pub const END: u8 = 0;
    /// Type: one byte of padding.
    pub const NOP: u8 = 1;
    /// Type: loose source route, copied flag included.
    pub const LSRR: u8 = 0x83;
    /// Type: strict source route, copied flag included.
    pub const SSRR: u8 = 0x89;

    /// Refuses source routes, which would carry private addresses outside (RFC 3022 §4.6), and options that do not
    /// fit into `from..to`.
    ///
    /// # Errors
    /// [`Reject::SourceRoute`], [`Reject::IpHeader`].
    #[inline(always)]
    pub fn check<F: Frame + ?Sized>(frame: &mut F, from: usize, to: usize) -> Result<(), Reject> {
        // One byte a turn, at an offset that does not depend on the bytes before it: so the verifier need not follow
        // each way in which options can be strung together. `left`: bytes of the present option still to come.
        let mut expects_length = false;
        let mut left = 0u8;
        for index in 0..MAX_LEN {
            if from + index >= to {
                break;
            }
            let byte = frame.at::<1>(from + index)?[0];
            if expects_length {
                if byte < 2 {
                    return Err(Reject::IpHeader);
                }
                expects_length = false;
                left = byte - 2;
            } else if left > 0 {
                left -= 1;
            } else {
                match byte {
                    END => break,
                    NOP => {}
                    LSRR | SSRR => return Err(Reject::SourceRoute),
                    _ => expects_length = true,
                }
            }
        }
        if expects_length || left > 0 { Err(Reject::IpHeader) } else { Ok(()) }
    }
}

/// A header without its options.
pub struct Header<'a>(pub &'a [u8; MIN_HEADER_LEN]);

impl Header<'_> {
    #[inline(always)]
    fn word(&self, offset: usize) -> u16 {
        u16::from_be_bytes([self.0[offset], self.0[offset + 1]])
    }

    /// 4.
    #[inline(always)]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.0[0] >> 4
    }

    /// Length of the header with its options, in bytes (0..=60).
    #[inline(always)]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// DSCP and ECN.
    #[inline(always)]
    #[must_use]
    pub fn tos(&self) -> u8 {
        self.0[1]
    }

    /// Length of header and payload, in bytes.
    #[inline(always)]
    #[must_use]
    pub fn total_len(&self) -> u16 {
        self.word(2)
    }

    /// The DF bit.
    #[inline(always)]
    #[must_use]
    pub fn dont_fragment(&self) -> bool {
        self.0[6] & 0x40 != 0
    }

    /// The MF bit.
    #[inline(always)]
    #[must_use]
    pub fn more_fragments(&self) -> bool {
        self.0[6] & 0x20 != 0
    }

    /// Where the payload belongs in the original datagram, in units of 8 bytes.
    #[inline(always)]
    #[must_use]
    pub fn fragment_offset(&self) -> u16 {
        self.word(6) & 0x1fff
    }

    /// Hops left.
    #[inline(always)]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.0[TTL]
    }

    /// What the payload is.
    #[inline(always)]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.0[9]
    }

    /// Sum of the header's words, without the options.
    #[inline(always)]
    #[must_use]
    pub fn sum(&self) -> u64 {
        let mut sum = 0;
        let mut offset = 0;
        while offset < MIN_HEADER_LEN {
            sum += u64::from(self.word(offset));
            offset += 2;
        }
        sum
    }

    /// Who sent it.
    #[inline(always)]
    #[must_use]
    pub fn source(&self) -> Addr {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }

    /// For whom it is.
    #[inline(always)]
    #[must_use]
    pub fn destination(&self) -> Addr {
        [self.0[16], self.0[17], self.0[18], self.0[19]]
    }
}

/// Addresses that are special to a router (RFC 6890).
pub mod address {
    use super::Addr;

    /// 169.254/16: valid on one link only, never forwarded (RFC 3927 §7).
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(addr: Addr) -> bool {
        addr[0] == 169 && addr[1] == 254
    }

    /// 0/8, 127/8, multicast, 240/4, broadcast: neither end of a unicast packet (RFC 1812 §5.3.7).
    #[inline(always)]
    #[must_use]
    pub const fn is_martian(addr: Addr) -> bool {
        matches!(addr[0], 0 | 127 | 224..=255)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header of a real packet (RFC 1071-checked, from a public capture of an HTTP session).
    const SAMPLE: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn fields() {
        let header = Header(&SAMPLE);
        assert_eq!((header.version(), header.header_len(), header.tos()), (4, 20, 0));
        assert_eq!((header.total_len(), header.ttl(), header.protocol()), (0x73, 64, protocol::UDP));
        assert_eq!(
            (header.dont_fragment(), header.more_fragments(), header.fragment_offset()),
            (true, false, 0)
        );
        assert_eq!((header.source(), header.destination()), ([192, 168, 0, 1], [192, 168, 0, 199]));
        assert_eq!(crate::checksum::fold(header.sum()), 0xffff);
    }

    #[test]
    fn special_addresses() {
        for martian in [[0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 5], [240, 0, 0, 1], [255; 4]] {
            assert!(address::is_martian(martian), "{martian:?}");
        }
        for good in [[1, 0, 0, 0], [126, 255, 255, 255], [128, 0, 0, 1], [223, 255, 255, 255], [10, 0, 0, 10]]
        {
            assert!(!address::is_martian(good) && !address::is_link_local(good), "{good:?}");
        }
        assert!(address::is_link_local([169, 254, 169, 254]) && !address::is_link_local([169, 253, 0, 1]));
    }
}
