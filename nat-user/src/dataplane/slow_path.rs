//! What can be told of the slow path.

use nat_common::abi::slowpath::Tally;
use nat_common::verdict::Errand;

use crate::slowpath::State;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How it does just now.
    pub state: State,
    /// What the fast path has sent to it.
    pub buckets: Vec<Bucket>,
    /// What it has made of that.
    pub tallies: Tallies,
}

/// What has gone to the slow path from an interface on one errand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The interface.
    pub interface: String,
    /// The errand.
    pub errand: Errand,
    /// Packets that have gone there.
    pub sent: u64,
    /// Packets that were too many.
    pub limited: u64,
}

/// What the slow path has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// By errand.
    pub errands: Vec<(Errand, Outcomes)>,
    /// Announcements of EIPs by ARP.
    pub announced: u64,
    /// ARP packets in which somebody else claimed to hold an EIP.
    pub conflicts: u64,
}

/// What has become of the packets of an errand. The rest was dropped or waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// How many have come.
    pub received: u64,
    /// How many have left.
    pub carried: u64,
    /// How many were answered.
    pub answered: u64,
    /// How many were not, though they would have been, since answers are limited or there must be none.
    pub unanswered: u64,
}

impl Tallies {
    /// Reads them.
    pub fn of(tally: impl Fn(Tally) -> u64) -> Self {
        let outcomes = |errand: Errand| Outcomes {
            received: tally(Tally::Received(errand)),
            carried: tally(Tally::Carried(errand)),
            answered: tally(Tally::Answered(errand)),
            unanswered: tally(Tally::Unanswered(errand)),
        };
        Self {
            errands: Errand::ALL.iter().map(|errand| (*errand, outcomes(*errand))).collect(),
            announced: tally(Tally::Announced),
            conflicts: tally(Tally::Conflict),
        }
    }
}
