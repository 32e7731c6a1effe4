//! Looks whether the bindings in the datapath are the desired ones, a part at a time: a million at once would hold
//! commands up. Whoever patrols lets others have their turn between two looks.

use crate::dataplane::{Binding, Dataplane, Half, Place};
use crate::model::Model;

/// In how many rounds everything has been looked at. What goes missing right after it was seen is found when its kind has
/// been looked at once more: one round later than that. At a round a second that leaves time to mend it within five.
const ROUNDS: usize = 2;

/// How many halves are read at a time. A command that comes meanwhile waits for as long as that takes, a fifth of a millisecond.
const AT_ONCE: u32 = 256;

/// How many meters are looked through for such as were not seen, for each half that is read at a time.
const METERS: u32 = 32;

/// How far a look at all bindings has come.
#[derive(Debug)]
pub struct Patrol {
    place: Place,
    /// The halves of the present kind that have been seen, by meter.
    seen: Vec<bool>,
    /// All halves of the kind have been read: from which meter on those are looked for that were not seen, and where it goes on
    /// then.
    unseen: Option<(u32, Place)>,
    /// How many are read at a time.
    at_once: u32,
}

impl Default for Patrol {
    fn default() -> Self {
        Self::reading(AT_ONCE)
    }
}

impl Patrol {
    /// One that reads so many halves at a time.
    #[must_use]
    pub const fn reading(at_once: u32) -> Self {
        Self { place: Place { is_outbound: false, at: 0 }, seen: Vec::new(), unseen: None, at_once }
    }

    /// A meter has another owner from now on, which has not been seen yet.
    pub fn forget(&mut self, meter: u32) {
        if let Some(seen) = self.seen.get_mut(meter as usize) {
            *seen = false;
        }
    }

    /// Of how many looks a round is made.
    #[must_use]
    pub fn looks(&self, model: &Model) -> usize {
        let halves = (2 * model.bound()).div_ceil(ROUNDS).div_ceil(self.at_once as usize);
        let meters = (2 * model.meters_used() as usize).div_ceil(ROUNDS * (self.at_once * METERS) as usize);
        // Each kind ends with looks that may find little.
        halves + meters + 4
    }

    /// Looks at some more of what stands in the datapath, and answers what is not as desired: bindings that somebody else
    /// has put in, and those that are missing or have been changed.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn look(&mut self, dataplane: &dyn Dataplane, model: &Model) -> anyhow::Result<Vec<Binding>> {
        if let Some((from, next)) = self.unseen {
            return self.find_missing(dataplane, model, from, next);
        }
        let (halves, next) = dataplane.some_halves(self.place, self.at_once)?;
        let foreign = halves.iter().filter(|half| !self.see(half, model));
        let wrong = foreign.map(Half::binding).collect();
        match next {
            Some(next) if next.is_outbound == self.place.is_outbound => self.place = next,
            next => self.unseen = Some((0, next.unwrap_or_default())),
        }
        Ok(wrong)
    }

    /// Whether a half is one that is desired.
    fn see(&mut self, half: &Half, model: &Model) -> bool {
        let binding = half.binding();
        let meter = binding.meter as usize;
        if !model.bindings().contains(&binding) {
            return false;
        }
        if self.seen.len() <= meter {
            self.seen.resize(meter + 1, false);
        }
        self.seen[meter] = true;
        true
    }

    /// The bindings on some meters whose half of the present kind is missing. One that has not been seen may have come since.
    fn find_missing(
        &mut self,
        dataplane: &dyn Dataplane,
        model: &Model,
        from: u32,
        next: Place,
    ) -> anyhow::Result<Vec<Binding>> {
        let to = from.saturating_add(self.at_once * METERS);
        let is_seen = |meter: u32| self.seen.get(meter as usize).copied().unwrap_or_default();
        let mut wrong = Vec::new();
        for binding in model.bindings().on(from..to).filter(|binding| !is_seen(binding.meter)) {
            let stands = if self.place.is_outbound {
                dataplane.outbound(binding.tenant, binding.private_ip)?
            } else {
                dataplane.inbound(binding.public_ip)?
            };
            if stands != Some(binding) {
                wrong.push(binding);
            }
        }
        if to < model.meters_used() {
            self.unseen = Some((to, next));
        } else {
            self.seen.fill(false);
            (self.place, self.unseen) = (next, None);
        }
        Ok(wrong)
    }
}
