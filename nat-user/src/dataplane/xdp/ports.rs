//! The program on the interfaces that the configuration names, and the settings around it.
//!
//! A start [`Ports::add`]s what is new, all or nothing, and then [`Ports::settle`]s everything. To mend is to settle
//! again: both are the same code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, ensure};
use aya::programs::{ProgramError, Xdp};
use log::warn;
use nat_common::abi;
use nat_common::abi::slowpath::MAX_PORTS;

use super::findings::Findings;
use super::interfaces::{self, Interface};
use super::links::{Link, LinkPin};
use super::maps::Maps;
use super::object::Program;
use super::{offloads, sysctls, targets};
use crate::config::{self, KeyError};
use crate::dataplane::{Mode, Port, Role};
use crate::slowpath;

/// The program, and the interfaces that it is to run on.
pub(super) struct Ports {
    program: Program,
    pin_path: PathBuf,
    /// By name, since an interface that comes back has another index.
    wanted: Vec<(String, Role)>,
    mode: Mode,
    /// What the program was told of each interface, by index. It holds what `unload` puts back, so that does not depend
    /// on nobody else's writing to the map.
    told: BTreeMap<u32, abi::Port>,
    /// Held open, so that the program stays where it is without its pin, too.
    links: BTreeMap<u32, Link>,
    /// Indices of the interfaces that the program was not on before.
    added: Vec<u32>,
}

impl Ports {
    /// Attaches the program to the wanted interfaces that run none of eipnat's yet, all in one mode: what native XDP
    /// redirects to an interface whose driver knows none of it is lost without a word. If that fails, nothing is
    /// attached that was not before.
    pub(super) fn add(
        program: Program,
        maps: &mut Maps,
        config: &config::Datapath,
        told: BTreeMap<u32, abi::Port>,
        wanted: &[(&Interface, Role)],
    ) -> anyhow::Result<Self> {
        let pins = LinkPin::all(&config.pin_path)?;
        let mut ports = Self {
            program,
            pin_path: config.pin_path.clone(),
            wanted: wanted.iter().map(|(interface, role)| (interface.name.clone(), *role)).collect(),
            mode: Mode::Native,
            told,
            links: BTreeMap::new(),
            added: Vec::new(),
        };
        let (mut new, mut standing) = (Vec::new(), None);
        for (interface, role) in wanted {
            match running(&pins, interface)? {
                Some(pin) => standing = Some(pin.mode),
                None => new.push((*interface, *role)),
            }
        }
        ports.added.extend(new.iter().map(|(interface, _)| interface.index));
        let added = ports.add_new(maps, config.mode, standing, &new);
        match added {
            Ok(mode) => ports.mode = mode,
            Err(error) => {
                // What failed is what has to be told; this is only putting things back.
                let _ = ports.take_back(maps);
                return Err(error);
            }
        }
        Ok(ports)
    }

    fn add_new(
        &mut self,
        maps: &mut Maps,
        wanted: config::Mode,
        standing: Option<Mode>,
        new: &[(&Interface, Role)],
    ) -> anyhow::Result<Mode> {
        // Every port is known before the program sees its first packet.
        for (interface, role) in new {
            self.describe(maps, interface, role_bits(*role))?;
        }
        match (wanted, standing) {
            (config::Mode::Native, Some(Mode::Generic)) | (config::Mode::Generic, Some(Mode::Native)) => {
                let what =
                    "the running datapath has the other one; run `eipnat unload` first, or set \"auto\"";
                Err(KeyError::new("datapath.mode", what).into())
            }
            (_, Some(mode)) => self.attach_all(new, mode),
            (config::Mode::Native, None) => self.attach_all(new, Mode::Native),
            (config::Mode::Generic, None) => self.attach_all(new, Mode::Generic),
            (config::Mode::Auto, None) => match self.attach_all(new, Mode::Native) {
                Err(native) if native.is::<KeyError>() => {
                    self.detach(&self.added.clone())?;
                    let mode = self.attach_all(new, Mode::Generic)?;
                    warn!("generic XDP on all interfaces, which is slower: {native:#}");
                    Ok(mode)
                }
                outcome => outcome,
            },
        }
    }

    fn attach_all(&mut self, new: &[(&Interface, Role)], mode: Mode) -> anyhow::Result<Mode> {
        new.iter().try_for_each(|(interface, _)| self.attach(interface, mode))?;
        Ok(mode)
    }

    /// Undoes [`Self::add`].
    pub(super) fn take_back(&mut self, maps: &mut Maps) -> anyhow::Result<()> {
        let added = std::mem::take(&mut self.added);
        self.detach(&added)?;
        added.iter().try_for_each(|ifindex| maps.remove_port(*ifindex))
    }

