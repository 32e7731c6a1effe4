//! The internet checksum (RFC 1071) and its incremental update (RFC 1624).

use crate::abi::Addr;
use crate::frame::Frame;
use crate::verdict::Reject;

/// Adds the carries of a one's complement sum back in until it fits 16 bits.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "after three folds the sum fits")]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

/// What replacing words changes in the sum that a checksum is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// Nothing replaced yet.
    pub const NONE: Self = Self(0);

    /// Replaces one 16-bit word (host byte order).
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Replaces an address.
    #[inline(always)]
    #[must_use]
    pub const fn addr(self, old: Addr, new: Addr) -> Self {
        Self(self.0 + (!u32::from_be_bytes(old)) as u64 + u32::from_be_bytes(new) as u64)
    }

    /// The checksum after the replacements: `HC' = ~(~HC + ~m + m')` (RFC 1624 §3, equation 3).
    ///
    /// A wrong checksum stays exactly as wrong as it was. Of the two ways to write zero it gives the one that
    /// computing anew gives, 0x0000, since no packet consists of zeros alone: for that the sum begins with 0xffff.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(self.0 + (!checksum) as u64 + 0xffff)
    }
}

/// What a zero means in a transport's checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// A value like any other: TCP, DCCP.
    Plain,
    /// Never sent, but not "no checksum" either: UDP-Lite (RFC 3828 §3.1).
    Forbidden,
    /// "No checksum", so a computed zero is sent as 0xffff: UDP over IPv4 (RFC 768).
    Absent,
}

impl Zero {
    /// [`Delta::apply`], with respect to the meaning of zero.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, delta: Delta, checksum: u16) -> u16 {
        if checksum == 0 && matches!(self, Self::Absent) {
            return 0;
        }
        match (self, delta.apply(checksum)) {
            (Self::Forbidden | Self::Absent, 0) => 0xffff,
            (_, updated) => updated,
        }
    }
}

/// Longest stretch, in bytes, that [`sum`] reads: an ICMP message in the largest ordinary Ethernet frame.
pub const MAX_SUM: usize = 96 * BLOCK;
const BLOCK: usize = 16;

