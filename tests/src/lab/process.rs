//! Processes that never outlive their handle.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// The Debian package of each program that the lab and the tests call.
const PACKAGES: [(&str, &str); 15] = [
    ("bpftool", "bpftool"),
    ("strace", "strace"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("traceroute", "traceroute"),
    ("socat", "socat"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("tmux", "tmux"),
    ("setpriv", "util-linux"),
];

/// A process that runs beside the caller. Dropping the handle kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    log: PathBuf,
}

impl Process {
    /// Starts the command in the caller's namespaces, with nothing on stdin and all output in the file `log`.
    pub(super) fn spawn(mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = start(&mut command)?;
        let name = program_of(&command);
        let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty())?;
        Ok(Self { name, child, pidfd, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that the process has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the process has said `needle`.
    ///
    /// # Errors
    /// When it ends before that, or does not say so in time.
    pub fn wait_for(&mut self, needle: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        while !self.log().contains(needle) {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) without saying {needle:?}:\n{}", self.name, self.log());
            }
            if Instant::now() > deadline {
                bail!("{} has not said {needle:?} in {timeout:?}:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is not there any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(pid_of(&self.child), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if !ends_within(&self.pidfd, timeout)? {
            bail!("{} has not ended in {timeout:?}:\n{}", self.name, self.log());
        }
        Ok(self.child.wait()?)
    }

    /// The exit status if the process has ended.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal and waits for the end.
    ///
    /// # Errors
    /// When the process is not there any more, or does not end in time.
    pub fn stop(&mut self, signal: Signal, timeout: Duration) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait(timeout)
    }

    /// The file that the process writes its output to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub(super) fn output(command: Command, timeout: Duration) -> Result<Output> {
    output_until(command, timeout, &|| false)
}

/// Runs a command to its end, and asks it to end by SIGINT as soon as `stop` says so.
pub(super) fn output_until(
    mut command: Command,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command)?;
    let pidfd = pidfd_open(pid_of(&child), PidfdFlags::empty())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (in_time, stdout, stderr) = std::thread::scope(|scope| {
        let stdout = scope.spawn(|| drain(stdout));
        let stderr = scope.spawn(|| drain(stderr));
        let in_time = ends_or_is_stopped(&pidfd, timeout, stop);
        if !matches!(in_time, Ok(true)) {
            // Without this the readers would wait for ever.
            let _ = child.kill();
        }
        (in_time, stdout.join(), stderr.join())
    });
    let status = child.wait()?;
    let stderr = stderr.unwrap_or_default();
    if !in_time? {
        let said = String::from_utf8_lossy(&stderr);
        bail!("{} has not ended in {timeout:?}: {said}", program_of(&command));
    }
    Ok(Output { status, stdout: stdout.unwrap_or_default(), stderr })
}

/// Starts the command away from the terminal: Ctrl-C is for the lab, which ends its processes in order.
fn start(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).process_group(0).env("LC_ALL", "C");
    command.spawn().map_err(|error| {
        let program = program_of(command);
        match PACKAGES.iter().find(|(name, _)| *name == program) {
            Some((_, package)) if error.kind() == ErrorKind::NotFound => {
                anyhow::anyhow!("the program {program} is not installed; apt-get install {package}")
            }
            _ => anyhow::Error::new(error).context(format!("cannot start {program}")),
        }
    })
}

fn drain(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What could be read is worth having, even if the end is missing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Whether the process has ended in time.
fn ends_or_is_stopped(pidfd: &OwnedFd, timeout: Duration, stop: &dyn Fn() -> bool) -> Result<bool> {
    const STEP: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + timeout;
    let mut asked = false;
    while Instant::now() < deadline {
        if ends_within(pidfd, STEP)? {
            return Ok(true);
        }
        if !asked && stop() {
            pidfd_send_signal(pidfd, Signal::INT)?;
            asked = true;
        }
    }
    Ok(false)
}

fn ends_within(pidfd: &OwnedFd, timeout: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(timeout)?;
    let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))?;
    Ok(ready > 0)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn program_of(command: &Command) -> String {
    let path = Path::new(command.get_program());
    path.file_name().unwrap_or(command.get_program()).to_string_lossy().into_owned()
}