    /// Lets go of the links, which their pins keep.
    pub(super) fn release(&mut self) {
        self.links.clear();
    }

    /// Brings everything to what it has to be.
    pub(super) fn settle(&mut self, maps: &mut Maps, interfaces: &[Interface], findings: &mut Findings) {
        let mut present: Vec<(&Interface, Role)> = Vec::new();
        for (name, role) in &self.wanted {
            match interfaces.iter().find(|interface| interface.name == *name) {
                Some(interface) => present.push((interface, *role)),
                None => findings.fail(anyhow!(
                    "interface {name} is gone: bring it back, or take it out of the configuration and restart"
                )),
            }
        }
        let indices: BTreeSet<u32> = present.iter().map(|(interface, _)| interface.index).collect();
        let members = interfaces::below(interfaces, &indices);
        self.quieten(maps, &present, &members, findings);
        for (interface, _) in &present {
            let held = self.hold(interface);
            findings.note(held.map(|done| done.map(|what| format!("{}: {what}", interface.name))));
        }
        let known: BTreeSet<u32> =
            members.iter().map(|member| member.index).chain(indices.iter().copied()).collect();
        findings.note(self.forget_others(maps, interfaces, &indices, &known));
        // Last: without the program, an interface that forwards would let private addresses out.
        for (interface, _) in &present {
            let name = &interface.name;
            if self.links.contains_key(&interface.index) {
                findings.note(sysctls::open(name).map(|changed| {
                    (!changed.is_empty()).then(|| format!("{name}: sysctl {} set again", changed.join(", ")))
                }));
            } else {
                findings.check(sysctls::close(name));
            }
            if !interface.is_up {
                findings.problem(format!("{name} is down: ip link set dev {name} up"));
            } else if !interface.has_carrier {
                findings.problem(format!("{name} has no carrier: see to its cable and the other end"));
            } else if self.mode == Mode::Native && targets::takes_redirects(interface.index) == Some(false) {
                findings.problem(format!(
                    "{name} does not take what native XDP sends to it: on a veth, ethtool -K PEER gro on at its other end; \
                     or set datapath.mode = \"generic\""
                ));
            }
        }
    }

    /// Pins the program.
    pub(super) fn pin_program(&mut self) -> anyhow::Result<bool> {
        self.program.pin(&self.pin_path)
    }

    /// The program that runs on an interface.
    pub(super) fn program_on(&mut self, ifindex: u32) -> anyhow::Result<&mut Xdp> {
        let program = self.program.get()?;
        let own = program.info()?.id();
        let running = self.links.get(&ifindex).map(Link::program).transpose()?;
        ensure!(
            running == Some(own),
            "the program is not on interface {ifindex} just now; ask again in a second, and look at eipnat status"
        );
        Ok(program)
    }

    /// The interfaces that the slow path serves, as far as they are there.
    pub(super) fn slow_path(&self, interfaces: &[Interface]) -> Vec<slowpath::Interface> {
        let served = |interface: &Interface| {
            let port = self.told.get(&interface.index).filter(|port| port.slow_path != 0)?;
            // What is given to one that is down stays there, and would leave when it is up again.
            if !interface.is_up {
                return None;
            }
            Some(slowpath::Interface {
                ifindex: interface.index,
                name: interface.name.clone(),
                port: *port,
                addresses: interface.addresses.clone(),
                queues: interface.queues,
                has_carrier: interface.has_carrier,
                is_native: self.mode == Mode::Native,
            })
        };
        interfaces.iter().filter_map(served).collect()
    }

