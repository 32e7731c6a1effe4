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

    /// As it is written down: with the revision, which is as precious.
    pub(super) fn with_revision(self, revision: u64) -> Vec<u8> {
        self.0.wrapping_add(hash("head", "revision", &revision.to_string())).to_be_bytes().to_vec()
    }
}

fn hash(kind: &str, key: &str, value: &str) -> u128 {
    let mut hasher = XxHash3_128::default();
    for part in [kind, key, value] {
        hasher.write(part.as_bytes());
        // No text has this byte, so no two rows look alike.
        hasher.write(&[0xff]);
    }
    hasher.finish_128()
}
