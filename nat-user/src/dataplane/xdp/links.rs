//! A program on an interface: a link, which is pinned and so outlives the daemon.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Xdp, loaded_links};
use log::debug;

use super::bpffs;
use crate::dataplane::Mode;

/// What the names of pinned links begin with: `link_IFINDEX_MODE`.
pub(super) const PREFIX: &str = "link_";

/// A pinned link.
#[derive(Debug)]
pub(super) struct LinkPin {
    path: PathBuf,
    pub(super) ifindex: u32,
    pub(super) mode: Mode,
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

    /// Attaches a program, and pins the link.
    ///
    /// # Errors
    /// [`aya::programs::ProgramError`] if the kernel does not attach it.
    pub(super) fn attach(&self, program: &mut Xdp) -> anyhow::Result<()> {
        let mode = match self.mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let id = program.attach_to_if_index(self.ifindex, mode)?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(&self.path).with_context(|| format!("cannot pin {}", self.path.display()))?;
        Ok(())
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

    /// Detaches the program: the pin is what keeps the link. Returns when it has left the interface.
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
