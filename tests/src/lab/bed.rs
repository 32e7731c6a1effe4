//! What nearly every end-to-end test begins and ends with.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use bytemuck::Pod;
use nat_common::abi::express::Front;
use nat_common::abi::map;

use super::{Config, Daemon, EIP1, EIP2, Flow, INTERNET, Lab, Topology, VM1, VM2, eipnat_binary};

/// How a test's lab and daemon are made.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// How the node is connected.
    pub topology: Topology,
    /// `datapath.mode`.
    pub mode: &'static str,
    /// Whether [`EIP1`] and [`EIP2`] are attached to the VMs at the start.
    pub bound: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { topology: Topology::TwoArmed, mode: "auto", bound: true }
    }
}

/// A lab with a running daemon.
#[derive(Debug)]
pub struct Bed {
    /// The daemon; goes before the lab.
    pub daemon: Daemon,
    /// The network.
    pub lab: Lab,
}

impl Bed {
    /// Makes lab and daemon, runs the test and ends both in order: the daemon has to exit with 0, `unload` to
    /// succeed, and nothing may be left. What goes wrong is reported along with the state of the lab.
    ///
    /// # Errors
    /// Whatever went wrong.
    pub fn run(setup: Setup, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut bed = Self::start(setup)?;
        let result = test(&mut bed).and_then(|()| bed.end());
        if result.is_err() {
            eprintln!("{}", bed.describe());
        }
        result
    }

    fn start(setup: Setup) -> Result<Self> {
        let lab = Lab::new(setup.topology)?;
        let mut config = Config::of(&lab);
        config.mode = setup.mode.into();
        let daemon = Daemon::start(&lab, &eipnat_binary()?, config)?;
        let bed = Self { daemon, lab };
        if setup.bound {
            bed.daemon.bind(EIP1, VM1)?;
            bed.daemon.bind(EIP2, VM2)?;
        }
        Ok(bed)
    }

    fn end(&mut self) -> Result<()> {
        let programs = self.lab.programs()?;
        if self.daemon.is_running()? {
            self.daemon.stop()?;
        }
        self.daemon.unload()?;
        self.check_unloaded().with_context(|| format!("after unload; before it there were {programs:?}"))
    }

    /// Asserts that neither a program nor a pin is there.
    ///
    /// # Errors
    /// When something is.
    pub fn check_unloaded(&self) -> Result<()> {
        let programs = self.lab.programs()?;
        ensure!(programs.is_empty(), "XDP programs are still attached: {programs:?}");
        let pins = pins(self.daemon.config())?;
        ensure!(pins.is_empty(), "there are still pins: {pins:?}");
        for (key, before) in [("conf/all/send_redirects", "1"), ("ip_no_pmtu_disc", "0")] {
            let is = self.lab.node.read_sysctl(&format!("net/ipv4/{key}"))?;
            ensure!(is == before, "{key} is {is} in place of {before}");
        }
        Ok(())
    }

    /// A map of the daemon's, of the only generation of them that there is.
    ///
    /// # Errors
    /// When it is not pinned, or there are several.
    pub fn map(&self, name: &str) -> Result<MapData> {
        let generations = std::fs::read_dir(&self.daemon.config().pin_path)?;
        let pins: Vec<_> = generations
            .filter_map(|entry| Some(entry.ok()?.path().join(name)))
            .filter(|pin| pin.exists())
            .collect();
        ensure!(pins.len() == 1, "{name} is pinned {} times", pins.len());
        Ok(MapData::from_pin(&pins[0])?)
    }

    /// A part of map FRONT that begins at a byte of [`Front`].
    ///
    /// # Errors
    /// As [`map`](Self::map), or when it cannot be read.
    pub fn front<T: Pod>(&self, offset: usize) -> Result<T> {
        let front = Array::<_, [u8; size_of::<Front>()]>::try_from(Map::Array(self.map(map::FRONT)?))?;
        let bytes = front.get(&0, 0)?;
        bytes
            .get(offset..)
            .and_then(|rest| rest.get(..size_of::<T>()))
            .map(bytemuck::pod_read_unaligned)
            .context("it is not in FRONT")
    }

    /// From the internet to a VM, from a VM to the internet, and from a VM to its neighbour's EIP. [`EIP1`] and
    /// [`EIP2`] have to be attached to the VMs.
    #[must_use]
    pub fn flows(&self) -> [Flow<'_>; 3] {
        let lab = &self.lab;
        let flow = |from, to, sender, target, seen_sender, seen_target| Flow {
            from,
            to,
            sender,
            target,
            seen_sender,
            seen_target,
        };
        [
            flow(&lab.internet, &lab.vm1, INTERNET, EIP1, INTERNET, VM1),
            flow(&lab.vm1, &lab.internet, VM1, INTERNET, EIP1, INTERNET),
            flow(&lab.vm2, &lab.vm1, VM2, EIP1, EIP2, VM1),
        ]
    }

    /// Ends the daemon and starts it again with the same configuration.
    ///
    /// # Errors
    /// When it does not end with 0 or does not get ready again.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon.stop()?;
        self.start_again()
    }

    /// Starts the daemon again, which has ended, with the same configuration.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn start_again(&mut self) -> Result<()> {
        let config = self.daemon.config().clone();
        self.daemon = Daemon::start(&self.lab, &eipnat_binary()?, config)?;
        Ok(())
    }

    /// The state of the lab, for whoever has to find out what went wrong.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = self.lab.describe();
        for args in [&["status"][..], &["stats"], &["eip", "list"]] {
            let shown = match self.daemon.cli(args) {
                Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
                Err(error) => format!("{error:#}\n"),
            };
            text = format!("{text}--- eipnat {}\n{shown}", args.join(" "));
        }
        text + "--- the daemon's log\n" + &self.daemon.log()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

/// Names of what is pinned under the configuration's pin path.
///
/// # Errors
/// When the directory cannot be read.
pub fn pins(config: &Config) -> Result<Vec<String>> {
    let path = &config.pin_path;
    if !path.exists() {
        return Ok(Vec::new());
    }
    let names = std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    // The kernel puts two files of its own into a bpffs, which cannot be removed.
    names.filter(|name| !matches!(name.as_deref(), Ok("maps.debug" | "progs.debug"))).collect::<Result<_>>()
}
