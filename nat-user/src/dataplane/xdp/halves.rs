//! The maps of bindings.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use nat_common::abi::{Addr, Inbound, Outbound, OutboundKey, map};

use super::super::{AT_ONCE, Binding, Half, Place};
use super::batch;
use super::maps::{Bytes, failed, found, take};

/// Both maps, by the key of either half.
pub(super) struct Halves {
    inbound: HashMap<MapData, Addr, Bytes<Inbound>>,
    outbound: HashMap<MapData, Bytes<OutboundKey>, Bytes<Outbound>>,
}

impl Halves {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Self { inbound: take(ebpf, map::INBOUND)?, outbound: take(ebpf, map::OUTBOUND)? })
    }

    /// Sends all that stand, some at a time, as long as somebody takes them.
    pub(super) fn all(&self, send: &mut dyn FnMut(Vec<Half>) -> bool) -> anyhow::Result<()> {
        let mut next = Some(Place::default());
        while let Some(place) = next {
            let (some, after) = self.some(place, AT_ONCE)?;
            if !send(some) {
                break;
            }
            next = after;
        }
        Ok(())
    }

    /// Some of one kind, from a place on, and where those after them begin.
    pub(super) fn some(&self, place: Place, count: u32) -> anyhow::Result<(Vec<Half>, Option<Place>)> {
        let Place { is_outbound, at } = place;
        let (some, next) = if is_outbound {
            let (some, next) =
                batch::read(&self.outbound, at, count).with_context(|| failed(map::OUTBOUND))?;
            let half = |(key, value)| Half::Outbound(outbound_binding(key, value));
            (some.into_iter().map(half).collect(), next)
        } else {
            let (some, next) = batch::read(&self.inbound, at, count).with_context(|| failed(map::INBOUND))?;
            let half = |(key, value)| Half::Inbound(inbound_binding(key, value));
            (some.into_iter().map(half).collect(), next)
        };
        Ok((some, place.after(next)))
    }

    /// The binding of a public address.
    pub(super) fn inbound(&self, public_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        let key = public_ip.octets();
        let value = found(self.inbound.get(&key, 0)).with_context(|| failed(map::INBOUND))?;
        Ok(value.map(|value| inbound_binding(key, value)))
    }

    /// The binding of a private address.
    pub(super) fn outbound(&self, tenant: u32, private_ip: Ipv4Addr) -> anyhow::Result<Option<Binding>> {
        let key = bytemuck::cast(OutboundKey { tenant, private_ip: private_ip.octets() });
        let value = found(self.outbound.get(&key, 0)).with_context(|| failed(map::OUTBOUND))?;
        Ok(value.map(|value| outbound_binding(key, value)))
    }

    /// Writes halves, those that are outbound before the others.
    pub(super) fn insert(&mut self, halves: &[Half]) -> anyhow::Result<()> {
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for half in halves {
            let Binding { public_ip, tenant, private_ip, meter } = half.binding();
            match half {
                Half::Inbound(_) => {
                    let value = bytemuck::cast(Inbound::new(private_ip.octets(), tenant, meter));
                    inbound.push((public_ip.octets(), value));
                }
                Half::Outbound(_) => {
                    let key = bytemuck::cast(OutboundKey { tenant, private_ip: private_ip.octets() });
                    outbound.push((key, bytemuck::cast(Outbound { eip: public_ip.octets(), meter })));
                }
            }
        }
        batch::write(&mut self.outbound, &outbound).with_context(|| failed(map::OUTBOUND))?;
        batch::write(&mut self.inbound, &inbound).with_context(|| failed(map::INBOUND))
    }

    /// Takes a half out, whatever it says.
    pub(super) fn remove(&mut self, half: Half) -> anyhow::Result<()> {
        match half {
            Half::Inbound(binding) => found(self.inbound.remove(&binding.public_ip.octets()))
                .with_context(|| failed(map::INBOUND))?,
            Half::Outbound(binding) => {
                let key = OutboundKey { tenant: binding.tenant, private_ip: binding.private_ip.octets() };
                found(self.outbound.remove(&bytemuck::cast(key))).with_context(|| failed(map::OUTBOUND))?
            }
        };
        Ok(())
    }
}

fn inbound_binding(public_ip: Addr, value: Bytes<Inbound>) -> Binding {
    let Inbound { private_ip, tenant, meter, .. } = bytemuck::cast(value);
    Binding { public_ip: public_ip.into(), tenant, private_ip: private_ip.into(), meter }
}

fn outbound_binding(key: Bytes<OutboundKey>, value: Bytes<Outbound>) -> Binding {
    let OutboundKey { tenant, private_ip } = bytemuck::cast(key);
    let Outbound { eip, meter } = bytemuck::cast(value);
    Binding { public_ip: eip.into(), tenant, private_ip: private_ip.into(), meter }
}
