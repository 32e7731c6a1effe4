//! Links that are narrower than the packets: real TCP finds the way's MTU from ICMP errors that come translated, and
//! fragments cross like anything else.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tests::fixtures::Packet;
use tests::lab::{
    Bed, Capture, Chain, EIP1, EIP2, INTERNET, INTERNET_DEVICE, NODE_UP, Namespace, Setup, Side, VM1, VM2,
    WebServer, download, ping,
};

/// The narrow link's MTU.
const NARROW: u16 = 1300;

/// Fragmentation needed and DF set.
const TOO_BIG: [u8; 2] = [3, 4];

/// Hosts behind two routers on either side; the one inside has [`EIP1`]. The link between the routers of one side is
/// narrow, while every host's own is not.
fn with_narrow_link(side: Side, test: impl FnOnce(&Bed, &Chain, &Chain) -> Result<()>) -> Result<()> {
    Bed::run(Setup { bound: false, ..Setup::default() }, |bed| {
        let (inside, outside) =
            (Chain::new(&bed.lab, Side::Inside, 2)?, Chain::new(&bed.lab, Side::Outside, 2)?);
        for host in [&inside.host, &outside.host] {
            // The kernel's own default, for a new namespace takes it over from the machine.
            host.sysctl("net/ipv4/tcp_mtu_probing", "0")?;
        }
        bed.daemon.bind(EIP1, inside.address())?;
        if side == Side::Inside { &inside } else { &outside }.narrow(NARROW)?;
        test(bed, &inside, &outside)
    })
}

/// What the host has learned of the way to a destination.
fn learned_mtu(host: &Namespace, to: Ipv4Addr) -> Result<Option<u16>> {
    let route = host.succeed("ip", &["route", "get", &to.to_string()])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
    words.next().map(|mtu| mtu.parse().with_context(|| route.clone())).transpose()
}

/// Some megabytes each way; every sender has to learn the MTU. Returns the errors that crossed the internet host's
/// cable to the node, by source.
fn transfers_learn(bed: &Bed, inside: &Chain, outside: &Chain) -> Result<Vec<Ipv4Addr>> {
    let far = outside.address();
    let capture = Capture::start(&bed.lab.internet, INTERNET_DEVICE, "icmp", bed.lab.file("wan.pcap"))?;
    let _servers = [WebServer::start(&inside.host)?, WebServer::start(&outside.host)?];
    for (receiver, server, sender, to) in
        [(&outside.host, EIP1, &inside.host, far), (&inside.host, far, &outside.host, EIP1)]
    {
        // A host that has learned the MTU as a sender asks for no more as a receiver.
        receiver.ip(&["route flush cache"])?;
        ensure!(learned_mtu(sender, to)?.is_none(), "{} knows the MTU beforehand", sender.name());
        download(receiver, server, 5_000_003)?;
        ensure!(learned_mtu(sender, to)? == Some(NARROW), "{} has not learned the MTU", sender.name());
    }
    let errors = capture.stop()?;
    let private = errors.iter().find(|packet| packet.addresses().iter().any(Ipv4Addr::is_private));
    ensure!(private.is_none(), "the internet has seen {private:?}");
    let too_big = errors.iter().filter(|packet| packet.icmp().is_some_and(|(kind, _)| kind == TOO_BIG));
    Ok(too_big.map(|packet| packet.source).collect())
}

#[test]
fn tcp_learns_of_a_narrow_link_behind_a_private_router() -> Result<()> {
    with_narrow_link(Side::Inside, |bed, inside, outside| {
        let senders = transfers_learn(bed, inside, outside)?;
        ensure!(!senders.is_empty() && senders.iter().all(|sender| *sender == NODE_UP), "{senders:?}");
        Ok(())
    })
}

#[test]
fn tcp_learns_of_a_narrow_link_behind_a_router_of_the_internet() -> Result<()> {
    with_narrow_link(Side::Outside, |bed, inside, outside| {
        let senders = transfers_learn(bed, inside, outside)?;
        let router = outside.near(1);
        ensure!(!senders.is_empty() && senders.iter().all(|sender| *sender == router), "{senders:?}");
        Ok(())
    })
}

/// The kernel believes such an error about an echo reply, whether or not it has sent any (`icmp_err()`), and `bpf_fib_lookup()` would
/// go by what it says.
#[test]
fn a_forged_error_to_the_node_narrows_nobodys_way() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        let [_, _, high, low] = u32::from(NARROW).to_be_bytes();
        let reply = Packet::icmp(NODE_UP, INTERNET, vec![0, 0, 0, 0, 0x12, 0x34, 0, 1]).bytes();
        let forged = Packet::error(INTERNET, NODE_UP, TOO_BIG, [0, 0, high, low], &reply);
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
        lab.internet.run(open)??.send_to(&forged.payload, &SocketAddrV4::new(NODE_UP, 0).into())?;
        // Whoever has believed it answers the first, and the sender takes the others to be too long.
        let pings = ping(&lab.vm1, INTERNET, 3, &["-s", "1400", "-M", "do"])?;
        ensure!(pings.received == 3, "{pings:?}");
        ensure!(learned_mtu(&lab.node, INTERNET)?.is_none(), "the node has believed it");
        Ok(())
    })
}

fn fragments_are_answered(from: &Namespace, to: Ipv4Addr) -> Result<()> {
    // Six fragments each way.
    let pings = ping(from, to, 5, &["-s", "8000", "-M", "dont"])?;
    ensure!(pings.received == 5, "ping -s 8000 {to} from {}: {pings:?}", from.name());
    Ok(())
}

#[test]
fn fragmented_pings_are_answered() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let lab = &bed.lab;
        fragments_are_answered(&lab.internet, EIP1)?;
        fragments_are_answered(&lab.vm1, tests::lab::FAR)?;
        fragments_are_answered(&lab.vm2, EIP1)?;
        // Each fragment is a packet of its own.
        let meter = bed.daemon.meter(EIP2)?;
        ensure!((meter.out_packets, meter.in_packets) == (30, 30), "{VM2} to {VM1}: {meter:?}");
        Ok(())
    })
}

#[test]
fn fragments_that_routers_make_of_fragments_are_answered() -> Result<()> {
    for side in [Side::Inside, Side::Outside] {
        with_narrow_link(side, |_, inside, outside| {
            fragments_are_answered(&outside.host, EIP1)?;
            fragments_are_answered(&inside.host, outside.address())
        })?;
    }
    Ok(())
}