/// One's complement sum of the bytes in `from..to`; an odd last byte counts as the high half of a word.
///
/// # Errors
/// [`Reject::FrameTruncated`] if not all of it can be read, or if it is longer than [`MAX_SUM`] bytes.
#[inline(always)]
pub fn sum<F: Frame + ?Sized>(frame: &mut F, from: usize, to: usize) -> Result<u64, Reject> {
    if to > from + MAX_SUM {
        return Err(Reject::FrameTruncated);
    }
    let mut at = from;
    let mut sum = 0;
    // Three loops with fixed bounds rather than one over the bytes: the verifier walks every turn.
    for _ in 0..MAX_SUM / BLOCK {
        if at + BLOCK > to {
            break;
        }
        let block = frame.at::<BLOCK>(at)?;
        let mut word = 0;
        while word < BLOCK {
            sum += u64::from(u16::from_be_bytes([block[word], block[word + 1]]));
            word += 2;
        }
        at += BLOCK;
    }
    for _ in 0..BLOCK / 2 {
        if at + 2 > to {
            break;
        }
        sum += u64::from(frame.word(at)?);
        at += 2;
    }
    if at < to {
        sum += u64::from(frame.at::<1>(at)?[0]) << 8;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).expect("folded")
    }

    /// RFC 1624 §4: the example that RFC 1141's formula gets wrong.
    #[test]
    fn rfc1624_example() {
        assert_eq!(Delta::NONE.word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    /// RFC 1071 §3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2.
    #[test]
    fn rfc1071_example() {
        let mut bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(bytes.as_mut_slice(), 0, 8).map(fold), Ok(0xddf2));
    }

    #[test]
    fn zero_of_each_transport() {
        // One's complement zero difference: the result is the same number, in its other spelling.
        let none = Delta::NONE.word(0x1234, 0x1234);
        assert_eq!(Zero::Absent.apply(none, 0x0000), 0x0000);
        assert_eq!(Zero::Absent.apply(none, 0xffff), 0xffff);
        assert_eq!(Zero::Forbidden.apply(none, 0xffff), 0xffff);
        assert_eq!(Zero::Plain.apply(none, 0xffff), 0x0000);
        assert_eq!(Zero::Forbidden.apply(Delta::NONE.word(0, 1), 0x0000), 0xfffe);
    }

    /// A datagram 10.0.0.10:1000 -> 203.0.113.5:2000 with the payload 8d de, whose checksum 0x2034 becomes 0 when its
    /// source becomes 198.51.100.10: RFC 768 has all ones sent for that.
    #[test]
    fn rfc768_zero_vector() {
        let (private, public) = ([10, 0, 0, 10], [198, 51, 100, 10]);
        let pseudo_and_datagram = |source: Addr| {
            let header = [0, 17, 0, 10, 0x03, 0xe8, 0x07, 0xd0, 0, 10, 0, 0, 0x8d, 0xde];
            [&source[..], &[203, 0, 113, 5], &header].concat()
        };
        assert_eq!(reference(&pseudo_and_datagram(private)), 0x2034);
        assert_eq!(reference(&pseudo_and_datagram(public)), 0x0000);
        let delta = Delta::NONE.addr(private, public);
        assert_eq!(delta.apply(0x2034), 0x0000);
        assert_eq!(Zero::Absent.apply(delta, 0x2034), 0xffff);
    }

    /// A change from one way to write zero to the other changes nothing, and is not carried on.
    #[test]
    fn zero_comes_out_as_computing_anew_gives_it() {
        assert_eq!(Delta::NONE.word(0xffff, 0).apply(0xffff), 0);
        assert_eq!(Delta::NONE.word(0, 0xffff).apply(0xffff), 0);
        assert_eq!(Delta::NONE.apply(0xffff), 0);
    }

    #[test]
    fn fold_takes_any_sum() {
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    #[test]
    fn sum_refuses_what_it_would_cut_off() {
        let mut long = vec![0; MAX_SUM + BLOCK];
        for from in 0..3 {
            assert!(sum(long.as_mut_slice(), from, from + MAX_SUM).is_ok());
            assert_eq!(sum(long.as_mut_slice(), from, from + MAX_SUM + 1), Err(Reject::FrameTruncated));
        }
        assert_eq!(sum(long.as_mut_slice(), BLOCK, MAX_SUM + BLOCK + 1), Err(Reject::FrameTruncated));
    }

    proptest! {
        #[test]
        fn sum_equals_the_reference(mut bytes in prop::collection::vec(any::<u8>(), 0..1500), from in 0usize..64) {
            let from = from.min(bytes.len());
            let expected = reference(&bytes[from..]);
            let length = bytes.len();
            prop_assert_eq!(sum(bytes.as_mut_slice(), from, length).map(|s| !fold(s)), Ok(expected));
        }

        /// Updating gives the very bytes that computing anew gives, for any change of an address.
        #[test]
        fn update_equals_computing_anew(mut bytes in prop::collection::vec(any::<u8>(), 20..100), new: [u8; 4], extra: u16) {
            // A sum of nothing but zeros has two spellings; real packets have a non-zero word.
            bytes[0] = 0x45;
            let old = [bytes[4], bytes[5], bytes[6], bytes[7]];
            let old_extra = u16::from_be_bytes([bytes[8], bytes[9]]);
            let before = reference(&bytes);
            bytes[4..8].copy_from_slice(&new);
            bytes[8..10].copy_from_slice(&extra.to_be_bytes());
            prop_assert_eq!(Delta::NONE.addr(old, new).word(old_extra, extra).apply(before), reference(&bytes));
        }
    }
}
