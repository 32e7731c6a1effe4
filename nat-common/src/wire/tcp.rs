//! TCP (RFC 9293).

/// Length of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Offset of the checksum, which covers a pseudo-header with the addresses.
pub const CHECKSUM: usize = 16;
