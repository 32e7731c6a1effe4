//! Packets that wait for a neighbour's MAC address.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a packet waits.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How many packets wait at most.
pub const MAX_PACKETS: usize = 4096;

/// How many wait for one neighbour at most: as many as the fast path sends in a second, and then some.
pub const MAX_FOR_ONE: usize = 2048;

/// A neighbour: the interface that leads to it, and its address, which may be one of IPv6 (RFC 8950).
pub type Neighbour = (u32, IpAddr);

/// What waits, by neighbour, in the order in which it came.
#[derive(Debug)]
pub struct Waiting<T> {
    queues: BTreeMap<Neighbour, VecDeque<(Instant, T)>>,
    count: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { queues: BTreeMap::new(), count: 0 }
    }
}

/// What has become of a packet that was to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Added<T> {
    /// It is the first: somebody has to ask for the neighbour.
    First,
    /// It waits behind others.
    Behind,
    /// There was no room for it.
    Full(T),
}

impl<T> Waiting<T> {
    /// Has a packet wait that has come at `since`.
    pub fn add(&mut self, neighbour: Neighbour, since: Instant, packet: T) -> Added<T> {
        let waiting = self.queues.get(&neighbour).map_or(0, VecDeque::len);
        if self.count >= MAX_PACKETS || waiting >= MAX_FOR_ONE {
            return Added::Full(packet);
        }
        self.count += 1;
        self.queues.entry(neighbour).or_default().push_back((since, packet));
        if waiting == 0 { Added::First } else { Added::Behind }
    }

    /// The neighbours that are waited for.
    #[must_use]
    pub fn neighbours(&self) -> Vec<Neighbour> {
        self.queues.keys().copied().collect()
    }

    /// Everything that waits for a neighbour, which nobody waits for any more then.
    pub fn take(&mut self, neighbour: Neighbour) -> VecDeque<(Instant, T)> {
        let queue = self.queues.remove(&neighbour).unwrap_or_default();
        self.count -= queue.len();
        queue
    }

    /// Has those wait again, in their order, that were taken.
    pub fn put_back(&mut self, neighbour: Neighbour, mut queue: VecDeque<(Instant, T)>) {
        self.count += queue.len();
        let behind = self.queues.entry(neighbour).or_default();
        queue.append(behind);
        *behind = queue;
    }

    /// What has waited for too long.
    pub fn take_expired(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        for queue in self.queues.values_mut() {
            while let Some((_, packet)) =
                queue.pop_front_if(|(since, _)| now.duration_since(*since) >= PATIENCE)
            {
                expired.push(packet);
            }
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        self.count -= expired.len();
        expired
    }

    /// When the first will have waited for too long.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.queues.values().filter_map(|queue| queue.front()).map(|(since, _)| *since + PATIENCE).min()
    }

    /// How many wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether nobody waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}
