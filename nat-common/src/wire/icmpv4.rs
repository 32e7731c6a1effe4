//! ICMP (RFC 792). Its checksum covers no pseudo-header, so it knows nothing of the addresses outside the message.

/// Where the addresses of a quoted header without options end, in bytes from the beginning of an error.
pub const QUOTED_ADDRESSES_END: u16 = 28;
/// Length of the header of every message that eipnat looks into.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Offset of the length of the quoted datagram in words of 4 bytes, where there are extensions; else 0 (RFC 4884).
pub const QUOTE_WORDS: usize = 5;

/// What a message is to a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It quotes the packet that caused it.
    Error,
    /// Never forwarded: source quench (RFC 6633), and redirect, which RFC 5508 REQ-10b leaves to us: it speaks of the
    /// next hop on a link at the other side of the NAT.
    Refused,
    /// A query, its answer, or something unknown: nothing in it has to be translated.
    Other,
}

impl Kind {
    /// The kind of a message type.
    #[inline(always)]
    #[must_use]
    pub const fn of(message_type: u8) -> Self {
        match message_type {
            3 | 11 | 12 => Self::Error,
            4 | 5 => Self::Refused,
            _ => Self::Other,
        }
    }
}
