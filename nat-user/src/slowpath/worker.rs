//! The thread's work.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use log::{error, warn};
use nat_common::abi::slowpath::Note;
use nat_common::verdict::Errand;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::ports::{Changes, Interface, Ports};
use super::router::{Around, Kernel, Packet, Router, announce};
use super::socket::Socket;
use super::waiting::Neighbour;
use super::{CONFLICT_SHOWN, Claim, Shared, State};

/// How often an EIP is announced, and how far that is apart (RFC 5227 §2.3: `ANNOUNCE_NUM`, `ANNOUNCE_INTERVAL`).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// How many announcements are sent in a turn, and how long is waited before the next.
const ANNOUNCED_AT_ONCE: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);

/// How long an interface is given that is busy.
const BREATH: Duration = Duration::from_millis(1);

/// How often it is looked after what no event tells.
const BEAT: Duration = Duration::from_millis(250);

/// How long the sockets stay as they are if they cannot be waited for.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread works on.
pub(super) struct Worker {
    kernel: Box<dyn Kernel>,
    router: Router,
    ports: Ports,
    /// When to announce which EIP.
    due: BTreeSet<(Instant, Ipv4Addr)>,
    /// When each is due, and how often it is announced.
    left: HashMap<Ipv4Addr, (Instant, u8)>,
    /// Counts up whenever sockets come or go.
    generation: u64,
    has_ended: bool,
}

impl Worker {
    pub(super) fn new(kernel: Box<dyn Kernel>, router: Router, ports: Ports) -> Self {
        Self {
            kernel,
            router,
            ports,
            due: BTreeSet::new(),
            left: HashMap::new(),
            generation: 0,
            has_ended: false,
        }
    }

    pub(super) fn serve(&mut self, interfaces: &[Interface], public_ip: Option<Ipv4Addr>) -> Changes {
        self.ports.set_public_ip(public_ip);
        let changes = self.ports.serve(interfaces);
        self.generation += u64::from(changes.sockets);
        changes
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = (&Interface, u32, &Socket)> + '_ {
        self.ports.sockets()
    }

    pub(super) fn announce(&mut self, eips: impl IntoIterator<Item = Ipv4Addr>) {
        let now = Instant::now();
        for eip in eips {
            if self.ports.on_link(eip).is_some() {
                self.announce_at(now, eip, ANNOUNCEMENTS);
            }
        }
    }

    /// Has an EIP announced from then on, and not as was planned before.
    fn announce_at(&mut self, when: Instant, eip: Ipv4Addr, times: u8) {
        if let Some((before, _)) = self.left.insert(eip, (when, times)) {
            self.due.remove(&(before, eip));
        }
        self.due.insert((when, eip));
    }

    /// Lets go of all sockets.
    pub(super) fn close(&mut self) {
        self.serve(&[], None);
    }

    pub(super) fn state(&mut self) -> State {
        let now = Instant::now();
        let mut conflicts: Vec<Claim> = self
            .router
            .arp
            .conflicts()
            .map(|(eip, conflict)| Claim {
                eip,
                mac: conflict.mac,
                ago: now.saturating_duration_since(conflict.last),
            })
            .collect();
        conflicts.sort_by_key(|claim| claim.eip);
        State { sockets: self.ports.states(), waiting: self.router.waiting(), conflicts }
    }

    pub(super) fn end(&mut self) {
        self.has_ended = true;
    }

    /// Does what there is to be done. Answers for how long there will be nothing else, unless something comes.
    fn turn(&mut self, (news, is_all): (Vec<Neighbour>, bool)) -> Duration {
        let now = Instant::now();
        let Self { kernel, router, ports, .. } = self;
        // Those that wait come first, or others would overtake them.
        let stalled = router.take_stalled();
        if router.waiting() > 0 {
            let awaited = router.neighbours();
            let is_due =
                |neighbour: &Neighbour| !is_all || news.contains(neighbour) || stalled.contains(neighbour);
            let retried = awaited.into_iter().filter(is_due);
            for neighbour in retried.collect::<Vec<_>>() {
                router.retry(neighbour, now, &mut Around { kernel: &mut **kernel, wire: ports });
            }
            router.expire(now, &mut Around { kernel: &mut **kernel, wire: ports });
        }
        let mut packets = Vec::new();
        ports.receive(|ifindex, bytes| packets.extend(packet(ifindex, bytes)));
        let is_idle = packets.is_empty();
        for packet in packets {
            router.handle(packet, now, &mut Around { kernel: &mut **kernel, wire: ports });
        }
        let next = self.announce_due(now);
        let is_all_sent = self.ports.kick() && !self.router.is_stalled();
        let until = |due: Instant| due.saturating_duration_since(now);
        match self.router.due() {
            _ if !is_idle => Duration::ZERO,
            _ if !is_all_sent => BREATH,
            Some(due) => next.min(until(due)).min(BEAT),
            None => next,
        }
    }

