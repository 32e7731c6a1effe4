//! How many ICMP errors the node makes (RFC 1812 §4.3.2.8).

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// A bucket for each destination, and one for all. After a pause, as many may go at once as in a second.
#[derive(Debug)]
pub struct Limits {
    total: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    by_destination: RateLimiter<Ipv4Addr, HashMapStateStore<Ipv4Addr>, DefaultClock>,
}

impl Limits {
    /// So many a second.
    #[must_use]
    pub fn new(total: NonZeroU32, to_one: NonZeroU32) -> Self {
        Self {
            total: RateLimiter::direct(Quota::per_second(total)),
            by_destination: RateLimiter::hashmap(Quota::per_second(to_one)),
        }
    }

    /// Whether another error may go to a destination.
    #[must_use]
    pub fn admit(&self, to: Ipv4Addr) -> bool {
        self.by_destination.check_key(&to).is_ok() && self.total.check().is_ok()
    }

    /// Forgets destinations that have had none for a while. In between, there are no more of them than the fast path sends
    /// packets to be answered.
    pub fn forget_idle(&self) {
        self.by_destination.retain_recent();
        self.by_destination.shrink_to_fit();
    }
}
