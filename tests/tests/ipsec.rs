//! ESP across the node, plain and in UDP: tunnels of the kernel's own where it has ESP, and packets built by hand that
//! look the same where it has not.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use etherparse::IpNumber;
use tests::fixtures::Packet;
use tests::lab::{
    Bed, Capture, EIP1, Flow, INTERNET, INTERNET_DEVICE, NODE_DOWN, NODE_UP, Namespace, Process, Setup,
    VM_DEVICE, VM1, WebServer, content, download, exchange_raw, may_lack, ping,
};

/// Where IKE and ESP in UDP are spoken (RFC 3948).
const PORT: u16 = 4500;

/// What `ip` says where the kernel has no ESP, or not the algorithms.
const MISSING: [&str; 2] = ["not supported", "not found"];

/// One end of a tunnel.
struct End<'a> {
    host: &'a Namespace,
    device: &'a str,
    gateway: Ipv4Addr,
    /// Its own address, and the other end's as it knows it.
    outer: [Ipv4Addr; 2],
    /// Its address in the tunnel, and the other end's.
    inner: [Ipv4Addr; 2],
    /// Numbers of the association out of here and of the one in.
    spi: [u32; 2],
}

fn ends(bed: &Bed) -> [End<'_>; 2] {
    let [ours, theirs] = [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)];
    [
        End {
            host: &bed.lab.vm1,
            device: VM_DEVICE,
            gateway: NODE_DOWN,
            outer: [VM1, INTERNET],
            inner: [ours, theirs],
            spi: [0x1001, 0x1002],
        },
        End {
            host: &bed.lab.internet,
            device: INTERNET_DEVICE,
            gateway: NODE_UP,
            outer: [INTERNET, EIP1],
            inner: [theirs, ours],
            spi: [0x1002, 0x1001],
        },
    ]
}

