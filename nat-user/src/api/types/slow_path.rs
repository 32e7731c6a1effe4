//! The slow path, for the API.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use nat_common::verdict::Errand;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::dataplane::slow_path::Report;
use crate::packet;
use crate::slowpath::socket::Copying;

/// What the slow path has got and made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlowPath {
    /// By reason; every reason is there.
    pub reasons: BTreeMap<String, SlowPathReason>,
    /// Packets that wait for a neighbour's MAC address just now.
    pub waiting: usize,
    /// Announcements of EIPs by ARP.
    pub announced: u64,
    /// ARP packets in which somebody else claimed to hold an EIP.
    pub conflicts: u64,
    /// Who has claimed an EIP within the last ten minutes.
    pub claims: Vec<Claim>,
    /// Its AF_XDP sockets.
    pub sockets: Vec<Socket>,
}

/// Packets that went to the slow path for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlowPathReason {
    /// Packets that the fast path has sent there.
    pub sent: u64,
    /// Packets that it has not, because there were too many.
    pub limited: u64,
    /// Packets that have come. Fewer than were sent, if sockets were full.
    pub received: u64,
    /// Packets that have left.
    pub carried: u64,
    /// Packets that were answered, by ICMP or ARP.
    pub answered: u64,
    /// Packets that were not answered, since answers are limited, or there must be none.
    pub unanswered: u64,
}

/// Somebody else's claim to an EIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Claim {
    /// The EIP.
    #[schema(value_type = String, format = Ipv4)]
    pub eip: Ipv4Addr,
    /// The MAC address of who claims it.
    pub mac: String,
    /// How many seconds ago that was.
    pub seconds_ago: u64,
}

/// An AF_XDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Socket {
    /// Its interface.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// `copy` or `zero-copy`.
    pub mode: String,
    /// Frames of its memory by who has them: nobody, or the kernel to receive into or to send.
    pub frames: Frames,
    /// Frames that stand in its rings.
    pub rings: Rings,
    /// Packets that have not come into it, by cause.
    pub lost: Lost,
}

/// Frames of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Frames {
    /// Nobody's.
    pub free: usize,
    /// The kernel's, to receive into.
    pub receiving: usize,
    /// The kernel's, to send.
    pub sending: usize,
    /// How often the kernel has given back what it did not have; never, if it is right.
    pub strays: u64,
}

/// What stands in a socket's rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rings {
    /// For the kernel to receive into.
    pub fill: u32,
    /// Received, for the worker to look at.
    pub receive: u32,
    /// For the kernel to send.
    pub send: u32,
    /// Sent, for the worker to take back.
    pub completion: u32,
}

/// Packets that have not come into a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lost {
    /// Its ring was full.
    pub ring_full: u64,
    /// There was no frame to receive into.
    pub no_frames: u64,
    /// Anything else.
    pub other: u64,
}

impl From<&Report> for SlowPath {
    fn from(report: &Report) -> Self {
        let mut reasons: BTreeMap<String, SlowPathReason> =
            Errand::ALL.iter().map(|errand| (errand.name().to_owned(), SlowPathReason::default())).collect();
        for (errand, outcomes) in &report.tallies.errands {
            let reason = reasons.entry(errand.name().to_owned()).or_default();
            reason.received = outcomes.received;
            reason.carried = outcomes.carried;
            reason.answered = outcomes.answered;
            reason.unanswered = outcomes.unanswered;
        }
        for bucket in &report.buckets {
            let reason = reasons.entry(bucket.errand.name().to_owned()).or_default();
            reason.sent += bucket.sent;
            reason.limited += bucket.limited;
        }
        let state = &report.state;
        Self {
            reasons,
            waiting: state.waiting,
            announced: report.tallies.announced,
            conflicts: report.tallies.conflicts,
            claims: state
                .conflicts
                .iter()
                .map(|claim| Claim {
                    eip: claim.eip,
                    mac: packet::mac(&claim.mac),
                    seconds_ago: claim.ago.as_secs(),
                })
                .collect(),
            sockets: state
                .sockets
                .iter()
                .map(|socket| Socket {
                    interface: socket.interface.clone(),
                    queue: socket.queue,
                    mode: mode(socket.copying).to_owned(),
                    frames: Frames {
                        free: socket.shares.free,
                        receiving: socket.shares.receiving,
                        sending: socket.shares.sending,
                        strays: socket.shares.strays,
                    },
                    rings: Rings {
                        fill: socket.rings.fill,
                        receive: socket.rings.receive,
                        send: socket.rings.send,
                        completion: socket.rings.completion,
                    },
                    lost: Lost {
                        ring_full: socket.lost.ring_full,
                        no_frames: socket.lost.no_frames,
                        other: socket.lost.dropped,
                    },
                })
                .collect(),
        }
    }
}

const fn mode(copying: Copying) -> &'static str {
    match copying {
        Copying::Copy => "copy",
        Copying::ZeroCopy => "zero-copy",
    }
}
