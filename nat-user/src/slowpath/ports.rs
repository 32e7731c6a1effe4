//! The interfaces that the slow path serves, and their sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use log::{info, warn};
use nat_common::abi::slowpath::MAX_QUEUES;
use nat_common::abi::{Addr, Mac, Port};
use rustix::io::Errno;

use super::frames::Shares;
use super::router::Wire;
use super::socket::{Copying, Lost, Occupancy, Socket};
use super::waiting::Neighbour;

/// How many frames all queues of an interface have together to receive into, if each has as many as it may.
const TO_RECEIVE: u32 = 16 * 1024;

/// The most and the fewest that one has, in powers of two. With up to sixteen queues each has as many as come at once for one
/// reason at the default rate; with up to four, four times as many.
const MOST: u32 = 4096;
const FEWEST: u32 = 512;

/// How long a queue is left alone that has no socket to be had. Interfaces have more queues than they use, and those in use
/// come first.
const RETRY: Duration = Duration::from_mins(1);

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// What the fast path knows of it.
    pub port: Port,
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: Vec<Ipv4Net>,
    /// How many queues it may have.
    pub queues: u32,
    /// Whether there is somebody at the other end.
    pub has_carrier: bool,
    /// Whether the fast path runs in its driver, which may write to the sockets' memory then.
    pub is_native: bool,
}

/// An interface with its sockets.
struct Served {
    interface: Interface,
    /// By queue.
    sockets: BTreeMap<u32, Socket>,
    /// Why the first queue has none.
    trouble: Option<String>,
    /// When the first was tried that has none.
    tried: Option<Instant>,
}

/// What has changed of the interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Sockets have come or gone.
    pub sockets: bool,
    /// An uplink has come, or has got a carrier, an address or another MAC address: who is there has to be told of EIPs.
    pub links: bool,
}

/// How a socket does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// Its interface.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// How it moves frames.
    pub copying: Copying,
    /// How its frames are shared out.
    pub shares: Shares,
    /// What stands in its rings.
    pub rings: Occupancy,
    /// What has not come into it.
    pub lost: Lost,
}

/// All of them.
pub(super) struct Ports {
    served: BTreeMap<u32, Served>,
    zero_copy: bool,
    /// Whether interfaces have been given before: those of the first time were there before the slow path.
    has_begun: bool,
    /// Who is to be asked for once the lock is released, since the kernel may take its time.
    asked: Vec<Neighbour>,
    /// Source of errors where the interface has no address that may be shown.
    public_ip: Option<Ipv4Addr>,
}

impl Ports {
    pub(super) fn new(zero_copy: bool) -> Self {
        Self { served: BTreeMap::new(), zero_copy, has_begun: false, asked: Vec::new(), public_ip: None }
    }

    pub(super) fn set_public_ip(&mut self, public_ip: Option<Ipv4Addr>) {
        self.public_ip = public_ip;
    }

    /// Sees to it that each of these interfaces has a socket on each of its queues, and no other has.
    pub(super) fn serve(&mut self, interfaces: &[Interface]) -> Changes {
        let before = self.served.len();
        self.served.retain(|ifindex, _| interfaces.iter().any(|interface| interface.ifindex == *ifindex));
        let mut changes = Changes { sockets: before != self.served.len(), links: false };
        for interface in interfaces {
            let is_link = interface.port.is_uplink() && interface.has_carrier;
            let known = self.served.get(&interface.ifindex).map(|served| &served.interface);
            let is_as_before = known.is_some_and(|known| {
                known.has_carrier
                    && known.port.mac == interface.port.mac
                    && known.addresses == interface.addresses
            });
            changes.links |= self.has_begun && is_link && !is_as_before;
            let served = self.served.entry(interface.ifindex).or_insert_with(|| Served {
                interface: interface.clone(),
                sockets: BTreeMap::new(),
                trouble: None,
                tried: None,
            });
            served.interface.clone_from(interface);
            changes.sockets |= served.close_dead() | served.open_missing(self.zero_copy);
        }
        self.has_begun = true;
        changes
    }

    /// The neighbours that are to be asked for.
    pub(super) fn take_asked(&mut self) -> Vec<Neighbour> {
        std::mem::take(&mut self.asked)
    }

