//! The program on the interfaces: attached by links, which are pinned as `link_IFINDEX_MODE`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp, loaded_links};
use log::warn;
use nat_common::abi::{self, map};
use nix::net::if_::if_indextoname;

use super::interfaces::{Forwarding, Interface};
use super::maps::Maps;
use super::{bpffs, object};
use crate::config::{self, KeyError};
use crate::dataplane::{Mode, Port, Role};

/// What the names of pinned links begin with.
pub(super) const LINK_PREFIX: &str = "link_";

/// A pinned link.
struct LinkPin {
    path: PathBuf,
    ifindex: u32,
    mode: Mode,
}

impl LinkPin {
    fn new(pin_path: &Path, ifindex: u32, mode: Mode) -> Self {
        Self { path: pin_path.join(format!("{LINK_PREFIX}{ifindex}_{mode}")), ifindex, mode }
    }

    /// Those that stand under the pin path.
    fn all(pin_path: &Path) -> anyhow::Result<Vec<Self>> {
        Ok(bpffs::pins(pin_path)?.into_iter().filter_map(Self::parse).collect())
    }

    fn parse(path: PathBuf) -> Option<Self> {
        let (ifindex, mode) = path.file_name()?.to_str()?.strip_prefix(LINK_PREFIX)?.split_once('_')?;
        let mode = match mode {
            "native" => Mode::Native,
            "generic" => Mode::Generic,
            _ => return None,
        };
        Some(Self { ifindex: ifindex.parse().ok()?, mode, path })
    }