    /// What the program knows of its interfaces, by name.
    pub(super) fn told(&self) -> impl Iterator<Item = (&str, &abi::Port)> + '_ {
        self.wanted.iter().filter_map(|(name, _)| {
            let index = interfaces::index(name).ok()?;
            Some((name.as_str(), self.told.get(&index)?))
        })
    }

    /// The interfaces as the daemon's users see them.
    pub(super) fn list(&self) -> Vec<Port> {
        let port = |(name, role): &(String, Role)| Port { name: name.clone(), role: *role, mode: self.mode };
        self.wanted.iter().map(port).collect()
    }

    /// Tells the program of an interface, and answers whether it knew anything else of it.
    fn describe(&mut self, maps: &mut Maps, interface: &Interface, role: u8) -> anyhow::Result<bool> {
        let before = self.told.get(&interface.index);
        let sysctls_before = match before {
            Some(port) => port.sysctls_before,
            None => sysctls::of(&interface.name)?,
        };
        let offloads_before = before.map_or(0, |port| port.offloads_before);
        let mac = match interface.mac {
            None if role != 0 => bail!("{} is an interface without a MAC address", interface.name),
            mac => mac.unwrap_or_default(),
        };
        let slow_path = self.place_in_slow_path(&interface.name);
        let port =
            abi::Port { role, sysctls_before, mac, offloads_before, slow_path, ..abi::Port::default() };
        self.told.insert(interface.index, port);
        maps.set_port(interface.index, port)
    }

    /// An interface's number among those that the slow path serves: its place in the configuration, so that it keeps it when it
    /// comes back with another index.
    fn place_in_slow_path(&self, name: &str) -> u32 {
        let place = self
            .wanted
            .iter()
            .position(|(wanted, _)| wanted == name)
            .and_then(|at| u32::try_from(at + 1).ok());
        place.filter(|place| *place <= MAX_PORTS).unwrap_or(0)
    }

    /// Tells the program of all interfaces, and turns off what would change packets before it sees them, on its
    /// interfaces and below them.
    fn quieten(
        &mut self,
        maps: &mut Maps,
        present: &[(&Interface, Role)],
        members: &[&Interface],
        findings: &mut Findings,
    ) {
        let below = match self.mode {
            Mode::Native => offloads::VLAN_TAGS,
            Mode::Generic => offloads::VLAN_TAGS | offloads::MERGING,
        };
        let present =
            present.iter().map(|(interface, role)| (*interface, role_bits(*role), offloads::VLAN_TAGS));
        // Members are remembered without a role: the program is not on them.
        for (interface, role, unwanted) in present.chain(members.iter().map(|member| (*member, 0, below))) {
            let name = &interface.name;
            findings.note(
                self.describe(maps, interface, role)
                    .map(|changed| changed.then(|| format!("{name}: described anew to the program"))),
            );
            match offloads::turn_off(interface, unwanted) {
                Ok(0) => {}
                Ok(off) => {
                    findings.done(format!("{name}: offloads turned off"));
                    findings.check(self.remember_offloads(maps, interface.index, off));
                }
                // Most packets do not depend on it.
                Err(error) => findings.advise(format!(
                    "{name}: offloads cannot be turned off ({error:#}); do it with ethtool -K if it has rx-vlan-offload \
                     or GRO"
                )),
            }
        }
    }

    fn remember_offloads(&mut self, maps: &mut Maps, ifindex: u32, off: u8) -> anyhow::Result<()> {
        let Some(port) = self.told.get_mut(&ifindex) else { return Ok(()) };
        port.offloads_before |= off;
        maps.set_port(ifindex, *port).map(drop)
    }

    /// Sees to it that the program runs on an interface, and answers what was otherwise.
    fn hold(&mut self, interface: &Interface) -> anyhow::Result<Option<String>> {
        let own = self.program.get()?.info()?.id();
        let pin = LinkPin::new(&self.pin_path, interface.index, self.mode);
        let link = match self.links.remove(&interface.index) {
            Some(link) => Some(link),
            None => pin.open()?,
        };
        let on = link.as_ref().map(|link| link.program_on(interface)).transpose()?.flatten();
        let Some((mut link, running)) = link.zip(on) else {
            self.attach(interface, self.mode)?;
            return Ok(Some("the program was not on it, and is attached again".to_owned()));
        };
        let mut done = None;
        if !pin.is_of(&link)? {
            link = pin.pin(link)?;
            done = Some("its link pinned again".to_owned());
        }
        // Before it is replaced: if that fails, the earlier program goes on.
        self.links.insert(interface.index, link);
        if running != own {
            pin.replace(self.program.get()?)?;
            done = Some("another program was on its link, and is replaced".to_owned());
        }
        Ok(done)
    }

    /// Takes the program and everything else off interfaces that are not wanted, or not there any more.
    fn forget_others(
        &mut self,
        maps: &mut Maps,
        interfaces: &[Interface],
        wanted: &BTreeSet<u32>,
        known: &BTreeSet<u32>,
    ) -> anyhow::Result<Option<String>> {
        let mut forgotten = BTreeSet::new();
        for ifindex in maps.port_indices()?.into_iter().chain(self.told.clone().into_keys()) {
            if !known.contains(&ifindex) {
                if let Some(port) = self.told.remove(&ifindex) {
                    restore(interfaces, ifindex, port)?;
                }
                maps.remove_port(ifindex)?;
                forgotten.insert(ifindex);
            }
        }
        let pins = LinkPin::all(&self.pin_path)?;
        let gone: Vec<u32> =
            pins.iter().map(|pin| pin.ifindex).filter(|ifindex| !wanted.contains(ifindex)).collect();
        self.detach(&gone)?;
        forgotten.extend(gone);
        Ok((!forgotten.is_empty()).then(|| format!("what was known of interface {forgotten:?} is removed")))
    }

    fn detach(&mut self, indices: &[u32]) -> anyhow::Result<()> {
        self.links.retain(|ifindex, _| !indices.contains(ifindex));
        let pins = LinkPin::all(&self.pin_path)?;
        pins.iter().filter(|pin| indices.contains(&pin.ifindex)).try_for_each(LinkPin::remove)
    }

    fn attach(&mut self, interface: &Interface, mode: Mode) -> anyhow::Result<()> {
        let pin = LinkPin::new(&self.pin_path, interface.index, mode);
        let program = self.program.get()?;
        let link = pin.attach(program).map_err(|error| match error.downcast::<ProgramError>() {
            Ok(error) => attach_error(error, &interface.name, mode),
            Err(error) => error,
        })?;
        self.links.insert(interface.index, link);
        Ok(())
    }
}

