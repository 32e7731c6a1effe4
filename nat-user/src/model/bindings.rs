//! Bindings by the meters that they count on.

use std::ops::Range;

use crate::dataplane::Binding;

/// A set of bindings, no two of which have the same meter. Meters are handed out from the lowest on, so it takes no more room
/// than a list, and whether a binding is in it is one comparison.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    by_meter: Vec<Option<Binding>>,
    count: usize,
}

impl Bindings {
    /// All of them, by meter.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Binding> {
        self.by_meter.iter().flatten().copied()
    }

    /// Those whose meters are in a range.
    pub fn on(&self, meters: Range<u32>) -> impl Iterator<Item = Binding> {
        let end = self.by_meter.len().min(meters.end as usize);
        self.by_meter.get(meters.start as usize..end).into_iter().flatten().flatten().copied()
    }

    /// The one that counts on a meter.
    #[must_use]
    pub fn get(&self, meter: u32) -> Option<Binding> {
        self.by_meter.get(meter as usize).copied().flatten()
    }

    /// Whether this very binding is among them.
    #[must_use]
    pub fn contains(&self, binding: &Binding) -> bool {
        self.get(binding.meter) == Some(*binding)
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds one, in the place of another one that has its meter.
    pub(super) fn insert(&mut self, binding: Binding) {
        let place = binding.meter as usize;
        if self.by_meter.len() <= place {
            self.by_meter.resize(place + 1, None);
        }
        self.count += usize::from(self.by_meter[place].replace(binding).is_none());
    }

    /// Takes the one out that counts on a meter.
    pub(super) fn remove(&mut self, meter: u32) {
        if let Some(place) = self.by_meter.get_mut(meter as usize) {
            self.count -= usize::from(place.take().is_some());
        }
    }
}

impl FromIterator<Binding> for Bindings {
    fn from_iter<T: IntoIterator<Item = Binding>>(bindings: T) -> Self {
        let mut all = Self::default();
        for binding in bindings {
            all.insert(binding);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_is_found_by_its_meter() {
        let binding = |meter: u32| Binding {
            public_ip: [203, 0, 113, 1].into(),
            tenant: 0,
            private_ip: [10, 0, 0, 1].into(),
            meter,
        };
        let mut all: Bindings = [3, 1, 3].map(binding).into_iter().collect();
        assert_eq!((all.len(), all.iter().collect::<Vec<_>>()), (2, vec![binding(1), binding(3)]));
        assert!(all.contains(&binding(3)) && !all.contains(&binding(2)) && !all.contains(&binding(9)));
        assert!(!all.contains(&Binding { tenant: 1, ..binding(3) }));
        let on = |meters| all.on(meters).map(|binding| binding.meter).collect::<Vec<_>>();
        assert_eq!((on(0..3), on(2..9), on(7..9)), (vec![1], vec![3], vec![]));
        all.remove(1);
        all.remove(1);
        all.remove(9);
        assert_eq!((all.get(1), all.len(), all.is_empty()), (None, 1, false));
    }
}
