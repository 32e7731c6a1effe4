//! Where the desired state is kept. At present that is this process's memory.

use crate::model::{Change, Model};

/// The desired state and its revision.
///
/// **Invariant:** [`Store::commit`] is the only way to change the model, so what the model shows is committed.
#[derive(Debug)]
pub struct Store {
    model: Model,
    revision: u64,
}

impl Store {
    /// Begins with `model`, at revision 0.
    #[must_use]
    pub const fn new(model: Model) -> Self {
        Self { model, revision: 0 }
    }

    /// The state as it was committed last.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// How many changes were committed.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Commits a change that [`Model::plan`] made of the present state, and answers its revision.
    pub fn commit(&mut self, change: Change) -> u64 {
        self.model.apply(change);
        self.revision += 1;
        self.revision
    }
}
