//! One who watches.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::packet::Packet;
use super::{Interest, Shown};
use crate::dataplane::Role;
use crate::dataplane::trace::Report;

/// How often one is told at most of what is left out.
const TOLD: Duration = Duration::from_secs(1);

/// How much waits for a client that is slow, in bytes.
pub(super) const QUEUE: usize = 8 << 20;

/// More than a line takes without frames, in bytes.
const LINE: usize = 1024;

/// A line of JSON on its way to a client.
#[derive(Debug)]
pub struct Line {
    text: Vec<u8>,
    /// Its place in the queue, which is free again when the line is taken out.
    _place: Option<OwnedSemaphorePermit>,
}

impl Line {
    /// The line, with its end.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.text
    }
}

/// A client of the hub.
pub(super) struct Client {
    interest: Interest,
    /// All addresses by which what it is interested in shows itself.
    addresses: BTreeSet<Ipv4Addr>,
    roles: HashMap<String, Role>,
    lines: UnboundedSender<Line>,
    /// The bytes that are free in the queue.
    room: Arc<Semaphore>,
    /// Since when the program reports what it wants, in the time of reports.
    since: Option<u64>,
    /// The second that is under way, and how many packets there were for it within the rate.
    second: (u64, u32),
    left_out: u64,
    /// When it was told the last time.
    told: Option<Instant>,
}

impl Client {
    pub(super) fn new(
        interest: Interest,
        shown: &Shown,
        roles: HashMap<String, Role>,
        lines: UnboundedSender<Line>,
    ) -> Self {
        let (addresses, room) = (BTreeSet::new(), Arc::new(Semaphore::new(QUEUE)));
        let (since, second, told) = (None, (0, 0), None);
        let mut client = Self { interest, addresses, roles, lines, room, since, second, left_out: 0, told };
        client.follow(shown);
        client
    }

    pub(super) fn interest(&self) -> &Interest {
        &self.interest
    }

    pub(super) fn eips(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.interest.eips.iter().copied()
    }

    pub(super) fn addresses(&self) -> &BTreeSet<Ipv4Addr> {
        &self.addresses
    }

    pub(super) fn wants_everything(&self) -> bool {
        self.interest.eips.is_empty()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.lines.is_closed()
    }

    /// Learns by which addresses its EIPs show themselves now. Where that was asked before it came, it knows better.
    pub(super) fn follow(&mut self, shown: &Shown) {
        let addresses: Option<Vec<_>> = self.interest.eips.iter().map(|eip| shown.get(eip)).collect();
        if let Some(addresses) = addresses {
            self.addresses = addresses.into_iter().flatten().copied().collect();
        }
    }

    /// Takes a packet, if it wants it and there is room.
    pub(super) fn take(&mut self, report: &Report, packet: &Packet) {
        // What came before was reported for others, who may want less of each frame.
        if self.since.is_none_or(|since| report.event.time < since) {
            return;
        }
        if !self.wants_everything() && !packet.addresses().any(|address| self.addresses.contains(&address)) {
            return;
        }
        let second = report.event.time / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        if self.second.1 >= self.interest.rate {
            self.left_out += 1;
            return;
        }
        self.second.1 += 1;
        // As it came and as it left, two digits a byte.
        let digits = 4 * report.event.length.min(self.interest.snap);
        // Before it is written, which for a client that does not read would be in vain.
        let Some(place) = self.place(LINE + digits as usize) else {
            self.left_out += 1;
            return;
        };
        let packet = packet.for_client(report, self.interest.snap as usize, &self.roles);
        self.send(&packet, Some(place));
    }

    /// A place in the queue, if there is room for so many bytes.
    fn place(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    fn send(&self, what: &impl Serialize, place: Option<OwnedSemaphorePermit>) {
        let Ok(mut text) = serde_json::to_vec(what) else { return };
        text.push(b'\n');
        // If it has gone, nobody misses it.
        let _ = self.lines.send(Line { text, _place: place });
    }

    /// Tells it how many packets were left out, so many of them by the program.
    pub(super) fn tell_left_out(&mut self, by_program: u64) {
        if self.since.is_none() {
            return;
        }
        self.left_out += by_program;
        if self.left_out > 0 && self.told.is_some_and(|told| told.elapsed() >= TOLD) {
            self.tell();
        }
    }

    /// Tells it that packets are reported from now on, by the first line.
    pub(super) fn begin(&mut self, now: u64) {
        if self.since.is_none() {
            self.since = Some(now);
            self.tell();
        }
    }

    fn tell(&mut self) {
        let Some(place) = self.place(LINE) else { return };
        self.send(&json!({ "left_out": self.left_out }), Some(place));
        self.left_out = 0;
        self.told = Some(Instant::now());
    }

    /// Tells it by the last line, for which there is always room, why there are no more.
    pub(super) fn fail(self, error: &anyhow::Error) {
        self.send(&json!({ "error": format!("{error:#}") }), None);
    }
}
