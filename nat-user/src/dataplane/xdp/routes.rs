//! Watches for changes of routes and neighbours, so that the program may remember next hops.
//!
//! Whatever changes makes what is remembered void, by another [`Routing::generation`]. And it holds for less than a second unless
//! this goes on prolonging it: without a daemon, or with one that hangs, the program asks the FIB for each packet. What the kernel
//! tells nobody of, such as a path MTU that it has learned for itself, counts within a minute: then it is another generation anyway.

mod covering;

use std::collections::HashMap;
use std::io::{self, ErrorKind, PipeReader, PipeWriter};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aya::maps::MapData;
use log::{debug, info};
use nat_common::abi::express::{DIRECTORY, Routing};
use nat_common::abi::map;
use netlink_packet_core::{NLM_F_REPLACE, NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::time::{ClockId, clock_gettime};

use self::covering::Covering;
use super::numbers::Numbers;
use super::{front, netlink, quiesce};

/// How long what is remembered holds.
const LEASE: Duration = Duration::from_millis(750);

/// How often that is prolonged.
const RENEWAL: Duration = Duration::from_millis(200);

/// How long a generation lasts if nothing changes.
const LIFE: Duration = Duration::from_mins(1);

/// How long changes are waited for that come together: a routing daemon may make thousands.
const GATHERING: Duration = Duration::from_millis(5);

/// Groups of rtnetlink(7). kernel: `enum rtnetlink_groups`; link, neighbour, IPv4 addresses, routes, rules and settings, next hops.
const GROUPS: [u32; 7] = [1, 3, 5, 7, 8, 24, 32];

/// kernel: `include/uapi/linux/rtnetlink.h`
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEXTHOP: u16 = 104;

/// Bytes of changes that may wait: some ten thousand of them.
const WAITING: usize = 8 << 20;

/// When routes are listed that are not known any more, so that a storm of changes makes one list...
const LIST_AFTER: Duration = Duration::from_secs(1);
/// ...and when again if they have changed meanwhile.
const LIST_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The thread that watches.
#[derive(Debug)]
pub(super) struct Routes {
    thread: Option<JoinHandle<Result<()>>>,
    /// The thread ends when this is closed.
    stop: Option<PipeWriter>,
}

impl Routes {
    /// Starts it, for the maps that are pinned in a directory, in this network namespace.
    pub(super) fn start(maps: &Path) -> Result<Self> {
        let pin = maps.join(map::FRONT);
        let data = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let memory = Memory { routing: front::routing(&data)?, covering: front::covering(&data)? };
        let (stopped, stop) = io::pipe()?;
        let mut watcher = Watcher::new(memory)?;
        let thread = Builder::new().name("routes".to_owned()).spawn(move || {
            let ended = watcher.run(&stopped);
            watcher.lapse();
            ended
        })?;
        Ok(Self { thread: Some(thread), stop: Some(stop) })
    }

    /// Whether it still watches.
    pub(super) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends it, and answers what it has died of if it had.
    pub(super) fn end(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        ended.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(anyhow!("it has panicked")))
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            debug!("following routes: {error:#}");
        }
    }
}

/// A neighbour: interface and address.
type Neighbour = (u32, IpAddr);

/// What the program reads.
struct Memory {
    /// [`Routing`].
    routing: Numbers,
    /// Which routes cover a /16, eight numbers in one.
    covering: Numbers,
}

struct Watcher {
    socket: Socket,
    memory: Memory,
    generation: u32,
    /// When the next generation begins.
    next: Instant,
    /// Until when the present one holds.
    until: Duration,
    /// Whether next hops depend on nothing but the destination.
    is_plain: bool,
    /// Whether it has been told otherwise.
    is_told: bool,
    /// The MAC addresses of those that are known.
    neighbours: HashMap<Neighbour, Vec<u8>>,
    /// None: not known.
    covering: Option<Covering>,
    /// When the routes are to be listed if they are not known.
    list_at: Instant,
    /// How many changes of routes have been told.
    changes_of_routes: u64,
}

