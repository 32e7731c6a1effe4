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
    // In one piece it is hashed several times as fast; most rows have room here.
    let (mut small, mut large) = ([0; 256], Vec::new());
    let length = kind.len() + key.len() + value.len() + 3;
    let row = if let Some(row) = small.get_mut(..length) {
        row
    } else {
        large.resize(length, 0);
        &mut large[..]
    };
    let mut rest = &mut *row;
    for part in [kind, key, value] {
        let (this, after) = rest.split_at_mut(part.len() + 1);
        this[..part.len()].copy_from_slice(part.as_bytes());
        // No text has this byte, so no two rows look alike.
        this[part.len()] = 0xff;
        rest = after;
    }
    XxHash3_128::oneshot(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Databases of earlier versions have sums of these.
    #[test]
    fn a_row_has_the_hash_that_it_always_had() {
        for value in ["", "a value", &"long ".repeat(100)] {
            let mut hasher = XxHash3_128::default();
            for part in ["eip", "203.0.113.1", value] {
                hasher.write(part.as_bytes());
                hasher.write(&[0xff]);
            }
            assert_eq!(hash("eip", "203.0.113.1", value), hasher.finish_128());
        }
    }
}
