//! The path of one packet: which binding wants it, where it goes, and only then the rewriting.

use crate::abi::{Addr, AddressKind, Inbound, Outbound, OutboundKey, Port};
use crate::express::DSCP;
use crate::frame::Frame;
use crate::parse::{Ipv4, Quote, Transport};
use crate::translate::{self, Addresses};
use crate::verdict::{Egress, Punt, Reject, Verdict};
use crate::wire::ipv4::{ADDRESSES, MIN_HEADER_LEN, address, protocol};
use crate::wire::{arp, ethernet};

/// All that a packet's fate depends on besides its bytes. On the fast path: BPF maps and the kernel's FIB.
pub trait Node {
    /// The interface with that index.
    fn port(&mut self, ifindex: u32) -> Option<Port>;
    /// The binding of a public address.
    fn inbound(&mut self, public_ip: Addr) -> Option<Inbound>;
    /// The binding of a private address.
    fn outbound(&mut self, key: OutboundKey) -> Option<Outbound>;
    /// What an address is to the node.
    fn kind(&mut self, addr: Addr) -> AddressKind;
    /// Source of ICMP errors whose sender has no public address; all zero if there is none.
    fn public_ip(&mut self) -> Addr;
    /// The way out.
    fn route(&mut self, query: &Query) -> Route;
    /// Whether the slow path takes a packet whose frame has `size` bytes and is to leave by the interface `egress`. A node that
    /// says nothing of it has none.
    #[inline(always)]
    fn admit(&mut self, punt: Punt, size: usize, egress: u32) -> Admission {
        let _ = (punt, size, egress);
        Admission::Kernel
    }
    /// Adds a forwarded packet to a meter.
    fn bill(&mut self, meter: u32, direction: Direction, bytes: u16);
    /// May remember the way out that was last told, for later packets to `to`. `public_ip`: the public address of tenant 0 that such
    /// packets come for, where `to` is a VM.
    #[inline(always)]
    fn learn(&mut self, to: Addr, public_ip: Option<Addr>, egress: &Egress) {
        let _ = (to, public_ip, egress);
    }
}

/// Who finishes what the fast path cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The slow path takes the packet as it came.
    Taken,
    /// The slow path takes no more packets of this kind just now.
    Limited,
    /// There is no slow path, the packet is too large for it, or there are too many of a kind that the kernel may have: its own
    /// stack has to do.
    Kernel,
    /// This is the slow path.
    Here,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the VM.
    In,
    /// Towards the internet.
    Out,
}

/// A question to the routing table, about the packet as it will leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Index of the interface that the packet came by.
    pub ifindex: u32,
    /// Its addresses.
    pub addresses: Addresses,
    /// DSCP and ECN.
    pub tos: u8,
    /// IP protocol.
    pub protocol: u8,
    /// IPv4 total length, in bytes; 0 asks without regard to the MTU.
    pub total_len: u16,
}

/// The routing table's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a neighbour that is known.
    Via(Egress),
    /// By the interface with that index, to a neighbour whose MAC address has to be asked for.
    Unresolved(u32),
    /// Not to be forwarded: to the node itself, or there is no route. The kernel's FIB does not tell them apart.
    NotForwarded,
    /// The interface that the packet came by does not forward.
    Disabled,
    /// Larger than the way out allows.
    TooBig,
    /// A route that forbids the destination.
    Unreachable,
    /// Anything else.
    Failed,
}

/// How a packet that a binding wants is to leave.
struct Plan {
    transport: Transport,
    addresses: Addresses,
    /// Those of the packet that an ICMP error quotes.
    quoted: Addresses,
    /// On whose account it goes out.
    out_meter: Option<u32>,
    /// On whose account it comes in.
    in_meter: Option<u32>,
}

/// Decides on a packet that came by the interface `ifindex`, and rewrites it if it is to leave. What is dropped or
/// passed stays bit for bit as it came.
///
/// One that the slow path takes stays so, too. Only where there is none it gets its new addresses ([`Verdict::Finish`]), and
/// is billed.
#[inline(always)]
pub fn process<F: Frame + ?Sized, N: Node>(frame: &mut F, ifindex: u32, node: &mut N) -> Verdict {
    match decide(frame, ifindex, node) {
        Ok(verdict) => verdict,
        Err(reject) => Verdict::Drop(reject),
    }
}

