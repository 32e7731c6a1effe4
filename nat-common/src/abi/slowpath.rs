//! What the fast path and the slow path tell each other.

use bytemuck::{Pod, Zeroable};

use crate::verdict::{Errand, Reject};

/// Most interfaces that the slow path serves. Packets of others are the kernel's to finish.
pub const MAX_PORTS: u32 = 64;

/// Most queues of an interface that it serves.
pub const MAX_QUEUES: u32 = 128;

/// How many packets an interface may send on an errand at once, in nanoseconds of their rate: as many as in a second.
pub const BURST: u64 = 1_000_000_000;

/// How many times as many packets as the slow path the kernel gets of those that either can finish, but that are too many for
/// the slow path.
pub const OVERFLOW: u64 = 20;

/// Buckets of an interface: one for each errand, and one for what the kernel gets.
pub const BUCKETS_OF_PORT: u32 = Errand::COUNT + 1;

/// Largest frame that the slow path takes, in bytes: what a page holds besides headrooms and [`Note`].
pub const MAX_FRAME: usize = 3800;

/// How much of a larger frame goes along if it is only to be answered, in bytes: all that its fate depends on stands there.
pub const CUT: usize = 2048;

/// What stands in front of a frame that the slow path gets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Note {
    /// [`Errand::number`].
    pub errand: u32,
    /// How many bytes the frame had before it was cut.
    pub size: u32,
}

/// Limits the packets of an interface that go to the slow path on one errand (the generic cell rate algorithm, ITU-T
/// I.371), and counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// When the next packet would be due if they came evenly, in nanoseconds of `CLOCK_MONOTONIC`.
    pub due: u64,
    /// Packets that have gone to the slow path.
    pub sent: u64,
    /// Packets that have not, because there were too many.
    pub limited: u64,
}

/// What the slow path counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// Packets that have come on an errand.
    Received(Errand),
    /// Packets that have left, those that were to be carried. All fragments of a packet are one.
    Carried(Errand),
    /// Packets that were answered.
    Answered(Errand),
    /// Packets that were not answered, since answers are limited or there must be none.
    Unanswered(Errand),
    /// Packets that died in the slow path.
    Dropped(Reject),
    /// Announcements of EIPs by ARP.
    Announced,
    /// ARP packets in which somebody else claimed to hold an EIP.
    Conflict,
}

impl Tally {
    const KINDS: u32 = 4;
    /// The place of the first drop; those of the others are by the numbers of their reasons. The same in every version.
    pub const FIRST_DROP: u32 = 64;
    const ANNOUNCED: u32 = Self::FIRST_DROP - 1;
    const CONFLICT: u32 = Self::FIRST_DROP - 2;

    /// How many places there are; not all of them are taken.
    pub const COUNT: u32 = Self::FIRST_DROP + Reject::COUNT;

    /// Its place in [`map::TALLIES`](super::map::TALLIES).
    #[must_use]
    pub const fn place(self) -> u32 {
        match self {
            Self::Received(errand) => errand.number() * Self::KINDS,
            Self::Carried(errand) => errand.number() * Self::KINDS + 1,
            Self::Answered(errand) => errand.number() * Self::KINDS + 2,
            Self::Unanswered(errand) => errand.number() * Self::KINDS + 3,
            Self::Announced => Self::ANNOUNCED,
            Self::Conflict => Self::CONFLICT,
            Self::Dropped(reject) => Self::FIRST_DROP + reject as u32,
        }
    }
}

const _: () = assert!(size_of::<Note>() == 8 && size_of::<Bucket>() == 24);
const _: () = assert!(Errand::COUNT * Tally::KINDS <= Tally::CONFLICT);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::abi::Port;

    #[test]
    fn every_tally_has_its_own_place() {
        let of_errands = Errand::ALL.iter().flat_map(|&errand| {
            [
                Tally::Received(errand),
                Tally::Carried(errand),
                Tally::Answered(errand),
                Tally::Unanswered(errand),
            ]
        });
        let drops = Reject::ALL.iter().map(|&reject| Tally::Dropped(reject));
        let all: Vec<u32> =
            of_errands.chain(drops).chain([Tally::Announced, Tally::Conflict]).map(Tally::place).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert!(all.iter().all(|place| *place < Tally::COUNT));
    }

    #[test]
    fn no_two_ports_share_a_socket_or_a_bucket() {
        let port = |slow_path| Port { slow_path, ..Port::default() };
        let arp = Errand::ALL[3];
        assert_eq!((port(0).socket(0), port(0).bucket(arp)), (None, None));
        assert_eq!((port(1).socket(0), port(1).socket(127), port(1).socket(128)), (Some(0), Some(127), None));
        assert_eq!(port(2).socket(0), Some(128));
        assert_eq!(port(1).overflow(), port(1).bucket(Errand::ALL[5]).map(|last| last + 1));
        assert_eq!(port(2).bucket(Errand::ALL[0]), port(1).overflow().map(|last| last + 1));
    }
}
