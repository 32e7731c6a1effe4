//! What can be written behind `explain`, `trace` and `capture`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use nat_common::abi::trace::MAX_SNAP;

use crate::packet::{Flags, Protocol, Spec};

/// A packet: by --src, --dst and --proto, by --pcap, or by --hex.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("given").required(true).args(["src", "pcap", "hex"]))]
pub(in crate::cli) struct Explain {
    /// The interface that it comes by
    #[arg(long, value_name = "IF")]
    pub(super) on: Option<String>,
    #[command(flatten)]
    pub(super) spec: Words,
    /// Take a frame from a capture (pcap or pcapng); a pcapng's interface is the default for --on
    #[arg(long, value_name = "FILE")]
    pub(super) pcap: Option<PathBuf>,
    /// Which frame of the capture, the first being 1
    #[arg(long, value_name = "N", default_value_t = 1, requires = "pcap", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) frame: u64,
    /// Take a frame in hexadecimal digits, from its Ethernet header on; - for standard input
    #[arg(long, value_name = "DIGITS")]
    pub(super) hex: Option<String>,
}

/// A packet in a few words.
#[derive(Debug, Args)]
pub(super) struct Words {
    /// The source address
    #[arg(long, value_name = "ADDRESS", requires_all = ["dst", "proto"])]
    src: Option<Ipv4Addr>,
    /// The destination address
    #[arg(long, value_name = "ADDRESS", requires = "src")]
    dst: Option<Ipv4Addr>,
    /// tcp, udp, icmp, or a protocol's number
    #[arg(long, requires = "src")]
    proto: Option<Protocol>,
    /// The source port [default: 40000]
    #[arg(long, value_name = "PORT", requires = "src")]
    sport: Option<u16>,
    /// The destination port [default: 80]
    #[arg(long, value_name = "PORT", requires = "src")]
    dport: Option<u16>,
    /// TCP's flags, such as SA [default: S]
    #[arg(long, value_name = "FLAGS", requires = "src")]
    tcp_flags: Option<Flags>,
    /// The type of an ICMP message; an error quotes a datagram [default: 8]
    #[arg(long, value_name = "TYPE", requires = "src")]
    icmp_type: Option<u8>,
    /// Its code [default: 0]
    #[arg(long, value_name = "CODE", requires = "src")]
    icmp_code: Option<u8>,
    /// Hops left [default: 64]
    #[arg(long, requires = "src")]
    ttl: Option<u8>,
    /// DSCP and ECN, as one number [default: 0]
    #[arg(long, requires = "src")]
    tos: Option<u8>,
    /// IPv4 total length, in bytes [default: the headers alone]
    #[arg(long, value_name = "BYTES", requires = "src")]
    length: Option<u16>,
    /// It must not be fragmented [default]
    #[arg(long, requires = "src", conflicts_with = "no_df")]
    df: bool,
    /// It may be fragmented
    #[arg(long, requires = "src")]
    no_df: bool,
    /// The frame's source
    #[arg(long, value_name = "MAC", requires = "src")]
    src_mac: Option<String>,
    /// The frame's destination [default: the interface]
    #[arg(long, value_name = "MAC", requires = "src")]
    dst_mac: Option<String>,
}

impl Words {
    pub(super) fn packet(&self) -> Spec {
        Spec {
            src: self.src,
            dst: self.dst,
            proto: self.proto,
            sport: self.sport,
            dport: self.dport,
            tcp_flags: self.tcp_flags,
            icmp_type: self.icmp_type,
            icmp_code: self.icmp_code,
            ttl: self.ttl,
            tos: self.tos,
            length: self.length,
            df: Some(!self.no_df),
            src_mac: self.src_mac.clone(),
            dst_mac: self.dst_mac.clone(),
        }
    }
}

/// Which packets, and how many of them.
#[derive(Debug, Args)]
pub(super) struct Watched {
    /// Only packets of this public address, as they come or as they leave; may be repeated
    #[arg(long = "eip", value_name = "EIP")]
    pub(super) eips: Vec<Ipv4Addr>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    pub(super) count: Option<u64>,
    /// Most packets a second; more are left out, and counted
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) rate: u32,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Trace {
    #[command(flatten)]
    pub(super) watched: Watched,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Capture {
    #[command(flatten)]
    pub(super) watched: Watched,
    /// The file, of the format pcapng; - for standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) write: PathBuf,
    /// How many bytes of each frame
    #[arg(long, value_name = "BYTES", default_value_t = 9216, value_parser = clap::value_parser!(u32).range(14..=MAX_SNAP as i64))]
    pub(super) snaplen: u32,
}

const _: () = assert!(MAX_SNAP == 9216);
