//! What not every kernel has. Tests do without, unless they run on one of which it is known that it has it.

use std::env;

use anyhow::{Result, bail, ensure};

/// Names, with commas between them, what this kernel is known to have.
const HAS: &str = "EIPNAT_KERNEL_HAS";

/// All that tests can do without.
const FACILITIES: [&str; 3] = ["esp", "sctp", "udp-lite"];

/// Allows to do without a facility that has not been found.
///
/// # Errors
/// When this kernel is known to have it, so that it is the test that has not found it.
pub fn may_lack(facility: &str) -> Result<()> {
    judge(facility, &env::var(HAS).unwrap_or_default())
}

fn judge(facility: &str, has: &str) -> Result<()> {
    ensure!(FACILITIES.contains(&facility), "{facility} is not one of {FACILITIES:?}");
    for known in has.split(',').filter(|known| !known.is_empty()) {
        ensure!(FACILITIES.contains(&known), "{HAS} names {known:?}, which is not one of {FACILITIES:?}");
        if known == facility {
            bail!("this kernel has no {facility}, though it should ({HAS}={has})");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_is_known_to_have_cannot_be_missing() {
        assert!(judge("sctp", "").is_ok());
        assert!(judge("sctp", "esp,udp-lite").is_ok());
        assert!(judge("sctp", "esp,sctp").is_err());
        assert!(judge("sctp", "esp,stcp").is_err(), "a slip of the pen");
        assert!(judge("quic", "").is_err());
    }
}
