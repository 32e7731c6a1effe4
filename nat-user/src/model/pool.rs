//! A pool: which public addresses there are, and which one is next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use ipnet::Ipv4Net;

use super::refusal::{Refusal, wait};
use super::{Name, PoolUsage};

/// What the configuration says about a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name.
    pub name: Name,
    /// Its addresses: at least one CIDR, ascending, disjoint. Every address counts, first and last too.
    pub cidrs: Vec<Ipv4Net>,
    /// Addresses in `cidrs` that are never handed out.
    pub reserve: BTreeSet<Ipv4Addr>,
    /// How long an address that was given back is kept.
    pub reuse_delay: Duration,
}

impl PoolSpec {
    /// Whether `address` is in the pool, reserved or not.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let after = self.cidrs.partition_point(|cidr| cidr.network() <= address);
        after > 0 && self.cidrs[after - 1].contains(&address)
    }

    /// The lowest address of the pool that is not below `from`, reserved or not.
    fn at_or_after(&self, from: Ipv4Addr) -> Option<Ipv4Addr> {
        let cidr = self.cidrs.get(self.cidrs.partition_point(|cidr| cidr.broadcast() < from))?;
        Some(from.max(cidr.network()))
    }
}

/// A pool and who has what of it. Its size in memory is that of what has ever been held, not that of its CIDRs.
///
/// **Invariant:** an address is never in two of these: held, given back, `fresh` or above and untouched.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) spec: PoolSpec,
    held: BTreeSet<Ipv4Addr>,
    /// The lowest address that was never held.
    fresh: Option<Ipv4Addr>,
    /// When each address that was given back is free again; and the same in the order of that time.
    returned: BTreeMap<Ipv4Addr, SystemTime>,
    queue: BTreeSet<(SystemTime, Ipv4Addr)>,
}

impl Pool {
    pub(super) fn new(spec: PoolSpec) -> Self {
        let mut pool = Self {
            fresh: spec.at_or_after(Ipv4Addr::UNSPECIFIED),
            spec,
            held: BTreeSet::new(),
            returned: BTreeMap::new(),
            queue: BTreeSet::new(),
        };
        pool.skip_touched();
        pool
    }

    /// The address that is handed out next: the lowest one that was never held, else the one that was given back
    /// first.
    pub(super) fn next(&self, now: SystemTime) -> Result<Ipv4Addr, Refusal> {
        match (self.fresh, self.queue.first()) {
            (Some(fresh), _) => Ok(fresh),
            (None, Some(&(free_at, address))) if free_at <= now => Ok(address),
            (None, first) => Err(Refusal::PoolExhausted {
                pool: self.spec.name.clone(),
                next_free: first.map(|&(free_at, _)| wait(now, free_at)),
            }),
        }
    }

    /// Whether an address of the pool that nobody holds can be handed out; `returned`: when it will be free that is only just
    /// given back.
    pub(super) fn check(
        &self,
        address: Ipv4Addr,
        returned: Option<SystemTime>,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        match returned.or_else(|| self.returned(address)) {
            _ if self.spec.reserve.contains(&address) => Err(Refusal::Reserved(address)),
            Some(free_at) if free_at > now => {
                Err(Refusal::Cooling { address, free_at, wait: wait(now, free_at) })
            }
            _ => Ok(()),
        }
    }

    /// Whether somebody has the address.
    pub(super) fn holds(&self, address: Ipv4Addr) -> bool {
        self.held.contains(&address)
    }

    /// When an address can be had again that was given back.
    pub(super) fn returned(&self, address: Ipv4Addr) -> Option<SystemTime> {
        self.returned.get(&address).copied()
    }

    /// Somebody has the address from now on; false if somebody had it already.
    pub(super) fn hold(&mut self, address: Ipv4Addr) -> bool {
        let is_new = self.held.insert(address);
        if self.fresh == Some(address) {
            self.skip_touched();
        }
        is_new
    }

    /// Nobody has the address any more.
    pub(super) fn let_go(&mut self, address: Ipv4Addr) {
        self.held.remove(&address);
    }

    /// Keeps an address that was given back until its time has come.
    pub(super) fn keep(&mut self, address: Ipv4Addr, free_at: SystemTime) {
        // One that the configuration reserves now is not handed out, whatever was before.
        if !self.spec.reserve.contains(&address) {
            self.returned.insert(address, free_at);
            self.queue.insert((free_at, address));
            self.skip_touched();
        }
    }

    /// Forgets that an address was given back.
    pub(super) fn forget(&mut self, address: Ipv4Addr) {
        if let Some(free_at) = self.returned.remove(&address) {
            self.queue.remove(&(free_at, address));
        }
    }

