//! Packets for people: built from a few words, and told in a few. Nothing here decides on a packet.

mod build;
mod view;

pub use build::{Flags, Protocol, Spec};
pub use view::{Change, View, changes};

/// Bytes as hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.push(DIGITS[usize::from(nibble)].into());
        }
    }
    text
}

/// The bytes that hexadecimal digits say. Between them may stand white space, and colons.
///
/// # Errors
/// Says in a few words what is wrong.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut digits = Vec::new();
    for (at, character) in text.chars().enumerate() {
        match character.to_digit(16) {
            Some(digit) => digits.push(u8::try_from(digit).unwrap_or_default()),
            None if character.is_whitespace() || character == ':' => {}
            None => return Err(format!("{character:?} at place {} is no hexadecimal digit", at + 1)),
        }
    }
    let (pairs, rest) = digits.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
    } else {
        Err(format!("{} hexadecimal digits make no whole bytes", digits.len()))
    }
}

/// A MAC address as people write it.
#[must_use]
pub fn mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_go_there_and_back() {
        assert_eq!(from_hex("02:00 0A\nff"), Ok(vec![2, 0, 10, 255]));
        assert_eq!(to_hex(&[2, 0, 10, 255]), "02000aff");
        assert_eq!(from_hex(""), Ok(vec![]));
        assert_eq!(from_hex("0x"), Err("'x' at place 2 is no hexadecimal digit".to_owned()));
        assert_eq!(from_hex("abc"), Err("3 hexadecimal digits make no whole bytes".to_owned()));
    }
}
