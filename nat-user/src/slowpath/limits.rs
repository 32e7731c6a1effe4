//! How many ICMP errors the node makes (RFC 1812 §4.3.2.8).

use std::net::Ipv4Addr;
use std::num::NonZeroU32;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::icmp::Cause;

/// One for each kind of error, so that a flood that makes one kind silences no other.
#[derive(Debug)]
pub struct Limits {
    time_exceeded: Limit,
    fragmentation_needed: Limit,
    host_unreachable: Limit,
}

/// A bucket for each destination, and one for all. After a pause, as many may go at once as in a second.
#[derive(Debug)]
struct Limit {
    total: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
    by_destination: RateLimiter<Ipv4Addr, HashMapStateStore<Ipv4Addr>, DefaultClock>,
}

impl Limits {
    /// So many of a kind a second.
    #[must_use]
    pub fn new(total: NonZeroU32, to_one: NonZeroU32) -> Self {
        let limit = || Limit {
            total: RateLimiter::direct(Quota::per_second(total)),
            by_destination: RateLimiter::hashmap(Quota::per_second(to_one)),
        };
        Self { time_exceeded: limit(), fragmentation_needed: limit(), host_unreachable: limit() }
    }

    /// Whether another error for that cause may go to a destination.
    #[must_use]
    pub fn admit(&self, to: Ipv4Addr, cause: Cause) -> bool {
        let limit = match cause {
            Cause::TimeExceeded => &self.time_exceeded,
            Cause::FragmentationNeeded { .. } => &self.fragmentation_needed,
            Cause::HostUnreachable => &self.host_unreachable,
        };
        limit.by_destination.check_key(&to).is_ok() && limit.total.check().is_ok()
    }

    /// Forgets destinations that have had none for a while. In between, there are no more of them than the fast path sends
    /// packets to be answered.
    pub fn forget_idle(&self) {
        for limit in [&self.time_exceeded, &self.fragmentation_needed, &self.host_unreachable] {
            limit.by_destination.retain_recent();
            limit.by_destination.shrink_to_fit();
        }
    }
}
