//! A network namespace, and running things inside it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{AddressFamily, SocketType, netdevice, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::{self, Process};

/// Where `ip netns` keeps its namespaces.
pub(super) const NETNS_DIR: &str = "/run/netns";

/// How long a command may take that has no time limit of its own.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// A handle on a named network namespace. Clones are the same namespace; dropping one removes nothing, the
/// [`Lab`](super::Lab) does.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Opens a namespace that `ip netns add` made.
    pub(super) fn open(name: String) -> Result<Self> {
        let path = path_of(&name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name, file: Arc::new(file) })
    }

    /// The name, as in `ip netns exec NAME`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. A socket made there stays in the namespace wherever it is
    /// used later, and so does a process started there.
    ///
    /// The thread enters the network namespace alone. `ip netns exec` would enter a mount namespace as well, in
    /// which a bpffs of the lab is not the one outside.
    ///
    /// # Errors
    /// When the namespace cannot be entered: without root.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter the network namespace {}", self.name))?;
            Ok(work())
        };
        std::thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a command to its end and returns what it said, whatever its exit code.
    ///
    /// # Errors
    /// When the program is not there, or has not ended after a minute.
    pub fn output(&self, command: Command) -> Result<Output> {
        self.run(|| process::output(command, COMMAND_TIMEOUT))?
    }

    /// Runs a command that has to succeed, and returns its standard output.
    ///
    /// # Errors
    /// As [`Self::output`], and when the exit code is not 0; the error holds what the command said.
    pub fn succeed(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        let output = self.output(command)?;
        ensure!(
            output.status.success(),
            "in {}: {program} {}: {}: {}{}",
            self.name,
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout),
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs lines of `ip` commands in one go.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        let batch = tempfile::NamedTempFile::new()?;
        let text = lines.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n") + "\n";
        std::fs::write(batch.path(), &text)?;
        let path = batch.path().to_string_lossy();
        self.succeed("ip", &["-batch", &path]).with_context(|| format!("setting up with\n{text}"))?;
        Ok(())
    }

    /// Starts a process that runs beside the caller; its output goes to the log file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, command: Command, log: PathBuf) -> Result<Process> {
        self.run(|| Process::spawn(command, log))?
    }

    /// Sets `/proc/sys/KEY`, a key of the network namespace such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot write {path} in {}", self.name))
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn interface_index(&self, device: &str) -> Result<u32> {
        let index = || {
            let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            netdevice::name_to_index(any, device)
        };
        self.run(index)?.with_context(|| format!("no interface {device} in {}", self.name))
    }

    /// The MAC address of an interface.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn mac_address(&self, device: &str) -> Result<[u8; 6]> {
        let links: serde_json::Value =
            serde_json::from_str(&self.succeed("ip", &["-j", "link", "show", device])?)?;
        let text = links[0]["address"].as_str().context("no address")?;
        let bytes =
            text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
        bytes.try_into().map_err(|_| anyhow!("no MAC address: {text}"))
    }

    /// Reads `/proc/sys/KEY`.
    ///
    /// # Errors
    /// When there is no such key.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{key}");
        let text = self.run(|| std::fs::read_to_string(&path))?;
        Ok(text.with_context(|| format!("cannot read {path} in {}", self.name))?.trim().to_owned())
    }
}

/// The file that stands for the namespace.
pub(super) fn path_of(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

/// Runs a command outside of any lab namespace to success.
///
/// # Errors
/// When it cannot be run or its exit code is not 0.
pub(super) fn host(program: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = process::output(command, COMMAND_TIMEOUT)?;
    ensure!(
        output.status.success(),
        "{program} {}: {}: {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}
