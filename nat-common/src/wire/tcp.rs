//! TCP (RFC 9293).

/// Length of a header without options.
pub const MIN_HEADER_LEN: usize = 20;
/// Offset of the byte whose high 4 bits are the header's length, in words.
pub const DATA_OFFSET: usize = 12;
/// The least value of those.
pub const MIN_DATA_OFFSET: u8 = 5;
/// Offset of the checksum, which covers a pseudo-header with the addresses.
pub const CHECKSUM: usize = 16;
