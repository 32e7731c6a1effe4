//! Bounds-checked access to the bytes of a packet.

use crate::checksum;
use crate::verdict::Reject;
use crate::wire::ipv4::option;

/// A frame, from its Ethernet header on.
///
/// Every access names its length at compile time. That is what lets the BPF verifier follow the bound: it loses it
/// in a slice whose length is only known at run time.
pub trait Frame {
    /// The `N` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Reject::FrameTruncated`] if they are not all there.
    fn at<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Reject>;

    /// Bytes in the whole frame. Of a frame in several buffers [`at`](Frame::at) reaches only the first.
    fn size(&self) -> usize;

    /// The big-endian 16-bit word at `offset`.
    ///
    /// # Errors
    /// As [`at`](Frame::at).
    #[inline(always)]
    fn word(&mut self, offset: usize) -> Result<u16, Reject> {
        Ok(u16::from_be_bytes(*self.at(offset)?))
    }

    // What loops over bytes is a method, so that the XDP program can make it a BPF function of its own.

    /// One's complement sum of the bytes in `from..to`, for the internet checksum.
    ///
    /// # Errors
    /// As [`checksum::sum`].
    fn sum(&mut self, from: usize, to: usize) -> Result<u64, Reject> {
        checksum::sum(self, from, to)
    }

    /// Refuses IPv4 options that must not be forwarded among those in `from..to`.
    ///
    /// # Errors
    /// As [`option::check`].
    fn check_options(&mut self, from: usize, to: usize) -> Result<(), Reject> {
        option::check(self, from, to)
    }
}

impl Frame for [u8] {
    #[inline]
    fn at<const N: usize>(&mut self, offset: usize) -> Result<&mut [u8; N], Reject> {
        self.get_mut(offset..).and_then(<[u8]>::first_chunk_mut).ok_or(Reject::FrameTruncated)
    }

    #[inline]
    fn size(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_reaches_the_last_byte_and_not_one_further() {
        let mut frame = [1, 2, 3, 4];
        let frame = frame.as_mut_slice();
        assert_eq!(frame.at::<2>(2), Ok(&mut [3, 4]));
        assert_eq!(frame.at::<2>(3), Err(Reject::FrameTruncated));
        assert_eq!(frame.at::<0>(4), Ok(&mut []));
        assert_eq!(frame.at::<1>(usize::MAX), Err(Reject::FrameTruncated));
        assert_eq!(frame.word(1), Ok(0x0203));
    }
}
