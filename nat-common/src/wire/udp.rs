//! UDP (RFC 768) and UDP-Lite (RFC 3828), whose headers have the same shape.

/// Length of the header.
pub const HEADER_LEN: usize = 8;
/// Offset of the checksum, which covers a pseudo-header with the addresses.
pub const CHECKSUM: usize = 6;
