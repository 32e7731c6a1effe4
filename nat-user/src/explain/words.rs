//! Facts in words.

use std::net::{IpAddr, Ipv4Addr};

use nat_common::abi::{AddressKind, Port};
use nat_common::pipeline::{Admission, Query, Route};
use nat_common::verdict::Counter;

use super::recorder::Fact;
use super::{Billed, Step, direction};
use crate::dataplane::trial::Way;
use crate::dataplane::{Binding, Dataplane};
use crate::model::Model;
use crate::packet;

/// What a verdict or its reason means, and what to do.
pub(super) const fn verdict(counter: Counter) -> (&'static str, Option<&'static str>) {
    match counter {
        Counter::Forward => ("Translated and sent on.", None),
        Counter::Pass => ("Not a public address's: left to the node's own network stack.", None),
        Counter::Punt(punt) => (punt.meaning(), Some(punt.remedy())),
        Counter::Drop(reject) => (reject.meaning(), Some(reject.remedy())),
    }
}

/// A verdict with its reason.
pub(super) fn outcome(counter: Counter) -> String {
    counter
        .reason()
        .map_or_else(|| counter.verdict().to_owned(), |reason| format!("{} {reason}", counter.verdict()))
}

/// The name of an interface.
pub(super) fn interface(dataplane: &dyn Dataplane, ifindex: u32) -> String {
    dataplane.interface_name(ifindex).unwrap_or_else(|| format!("interface {ifindex}"))
}

/// A question and what was found; `None` for what is told elsewhere.
pub(super) fn step(fact: &Fact, dataplane: &dyn Dataplane, model: &Model) -> Option<Step> {
    let (asked, found) = match fact {
        Fact::Port(ifindex, port) => (
            format!("what does the program know of {}?", interface(dataplane, *ifindex)),
            self::port(port.as_ref()),
        ),
        Fact::Inbound(public_ip, binding) => {
            (format!("is {public_ip} a public address that is bound?"), bound(binding.as_ref(), model))
        }
        Fact::Outbound(private_ip, binding) => {
            (format!("is {private_ip} a private address that is bound?"), bound(binding.as_ref(), model))
        }
        Fact::Kind(address, kind) => {
            (format!("what is {address} to the node?"), self::kind(*kind).to_owned())
        }
        Fact::PublicIp(address) if address.is_unspecified() => (
            "what is the node's own public address?".to_owned(),
            "none is known; see node.public_ip".to_owned(),
        ),
        Fact::PublicIp(address) => ("what is the node's own public address?".to_owned(), address.to_string()),
        Fact::Route(query, way) => (self::query(query), route(way, dataplane)),
        Fact::Admission(admission) => ("who finishes it?".to_owned(), finisher(*admission).to_owned()),
        Fact::Bill(..) => return None,
    };
    Some(Step { asked, found })
}

const fn finisher(admission: Admission) -> &'static str {
    match admission {
        Admission::Taken | Admission::Here => {
            "the slow path, from the packet as it came, and bills it when it leaves"
        }
        Admission::Limited => "nobody: there are too many of its kind just now",
        Admission::Kernel => "the kernel's own stack, from the translated packet",
    }
}

fn port(port: Option<&Port>) -> String {
    let Some(port) = port else { return "nothing".to_owned() };
    let role = match (port.is_uplink(), port.is_downlink()) {
        (true, true) => "an uplink and a downlink",
        (true, false) => "an uplink",
        (false, true) => "a downlink",
        (false, false) => "neither an uplink nor a downlink",
    };
    format!("it is {role}, MAC {}", packet::mac(&port.mac))
}

fn bound(binding: Option<&Binding>, model: &Model) -> String {
    let Some(Binding { public_ip, private_ip, .. }) = binding else { return "no".to_owned() };
    let vm = model.vm_at(*private_ip).map(|vm| format!(" (VM {})", vm.name)).unwrap_or_default();
    let whose = match (model.eip(*public_ip), model.vm_at(*private_ip)) {
        (Ok(eip), _) => format!(", an EIP of account {}", eip.account),
        (Err(_), Some(vm)) => format!(", a public IP of account {}", vm.account),
        (Err(_), None) => String::new(),
    };
    format!("yes: {public_ip} stands for {private_ip}{vm}{whose}")
}

const fn kind(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::Other => "nothing: neither of a pool, nor its own, nor in the VMs' network",
        AddressKind::Pooled => "an address of a pool",
        AddressKind::Own => "its own address",
        AddressKind::Inside => "in the VMs' network",
    }
}

fn query(query: &Query) -> String {
    let [source, destination] = [query.addresses.source, query.addresses.destination].map(Ipv4Addr::from);
    let length = match query.total_len {
        0 => "whatever its length".to_owned(),
        length => format!("{length} bytes"),
    };
    format!(
        "where does the kernel's FIB send {source} > {destination}, protocol {}, {length}?",
        query.protocol
    )
}

fn route(way: &Way, dataplane: &dyn Dataplane) -> String {
    let hop = way.next_hop.map(|hop| format!(" {hop}")).unwrap_or_default();
    match way.route {
        Route::Via(egress) => format!(
            "by {} to the next hop{hop} at {}",
            interface(dataplane, egress.ifindex),
            packet::mac(&egress.destination)
        ),
        Route::Unresolved(ifindex) => format!(
            "by {} to the next hop{hop}, whose MAC address is not known yet",
            interface(dataplane, ifindex)
        ),
        Route::NotForwarded => "to the node itself, or there is no route".to_owned(),
        Route::Disabled => "nowhere: forwarding is off on the interface that it came by".to_owned(),
        Route::TooBig => "it is larger than the way out allows".to_owned(),
        Route::Unreachable => "nowhere: a route forbids it".to_owned(),
        Route::Failed => "the lookup failed".to_owned(),
    }
}

/// The next hop that the last route names.
pub(super) fn next_hop(facts: &[Fact]) -> Option<IpAddr> {
    facts.iter().rev().find_map(|fact| match fact {
        Fact::Route(_, Way { route: Route::Via(_) | Route::Unresolved(_), next_hop, .. }) => Some(*next_hop),
        _ => None,
    })?
}

/// Whom a bill is for: the public address of the binding that has its meter.
pub(super) fn billed(fact: &Fact, facts: &[Fact], model: &Model) -> Option<Billed> {
    let Fact::Bill(meter, way, bytes) = *fact else { return None };
    let binding = facts.iter().find_map(|fact| match fact {
        Fact::Inbound(_, Some(binding)) | Fact::Outbound(_, Some(binding)) if binding.meter == meter => {
            Some(binding)
        }
        _ => None,
    })?;
    let account = model.eip(binding.public_ip).map(|eip| &eip.account).ok();
    let account = account.or_else(|| model.vm_at(binding.private_ip).map(|vm| &vm.account));
    Some(Billed {
        address: binding.public_ip,
        account: account.map(ToString::to_string),
        direction: direction(way).to_owned(),
        bytes,
    })
}