    /// Detaches the program: the pin is what keeps the link. Returns when it has left the interface.
    fn remove(&self) -> anyhow::Result<()> {
        let failed = || format!("cannot detach by {}", self.path.display());
        let id =
            PinnedLink::from_pin(&self.path).with_context(failed)?.unpin().with_context(failed)?.info()?.id();
        // The kernel frees the link behind the pin a moment later.
        let deadline = Instant::now() + Duration::from_secs(5);
        while loaded_links().any(|link| link.is_ok_and(|link| link.id() == id)) {
            if Instant::now() > deadline {
                bail!(
                    "the program does not leave interface {}; another process holds its link",
                    self.ifindex
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Attaches the program to the wanted interfaces, and takes it off all others.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    maps: &mut Maps,
    config: &config::Datapath,
    wanted: &[(&Interface, Role)],
) -> anyhow::Result<Vec<Port>> {
    // Every port is known before the program sees the first packet.
    for (interface, role) in wanted {
        describe(maps, interface, *role)?;
    }
    let program = object::program(ebpf)?;
    let mode = attach_all(program, config, wanted)?;
    for link in LinkPin::all(&config.pin_path)? {
        if wanted.iter().all(|(wanted, _)| wanted.index != link.ifindex) {
            link.remove()?;
        }
    }
    let known = maps.port_indices()?;
    for ifindex in known.into_iter().filter(|known| wanted.iter().all(|(wanted, _)| wanted.index != *known)) {
        if let Some(port) = maps.port(ifindex)? {
            restore_forwarding(ifindex, port)?;
        }
        maps.remove_port(ifindex)?;
    }
    // Last: without the program, an interface that forwards would let private addresses out.
    for (interface, _) in wanted {
        Forwarding::of(&interface.name).set(true)?;
    }
    let port =
        |(interface, role): &(&Interface, Role)| Port { name: interface.name.clone(), role: *role, mode };
    Ok(wanted.iter().map(port).collect())
}

/// Attaches the program to all interfaces in the same mode: what native XDP redirects to an interface whose driver
/// knows none of it is lost without a word.
fn attach_all(
    program: &mut Xdp,
    config: &config::Datapath,
    wanted: &[(&Interface, Role)],
) -> anyhow::Result<Mode> {
    let all = |program: &mut Xdp, mode| {
        wanted
            .iter()
            .try_for_each(|(interface, _)| attach_one(program, &config.pin_path, interface, mode))?;
        Ok(mode)
    };
    match config.mode {
        config::Mode::Native => all(program, Mode::Native),
        config::Mode::Generic => all(program, Mode::Generic),
        config::Mode::Auto => {
            // What an earlier start found out still holds, and trying anew would interrupt the traffic.
            if LinkPin::all(&config.pin_path)?.iter().any(|link| link.mode == Mode::Generic) {
                return all(program, Mode::Generic);
            }
            all(program, Mode::Native).or_else(|native| {
                let mode = all(program, Mode::Generic)?;
                warn!("generic XDP on all interfaces, which is slower: {native:#}");
                Ok(mode)
            })
        }
    }
}

/// Tells the program of an interface.
fn describe(maps: &mut Maps, interface: &Interface, role: Role) -> anyhow::Result<()> {
    let forwarding_before = match maps.port(interface.index)? {
        Some(port) => port.forwarding_before,
        None => u8::from(Forwarding::of(&interface.name).is_on()?),
    };
    let role = match role {
        Role::Uplink => abi::Port::UPLINK,
        Role::Downlink => abi::Port::DOWNLINK,
        Role::Both => abi::Port::UPLINK | abi::Port::DOWNLINK,
    };
    let mac = interface.mac.context("an interface without a MAC address")?;
    maps.insert_port(interface.index, abi::Port { role, forwarding_before, mac, tenant: 0 })
}

/// Attaches the program to one interface, or replaces the one on the link that stands there.
fn attach_one(program: &mut Xdp, pin_path: &Path, interface: &Interface, mode: Mode) -> anyhow::Result<()> {
    for pin in LinkPin::all(pin_path)?.iter().filter(|pin| pin.ifindex == interface.index) {
        if pin.mode == mode && replace(program, pin).is_ok() {
            return Ok(());
        }
        // Another mode is wanted, or the interface was deleted and made anew under the link.
        pin.remove()?;
    }
    attach_link(program, interface, pin_path, mode)
}

/// Replaces the program on a link atomically.
fn replace(program: &mut Xdp, pin: &LinkPin) -> anyhow::Result<()> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(&pin.path)?))?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it; this handle is not needed.
    drop(program.take_link(id)?);
    Ok(())
}

fn attach_link(program: &mut Xdp, interface: &Interface, pin_path: &Path, mode: Mode) -> anyhow::Result<()> {
    let xdp_mode = match mode {
        Mode::Native => XdpMode::Driver,
        Mode::Generic => XdpMode::Skb,
    };
    let id = program
        .attach_to_if_index(interface.index, xdp_mode)
        .map_err(|error| attach_error(error, &interface.name, mode))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    let pin = LinkPin::new(pin_path, interface.index, mode);
    link.pin(&pin.path).with_context(|| format!("cannot pin {}", pin.path.display()))?;
    Ok(())
}

fn attach_error(error: ProgramError, name: &str, mode: Mode) -> anyhow::Error {
    let ProgramError::SyscallError(error) = error else {
        return anyhow!(error).context(format!("cannot attach to {name}"));
    };
    let errno = error.io_error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    match errno {
        Some(rustix::io::Errno::BUSY | rustix::io::Errno::EXIST) => anyhow!(
            "{name} runs another XDP program; take it off (`ip link set dev {name} xdp off`, or its own daemon)"
        ),
        Some(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::RANGE | rustix::io::Errno::INVAL)
            if mode == Mode::Native =>
        {
            KeyError::new(
                "datapath.mode",
                format!(
                    "{name} cannot run native XDP with its driver and MTU ({}); set mode = \"generic\" or \"auto\"",
                    error.io_error
                ),
            )
            .into()
        }
        _ => anyhow!(error).context(format!("cannot attach to {name}")),
    }
}

/// Takes the program off all interfaces, and puts their sysctls back.
pub(super) fn detach_all(pin_path: &Path) -> anyhow::Result<()> {
    // First the sysctls: without the program, an interface that forwards would let private addresses out.
    let pin = pin_path.join(map::PORTS);
    if pin.exists() {
        let ports: HashMap<_, u32, [u8; size_of::<abi::Port>()]> = Map::HashMap(MapData::from_pin(pin)?)
            .try_into()
            .context("the pinned map PORTS has another type")?;
        for entry in &ports {
            let (ifindex, port) = entry?;
            restore_forwarding(ifindex, bytemuck::cast(port))?;
        }
    }
    LinkPin::all(pin_path)?.iter().try_for_each(LinkPin::remove)
}

fn restore_forwarding(ifindex: u32, port: abi::Port) -> anyhow::Result<()> {
    // An interface that is gone has no sysctl to put back.
    match if_indextoname(ifindex) {
        Ok(name) if port.forwarding_before == 0 => {
            Forwarding::of(name.to_str().context("an interface name that is not UTF-8")?).set(false)
        }
        _ => Ok(()),
    }
}
