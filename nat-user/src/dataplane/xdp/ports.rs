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
use log::{debug, warn};
use nat_common::abi::{self, map};

use super::interfaces::Interface;
use super::maps::Maps;
use super::{bpffs, object, sysctls};
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

/// Attaches the program to the wanted interfaces, and takes it off all others. If that fails, whatever stood before
/// still does, and nothing new.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    maps: &mut Maps,
    config: &config::Datapath,
    wanted: &[(&Interface, Role)],
) -> anyhow::Result<Vec<Port>> {
    let links = LinkPin::all(&config.pin_path)?;
    let (standing, gone): (Vec<LinkPin>, Vec<LinkPin>) =
        links.into_iter().partition(|link| wanted.iter().any(|(wanted, _)| wanted.index == link.ifindex));
    let new: Vec<(&Interface, Role)> = wanted
        .iter()
        .filter(|(wanted, _)| standing.iter().all(|link| link.ifindex != wanted.index))
        .copied()
        .collect();
    let program = object::program(ebpf)?;
    let mode = add(program, maps, config, &standing, &new).inspect_err(|_| {
        // What failed is what has to be told; this is only putting things back.
        let _ = take_back(maps, &config.pin_path, &new);
    })?;
    for (interface, role) in wanted {
        describe(maps, interface, *role)?;
    }
    for link in &standing {
        replace(program, link)?;
    }
    for ifindex in maps.port_indices()? {
        if wanted.iter().all(|(wanted, _)| wanted.index != ifindex) {
            forget(maps, ifindex)?;
        }
    }
    gone.iter().try_for_each(LinkPin::remove)?;
    // Last: without the program, an interface that forwards would let private addresses out.
    for (interface, _) in wanted {
        sysctls::prepare(&interface.name)?;
        sysctls::forward(&interface.name)?;
    }
    let port =
        |(interface, role): &(&Interface, Role)| Port { name: interface.name.clone(), role: *role, mode };
    Ok(wanted.iter().map(port).collect())
}

/// Attaches the program to interfaces that do not have it yet, all in one mode: what native XDP redirects to an
/// interface whose driver knows none of it is lost without a word.
fn add(
    program: &mut Xdp,
    maps: &mut Maps,
    config: &config::Datapath,
    standing: &[LinkPin],
    new: &[(&Interface, Role)],
) -> anyhow::Result<Mode> {
    // Every port is known before the program sees its first packet.
    for (interface, role) in new {
        describe(maps, interface, *role)?;
    }
    let mut all = |mode| {
        new.iter().try_for_each(|(interface, _)| attach_link(program, interface, &config.pin_path, mode))?;
        Ok(mode)
    };
    match (config.mode, standing.first().map(|link| link.mode)) {
        (config::Mode::Native, Some(Mode::Generic)) | (config::Mode::Generic, Some(Mode::Native)) => {
            let what = "the running datapath has the other one; run `eipnat unload` first, or set \"auto\"";
            Err(KeyError::new("datapath.mode", what).into())
        }
        (_, Some(mode)) => all(mode),
        (config::Mode::Native, None) => all(Mode::Native),
        (config::Mode::Generic, None) => all(Mode::Generic),
        (config::Mode::Auto, None) => match all(Mode::Native) {
            Err(native) if native.is::<KeyError>() => {
                remove_links(&config.pin_path, new)?;
                let mode = all(Mode::Generic)?;
                warn!("generic XDP on all interfaces, which is slower: {native:#}");
                Ok(mode)
            }
            outcome => outcome,
        },
    }
}

/// Undoes [`add`].
fn take_back(maps: &mut Maps, pin_path: &Path, new: &[(&Interface, Role)]) -> anyhow::Result<()> {
    remove_links(pin_path, new)?;
    new.iter().try_for_each(|(interface, _)| maps.remove_port(interface.index))
}

fn remove_links(pin_path: &Path, of: &[(&Interface, Role)]) -> anyhow::Result<()> {
    let links = LinkPin::all(pin_path)?;
    links
        .iter()
        .filter(|link| of.iter().any(|(of, _)| of.index == link.ifindex))
        .try_for_each(LinkPin::remove)
}

/// Tells the program of an interface.
fn describe(maps: &mut Maps, interface: &Interface, role: Role) -> anyhow::Result<()> {
    let sysctls_before = match maps.port(interface.index)? {
        Some(port) => port.sysctls_before,
        None => sysctls::of(&interface.name)?,
    };
    let role = match role {
        Role::Uplink => abi::Port::UPLINK,
        Role::Downlink => abi::Port::DOWNLINK,
        Role::Both => abi::Port::UPLINK | abi::Port::DOWNLINK,
    };
    let mac = interface.mac.context("an interface without a MAC address")?;
    let port = abi::Port { role, sysctls_before, mac, padding: [0; 2], tenant: 0 };
    maps.insert_port(interface.index, port)
}

/// Undoes what was done to an interface, except for the program on it.
fn forget(maps: &mut Maps, ifindex: u32) -> anyhow::Result<()> {
    if let Some(port) = maps.port(ifindex)? {
        restore(&Interface::all()?, ifindex, port)?;
    }
    maps.remove_port(ifindex)
}

/// Replaces the program on a link atomically.
fn replace(program: &mut Xdp, pin: &LinkPin) -> anyhow::Result<()> {
    debug!("replacing the program on interface {}", pin.ifindex);
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
    let restored = restore_all(pin_path);
    LinkPin::all(pin_path)?.iter().try_for_each(LinkPin::remove)?;
    restored
}

fn restore_all(pin_path: &Path) -> anyhow::Result<()> {
    let pin = pin_path.join(map::PORTS);
    if pin.exists() {
        let ports: HashMap<_, u32, [u8; size_of::<abi::Port>()]> = Map::HashMap(MapData::from_pin(pin)?)
            .try_into()
            .context("the pinned map PORTS has another type")?;
        let interfaces = Interface::all()?;
        for entry in &ports {
            let (ifindex, port) = entry?;
            restore(&interfaces, ifindex, bytemuck::cast(port))?;
        }
    }
    if let Some(node) = object::pinned_node(pin_path)?.filter(object::is_complete) {
        sysctls::set_all_send_redirects(node.all_send_redirects_before)?;
    }
    Ok(())
}

fn restore(interfaces: &[Interface], ifindex: u32, port: abi::Port) -> anyhow::Result<()> {
    match interfaces.iter().find(|interface| interface.index == ifindex) {
        Some(interface) if interface.mac == Some(port.mac) => {
            sysctls::restore(&interface.name, port.sysctls_before)
        }
        // One with this index in another network namespace, or after its MAC address was changed.
        Some(interface) => {
            warn!("{} is not the interface that it was; its sysctls stay", interface.name);
            Ok(())
        }
        None => Ok(()),
    }
}
