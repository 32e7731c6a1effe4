//! Ethernet II.

use crate::abi::Mac;

/// Length of the header.
pub const HEADER_LEN: usize = 14;

/// Up to this size a frame may have been padded, in bytes: the least that Ethernet carries, a VLAN tag included.
pub const MAX_PADDED: usize = 64;

/// By how many bytes a frame may be larger than header and MTU together and still be sent: a VLAN tag.
/// kernel: `xdp_ok_fwd_dev`.
pub const SLACK: usize = 4;

/// The type of IPv4 (RFC 894).
pub const TYPE_IPV4: u16 = 0x0800;

/// The type of ARP (RFC 826).
pub const TYPE_ARP: u16 = 0x0806;

/// Types of a VLAN tag (IEEE 802.1Q and 802.1ad).
pub const TYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// The VLAN number in the tag behind a header: its low 12 bits.
pub const VLAN_ID: u16 = 0x0fff;

/// A header.
pub struct Header<'a>(pub &'a mut [u8; HEADER_LEN]);

impl Header<'_> {
    /// To whom the frame is addressed.
    #[inline(always)]
    #[must_use]
    pub fn destination(&self) -> Mac {
        [self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5]]
    }

    /// What the frame carries.
    #[inline(always)]
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        u16::from_be_bytes([self.0[12], self.0[13]])
    }

    /// Whether the frame is addressed to more than one machine: broadcast or multicast.
    #[inline(always)]
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Readdresses the frame.
    #[inline(always)]
    pub fn readdress(&mut self, destination: Mac, source: Mac) {
        self.0[..6].copy_from_slice(&destination);
        self.0[6..12].copy_from_slice(&source);
    }
}