/// The interfaces of the configuration and how they serve.
pub(super) fn wanted<'a>(
    config: &config::Datapath,
    interfaces: &'a [Interface],
) -> anyhow::Result<Vec<(&'a Interface, Role)>> {
    let mut wanted = Vec::new();
    let uplinks = config.uplinks.iter().map(|name| (name, "datapath.uplinks"));
    let downlinks = config.downlinks.iter().filter(|name| !config.uplinks.contains(name));
    for (name, key) in uplinks.chain(downlinks.map(|name| (name, "datapath.downlinks"))) {
        let interface = interfaces.iter().find(|interface| interface.name == *name).ok_or_else(|| {
            KeyError::new(key, format!("there is no interface {name}; see `ip link` for their names"))
        })?;
        if interface.mac.is_none() {
            return Err(KeyError::new(
                key,
                format!("{name} is no Ethernet interface; name one that has a MAC address"),
            )
            .into());
        }
        wanted.push((interface, role(config, name)));
    }
    Ok(wanted)
}

fn role(config: &config::Datapath, name: &String) -> Role {
    match (config.uplinks.contains(name), config.downlinks.contains(name)) {
        (true, true) => Role::Both,
        (true, false) => Role::Uplink,
        _ => Role::Downlink,
    }
}

/// The pin of eipnat's link on an interface. One that has been detached, or was on an interface that had the same
/// index, is none.
fn running<'a>(pins: &'a [LinkPin], interface: &Interface) -> anyhow::Result<Option<&'a LinkPin>> {
    for pin in pins.iter().filter(|pin| pin.ifindex == interface.index) {
        if let Some(link) = pin.open()?
            && link.program_on(interface)?.is_some()
        {
            return Ok(Some(pin));
        }
    }
    Ok(None)
}

const fn role_bits(role: Role) -> u8 {
    match role {
        Role::Uplink => abi::Port::UPLINK,
        Role::Downlink => abi::Port::DOWNLINK,
        Role::Both => abi::Port::UPLINK | abi::Port::DOWNLINK,
    }
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

/// Takes the program off all interfaces, and puts their settings back, given what its programs were told of them.
pub(super) fn detach_all(pin_path: &Path, told: &BTreeMap<u32, abi::Port>, findings: &mut Findings) {
    // First the sysctls: without the program, an interface that forwards would let private addresses out.
    match Interface::all() {
        Ok(interfaces) => {
            for (ifindex, port) in told {
                findings.check(restore(&interfaces, *ifindex, *port));
            }
        }
        Err(error) => findings.fail(error),
    }
    match LinkPin::all(pin_path) {
        Ok(pins) => {
            for pin in pins {
                findings.check(pin.remove());
            }
        }
        Err(error) => findings.fail(error),
    }
}

fn restore(interfaces: &[Interface], ifindex: u32, port: abi::Port) -> anyhow::Result<()> {
    match interfaces.iter().find(|interface| interface.index == ifindex) {
        Some(interface) if interface.mac.unwrap_or_default() == port.mac => {
            // A member's were not touched.
            let sysctls = match port.role {
                0 => Ok(()),
                _ => sysctls::restore(&interface.name, port.sysctls_before),
            };
            offloads::turn_on(interface, port.offloads_before).and(sysctls)
        }
        // One with this index in another network namespace, or after its MAC address was changed.
        Some(interface) => {
            warn!("{} is not the interface that it was; its sysctls and offloads stay", interface.name);
            Ok(())
        }
        None => Ok(()),
    }
}
