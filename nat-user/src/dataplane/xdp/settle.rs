//! What the datapath stands on, compared with what it has to be: interfaces, the program on them, pins, settings, followers of changes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use log::warn;
use nat_common::abi;

use super::XdpDataplane;
use super::addresses::{self, may_be_public};
use super::bpffs::{self, PinLock};
use super::findings::Findings;
use super::interfaces::Interface;
use super::kinds::Kinds;
use super::routes::Routes;
use super::sysctls;
use crate::config;
use crate::dataplane::Dataplane as _;
use crate::model::PoolSpec;

impl XdpDataplane {
    /// Brings everything to what it has to be, bindings apart.
    pub(super) fn settle(&mut self) -> anyhow::Result<Findings> {
        let mut findings = Findings::default();
        findings.note(self.settle_pins());
        let interfaces = Interface::all()?;
        if let Some(address) = public_ip(&self.config, &interfaces) {
            self.node.public_ip = address.octets();
        }
        let mut note = |what: &str, changed: anyhow::Result<bool>| {
            findings.note(changed.map(|changed| changed.then(|| what.to_owned())));
        };
        note("the node's settings were others, and are written again", self.maps.set_node(self.node));
        let kinds = kinds(&self.config, &self.pools, self.node.public_ip, &interfaces);
        let are_others = self.maps.set_addresses(&kinds);
        let is_left = matches!(are_others, Ok(true));
        note("what the program knows of addresses was otherwise, and is written again", are_others);
        note("sysctl all.send_redirects set again", sysctls::set_all_send_redirects(0));
        note("sysctl ip_no_pmtu_disc set again", sysctls::harden_path_mtus());
        if is_left {
            // What the arrays have given up may be used again.
            findings.note(self.quiesce().map(|()| None));
        }
        self.ports.settle(&mut self.maps, &interfaces, &mut findings);
        self.settle_slow_path(&interfaces);
        self.settle_routes();
        Ok(findings)
    }

    /// Has changes of routes followed, for the program to remember next hops.
    pub(super) fn settle_routes(&mut self) {
        if !self.is_active || self.routes.as_ref().is_some_and(Routes::is_alive) {
            return;
        }
        // What it died of, and else whether it can be started.
        let ended = self.routes.take().map_or(Ok(()), Routes::end);
        let started = ended.and_then(|()| Routes::start(&self.generation));
        let trouble = started.as_ref().err().map(|error| format!("{error:#}"));
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != self.routes_trouble) {
            warn!("changes of routes cannot be followed, so the FIB is asked for each packet: {trouble}");
        }
        (self.routes, self.routes_trouble) = (started.ok(), trouble);
    }

    fn settle_pins(&mut self) -> anyhow::Result<Option<String>> {
        let mut restored = Vec::new();
        if !self.lock.is_on(&self.config.pin_path) {
            bpffs::prepare(&self.config.pin_path)?;
            self.lock = Arc::new(PinLock::take(&self.config.pin_path)?);
            restored.push(self.config.pin_path.display().to_string());
        }
        restored.extend(self.map_pins.restore()?);
        if self.ports.pin_program()? {
            restored.push("the program".to_owned());
        }
        Ok((!restored.is_empty()).then(|| format!("pinned again: {}", restored.join(", "))))
    }
}

/// What addresses are to the node.
pub(super) fn kinds(
    config: &config::Datapath,
    pools: &[PoolSpec],
    public_ip: abi::Addr,
    interfaces: &[Interface],
) -> Kinds {
    let public_ip = Some(public_ip.into()).filter(|address: &Ipv4Addr| !address.is_unspecified());
    addresses::kinds(&config.uplinks, &config.downlinks, pools, public_ip, interfaces).into()
}

/// The node's own public address. If the configuration names none: the first public one of the uplinks, in their order.
pub(super) fn public_ip(config: &config::Datapath, interfaces: &[Interface]) -> Option<Ipv4Addr> {
    let uplinks = config.uplinks.iter().filter_map(|name| interfaces.iter().find(|i| i.name == *name));
    let mut addresses = uplinks.flat_map(|interface| &interface.addresses).map(Ipv4Net::addr);
    config.public_ip.or_else(|| addresses.find(|address| may_be_public(*address)))
}