    pub(super) fn usage(&self, now: SystemTime) -> PoolUsage<'_> {
        let addresses: u64 = self.spec.cidrs.iter().map(|cidr| 1_u64 << (32 - cidr.prefix_len())).sum();
        // One that was handed out before the configuration reserved it counts until it is given back.
        let kept_back = self.spec.reserve.iter().filter(|address| !self.held.contains(*address)).count();
        let size = addresses - kept_back as u64;
        let allocated = self.held.len() as u64;
        let cooling = self.queue.iter().rev().take_while(|(free_at, _)| *free_at > now).count() as u64;
        PoolUsage {
            spec: &self.spec,
            size,
            allocated,
            cooling,
            free: size.saturating_sub(allocated + cooling),
        }
    }

    fn skip_touched(&mut self) {
        while let Some(address) = self.fresh {
            let touched = self.held.contains(&address)
                || self.returned.contains_key(&address)
                || self.spec.reserve.contains(&address);
            if !touched {
                return;
            }
            let above = u32::from(address).checked_add(1).map(Ipv4Addr::from);
            self.fresh = above.and_then(|above| self.spec.at_or_after(above));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidrs: &[&str], reserve: &[&str]) -> Pool {
        Pool::new(PoolSpec {
            name: Name::default_one(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            reserve: reserve.iter().map(|address| address.parse().unwrap()).collect(),
            reuse_delay: Duration::from_mins(1),
        })
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn take_next(pool: &mut Pool, now: SystemTime) -> Option<String> {
        let address = pool.next(now).ok()?;
        pool.forget(address);
        pool.hold(address);
        Some(address.to_string())
    }

    fn give_back(pool: &mut Pool, address: Ipv4Addr, now: SystemTime) {
        pool.let_go(address);
        pool.keep(address, now + pool.spec.reuse_delay);
    }

    #[test]
    fn hands_out_every_address_lowest_first_but_the_reserved() {
        let mut pool = pool(&["203.0.113.0/30", "255.255.255.254/31"], &["203.0.113.1"]);
        let all: Vec<String> = std::iter::from_fn(|| take_next(&mut pool, at(0))).collect();
        assert_eq!(all, ["203.0.113.0", "203.0.113.2", "203.0.113.3", "255.255.255.254", "255.255.255.255"]);
        assert_eq!(pool.usage(at(0)).free, 0);
    }

    #[test]
    fn what_was_given_back_comes_last_and_not_before_its_time() {
        let mut pool = pool(&["203.0.113.0/30"], &[]);
        let [first, second] = [0, 1].map(|_| take_next(&mut pool, at(0)).unwrap().parse().unwrap());
        give_back(&mut pool, second, at(5));
        give_back(&mut pool, first, at(10));
        assert_eq!(
            pool.usage(at(64)),
            PoolUsage { spec: &pool.spec, size: 4, allocated: 0, cooling: 2, free: 2 }
        );
        assert_eq!(pool.usage(at(65)).free, 3);
        assert_eq!(take_next(&mut pool, at(100)).unwrap(), "203.0.113.2");
        assert_eq!(take_next(&mut pool, at(100)).unwrap(), "203.0.113.3");
        let wait = Some(Duration::from_secs(3));
        assert_eq!(
            pool.next(at(62)),
            Err(Refusal::PoolExhausted { pool: Name::default_one(), next_free: wait })
        );
        assert_eq!(take_next(&mut pool, at(65)).unwrap(), second.to_string());
        assert_eq!(take_next(&mut pool, at(70)).unwrap(), first.to_string());
    }

    #[test]
    fn an_address_that_was_asked_for_is_passed_over_later() {
        let mut pool = pool(&["203.0.113.0/30"], &[]);
        pool.hold([203, 0, 113, 1].into());
        pool.hold([203, 0, 113, 2].into());
        give_back(&mut pool, [203, 0, 113, 2].into(), at(0));
        assert_eq!(take_next(&mut pool, at(0)).unwrap(), "203.0.113.0");
        assert_eq!(take_next(&mut pool, at(0)).unwrap(), "203.0.113.3");
        assert!(pool.next(at(59)).is_err());
        assert_eq!(take_next(&mut pool, at(60)).unwrap(), "203.0.113.2");
    }

    #[test]
    fn what_was_given_back_and_is_reserved_now_is_not_handed_out() {
        let mut pool = pool(&["203.0.113.0/31"], &["203.0.113.0"]);
        pool.keep([203, 0, 113, 0].into(), at(0));
        assert_eq!(take_next(&mut pool, at(100)).unwrap(), "203.0.113.1");
        assert_eq!(take_next(&mut pool, at(100)), None);
    }

    #[test]
    fn a_huge_pool_costs_nothing() {
        let mut pool = pool(&["16.0.0.0/4"], &[]);
        assert_eq!(take_next(&mut pool, at(0)).unwrap(), "16.0.0.0");
        assert_eq!(pool.usage(at(0)).size, 1 << 28);
        assert!(pool.spec.contains([31, 255, 255, 255].into()) && !pool.spec.contains([32, 0, 0, 0].into()));
    }
}
