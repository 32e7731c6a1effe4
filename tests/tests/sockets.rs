//! Transports that few use, by the kernel's own sockets where it has them. Where it has not, and for what sockets do
//! not send, the same packets are built by hand, so that they cross the node in any case.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::IpNumber;
use etherparse::checksum::Sum16BitWords;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tests::fixtures::Packet;
use tests::lab::{Bed, Flow, Namespace, Setup, content, exchange_raw, may_lack};

/// Both ends' port. It is not 0, so that what is received can be told by it.
const PORT: u16 = 9899;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A socket of the protocol, bound to a port; `None` if the kernel has no such protocol.
fn open(namespace: &Namespace, protocol: IpNumber, port: u16) -> Result<Option<Socket>> {
    let (facility, kind) = match protocol {
        IpNumber::SCTP => ("sctp", Type::STREAM),
        IpNumber::UDP_LITE => ("udp-lite", Type::DGRAM),
        _ => bail!("{protocol:?} is not tested"),
    };
    let socket = match namespace
        .run(|| Socket::new(Domain::IPV4, kind, Some(Protocol::from(i32::from(protocol.0)))))?
    {
        Ok(socket) => socket,
        Err(error) => {
            let code = Errno::from_io_error(&error);
            ensure!(
                matches!(code, Some(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT)),
                "a socket of {protocol:?}: {error}"
            );
            println!("this kernel has no {protocol:?}");
            may_lack(facility)?;
            return Ok(None);
        }
    };
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    Ok(Some(socket))
}

/// An association of SCTP, and bytes there and back.
fn associate(flow: &Flow<'_>, port: u16, server: &Socket, mut client: Socket) -> Result<()> {
    let sent = content(100_000);
    server.listen(1)?;
    std::thread::scope(|scope| {
        let serve = scope.spawn(|| -> Result<()> {
            let (mut peer, address) = server.accept()?;
            let address = address.as_socket().context("no address")?;
            ensure!(address == SocketAddr::from((flow.seen_sender, port)), "the client is {address}");
            let mut got = vec![0; sent.len()];
            peer.read_exact(&mut got)?;
            Ok(peer.write_all(&got)?)
        });
        client.connect_timeout(&SocketAddr::from((flow.target, port)).into(), TIMEOUT)?;
        client.write_all(&sent)?;
        let mut back = vec![0; sent.len()];
        client.read_exact(&mut back)?;
        ensure!(back == sent, "other bytes come back");
        serve.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The checksum of a packet (`CRC32c`) as RFC 9260, appendix A, has it computed: the present one counts as zero.
fn crc32c(packet: &[u8]) -> [u8; 4] {
    let bytes = packet.iter().enumerate().map(|(at, byte)| if (8..12).contains(&at) { 0 } else { *byte });
    let register = bytes.fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(byte), |register, _| {
            if register & 1 == 1 { register >> 1 ^ 0x82f6_3b78 } else { register >> 1 }
        })
    });
    (!register).to_le_bytes()
}

/// SCTP's INIT.
fn init(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    let [high, low] = PORT.to_be_bytes();
    let header = [high, low, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    // Type, flags, length; tag; window; streams out and in; first number.
    let chunk = [1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0x86, 0xa0, 0, 10, 0, 10, 5, 6, 7, 8];
    let mut packet = [&header[..], &chunk].concat();
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum);
    Packet::new(IpNumber::SCTP, source, destination, packet)
}

#[test]
fn sctp() -> Result<()> {
    // RFC 3720, appendix B.4: 32 bytes of zeros.
    assert_eq!(crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    Bed::run(Setup::default(), |bed| {
        // Two hosts have one association at a time between the same ports, and it takes its time to end.
        for (port, flow) in (PORT..).zip(&bed.flows()) {
            let server = open(flow.to, IpNumber::SCTP, port)?;
            let client = open(flow.from, IpNumber::SCTP, port)?;
            match server.zip(client) {
                Some((server, client)) => associate(flow, port, &server, client),
                None => exchange_raw(flow, init),
            }
            .with_context(|| format!("from {} to {}", flow.from.name(), flow.target))?;
        }
        Ok(())
    })
}

/// A datagram of UDP-Lite. `coverage`: of the checksum, in bytes.
fn udp_lite(source: Ipv4Addr, destination: Ipv4Addr, port: u16, coverage: u16) -> Packet {
    let [high, low] = port.to_be_bytes();
    let [covered_high, covered_low] = coverage.to_be_bytes();
    let mut datagram =
        [&[high, low, high, low, covered_high, covered_low, 0, 0][..], b"light as air"].concat();
    let length = u16::try_from(datagram.len()).expect("it is short");
    let covered = if coverage == 0 { datagram.len() } else { usize::from(coverage) };
    let sum = Sum16BitWords::new()
        .add_4bytes(source.octets())
        .add_4bytes(destination.octets())
        .add_2bytes([0, IpNumber::UDP_LITE.0])
        .add_2bytes(length.to_be_bytes())
        .add_slice(&datagram[..covered])
        .ones_complement()
        .to_be();
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    Packet::new(IpNumber::UDP_LITE, source, destination, datagram)
}

/// Datagrams of UDP-Lite there and back.
fn answered(flow: &Flow<'_>, port: u16, server: &UdpSocket, client: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 2048];
    for size in [0, 1, 999, 1400] {
        let sent = content(size);
        client.send_to(&sent, (flow.target, port))?;
        let (length, address) = server.recv_from(&mut buffer).context("the server gets nothing")?;
        ensure!(address == SocketAddr::from((flow.seen_sender, port)), "the client is {address}");
        ensure!(buffer[..length] == sent, "{size} bytes arrive as {length} others");
        server.send_to(&buffer[..length], address)?;
        let (length, address) = client.recv_from(&mut buffer).context("the client gets no answer")?;
        ensure!(address == SocketAddr::from((flow.target, port)), "the server is {address}");
        ensure!(buffer[..length] == sent, "{size} bytes come back as {length} others");
    }
    Ok(())
}

/// What the kernel takes for good of the datagrams that were sent by hand.
fn accepted(server: &UdpSocket) -> Result<Vec<Vec<u8>>> {
    server.set_nonblocking(true)?;
    let mut buffer = [0; 2048];
    let mut all = Vec::new();
    loop {
        match server.recv(&mut buffer) {
            Ok(length) => all.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(all),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn udp_lite_with_any_coverage() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        // A port for each: a process that the other test starts may hold a closed socket for a moment longer.
        for (port, flow) in (PORT..).zip(&bed.flows()) {
            let server = open(flow.to, IpNumber::UDP_LITE, port)?.map(UdpSocket::from);
            let client = open(flow.from, IpNumber::UDP_LITE, port)?.map(UdpSocket::from);
            let crossed = || -> Result<()> {
                if let Some((server, client)) = server.as_ref().zip(client.as_ref()) {
                    answered(flow, port, server, client)?;
                }
                for coverage in [0, 8, 11, 20] {
                    exchange_raw(flow, |source, destination| udp_lite(source, destination, port, coverage))?;
                }
                let good = server.as_ref().map(accepted).transpose()?;
                ensure!(
                    good.is_none_or(|good| good == [b"light as air"; 4]),
                    "the kernel refuses a checksum"
                );
                Ok(())
            };
            crossed().with_context(|| format!("from {} to {}", flow.from.name(), flow.target))?;
        }
        Ok(())
    })
}