/// The public address that a packet concerns which [`process`] has dropped for the [`Reject`] of that number, and whether it
/// is bound: inwards its destination, outwards the one that it would have come from. It may have been dropped for what is
/// wrong with its header, so its addresses are taken as they stand.
#[inline(always)]
pub fn concerned<F: Frame + ?Sized, N: Node>(
    frame: &mut F,
    ifindex: u32,
    reason: u32,
    direction: Direction,
    node: &mut N,
) -> Option<(Addr, bool)> {
    let port = node.port(ifindex)?;
    let [source, destination] = raw_addresses(frame)?;
    match direction {
        Direction::Out => outbound(&port, source, node).map(|out| (out.eip, true)),
        Direction::In => {
            let is_bound = node.inbound(destination).is_some();
            (is_bound || reason == Reject::EipUnbound as u32).then_some((destination, is_bound))
        }
    }
}

/// Source and destination of what says that it is IPv4.
#[inline(always)]
fn raw_addresses<F: Frame + ?Sized>(frame: &mut F) -> Option<[Addr; 2]> {
    if ethernet::Header(frame.at(0).ok()?).ethertype() != ethernet::TYPE_IPV4 {
        return None;
    }
    let &mut [s0, s1, s2, s3, d0, d1, d2, d3] = frame.at(ethernet::HEADER_LEN + ADDRESSES).ok()?;
    Some([[s0, s1, s2, s3], [d0, d1, d2, d3]])
}

#[inline(always)]
fn decide<F: Frame + ?Sized, N: Node>(frame: &mut F, ifindex: u32, node: &mut N) -> Result<Verdict, Reject> {
    let port = node.port(ifindex).ok_or(Reject::PortUnknown)?;
    let ethernet = ethernet::Header(frame.at(0)?);
    let (ethertype, foreign) = (ethernet.ethertype(), ethernet.destination() != port.mac);
    let is_group = ethernet.is_group();
    if ethertype == ethernet::TYPE_ARP && port.is_uplink() && (is_group || !foreign) {
        return arp(frame, ifindex, node);
    }
    // The kernel forwards nothing that came by link-layer broadcast or multicast, so it may have all of it.
    if is_group {
        return Ok(Verdict::Pass);
    }
    if ethertype != ethernet::TYPE_IPV4 {
        return not_ipv4(frame, ethertype);
    }
    let ip = Ipv4::parse(frame)?;
    if address::is_martian(ip.source) {
        return Err(Reject::SourceMartian);
    }
    if address::is_martian(ip.destination) {
        return Err(Reject::DestinationMartian);
    }
    // A switch may flood what another node has sent.
    if !foreign && port.is_uplink() && claims_to_be_ours(&ip, &port, node) {
        return Err(Reject::SpoofedSource);
    }
    let into = node.inbound(ip.destination);
    let query = Query {
        ifindex,
        addresses: Addresses::of(&ip),
        tos: ip.tos,
        protocol: ip.protocol,
        total_len: ip.total_len,
    };
    let verdict =
        if foreign { Err(Reject::ForeignMac) } else { carry(frame, &ip, &port, into, &query, node) };
    match verdict {
        // Whatever else is wrong with it, what is addressed to the node itself is the kernel's to judge.
        Err(_) if into.is_none() && is_local(&query, node) => {
            // It may obey a source route, though, and send the packet on as it is.
            if is_source_routed(frame, &ip) { Err(Reject::SourceRoute) } else { Ok(Verdict::Pass) }
        }
        verdict => verdict,
    }
}

/// Whether a packet from outside has a source that is not outside.
#[inline(always)]
fn claims_to_be_ours<N: Node>(ip: &Ipv4, port: &Port, node: &mut N) -> bool {
    match node.kind(ip.source) {
        AddressKind::Pooled | AddressKind::Own => true,
        // One-armed, the VMs' own packets come by this interface, too.
        AddressKind::Inside => !port.is_downlink(),
        AddressKind::Other => ip.source == node.public_ip(),
    }
}

#[inline(always)]
fn is_source_routed<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4) -> bool {
    let options = ip.at + MIN_HEADER_LEN;
    ip.payload > options && frame.check_options(options, ip.payload) == Err(Reject::SourceRoute)
}

#[inline(always)]
fn is_pooled<N: Node>(addr: Addr, node: &mut N) -> bool {
    node.kind(addr) == AddressKind::Pooled
}

/// What is not IPv4 is the kernel's, except in a tag with the VLAN number 0: the kernel would take the tag off and
/// forward what it finds, untranslated.
#[inline(always)]
fn not_ipv4<F: Frame + ?Sized>(frame: &mut F, ethertype: u16) -> Result<Verdict, Reject> {
    let is_tagged = ethertype == ethernet::TYPE_VLAN[0] || ethertype == ethernet::TYPE_VLAN[1];
    if is_tagged && frame.word(ethernet::HEADER_LEN)? & ethernet::VLAN_ID == 0 {
        return Err(Reject::PriorityTag);
    }
    Ok(Verdict::Pass)
}

