//! Looks whether the bindings in the datapath are the desired ones, a part at a time: a million at once would hold
//! commands up.

use crate::dataplane::{AT_ONCE, Dataplane, Half, Place};
use crate::model::Model;

/// In how many looks everything has been looked at. Who looks once a second has seen what is missing after two rounds at
/// most, less what those looks had still to come to: within five seconds.
const LOOKS: usize = 3;

/// How far a look at all bindings has come.
#[derive(Debug, Default)]
pub struct Patrol {
    place: Place,
    /// The halves of the present kind that have been seen, by meter.
    seen: Vec<bool>,
}

impl Patrol {
    /// Looks at some more of what stands in the datapath, and answers whether it is as desired.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn look(&mut self, dataplane: &dyn Dataplane, model: &Model) -> anyhow::Result<bool> {
        let enough = (2 * model.bound()).div_ceil(LOOKS).max(AT_ONCE as usize);
        let mut looked_at = 0;
        while looked_at < enough {
            let (halves, next) = dataplane.some_halves(self.place, AT_ONCE)?;
            if !halves.iter().all(|half| self.see(*half, model)) {
                *self = Self::default();
                return Ok(false);
            }
            looked_at += halves.len();
            let is_through = next.is_none_or(|next| next.is_outbound != self.place.is_outbound);
            if is_through && !self.all_seen(dataplane, model)? {
                *self = Self::default();
                return Ok(false);
            }
            self.place = next.unwrap_or_default();
            if next.is_none() {
                break;
            }
        }
        Ok(true)
    }

    /// Whether a half is one that is desired.
    fn see(&mut self, half: Half, model: &Model) -> bool {
        let binding = half.binding();
        let meter = binding.meter as usize;
        if !model.is_bound(&binding) {
            return false;
        }
        if self.seen.len() <= meter {
            self.seen.resize(meter + 1, false);
        }
        self.seen[meter] = true;
        true
    }

    /// Whether no half of the present kind is missing. What has not been seen may have come since.
    fn all_seen(&mut self, dataplane: &dyn Dataplane, model: &Model) -> anyhow::Result<bool> {
        let seen = std::mem::take(&mut self.seen);
        let is_seen = |meter: u32| seen.get(meter as usize).copied().unwrap_or_default();
        for binding in model.bindings().filter(|binding| !is_seen(binding.meter)) {
            let stands = if self.place.is_outbound {
                dataplane.outbound(binding.tenant, binding.private_ip)?
            } else {
                dataplane.inbound(binding.public_ip)?
            };
            if stands != Some(binding) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
