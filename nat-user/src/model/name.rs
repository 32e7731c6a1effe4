//! Names, and what an EIP can be attached to.

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// The name of a node, a pool, an account or a VM: 1 to 63 of `a-z 0-9 - .`, beginning and ending with a letter or
/// a digit, and not an IP address.
///
/// Copies share one text: a million EIPs have few accounts and pools.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, pattern = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
pub struct Name(Arc<String>);

impl Name {
    /// The pool or account that is meant where none is named.
    #[must_use]
    pub fn default_one() -> Self {
        static DEFAULT: LazyLock<Name> = LazyLock::new(|| Name(Arc::new("default".to_owned())));
        DEFAULT.clone()
    }

    /// Whether they share their text.
    #[cfg(test)]
    pub(super) fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name (1 to 63 of a-z 0-9 - . that begin and end with a letter or digit, and not an IP address)"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|byte| alphanumeric(byte) || b"-.".contains(byte))
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && text.parse::<IpAddr>().is_err();
        if good { Ok(Self(Arc::new(text.to_owned()))) } else { Err(NameError(text.to_owned())) }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reader)
    }
}

/// Reads names.
struct Reader;

impl Visitor<'_> for Reader {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
        // In a million records the same few names follow each other.
        thread_local!(static LAST: RefCell<[Option<Name>; 4]> = const { RefCell::new([const { None }; 4]) });
        LAST.with_borrow_mut(|last| {
            if let Some(name) = last.iter().flatten().find(|name| name.as_str() == text) {
                return Ok(name.clone());
            }
            let name: Name = text.parse().map_err(E::custom)?;
            last.rotate_right(1);
            last[0] = Some(name.clone());
            Ok(name)
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What an EIP is attached to, in the words of whoever asks. No name looks like an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A private address, whoever has it.
    PrivateIp(Ipv4Addr),
    /// A VM.
    Vm(Name),
}

impl FromStr for Target {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(Self::PrivateIp).or_else(|_| text.parse().map(Self::Vm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_rules() {
        let longest = "a".repeat(63);
        for good in ["a", "7", "nat-1", "acme.example", "a--b", "1.2.3", longest.as_str()] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in
            ["", "-a", "a-", ".a", "a.", "Acme", "a_b", "a b", "ä", "10.0.0.1", "::1", too_long.as_str()]
        {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_read_as_they_were_written_and_only_then() {
        let names: Vec<Name> =
            ["a", "b", "a", "c", "d", "e", "f", "a"].map(|name| name.parse().unwrap()).into();
        let text = serde_json::to_string(&names).unwrap();
        assert_eq!(text, r#"["a","b","a","c","d","e","f","a"]"#);
        let read: Vec<Name> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, names);
        assert!(read[0].is_copy_of(&read[2]));
        for bad in [r#"["a","A"]"#, "[1]", "[null]"] {
            assert!(serde_json::from_str::<Vec<Name>>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_target_is_an_address_or_a_name() {
        assert_eq!("10.0.0.2".parse(), Ok(Target::PrivateIp([10, 0, 0, 2].into())));
        assert_eq!("web-1".parse(), Ok(Target::Vm("web-1".parse().unwrap())));
        assert!("fd00::1".parse::<Target>().is_err());
        assert!("10.0.0.2/32".parse::<Target>().is_err());
    }
}
