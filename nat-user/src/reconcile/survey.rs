//! All that stands in the datapath, compared with all that is desired. A node has millions of halves: neither side is kept in a
//! second copy.

use super::{Step, apply};
use crate::dataplane::{Binding, Dataplane, Half};
use crate::model::Bindings;

/// What was found to stand.
#[derive(Debug, Default)]
pub struct Survey {
    /// What nobody desires.
    foreign: Vec<Half>,
    /// Whether the halves of desired bindings stand, by meter.
    inbound: Vec<bool>,
    outbound: Vec<bool>,
}

impl Survey {
    /// Looks at everything that stands.
    ///
    /// # Errors
    /// If the datapath cannot be read.
    pub fn of(dataplane: &mut dyn Dataplane, desired: &Bindings) -> anyhow::Result<Self> {
        let mut survey = Self::default();
        dataplane.survey(&mut |half| survey.see(half, desired))?;
        Ok(survey)
    }

    fn see(&mut self, half: Half, desired: &Bindings) {
        let binding = half.binding();
        if !desired.contains(&binding) {
            self.foreign.push(half);
            return;
        }
        let seen = match half {
            Half::Inbound(_) => &mut self.inbound,
            Half::Outbound(_) => &mut self.outbound,
        };
        let meter = binding.meter as usize;
        if seen.len() <= meter {
            seen.resize(meter + 1, false);
        }
        seen[meter] = true;
    }

    /// The halves that are not desired.
    #[must_use]
    pub fn foreign(&self) -> &[Half] {
        &self.foreign
    }

    /// Whether a half of a desired binding stood.
    #[must_use]
    pub fn stood(&self, binding: &Binding) -> bool {
        has(&self.inbound, binding) || has(&self.outbound, binding)
    }

    /// Takes everything out that is not desired.
    ///
    /// # Errors
    /// If the datapath cannot be written.
    pub fn remove_foreign(&mut self, dataplane: &mut dyn Dataplane) -> anyhow::Result<()> {
        // Inbound halves sort before outbound ones.
        self.foreign.sort_unstable();
        let steps = self.foreign.iter().copied().map(Step::Remove);
        apply(dataplane, steps.chain((!self.foreign.is_empty()).then_some(Step::Quiesce)))
    }

    /// Puts in what is missing, and answers how much that was.
    ///
    /// # Errors
    /// If the datapath cannot be written.
    pub fn insert_missing(&self, dataplane: &mut dyn Dataplane, desired: &Bindings) -> anyhow::Result<usize> {
        let outbound = desired.iter().filter(|binding| !has(&self.outbound, binding)).map(Half::Outbound);
        let inbound = desired.iter().filter(|binding| !has(&self.inbound, binding)).map(Half::Inbound);
        let mut count = 0;
        apply(dataplane, outbound.chain(inbound).inspect(|_| count += 1).map(Step::Insert))?;
        Ok(count)
    }
}

fn has(seen: &[bool], binding: &Binding) -> bool {
    seen.get(binding.meter as usize).copied().unwrap_or_default()
}