    /// Each socket's interface and queue.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&Interface, u32, &Socket)> + '_ {
        self.served.values().flat_map(|served| {
            served.sockets.iter().map(|(queue, socket)| (&served.interface, *queue, socket))
        })
    }

    /// What becomes readable when something has come.
    pub(super) fn readiness(&self) -> Vec<Arc<OwnedFd>> {
        self.sockets().map(|(_, _, socket)| Arc::clone(socket.readiness())).collect()
    }

    /// How each does.
    pub(super) fn states(&mut self) -> Vec<SocketState> {
        let sockets = self.served.values_mut().flat_map(|served| {
            let name = &served.interface.name;
            served.sockets.iter_mut().map(move |(queue, socket)| (name, *queue, socket))
        });
        let state = |(interface, queue, socket): (&String, u32, &mut Socket)| SocketState {
            interface: interface.clone(),
            queue,
            copying: socket.copying(),
            shares: socket.shares(),
            rings: socket.occupancy(),
            lost: socket.lost().unwrap_or_default(),
        };
        sockets.map(state).collect()
    }

    /// Takes some of what has come by any interface.
    pub(super) fn receive(&mut self, mut each: impl FnMut(u32, &[u8])) {
        for (ifindex, served) in &mut self.served {
            for socket in served.sockets.values_mut() {
                socket.receive(|bytes| each(*ifindex, bytes));
            }
        }
    }

    /// Has the kernel send everything, and answers whether all is on its way.
    pub(super) fn kick(&mut self) -> bool {
        let sockets = self.served.values_mut().flat_map(|served| served.sockets.values_mut());
        sockets.map(Socket::kick).filter(|is_done| !is_done).count() == 0
    }

    /// An uplink in whose network an address is, with its MAC address.
    pub(super) fn on_link(&self, address: Ipv4Addr) -> Option<(u32, Mac)> {
        let is_on = |served: &&Served| {
            served.interface.port.is_uplink()
                && served.interface.has_carrier
                && served.interface.addresses.iter().any(|network| network.contains(&address))
        };
        let served = self.served.values().find(is_on)?;
        Some((served.interface.ifindex, served.interface.port.mac))
    }
}

impl Served {
    /// Closes sockets whose interface has been taken from under them: one of the same index may have come in its place.
    fn close_dead(&mut self) -> bool {
        let before = self.sockets.len();
        self.sockets.retain(|_, socket| socket.is_alive());
        before != self.sockets.len()
    }

    /// Opens a socket on each queue that has none. Answers whether there is one more.
    fn open_missing(&mut self, zero_copy: bool) -> bool {
        let before = self.sockets.len();
        if before > 0 && self.tried.is_some_and(|tried| tried.elapsed() < RETRY) {
            return false;
        }
        let queues = self.interface.queues.min(MAX_QUEUES);
        let to_receive = (TO_RECEIVE / queues.max(1)).clamp(FEWEST, MOST);
        // To a power of two, downwards.
        let to_receive = 1 << to_receive.ilog2();
        let missing: Vec<u32> = (0..queues).filter(|queue| !self.sockets.contains_key(queue)).collect();
        for queue in missing {
            match open(&self.interface, queue, to_receive, zero_copy) {
                Ok(socket) => {
                    self.sockets.insert(queue, socket);
                    self.trouble = None;
                }
                Err(error) => {
                    // Other mistakes pass: a queue is not free at once when a socket on it has been closed.
                    self.tried = is_no_queue(&error).then(Instant::now);
                    let trouble = format!("{error:#}");
                    let is_news = self.trouble.as_ref() != Some(&trouble);
                    if is_news && (queue == 0 || self.tried.is_none()) {
                        warn!(
                            "no slow path for queue {queue} of {}, so the kernel finishes its packets: {trouble}",
                            self.interface.name
                        );
                        self.trouble = Some(trouble);
                    }
                    break;
                }
            }
        }
        if before != self.sockets.len() {
            info!("slow path: {} on {} queues", self.interface.name, self.sockets.len());
        }
        before != self.sockets.len()
    }

    /// The first of its addresses that is as wanted.
    fn address(&self, is_wanted: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        self.interface.addresses.iter().map(Ipv4Net::addr).find(|address| is_wanted(*address))
    }
}

/// Whether there is no such queue.
fn is_no_queue(error: &anyhow::Error) -> bool {
    let is_invalid = |cause: &io::Error| cause.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    error.chain().filter_map(|cause| cause.downcast_ref()).any(is_invalid)
}

fn open(interface: &Interface, queue: u32, to_receive: u32, zero_copy: bool) -> anyhow::Result<Socket> {
    let copied = || Socket::open(&interface.name, queue, to_receive, Copying::Copy);
    if !zero_copy || !interface.is_native {
        return copied();
    }
    Socket::open(&interface.name, queue, to_receive, Copying::ZeroCopy).or_else(|_| copied())
}

impl Wire for Ports {
    fn send(&mut self, ifindex: u32, frame: &[u8]) -> bool {
        let Some(served) = self.served.get_mut(&ifindex) else { return false };
        served.sockets.values_mut().next().is_some_and(|socket| socket.send(frame))
    }

    fn own_address(&mut self, ifindex: u32, to: Addr) -> Option<Addr> {
        let served = self.served.get(&ifindex)?;
        let to = Ipv4Addr::from(to);
        let is_uplink = served.interface.port.is_uplink();
        // Best the one in whose network the receiver is: the one that it knows.
        let near = served.interface.addresses.iter().find(|network| network.contains(&to)).map(Ipv4Net::addr);
        // Outside, an address is shown that can be answered.
        let shown = || served.address(|address| !is_uplink || crate::dataplane::may_be_public(address));
        let outside = || is_uplink.then_some(self.public_ip).flatten();
        let any = || served.address(|_| true);
        let of_its_kind = || {
            let mut others =
                self.served.values().filter(|other| other.interface.port.role == served.interface.port.role);
            others.find_map(|other| other.address(|_| true))
        };
        near.or_else(shown).or_else(outside).or_else(any).or_else(of_its_kind).map(|address| address.octets())
    }

    fn is_own(&self, mac: Mac) -> bool {
        self.served.values().any(|served| served.interface.port.mac == mac)
    }

    fn resolve(&mut self, neighbour: Neighbour) {
        self.asked.push(neighbour);
    }
}