impl End<'_> {
    /// Sets the tunnel up, in place of any other; false if the kernel has no ESP.
    fn set_up(&self, in_udp: bool) -> Result<bool> {
        let ([us, them], [inner, other]) = (self.outer, self.inner);
        let encapsulation =
            if in_udp { format!("encap espinudp {PORT} {PORT} 0.0.0.0") } else { String::new() };
        let mut lines = vec!["xfrm state flush".to_owned(), "xfrm policy flush".to_owned()];
        // Signed but not encrypted: the signature tells if a bit has changed, and ciphers take more of the kernel.
        for (source, destination, spi) in [(us, them, self.spi[0]), (them, us, self.spi[1])] {
            lines.push(format!(
                "xfrm state add src {source} dst {destination} proto esp spi {spi} reqid 1 mode tunnel \
                 auth-trunc hmac(sha256) 0x{spi:064x} 128 enc ecb(cipher_null) \"\" {encapsulation}"
            ));
        }
        for (direction, from, to, source, destination) in
            [("out", inner, other, us, them), ("in", other, inner, them, us)]
        {
            lines.push(format!(
                "xfrm policy add src {from} dst {to} dir {direction} \
                 tmpl src {source} dst {destination} proto esp reqid 1 mode tunnel"
            ));
        }
        lines.extend([
            format!("address replace {inner}/32 dev lo"),
            format!("route replace {other} via {} dev {} src {inner}", self.gateway, self.device),
        ]);
        match self.host.ip(&lines) {
            Ok(()) => Ok(true),
            Err(error) if MISSING.iter().any(|said| format!("{error:#}").contains(said)) => {
                println!("this kernel has no ESP: {error:#}");
                may_lack("esp")?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Holds a socket open through which the kernel takes in ESP; an IKE daemon would speak by it.
    fn listen(&self, bed: &Bed) -> Result<Process> {
        // kernel: UDP_ENCAP and UDP_ENCAP_ESPINUDP, include/uapi/linux/udp.h
        let socket = format!("UDP4-DATAGRAM:{}:{PORT},bind=:{PORT},setsockopt-int=17:100:2", self.outer[1]);
        let mut command = Command::new("socat");
        command.args(["-u", "-d", "-d", &socket, "OPEN:/dev/null,wronly"]);
        let mut process = self.host.spawn(command, bed.lab.file(&format!("socat-{}.log", self.device)))?;
        process.wait_for("starting data transfer loop", Duration::from_secs(10))?;
        Ok(process)
    }
}

/// Pings and downloads through a tunnel of the kernel's; false if it has no ESP. What crosses the internet has to be
/// of the protocol, and nothing else.
fn tunnelled(bed: &Bed, in_udp: bool) -> Result<bool> {
    let ends = ends(bed);
    for end in &ends {
        if !end.set_up(in_udp)? {
            return Ok(false);
        }
    }
    let _sockets = if in_udp { vec![ends[0].listen(bed)?, ends[1].listen(bed)?] } else { Vec::new() };
    // What has come out of the tunnel is seen by tcpdump once more.
    let filter = "ip and not net 172.31.0.0/16";
    let capture = Capture::start(&bed.lab.internet, INTERNET_DEVICE, filter, bed.lab.file("wan.pcap"))?;
    let _servers = [WebServer::start(ends[0].host)?, WebServer::start(ends[1].host)?];
    for End { host, inner: [_, other], .. } in &ends {
        let pings = ping(host, *other, 5, &[])?;
        ensure!(pings.received == 5, "ping {other} in {}: {pings:?}", host.name());
        download(host, *other, 300_000)?;
    }
    let protocol = if in_udp { IpNumber::UDP } else { IpNumber::ENCAPSULATING_SECURITY_PAYLOAD };
    let packets = capture.stop()?;
    let (good, bad): (Vec<_>, Vec<_>) = packets.iter().partition(|packet| packet.protocol == protocol.0);
    ensure!(bad.is_empty() && good.len() > 400, "{} packets, and others: {:?}", good.len(), bad.first());
    Ok(true)
}

/// An ESP packet (RFC 4303): SPI, sequence number, and what nobody but its receiver understands.
fn esp() -> Vec<u8> {
    [&[0, 0, 0x10, 1, 0, 0, 0, 1][..], &content(120)].concat()
}

/// Sends there and back what is spoken on [`PORT`]: ESP, IKE behind a marker of four zeros, and the byte that keeps a
/// NAT's memory awake (RFC 3948 §2). Both ports have to stay.
fn spoken(flow: &Flow<'_>) -> Result<()> {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let (server, client) = (flow.to.run(open)??, flow.from.run(open)??);
    let mut buffer = [0; 2048];
    for message in [esp(), [&[0; 4][..], &content(80)].concat(), vec![0xff]] {
        client.send_to(&message, (flow.target, PORT))?;
        let (length, address) = server.recv_from(&mut buffer).context("nothing arrives")?;
        ensure!(address == SocketAddr::from((flow.seen_sender, PORT)), "it comes from {address}");
        ensure!(buffer[..length] == message, "something else arrives");
        server.send_to(&buffer[..length], address)?;
        let (length, address) = client.recv_from(&mut buffer).context("nothing comes back")?;
        ensure!(address == SocketAddr::from((flow.target, PORT)), "it comes back from {address}");
        ensure!(buffer[..length] == message, "something else comes back");
    }
    Ok(())
}

#[test]
fn esp_plain_and_in_udp() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        if tunnelled(bed, false)? {
            ensure!(tunnelled(bed, true)?, "the kernel has ESP, but not in UDP");
            return Ok(());
        }
        for flow in &bed.flows() {
            exchange_raw(flow, |source, destination| {
                Packet::new(IpNumber::ENCAPSULATING_SECURITY_PAYLOAD, source, destination, esp())
            })?;
            spoken(flow).with_context(|| format!("from {} to {}", flow.from.name(), flow.target))?;
        }
        Ok(())
    })
}
