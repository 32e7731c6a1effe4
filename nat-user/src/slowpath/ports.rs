//! The interfaces that the slow path serves, and their sockets.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ipnet::Ipv4Net;
use log::{info, warn};
use nat_common::abi::slowpath::MAX_QUEUES;
use nat_common::abi::{Addr, Mac, Port};

use super::frames::Shares;
use super::neighbours::Neighbours;
use super::router::Wire;
use super::socket::{Copying, Lost, Socket};
use super::waiting::Neighbour;

/// How many frames all queues of an interface have together to receive into, if each has as many as it may.
const TO_RECEIVE: u32 = 8192;

/// The most and the fewest that one has, in powers of two. The most are as many packets as come at once at the default rate.
const MOST: u32 = 1024;
const FEWEST: u32 = 256;

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
}

/// An interface with its sockets.
struct Served {
    interface: Interface,
    /// By queue.
    sockets: BTreeMap<u32, Socket>,
    /// Why the last queue has none.
    trouble: Option<String>,
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
    /// What has not come into it.
    pub lost: Lost,
}

/// All of them.
pub(super) struct Ports {
    served: BTreeMap<u32, Served>,
    zero_copy: bool,
    neighbours: Neighbours,
    /// Source of errors where the interface has no address that may be shown.
    public_ip: Option<Ipv4Addr>,
}

impl Ports {
    pub(super) fn new(neighbours: Neighbours, zero_copy: bool) -> Self {
        Self { served: BTreeMap::new(), zero_copy, neighbours, public_ip: None }
    }

    pub(super) fn set_public_ip(&mut self, public_ip: Option<Ipv4Addr>) {
        self.public_ip = public_ip;
    }

    /// Sees to it that each of these interfaces has a socket on each of its queues, and no other has. Answers whether any came
    /// or went.
    pub(super) fn serve(&mut self, interfaces: &[Interface]) -> bool {
        let before = self.served.len();
        self.served.retain(|ifindex, _| interfaces.iter().any(|interface| interface.ifindex == *ifindex));
        let mut has_changed = before != self.served.len();
        for interface in interfaces {
            let served = self.served.entry(interface.ifindex).or_insert_with(|| Served {
                interface: interface.clone(),
                sockets: BTreeMap::new(),
                trouble: None,
            });
            served.interface.clone_from(interface);
            has_changed |= served.open_missing(self.zero_copy);
        }
        has_changed
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
    pub(super) fn states(&self) -> Vec<SocketState> {
        let state = |(interface, queue, socket): (&Interface, u32, &Socket)| SocketState {
            interface: interface.name.clone(),
            queue,
            copying: socket.copying(),
            shares: socket.shares(),
            lost: socket.lost().unwrap_or_default(),
        };
        self.sockets().map(state).collect()
    }

    /// Takes some of what has come by any interface.
    pub(super) fn receive(&mut self, mut each: impl FnMut(u32, &[u8])) {
        for (ifindex, served) in &mut self.served {
            for socket in served.sockets.values_mut() {
                socket.receive(|bytes| each(*ifindex, bytes));
            }
        }
    }

    /// Has the kernel send everything.
    pub(super) fn kick(&mut self) {
        self.served.values_mut().flat_map(|served| served.sockets.values_mut()).for_each(Socket::kick);
    }

    /// Where news of neighbours comes from.
    pub(super) const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// The neighbours of which there is news.
    pub(super) fn news(&self) -> (Vec<Neighbour>, bool) {
        self.neighbours.news()
    }

    /// The uplinks in whose network an address is, with their MAC addresses.
    pub(super) fn on_link(&self, address: Ipv4Addr) -> Vec<(u32, Mac)> {
        let is_on = |served: &&Served| {
            served.interface.port.is_uplink()
                && served.interface.addresses.iter().any(|network| network.contains(&address))
        };
        self.served
            .values()
            .filter(is_on)
            .map(|served| (served.interface.ifindex, served.interface.port.mac))
            .collect()
    }
}

impl Served {
    /// Opens a socket on each queue that has none. Answers whether there is one more.
    fn open_missing(&mut self, zero_copy: bool) -> bool {
        let before = self.sockets.len();
        let queues = self.interface.queues.min(MAX_QUEUES);
        let to_receive = (TO_RECEIVE / queues.max(1)).clamp(FEWEST, MOST);
        // To a power of two, downwards.
        let to_receive = 1 << to_receive.ilog2();
        for queue in (0..queues).filter(|queue| !self.sockets.contains_key(queue)).collect::<Vec<_>>() {
            match open(&self.interface.name, queue, to_receive, zero_copy) {
                Ok(socket) => {
                    self.sockets.insert(queue, socket);
                    self.trouble = None;
                }
                Err(error) => {
                    // An interface may have more queues than it uses, and those in use come first.
                    let trouble = format!("{error:#}");
                    if queue == 0 && self.trouble.as_ref() != Some(&trouble) {
                        warn!(
                            "no slow path for {}, so the kernel finishes its packets: {trouble}",
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

fn open(interface: &str, queue: u32, to_receive: u32, zero_copy: bool) -> anyhow::Result<Socket> {
    let copied = || Socket::open(interface, queue, to_receive, Copying::Copy);
    if !zero_copy {
        return copied();
    }
    Socket::open(interface, queue, to_receive, Copying::ZeroCopy).or_else(|_| copied())
}

impl Wire for Ports {
    fn send(&mut self, ifindex: u32, frame: &[u8]) -> bool {
        let Some(served) = self.served.get_mut(&ifindex) else { return false };
        served.sockets.values_mut().next().is_some_and(|socket| socket.send(frame))
    }

    fn own_address(&mut self, ifindex: u32) -> Option<Addr> {
        let served = self.served.get(&ifindex)?;
        let is_uplink = served.interface.port.is_uplink();
        // Outside, an address is shown that can be answered; inside, the one that the VMs know.
        let shown = served.address(|address| !is_uplink || crate::dataplane::may_be_public(address));
        let of_its_kind = || {
            let mut others =
                self.served.values().filter(|other| other.interface.port.role == served.interface.port.role);
            others.find_map(|other| other.address(|_| true))
        };
        let outside = is_uplink.then_some(self.public_ip).flatten();
        shown
            .or(outside)
            .or_else(|| served.address(|_| true))
            .or_else(of_its_kind)
            .map(|address| address.octets())
    }

    fn resolve(&mut self, neighbour: Neighbour) {
        if let Err(error) = self.neighbours.resolve(neighbour) {
            warn!("the kernel cannot be asked for {}: {error:#}", neighbour.1);
        }
    }
}
