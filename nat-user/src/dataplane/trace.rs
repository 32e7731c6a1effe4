//! Packets that the datapath reports.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use nat_common::abi::trace::Event;

/// What is to be reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Packets with one of these addresses, as they come or as they leave; `None`: all packets.
    pub addresses: Option<BTreeSet<Ipv4Addr>>,
    /// Most packets a second, on each CPU.
    pub rate: u32,
    /// How many bytes of each frame.
    pub snap: u32,
}

/// A packet that the datapath reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the program tells.
    pub event: Event,
    /// The beginning of the frame as it left.
    pub frame: Vec<u8>,
}

/// The datapath's reports. There is one for a datapath, and it is asked by one thread.
#[expect(clippy::missing_errors_doc, reason = "every method fails where the kernel refuses")]
pub trait Tracer: Send {
    /// Begins to report what is wanted, or goes on, for some seconds: whoever reads has to ask again before they are over.
    fn report(&mut self, wanted: &Wanted) -> anyhow::Result<()>;
    /// Ends all reports.
    fn end(&mut self) -> anyhow::Result<()>;
    /// Waits for the next report, or until a time is over.
    fn wait(&mut self, patience: Duration) -> anyhow::Result<()>;
    /// The next report, if there is one.
    fn next(&mut self) -> Option<Report>;
    /// How many packets had to be left out since the maps were made: by the rate, or since nobody read in time.
    fn left_out(&mut self) -> anyhow::Result<u64>;
    /// The time that reports are told in, in nanoseconds.
    fn now(&self) -> u64;
}