    fn announce_due(&mut self, now: Instant) -> Duration {
        for _ in 0..ANNOUNCED_AT_ONCE {
            let Some((due, eip)) = self.due.first().copied() else { return Duration::MAX };
            if due > now {
                return due - now;
            }
            self.due.pop_first();
            let times = self.left.remove(&eip).map_or(0, |(_, times)| times);
            if self.kernel.inbound(eip.octets()).is_none() {
                continue;
            }
            // If the link has gone, its return is announced.
            let Some((ifindex, mac)) = self.ports.on_link(eip) else { continue };
            let around = &mut Around { kernel: &mut *self.kernel, wire: &mut self.ports };
            if !announce(eip, ifindex, mac, around) {
                // There is no socket yet, or no room.
                self.announce_at(now + BEAT, eip, times);
            } else if times > 1 {
                self.announce_at(now + ANNOUNCE_INTERVAL, eip, times - 1);
            }
        }
        PAUSE
    }

    /// What need not be done in every turn.
    fn tidy(&mut self) {
        let now = Instant::now();
        self.router.forget_idle();
        self.router.arp.forget(CONFLICT_SHOWN, now);
        // News may have been missed, and the first question is not always answered.
        for neighbour in self.router.neighbours() {
            let around = &mut Around { kernel: &mut *self.kernel, wire: &mut self.ports };
            self.router.retry(neighbour, now, around);
        }
    }
}

fn packet(ifindex: u32, bytes: &[u8]) -> Option<Packet> {
    let (note, frame) = bytes.split_at_checked(size_of::<Note>())?;
    let note: Note = bytemuck::pod_read_unaligned(note);
    let errand = *Errand::ALL.get(usize::try_from(note.errand).ok()?)?;
    Some(Packet { ifindex, errand, size: usize::try_from(note.size).ok()?, bytes: frame.to_vec() })
}

/// Works until the end.
pub(super) fn run(shared: &Shared) {
    let mut sockets: (Option<u64>, Vec<Arc<OwnedFd>>) = (None, Vec::new());
    let mut tidied = Instant::now();
    loop {
        shared.let_others_in();
        let news = shared.neighbours.news();
        let (patience, asked) = {
            let mut worker = shared.worker();
            if worker.has_ended {
                return;
            }
            if tidied.elapsed() >= BEAT {
                worker.tidy();
                tidied = Instant::now();
            }
            let patience = worker.turn(news);
            if sockets.0 != Some(worker.generation) {
                sockets = (Some(worker.generation), worker.ports.readiness());
            }
            let longest = if worker.router.waiting() > 0 { BEAT } else { RETRY };
            (patience.min(longest), worker.ports.take_asked())
        };
        for neighbour in asked {
            if let Err(error) = shared.neighbours.resolve(neighbour) {
                warn!("the kernel cannot be asked for {}: {error:#}", neighbour.1);
            }
        }
        wait(shared, &sockets.1, patience);
    }
}

/// Sleeps until something has come, or time is up.
fn wait(shared: &Shared, sockets: &[Arc<OwnedFd>], patience: Duration) {
    let mut fds =
        vec![PollFd::new(&shared.wake, PollFlags::IN), PollFd::new(&shared.neighbours, PollFlags::IN)];
    fds.extend(sockets.iter().map(|socket| PollFd::new(&**socket, PollFlags::IN)));
    let patience = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&patience)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(failure) => {
            error!("the slow path cannot wait for packets: {failure}");
            thread::sleep(RETRY);
        }
    }
    let _ = rustix::io::read(&shared.wake, &mut [0; 8]);
}
