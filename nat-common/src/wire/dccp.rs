//! DCCP (RFC 4340).

/// Length of the shortest generic header.
pub const MIN_HEADER_LEN: usize = 12;
/// Offset of the checksum, which covers a pseudo-header with the addresses (§9.1).
pub const CHECKSUM: usize = 6;
