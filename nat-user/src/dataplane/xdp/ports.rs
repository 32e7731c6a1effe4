//! The program on the interfaces that the configuration names.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{ProgramError, Xdp};
use log::warn;
use nat_common::abi::{self, map};

use super::interfaces::{self, Interface};
use super::links::LinkPin;
use super::maps::Maps;
use super::{object, offloads, sysctls};
use crate::config::{self, KeyError};
use crate::dataplane::{Mode, Port, Role};

/// Attaches the program to the wanted interfaces, and takes it off all others. If that fails, whatever stood before
/// still does, and nothing new.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    maps: &mut Maps,
    config: &config::Datapath,
    interfaces: &[Interface],
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
    let indices: BTreeSet<u32> = wanted.iter().map(|(interface, _)| interface.index).collect();
    let members = interfaces::below(interfaces, &indices);
    quieten(maps, wanted, &members, mode)?;
    for link in &standing {
        link.replace(program)?;
    }
    for ifindex in maps.port_indices()? {
        if !indices.contains(&ifindex) && members.iter().all(|member| member.index != ifindex) {
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
        describe(maps, interface, role_bits(*role))?;
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

const fn role_bits(role: Role) -> u8 {
    match role {
        Role::Uplink => abi::Port::UPLINK,
        Role::Downlink => abi::Port::DOWNLINK,
        Role::Both => abi::Port::UPLINK | abi::Port::DOWNLINK,
    }
}

/// Tells the program of an interface, and answers what it was told.
fn describe(maps: &mut Maps, interface: &Interface, role: u8) -> anyhow::Result<abi::Port> {
    let before = maps.port(interface.index)?;
    let sysctls_before = match before {
        Some(port) => port.sysctls_before,
        None => sysctls::of(&interface.name)?,
    };
    let offloads_before = before.map_or(0, |port| port.offloads_before);
    let mac = match interface.mac {
        None if role != 0 => bail!("{} is an interface without a MAC address", interface.name),
        mac => mac.unwrap_or_default(),
    };
    let port = abi::Port { role, sysctls_before, mac, offloads_before, padding: 0, tenant: 0 };
    maps.insert_port(interface.index, port)?;
    Ok(port)
}

/// Turns off what would change packets before the program sees them, on its interfaces and below them.
fn quieten(
    maps: &mut Maps,
    wanted: &[(&Interface, Role)],
    members: &[&Interface],
    mode: Mode,
) -> anyhow::Result<()> {
    let below = match mode {
        Mode::Native => offloads::VLAN_TAGS,
        Mode::Generic => offloads::VLAN_TAGS | offloads::MERGING,
    };
    let wanted = wanted.iter().map(|(interface, role)| (*interface, role_bits(*role), offloads::VLAN_TAGS));
    // Members are remembered without a role: the program is not on them.
    for (interface, role, unwanted) in wanted.chain(members.iter().map(|member| (*member, 0, below))) {
        let port = describe(maps, interface, role)?;
        let off = offloads::turn_off(interface, unwanted);
        maps.insert_port(interface.index, abi::Port { offloads_before: port.offloads_before | off, ..port })?;
    }
    Ok(())
}

/// Undoes what was done to an interface, except for the program on it.
fn forget(maps: &mut Maps, ifindex: u32) -> anyhow::Result<()> {
    if let Some(port) = maps.port(ifindex)? {
        restore(&Interface::all()?, ifindex, port)?;
    }
    maps.remove_port(ifindex)
}

fn attach_link(program: &mut Xdp, interface: &Interface, pin_path: &Path, mode: Mode) -> anyhow::Result<()> {
    let pin = LinkPin::new(pin_path, interface.index, mode);
    pin.attach(program).map_err(|error| match error.downcast::<ProgramError>() {
        Ok(error) => attach_error(error, &interface.name, mode),
        Err(error) => error,
    })
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
        Some(interface) if interface.mac.unwrap_or_default() == port.mac => {
            // A member's were not touched.
            if port.role != 0 {
                sysctls::restore(&interface.name, port.sysctls_before)?;
            }
            offloads::turn_on(interface, port.offloads_before)
        }
        // One with this index in another network namespace, or after its MAC address was changed.
        Some(interface) => {
            warn!("{} is not the interface that it was; its sysctls and offloads stay", interface.name);
            Ok(())
        }
        None => Ok(()),
    }
}