impl Watcher {
    fn new(memory: Memory) -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group).context("cannot follow changes by rtnetlink")?;
        }
        socket.set_non_blocking(true)?;
        set_socket_recv_buffer_size_force(&socket, WAITING).context("cannot have changes of routes wait")?;
        // None is ever used again: not those of a daemon before this one.
        let generation = bytemuck::cast::<_, Routing>([0, 1].map(|at| memory.routing.read(at))).generation;
        Ok(Self {
            socket,
            memory,
            generation,
            next: Instant::now(),
            until: Duration::ZERO,
            is_plain: false,
            is_told: false,
            neighbours: HashMap::new(),
            covering: None,
            list_at: Instant::now(),
            changes_of_routes: 0,
        })
    }

    fn run(&mut self, stopped: &PipeReader) -> Result<()> {
        self.look_anew()?;
        self.list_at = Instant::now();
        loop {
            if self.covering.is_none() && Instant::now() >= self.list_at {
                self.list_routes()?;
            }
            self.renew()?;
            let mut fds = [
                PollFd::new(&self.socket, PollFlags::IN),
                PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
            ];
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(RENEWAL.subsec_nanos()) };
            match poll(&mut fds, Some(&wait)) {
                Err(rustix::io::Errno::INTR) => continue,
                done => done.context("cannot wait for changes of routes")?,
            };
            let [changes, stop] = fds.map(|fd| fd.revents());
            if !stop.is_empty() {
                return Ok(());
            }
            if !changes.is_empty() {
                self.follow()?;
            }
        }
    }

    /// Nothing that is remembered holds.
    fn lapse(&mut self) {
        self.until = Duration::ZERO;
        self.memory.routing.write(1, 0);
    }

    /// What is remembered holds for some time from now on, during which changes come to be known. It began to before: whatever was
    /// not taken in meanwhile, nothing older is to hold again.
    fn renew(&mut self) -> Result<()> {
        if !self.is_plain {
            self.lapse();
            return Ok(());
        }
        let clock = || Duration::try_from(clock_gettime(ClockId::Monotonic)).context("the clock is wrong");
        let mut now = clock()?;
        if now >= self.until {
            // It was not prolonged in time: what has changed meanwhile is to be known before.
            self.follow()?;
            now = clock()?;
        }
        if now >= self.until || Instant::now() >= self.next {
            self.advance();
        }
        self.until = now + LEASE;
        self.memory.routing.write(1, u64::try_from(self.until.as_nanos())?);
        Ok(())
    }

    fn advance(&mut self) {
        self.next = Instant::now() + LIFE;
        self.generation = self.generation.wrapping_add(1).max(1);
        let routing = Routing { generation: self.generation, ..Routing::default() };
        self.memory.routing.write(0, bytemuck::cast::<_, [u64; 2]>(routing)[0]);
    }

    /// Nothing holds that was remembered until now, and from now on the program knows which routes cover which addresses.
    fn tell(&mut self) -> Result<()> {
        self.advance();
        let mut is_other = false;
        let numbers = self.covering.as_ref().map_or_else(|| vec![0; DIRECTORY], Covering::numbers);
        for (at, eight) in numbers.as_chunks().0.iter().enumerate() {
            let eight = u64::from_ne_bytes(*eight);
            if self.memory.covering.read(at) != eight {
                self.memory.covering.write(at, eight);
                is_other = true;
            }
        }
        if is_other {
            // A packet under way may have taken a next hop for the addresses that it was for before.
            quiesce()?;
            self.advance();
        }
        Ok(())
    }

    /// Follows what has changed.
    fn follow(&mut self) -> Result<()> {
        if self.take_in()? {
            sleep(GATHERING);
            // The kernel tells of some changes before it makes them: the FIB may have been asked in between.
            if self.covering.as_mut().is_some_and(Covering::forget) {
                self.tell()?;
            } else {
                self.advance();
            }
            self.next = Instant::now() + RENEWAL;
        }
        Ok(())
    }

    /// Takes in what has been told, and answers whether it makes anything void; then that is.
    fn take_in(&mut self) -> Result<bool> {
        let mut told = Told::default();
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => self.read(&datagram, &mut told),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Something was left out; what waits is older than what is asked for then.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told.note(Change::Unknown),
                Err(error) => return Err(error).context("rtnetlink"),
            }
        }
        if told.has_rules {
            self.look_at_rules()?;
            told.note(Change::Void);
        }
        self.changes_of_routes += u64::from(told.change >= Change::Routes);
        match told.change {
            Change::None => return Ok(false),
            Change::Void => self.advance(),
            Change::Routes => self.tell()?,
            Change::Unknown => self.look_anew()?,
        }
        Ok(true)
    }

    fn read(&mut self, datagram: &[u8], told: &mut Told) {
        let mut rest = datagram;
        while let Ok(header) = NetlinkBuffer::new_checked(rest) {
            let (length, flags) = (header.length() as usize, header.flags());
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour))) => {
                    told.note(self.neighbour(&neighbour, false));
                }
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour))) => {
                    told.note(self.neighbour(&neighbour, true));
                }
                Ok(NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_),
                )) => told.has_rules = true,
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))) => {
                    told.note(Change::Routes);
                    if let Some(covering) = &mut self.covering {
                        covering.insert(&route, flags);
                    }
                }
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route))) => {
                    let is_known = self.covering.as_mut().is_none_or(|covering| covering.remove(&route));
                    told.note(if is_known { Change::Routes } else { Change::Unknown });
                }
                // Routes by a next-hop object take another way, and not all kernels tell of each.
                _ if header.message_type() == RTM_NEWNEXTHOP && flags & NLM_F_REPLACE != 0 => {
                    told.note(Change::Unknown);
                }
                // What cannot be understood may be anything.
                Err(_) if header.message_type() == RTM_NEWROUTE => told.note(Change::Unknown),
                _ => told.note(Change::Void),
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
        }
        if !rest.is_empty() {
            told.note(Change::Unknown);
        }
    }

    /// Notes what is known of a neighbour, and answers whether anything else may be remembered of it.
    fn neighbour(&mut self, message: &NeighbourMessage, is_gone: bool) -> Change {
        use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
        let header = &message.header;
        if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6) {
            // A bridge's table: routes do not depend on it.
            return Change::None;
        }
        let (mut address, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some((*v4).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some((*v6).into()),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes.clone()),
                _ => {}
            }
        }
        let Some(address) = address else { return Change::Void };
        // kernel: NUD_VALID
        let is_valid =
            !is_gone && matches!(header.state, Reachable | Stale | Delay | Probe | Noarp | Permanent);
        let before = match mac.filter(|_| is_valid) {
            Some(mac) => {
                let before = self.neighbours.insert((header.ifindex, address), mac.clone());
                before.filter(|before| *before != mac)
            }
            None => self.neighbours.remove(&(header.ifindex, address)),
        };
        if before.is_some() { Change::Void } else { Change::None }
    }

    /// Looks at everything anew, and has the routes listed.
    fn look_anew(&mut self) -> Result<()> {
        self.neighbours.clear();
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        for message in netlink::dump(NETLINK_ROUTE, &request).context("cannot ask for the neighbours")? {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = message {
                self.neighbour(&neighbour, false);
            }
        }
        self.look_at_rules()?;
        (self.covering, self.list_at) = (None, Instant::now() + LIST_AFTER);
        self.tell()
    }

    /// Has the kernel list its routes, which are known then, unless they have changed meanwhile: of a change it is not known whether it is
    /// in the list.
    fn list_routes(&mut self) -> Result<()> {
        self.follow()?;
        let (mut covering, before) = (Covering::default(), self.changes_of_routes);
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let request = RouteNetlinkMessage::GetRoute(request);
        let listed = netlink::dump_each(NETLINK_ROUTE, &request, |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message {
                covering.list(&route);
            }
        });
        self.follow()?;
        if matches!(listed, Ok(true)) && self.changes_of_routes == before {
            self.covering = Some(covering);
            return self.tell();
        }
        debug!(
            "the FIB is asked for each destination, since routes change while they are listed: {listed:?}"
        );
        self.list_at = Instant::now() + LIST_AGAIN_AFTER;
        Ok(())
    }

    fn look_at_rules(&mut self) -> Result<()> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
        let rules = netlink::dump_all(NETLINK_ROUTE, &RouteNetlinkMessage::GetRule(request));
        self.is_plain =
            rules.context("cannot ask for the rules of routing")?.iter().all(|message| match message {
                RouteNetlinkMessage::NewRule(rule) => is_plain(rule),
                _ => true,
            });
        if !self.is_plain && !self.is_told {
            info!("there are rules of routing (ip rule), so the FIB is asked for each packet");
        }
        self.is_told = !self.is_plain;
        Ok(())
    }
}

/// What has been told.
#[derive(Debug, Default)]
struct Told {
    change: Change,
    has_rules: bool,
}

impl Told {
    fn note(&mut self, change: Change) {
        self.change = self.change.max(change);
    }
}

/// What has become of what is known, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    #[default]
    None,
    /// What is remembered is void.
    Void,
    /// Other addresses may have their next hop in common, too.
    Routes,
    /// Something is not known.
    Unknown,
}

/// The tables default, main and local. kernel: `enum rt_class_t`.
const TABLES: [u8; 3] = [253, 254, 255];

/// Whether a rule is one of those that are there by default: for all packets, and one of the tables local, main and default.
fn is_plain(rule: &RuleMessage) -> bool {
    let header = &rule.header;
    let is_for_all = rule.attributes.iter().all(|attribute| match attribute {
        RuleAttribute::Table(table) => TABLES.iter().any(|known| u32::from(*known) == *table),
        // Suppression is switched off where it is all ones.
        RuleAttribute::SuppressPrefixLen(u32::MAX)
        | RuleAttribute::Priority(_)
        | RuleAttribute::Protocol(_) => true,
        _ => false,
    });
    header.action == RuleAction::ToTable
        && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
        && TABLES.contains(&header.table)
        && is_for_all
}