/// ARP about an address that is bound is the slow path's, and all other the kernel's, which answers for the node itself.
#[inline(always)]
fn arp<F: Frame + ?Sized, N: Node>(frame: &mut F, ifindex: u32, node: &mut N) -> Result<Verdict, Reject> {
    let Ok(packet) = frame.at(ethernet::HEADER_LEN).map(|bytes| *bytes) else { return Ok(Verdict::Pass) };
    let packet = arp::Packet(&packet);
    let concerns_us = packet.is_ipv4()
        && (node.inbound(packet.target()).is_some() || node.inbound(packet.sender()).is_some());
    if !concerns_us {
        return Ok(Verdict::Pass);
    }
    match node.admit(Punt::Arp, frame.size(), ifindex) {
        Admission::Taken | Admission::Here => Ok(Verdict::Punt(Punt::Arp)),
        Admission::Limited => Err(Reject::SlowPathLimited),
        Admission::Kernel => Ok(Verdict::Pass),
    }
}

/// Whether the kernel would deliver the packet rather than forward it. It may also have no route, and then tells
/// the sender so.
#[inline(always)]
fn is_local<N: Node>(query: &Query, node: &mut N) -> bool {
    !is_pooled(query.addresses.destination, node)
        && matches!(node.route(&Query { total_len: 0, ..*query }), Route::NotForwarded | Route::Disabled)
}

/// Translates the packet and sends it on its way.
#[inline(always)]
fn carry<F: Frame + ?Sized, N: Node>(
    frame: &mut F,
    ip: &Ipv4,
    port: &Port,
    into: Option<Inbound>,
    query: &Query,
    node: &mut N,
) -> Result<Verdict, Reject> {
    if address::is_link_local(ip.source) {
        return Err(Reject::SourceMartian);
    }
    if address::is_link_local(ip.destination) {
        return Err(Reject::DestinationMartian);
    }
    let plan = plan(frame, ip, port, into, node)?;
    if plan.addresses.source == plan.addresses.destination {
        return Err(Reject::Land);
    }
    if plan.out_meter.is_none() && is_spoofed(ip.source, port, into, node) {
        return Err(Reject::SpoofedSource);
    }
    let query = Query { addresses: plan.addresses, ..*query };
    let mut route = node.route(&query);
    let is_too_big = route == Route::TooBig;
    if is_too_big {
        if ip.dont_fragment {
            return Err(Reject::MtuExceeded);
        }
        // Of a packet that is too big the routing table does not say where it would go.
        route = node.route(&Query { total_len: 0, ..query });
    }
    let (ifindex, verdict) = match route {
        Route::Via(egress) => (egress.ifindex, Verdict::Forward(egress)),
        Route::Unresolved(ifindex) => (ifindex, Verdict::Finish(Punt::Neighbour)),
        Route::NotForwarded | Route::Unreachable => return Err(Reject::NoRoute),
        Route::Disabled => return Err(Reject::ForwardingDisabled),
        Route::TooBig | Route::Failed => return Err(Reject::FibError),
    };
    if ip.ttl <= 1 {
        return Err(Reject::TtlExpired);
    }
    check_egress(ifindex, into.is_some(), node)?;
    let verdict = match verdict {
        _ if is_too_big => Verdict::Finish(Punt::Fragment),
        Verdict::Forward(_) if has_trailer(frame, ip) => Verdict::Finish(Punt::Trailer),
        verdict => verdict,
    };
    if let Verdict::Finish(punt) = verdict {
        // Nobody's packet has got a new source: the node's own, which the kernel takes from none but itself.
        let is_nodes = plan.out_meter.is_none() && plan.addresses.source != ip.source;
        match node.admit(punt, frame.size(), ifindex) {
            Admission::Taken => return Ok(Verdict::Punt(punt)),
            Admission::Limited => return Err(Reject::SlowPathLimited),
            Admission::Kernel if is_nodes => return Err(Reject::RouterError),
            Admission::Kernel | Admission::Here => {}
        }
    }

    translate::readdress(frame, ip, &plan.transport, plan.addresses, plan.quoted)?;
    if let Verdict::Forward(egress) = &verdict {
        translate::forward(frame, ip, egress)?;
        // Routes may depend on it.
        if ip.tos & DSCP == 0 && into.is_none_or(|into| into.tenant == 0) {
            node.learn(plan.addresses.destination, into.map(|_| ip.destination), egress);
        }
    }
    if let Some(meter) = plan.out_meter {
        node.bill(meter, Direction::Out, ip.total_len);
    }
    if let Some(meter) = plan.in_meter {
        node.bill(meter, Direction::In, ip.total_len);
    }
    Ok(verdict)
}

