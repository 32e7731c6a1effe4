//! A program on an interface: a link, which is pinned and so outlives the daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Xdp, loaded_links};
use log::debug;

use super::bpffs;
use super::interfaces::Interface;
use crate::dataplane::Mode;

/// What the names of pinned links begin with: `link_IFINDEX_MODE`.
pub(super) const PREFIX: &str = "link_";

/// The pin of a link.
#[derive(Debug)]
pub(super) struct LinkPin {
    path: PathBuf,
    pub(super) ifindex: u32,
    pub(super) mode: Mode,
}

/// An open link. As long as it is, the program stays on the interface even without a pin.
#[derive(Debug)]
pub(super) struct Link(FdLink);

impl Link {
    /// The id of the program on the link.
    pub(super) fn program(&self) -> anyhow::Result<u32> {
        Ok(self.0.info()?.program_id())
    }

    /// The program on the link, if the link is on the interface: it has left it if somebody has detached it, or if the
    /// interface is another one with the same index.
    pub(super) fn program_on(&self, interface: &Interface) -> anyhow::Result<Option<u32>> {
        let program = self.program()?;
        Ok(interface.programs.contains(&program).then_some(program))
    }
}

impl LinkPin {
    pub(super) fn new(pin_path: &Path, ifindex: u32, mode: Mode) -> Self {
        Self { path: pin_path.join(format!("{PREFIX}{ifindex}_{mode}")), ifindex, mode }
    }

    /// Those that stand under the pin path.
    pub(super) fn all(pin_path: &Path) -> anyhow::Result<Vec<Self>> {
        let parse = |path: PathBuf| {
            let (ifindex, mode) = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split_once('_')?;
            let mode = match mode {
                "native" => Mode::Native,
                "generic" => Mode::Generic,
                _ => return None,
            };
            Some(Self { ifindex: ifindex.parse().ok()?, mode, path })
        };
        Ok(bpffs::pins(pin_path)?.into_iter().filter_map(parse).collect())
    }

    /// The pinned link, if there is one.
    pub(super) fn open(&self) -> anyhow::Result<Option<Link>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(&self.path)
            .with_context(|| format!("{} is no link; remove it", self.path.display()))?;
        Ok(Some(Link(link.into())))
    }

    /// Attaches a program, and pins the link in the place of whatever was pinned there.
    ///
    /// # Errors
    /// [`aya::programs::ProgramError`] if the kernel does not attach it.
    pub(super) fn attach(&self, program: &mut Xdp) -> anyhow::Result<Link> {
        let mode = match self.mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let id = program.attach_to_if_index(self.ifindex, mode)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        self.pin(Link(link))
    }

    /// Pins an open link in the place of whatever was pinned there.
    pub(super) fn pin(&self, Link(link): Link) -> anyhow::Result<Link> {
        let failed = || format!("cannot pin {}", self.path.display());
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(failed)?,
            _ => {}
        }
        Ok(Link(link.pin(&self.path).with_context(failed)?.into()))
    }

    /// Whether this is the pin of an open link.
    pub(super) fn is_of(&self, Link(link): &Link) -> anyhow::Result<bool> {
        let Ok(pinned) = PinnedLink::from_pin(&self.path) else { return Ok(false) };
        Ok(FdLink::from(pinned).info()?.id() == link.info()?.id())
    }

    /// Replaces the program on the link atomically.
    pub(super) fn replace(&self, program: &mut Xdp) -> anyhow::Result<()> {
        debug!("replacing the program on interface {}", self.ifindex);
        let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(&self.path)?))?;
        let id = program.attach_to_link(link)?;
        // The pin keeps it; this handle is not needed.
        drop(program.take_link(id)?);
        Ok(())
    }

    /// Detaches the program: the pin is what keeps the link, once nobody has it open. Returns when it has left the
    /// interface.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
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
