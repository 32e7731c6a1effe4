//! A checksum of a set of rows that can be kept up to date row by row.

use twox_hash::XxHash3_128;

/// The sum of the hashes of all rows, modulo 2^128: whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest(u128);

impl Digest {
    pub(super) fn add(&mut self, kind: &str, key: &str, value: &str) {
        self.0 = self.0.wrapping_add(hash(kind, key, value));
    }

    pub(super) fn remove(&mut self, kind: &str, key: &str, value: &str) {
        self.0 = self.0.wrapping_sub(hash(kind, key, value));
    }

    /// With all that another one came to, which began with nothing.
    pub(super) fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// As it is written down: with the revision, which is as precious.
    pub(super) fn with_revision(self, revision: u64) -> Vec<u8> {
        self.0.wrapping_add(hash("head", "revision", &revision.to_string())).to_be_bytes().to_vec()
    }
}

fn hash(kind: &str, key: &str, value: &str) -> u128 {
    // No text has this byte, so no two rows look alike. In one piece it is hashed several times as fast.
    const END: &[u8] = &[0xff];
    XxHash3_128::oneshot(&[kind.as_bytes(), END, key.as_bytes(), END, value.as_bytes(), END].concat())
}
