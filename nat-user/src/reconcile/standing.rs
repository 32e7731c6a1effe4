//! What stands at the addresses of a change.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::{place, publics};
use crate::dataplane::{AT_ONCE, Binding, Dataplane, Half, Place};

/// For how many bindings the datapath is asked one by one: as a part of those that it has room for. Where there are more, it is
/// quicker to read everything.
const ONE_BY_ONE: usize = 8;

/// What stands where a change is about to write.
pub(super) enum Standing {
    /// It is asked when it is wanted.
    Asked,
    /// It was read, all at once.
    Read { inbound: HashMap<Ipv4Addr, Binding>, outbound: HashMap<(u32, Ipv4Addr), Binding> },
}

impl Standing {
    /// At the addresses of `before` and `after`, which are sorted by their places.
    pub(super) fn at(
        dataplane: &dyn Dataplane,
        before: &[Binding],
        after: &[Binding],
    ) -> anyhow::Result<Self> {
        if before.len() + after.len() <= dataplane.capacity() as usize / ONE_BY_ONE {
            return Ok(Self::Asked);
        }
        let publics = publics(before, after);
        let is_touched = |at: (u32, Ipv4Addr)| {
            [before, after].iter().any(|some| some.binary_search_by_key(&at, place).is_ok())
        };
        let (mut inbound, mut outbound) = (HashMap::new(), HashMap::new());
        let mut next = Some(Place::default());
        while let Some(from) = next {
            let (some, more) = dataplane.some_halves(from, AT_ONCE)?;
            for half in some {
                match half {
                    Half::Inbound(binding) if publics.binary_search(&binding.public_ip).is_ok() => {
                        inbound.insert(binding.public_ip, binding);
                    }
                    Half::Outbound(binding) if is_touched(place(&binding)) => {
                        outbound.insert(place(&binding), binding);
                    }
                    _ => {}
                }
            }
            next = more;
        }
        Ok(Self::Read { inbound, outbound })
    }

    pub(super) fn inbound(
        &self,
        dataplane: &dyn Dataplane,
        public_ip: Ipv4Addr,
    ) -> anyhow::Result<Option<Binding>> {
        match self {
            Self::Asked => dataplane.inbound(public_ip),
            Self::Read { inbound, .. } => Ok(inbound.get(&public_ip).copied()),
        }
    }

    pub(super) fn outbound(
        &self,
        dataplane: &dyn Dataplane,
        tenant: u32,
        private_ip: Ipv4Addr,
    ) -> anyhow::Result<Option<Binding>> {
        match self {
            Self::Asked => dataplane.outbound(tenant, private_ip),
            Self::Read { outbound, .. } => Ok(outbound.get(&(tenant, private_ip)).copied()),
        }
    }
}