/// Whether a packet from the internet claims to come from one of the VMs, which trust each other more, wherever these
/// are routed to. Asked only about a packet that no VM here has sent.
#[inline(always)]
fn is_spoofed<N: Node>(source: Addr, port: &Port, into: Option<Inbound>, node: &mut N) -> bool {
    match into {
        Some(Inbound { tenant, .. }) if port.is_uplink() => {
            node.outbound(OutboundKey { tenant, private_ip: source }).is_some()
        }
        _ => false,
    }
}

/// Whether more follows the packet than Ethernet's padding. XDP would send it along, and where that makes the frame
/// larger than the MTU the driver would drop it; the kernel takes it off.
#[inline(always)]
fn has_trailer<F: Frame + ?Sized>(frame: &F, ip: &Ipv4) -> bool {
    let size = frame.size();
    size > ethernet::MAX_PADDED && size > ip.end() + ethernet::SLACK
}

/// A wrong route must not carry private addresses to the internet, nor bring back to the VMs what is to leave.
#[inline(always)]
fn check_egress<N: Node>(ifindex: u32, to_vm: bool, node: &mut N) -> Result<(), Reject> {
    match node.port(ifindex) {
        Some(port) if to_vm && port.is_downlink() || !to_vm && port.is_uplink() => Ok(()),
        _ => Err(Reject::WrongEgress),
    }
}

/// Finds the bindings that want the packet. `into` is the one of its destination.
#[inline(always)]
fn plan<F: Frame + ?Sized, N: Node>(
    frame: &mut F,
    ip: &Ipv4,
    port: &Port,
    into: Option<Inbound>,
    node: &mut N,
) -> Result<Plan, Reject> {
    let out = outbound(port, ip.source, node);
    // It would only come back, by way of the router that sends us our own addresses.
    if out.is_some() && into.is_none() && is_pooled(ip.destination, node) {
        return Err(Reject::EipUnbound);
    }
    let from_outside = out.is_none() && into.is_some() && port.is_uplink();
    // Errors come from routers as well, which have no binding: only the quote can tell.
    let may_be_error = port.is_downlink() && ip.protocol == protocol::ICMP;
    if out.is_none() && !from_outside && !may_be_error {
        return Err(unclaimed(ip, port, node));
    }
    if ip.payload > ip.at + MIN_HEADER_LEN {
        frame.check_options(ip.at + MIN_HEADER_LEN, ip.payload)?;
    }
    let transport = Transport::parse(frame, ip)?;
    let destination = into.map_or(ip.destination, |into| into.private_ip);
    let (source, quoted_destination) = match &transport {
        Transport::IcmpError(quote) => error_addresses(ip, port, quote, out, from_outside, node)?,
        _ => match out {
            Some(out) => (out.eip, destination),
            None if from_outside => (ip.source, destination),
            None => return Err(unclaimed(ip, port, node)),
        },
    };
    Ok(Plan {
        transport,
        addresses: Addresses { source, destination },
        // An error goes to the one who sent what it quotes.
        quoted: Addresses { source: destination, destination: quoted_destination },
        out_meter: out.map(|out| out.meter),
        in_meter: into.map(|into| into.meter),
    })
}

/// New source of an ICMP error, and new destination of the packet that it quotes (RFC 5508 §4).
#[inline(always)]
fn error_addresses<N: Node>(
    ip: &Ipv4,
    port: &Port,
    quote: &Quote,
    out: Option<Outbound>,
    from_outside: bool,
    node: &mut N,
) -> Result<(Addr, Addr), Reject> {
    if quote.ip.source != ip.destination {
        return Err(Reject::IcmpQuote);
    }
    // From inside, the quoted packet is one that was on its way to a VM of ours.
    if let Some(quoted) = outbound(port, quote.ip.destination, node) {
        // REQ-5c: a private router's own address must not be seen outside.
        let source = out.map_or_else(|| node.public_ip(), |out| out.eip);
        return if source == [0; 4] { Err(Reject::SourceUnbound) } else { Ok((source, quoted.eip)) };
    }
    if from_outside { Ok((ip.source, quote.ip.destination)) } else { Err(Reject::IcmpUnmatched) }
}

/// The binding of a private address behind a port.
#[inline(always)]
fn outbound<N: Node>(port: &Port, private_ip: Addr, node: &mut N) -> Option<Outbound> {
    if port.is_downlink() { node.outbound(OutboundKey { tenant: port.tenant, private_ip }) } else { None }
}

/// Why nobody wants the packet.
#[inline(always)]
fn unclaimed<N: Node>(ip: &Ipv4, port: &Port, node: &mut N) -> Reject {
    if port.is_uplink() && is_pooled(ip.destination, node) {
        Reject::EipUnbound
    } else if port.is_downlink() {
        Reject::SourceUnbound
    } else {
        Reject::Transit
    }
}
