//! Who answers on the way, as a real traceroute shows it, and that nobody outside ever sees a private address.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use tests::lab::{
    Bed, Capture, Chain, EIP1, EIP2, INNER_ROUTER, INTERNET, INTERNET_DEVICE, NODE_DOWN, NODE_UP, Namespace,
    Probe, Setup, Side, VM2, traceroute,
};

const PROBES: [Probe; 3] = [Probe::Udp, Probe::Icmp, Probe::Tcp];

/// Time exceeded in transit.
const TIME_EXCEEDED: [u8; 2] = [11, 0];

/// A host behind two private routers, which has [`EIP1`], and one behind two routers of the internet.
fn with_routers(test: impl FnOnce(&Bed, &Chain, &Chain) -> Result<()>) -> Result<()> {
    Bed::run(Setup { bound: false, ..Setup::default() }, |bed| {
        let (inside, outside) =
            (Chain::new(&bed.lab, Side::Inside, 2)?, Chain::new(&bed.lab, Side::Outside, 2)?);
        bed.daemon.bind(EIP1, inside.address())?;
        test(bed, &inside, &outside)
    })
}

/// Traces with every kind of probe, and watches what the internet sees meanwhile. Returns who complained on the
/// cable between the internet and the node.
fn hops_are(
    bed: &Bed,
    from: &Namespace,
    to: Ipv4Addr,
    expected: &[Option<Ipv4Addr>],
) -> Result<Vec<Ipv4Addr>> {
    let capture = Capture::start(&bed.lab.internet, INTERNET_DEVICE, "ip", bed.lab.file("wan.pcap"))?;
    for probe in PROBES {
        let expired = bed.daemon.drops("ttl_expired")?;
        let hops = traceroute(from, to, probe)?;
        ensure!(hops == expected, "{probe:?} from {} to {to}: {hops:?}, not {expected:?}", from.name());
        let expired = bed.daemon.drops("ttl_expired")? - expired;
        ensure!(expired == 1, "{probe:?}: {expired} packets, not 1, have ended at the node");
    }
    let mut complained = Vec::new();
    for packet in capture.stop()? {
        let addresses = packet.addresses();
        ensure!(
            !addresses.iter().any(Ipv4Addr::is_private),
            "the internet has seen {addresses:?}: {packet:?}"
        );
        if packet.icmp().is_some_and(|(kind, _)| kind == TIME_EXCEEDED) {
            ensure!(addresses.len() == 4, "it quotes nothing: {packet:?}");
            complained.push(packet.source);
        }
    }
    Ok(complained)
}

#[test]
fn from_the_internet_private_routers_show_as_the_node() -> Result<()> {
    with_routers(|bed, _, outside| {
        let hops = [outside.away(2), outside.away(1), NODE_UP, NODE_UP, NODE_UP, EIP1].map(Some);
        let complained = hops_are(bed, &outside.host, EIP1, &hops)?;
        ensure!(complained == [NODE_UP; 3 * PROBES.len()], "{complained:?}");
        Ok(())
    })
}

#[test]
fn from_the_internet_a_router_with_a_binding_shows_as_its_eip() -> Result<()> {
    with_routers(|bed, _, outside| {
        bed.daemon.bind(EIP2, INNER_ROUTER)?;
        let hops = [outside.away(2), outside.away(1), NODE_UP, EIP2, NODE_UP, EIP1].map(Some);
        let complained = hops_are(bed, &outside.host, EIP1, &hops)?;
        let of = |address| complained.iter().filter(|by| **by == address).count();
        ensure!((of(EIP2), of(NODE_UP)) == (PROBES.len(), 2 * PROBES.len()), "{complained:?}");
        Ok(())
    })
}

#[test]
fn from_a_vm_every_router_of_the_internet_shows() -> Result<()> {
    with_routers(|bed, inside, outside| {
        let hops = [
            Some(inside.away(2)),
            Some(inside.away(1)),
            Some(NODE_DOWN),
            Some(INTERNET),
            Some(outside.near(2)),
            Some(outside.address()),
        ];
        let complained = hops_are(bed, &inside.host, outside.address(), &hops)?;
        let of = |address| complained.iter().filter(|by| **by == address).count();
        ensure!((of(INTERNET), of(outside.near(2))) == (PROBES.len(), PROBES.len()), "{complained:?}");
        Ok(())
    })
}

#[test]
fn from_a_neighbour_private_routers_show_as_the_node() -> Result<()> {
    with_routers(|bed, _, _| {
        bed.daemon.bind(EIP2, VM2)?;
        let complained = hops_are(bed, &bed.lab.vm2, EIP1, &[NODE_DOWN, NODE_UP, NODE_UP, EIP1].map(Some))?;
        ensure!(complained.is_empty(), "the internet has seen the neighbours' business: {complained:?}");
        Ok(())
    })
}
