//! Captures: pcap and pcapng.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use nat_common::verdict::Reject;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
use pcap_file::{DataLink, Endianness, PcapError};

use crate::packet::from_hex;
use crate::trace::Packet;

/// What a pcapng begins with, in either byte order.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// A frame that was captured.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) frame: Vec<u8>,
    /// The interface that it was captured on, if the file tells.
    pub(super) interface: Option<String>,
}

/// Takes a frame out of a capture; the first is number 1.
pub(super) fn frame(path: &Path, number: u64) -> anyhow::Result<Recorded> {
    let mut file = BufReader::new(File::open(path)?);
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(|_| anyhow!("it is too short for a capture (pcap or pcapng)"))?;
    file.rewind()?;
    if magic == PCAPNG { of_pcapng(file, number) } else { of_pcap(file, number) }
}

fn of_pcap(file: impl Read, number: u64) -> anyhow::Result<Recorded> {
    let mut reader = PcapReader::new(file).map_err(|_| anyhow!("it is no capture (pcap or pcapng)"))?;
    let link = reader.header().datalink;
    let mut seen = 0;
    // Raw: the reader would take a file for damaged in which a frame was longer than what was kept of each.
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet.map_err(|error| cut_off(seen, &error))?;
        seen += 1;
        if seen == number {
            check(&packet.data, packet.orig_len, link)?;
            return Ok(Recorded { frame: packet.data.into_owned(), interface: None });
        }
    }
    bail!("it has {seen} frames, and no frame {number}")
}

fn of_pcapng(file: impl Read, number: u64) -> anyhow::Result<Recorded> {
    let mut reader = PcapNgReader::new(file).map_err(|error| cut_off(0, &error))?;
    let mut seen = 0;
    loop {
        let (interface_id, original, data, flags) = match reader.next_block() {
            None => bail!("it has {seen} frames, and no frame {number}"),
            Some(Err(error)) => return Err(cut_off(seen, &error)),
            Some(Ok(Block::EnhancedPacket(packet))) => {
                let flags = packet.options.iter().find_map(|option| match option {
                    EnhancedPacketOption::Flags(flags) => Some(*flags),
                    _ => None,
                });
                (packet.interface_id, packet.original_len, packet.data.into_owned(), flags.unwrap_or(0))
            }
            Some(Ok(Block::SimplePacket(packet))) => (0, packet.original_len, packet.data.into_owned(), 0),
            Some(Ok(_)) => continue,
        };
        seen += 1;
        if seen < number {
            continue;
        }
        // A packet is explained as it comes, and this one has been changed already.
        ensure!(
            flags & DIRECTION != OUTBOUND,
            "frame {number} is one that left; in a capture of eipnat's the one before it is how it came"
        );
        let interface = usize::try_from(interface_id).ok().and_then(|id| reader.interfaces().get(id));
        let interface = interface.context("the frame is of an interface that the file does not describe")?;
        check(&data, original, interface.linktype)?;
        let name = interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
            _ => None,
        });
        return Ok(Recorded { frame: data, interface: name });
    }
}

fn cut_off(seen: u64, error: &PcapError) -> anyhow::Error {
    anyhow!("it is damaged or cut off behind frame {seen}: {error}")
}

fn check(data: &[u8], original: u32, link: DataLink) -> anyhow::Result<()> {
    ensure!(link == DataLink::ETHERNET, "it is of link type {}, not of Ethernet", u32::from(link));
    ensure!(
        data.len() >= original as usize,
        "the frame had {original} bytes, of which {} were captured; capture whole frames (tcpdump -s 0)",
        data.len()
    );
    Ok(())
}

/// Packets on their way into a pcapng: each as it came and as it left, with what became of it as a comment. The interfaces
/// have their names; what the kernel finishes leaves by one named `kernel`.
pub(super) struct Recorder<W: Write> {
    file: PcapNgWriter<W>,
    interfaces: Vec<String>,
    snap: u32,
}

/// The direction in a packet's flags.
const DIRECTION: u32 = 3;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

impl<W: Write> Recorder<W> {
    pub(super) fn new(sink: W, snap: u32) -> io::Result<Self> {
        let application = concat!("eipnat ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(application.into())],
            ..SectionHeaderBlock::default()
        };
        let file = PcapNgWriter::with_section_header(sink, section).map_err(broken)?;
        Ok(Self { file, interfaces: Vec::new(), snap })
    }

    pub(super) fn write(&mut self, packet: &Packet) -> io::Result<()> {
        let Some(frames) = &packet.frames else { return Ok(()) };
        let time = humantime::parse_rfc3339(&packet.time).map_err(io::Error::other)?;
        let time = time.duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        self.frame(&packet.on, time, &frames.before, frames.length, INBOUND, &comment(packet))?;
        if let Some(after) = &frames.after {
            let (to, comment) = match &packet.to {
                Some(to) => (to.as_str(), format!("sent; came by {}", packet.on)),
                None => ("kernel", format!("handed to the kernel; came by {}", packet.on)),
            };
            self.frame(to, time, after, frames.length, OUTBOUND, &comment)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        interface: &str,
        time: Duration,
        digits: &str,
        length: u32,
        direction: u32,
        comment: &str,
    ) -> io::Result<()> {
        let interface_id = self.interface(interface)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: time,
            original_len: length,
            data: from_hex(digits).map_err(io::Error::other)?.into(),
            options: vec![
                EnhancedPacketOption::Comment(comment.into()),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        self.file.write_pcapng_block(block).map_err(broken)?;
        Ok(())
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        let index = if let Some(index) = self.interfaces.iter().position(|known| known == name) {
            index
        } else {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: self.snap,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
                    // Nanoseconds.
                    InterfaceDescriptionOption::IfTsResol(9),
                ],
            };
            self.file.write_pcapng_block(block).map_err(broken)?;
            self.interfaces.push(name.to_owned());
            self.interfaces.len() - 1
        };
        u32::try_from(index).map_err(io::Error::other)
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.get_mut().flush()
    }
}

/// What became of a packet: the verdict, which way it went, and the public addresses that it shows outside. They are named only
/// where something tells that they are such: what was neither translated nor meant for one of ours may be anybody's.
fn comment(packet: &Packet) -> String {
    let mut parts = vec![packet.outcome()];
    parts.extend(packet.direction.clone());
    let public = match (&packet.before, &packet.after) {
        (Some(before), Some(after)) => [
            (before.source != after.source).then_some(after.source),
            (before.destination != after.destination).then_some(before.destination),
        ],
        (Some(before), None) if packet.reason.as_deref() == Some(Reject::EipUnbound.name()) => {
            [None, Some(before.destination)]
        }
        _ => [None, None],
    };
    parts.extend(public.into_iter().flatten().map(|address| format!("public address {address}")));
    parts.join("; ")
}

fn broken(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests;
