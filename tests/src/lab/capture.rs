//! A judge on the wire: tcpdump, and what it saw.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use etherparse::{IpNumber, Ipv4HeaderSlice, LaxNetSlice, LaxSlicedPacket};
use pcap_file::pcap::PcapReader;
use rustix::process::Signal;

use super::{Meter, Namespace, Process};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A capture that is under way.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

/// An IPv4 packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Number of the protocol that it carries.
    pub protocol: u8,
    /// Total length from the IPv4 header: what is billed.
    pub total_len: u64,
    /// The whole packet from the IPv4 header on.
    pub bytes: Vec<u8>,
}

impl Packet {
    /// The type and code of an ICMP message, and all that follows its header of 8 bytes.
    #[must_use]
    pub fn icmp(&self) -> Option<([u8; 2], &[u8])> {
        let payload = &self.bytes[usize::from(self.bytes[0] & 15) * 4..];
        match payload.split_at_checked(8) {
            Some((header, rest)) if self.protocol == IpNumber::ICMP.0 => Some(([header[0], header[1]], rest)),
            _ => None,
        }
    }

    /// Every address that the packet shows: its own, and those of the packet that it quotes.
    #[must_use]
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        let mut addresses = vec![self.source, self.destination];
        if let Some(([3 | 4 | 5 | 11 | 12, _], quote)) = self.icmp()
            && let Ok(quoted) = Ipv4HeaderSlice::from_slice(quote)
        {
            addresses.extend([quoted.source_addr(), quoted.destination_addr()]);
        }
        addresses
    }
}

impl Capture {
    /// Begins to capture what matches `filter` on a device; `file` has to be in the lab's directory.
    ///
    /// # Errors
    /// When tcpdump does not start.
    pub fn start(namespace: &Namespace, device: &str, filter: &str, file: PathBuf) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // -Z root: it would give up root before it can write to the lab's directory. -B: 64 MiB of kernel buffer,
        // which -s divides into places for packets.
        command.args([
            "-i",
            device,
            "-n",
            "-U",
            "--immediate-mode",
            "-Z",
            "root",
            "-B",
            "65536",
            "-s",
            "2048",
            "-w",
        ]);
        command.arg(&file).arg(filter);
        let mut tcpdump = namespace.spawn(command, file.with_extension("log"))?;
        tcpdump.wait_for("listening on", TIMEOUT)?;
        Ok(Self { tcpdump, file })
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// When tcpdump has missed a packet, or has seen something that is not IPv4.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        self.tcpdump.stop(Signal::INT, TIMEOUT)?;
        let log = self.tcpdump.log();
        ensure!(log.contains("\n0 packets dropped by kernel"), "tcpdump has missed packets:\n{log}");
        let mut reader = PcapReader::new(BufReader::new(File::open(&self.file)?))?;
        let mut packets = Vec::new();
        while let Some(frame) = reader.next_packet() {
            packets.push(parse(&frame?.data)?);
        }
        Ok(packets)
    }
}

fn parse(frame: &[u8]) -> Result<Packet> {
    let sliced = LaxSlicedPacket::from_ethernet(frame)?;
    let Some(LaxNetSlice::Ipv4(ip)) = &sliced.net else {
        anyhow::bail!("no IPv4 packet in the capture: {frame:02x?}");
    };
    let header = ip.header();
    let ethernet = frame.len().checked_sub(header.slice().len() + ip.payload().payload.len());
    let start = ethernet.context("an IPv4 packet longer than its frame")?;
    Ok(Packet {
        source: header.source_addr(),
        destination: header.destination_addr(),
        protocol: header.protocol().0,
        total_len: u64::from(header.total_len()),
        bytes: frame[start..].to_vec(),
    })
}

/// What each of these EIPs has carried, as far as packets on the public side tell.
#[must_use]
pub fn meters_on_the_wire(packets: &[Packet], eips: &[Ipv4Addr]) -> BTreeMap<Ipv4Addr, Meter> {
    let amount = |end: fn(&Packet) -> Ipv4Addr, eip: Ipv4Addr| {
        let packets = packets.iter().filter(|packet| end(packet) == eip);
        packets.fold((0, 0), |(bytes, count), packet| (bytes + packet.total_len, count + 1))
    };
    let meter = |eip: &Ipv4Addr| {
        let (in_bytes, in_packets) = amount(|packet| packet.destination, *eip);
        let (out_bytes, out_packets) = amount(|packet| packet.source, *eip);
        (*eip, Meter { in_bytes, in_packets, out_bytes, out_packets })
    };
    eips.iter().map(meter).collect()
}
