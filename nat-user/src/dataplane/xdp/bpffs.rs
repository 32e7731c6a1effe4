//! The directory of pins: on a bpffs, and of one daemon at a time.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use log::{debug, info};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::config::KeyError;

/// kernel: include/uapi/linux/magic.h
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Where Linux distributions mount the bpffs.
const STANDARD: &str = "/sys/fs/bpf";

/// The "device" of a bpffs that eipnat mounted, so that `unload` knows it for its own.
const SOURCE: &str = "eipnat";

/// How long a daemon has for its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether `path` exists and is on a bpffs.
pub(super) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == BPF_FS_MAGIC)
}

/// Makes `pin_path` a directory on a bpffs. Where it is on none, one is mounted. Answers how many directories had to be
/// made: `pin_path` and those above it.
pub(super) fn prepare(pin_path: &Path) -> anyhow::Result<u8> {
    if pin_path.starts_with(STANDARD) && !is_bpffs(Path::new(STANDARD)) {
        mount_at(Path::new(STANDARD))?;
    }
    let missing: Vec<&Path> = pin_path.ancestors().take_while(|directory| !directory.exists()).collect();
    fs::create_dir_all(pin_path).map_err(|error| {
        KeyError::new(
            "datapath.pin_path",
            format!("{} cannot be made: {error}; name a directory on a bpffs", pin_path.display()),
        )
    })?;
    if !missing.is_empty() {
        // Whoever could open it could hold its lock.
        fs::set_permissions(pin_path, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", pin_path.display()))?;
    }
    if !is_bpffs(pin_path) {
        if fs::read_dir(pin_path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(KeyError::new(
                "datapath.pin_path",
                format!(
                    "{} is a directory with files, not on a bpffs; name an empty one or one on a bpffs",
                    pin_path.display()
                ),
            )
            .into());
        }
        mount_at(pin_path).inspect_err(|_| {
            // What was not there before is not left behind; more than trying cannot be done.
            for directory in &missing {
                let _ = fs::remove_dir(directory);
            }
        })?;
    }
    Ok(u8::try_from(missing.len()).unwrap_or(u8::MAX))
}

fn mount_at(path: &Path) -> anyhow::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(SOURCE, path, "bpf", flags, c"mode=0700")
        .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
    debug!("mounted a bpffs at {}", path.display());
    Ok(())
}

/// Removes the program's pin, the directory if nothing else is in it, the mount if it was eipnat's, and as many
/// directories as [`prepare`] made.
pub(super) fn remove(pin_path: &Path, directories_made: u8) -> anyhow::Result<()> {
    let program = pin_path.join(super::object::PROGRAM_PIN);
    if program.exists() {
        fs::remove_file(&program).with_context(|| format!("cannot remove {}", program.display()))?;
    }
    if !pins(pin_path)?.is_empty() {
        return Ok(());
    }
    if is_own_mount(pin_path)? {
        unmount_at(pin_path)?;
    }
    if !is_mount_point(pin_path)? {
        fs::remove_dir(pin_path).with_context(|| format!("cannot remove {}", pin_path.display()))?;
        for directory in pin_path.ancestors().take(directories_made.into()).skip(1) {
            // Others may have put something into it.
            let _ = fs::remove_dir(directory);
        }
    }
    let standard = Path::new(STANDARD);
    if pin_path.starts_with(standard) && is_own_mount(standard)? && pins(standard)?.is_empty() {
        unmount_at(standard)?;
    }
    Ok(())
}

fn unmount_at(path: &Path) -> anyhow::Result<()> {
    // Detached, since the lock on the directory is still held.
    unmount(path, UnmountFlags::DETACH).with_context(|| format!("cannot unmount {}", path.display()))
}

/// The pins and directories in a directory. The kernel's own files on a bpffs have a dot in their names, which no pin can have.
pub(super) fn pins(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut pins = list().with_context(|| format!("cannot read {}", directory.display()))?;
    pins.retain(|pin| pin.extension().is_none());
    Ok(pins)
}

fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.mount_point == path))
}

/// Whether eipnat mounted the bpffs at `path`.
fn is_own_mount(path: &Path) -> anyhow::Result<bool> {
    Ok(mounts()?
        .iter()
        .any(|mount| mount.mount_point == path && mount.mount_source.as_deref() == Some(SOURCE)))
}

fn mounts() -> anyhow::Result<Vec<procfs::process::MountInfo>> {
    let mounts = procfs::process::Process::myself().and_then(|process| process.mountinfo());
    Ok(mounts.context("cannot read /proc/self/mountinfo")?.0)
}

/// The right to change what is pinned: a lock on the directory, which the kernel lets go when its holder dies.
#[derive(Debug)]
pub(super) struct PinLock(OwnedFd);

impl PinLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// If a daemon has it.
    pub(super) fn take(pin_path: &Path) -> anyhow::Result<Self> {
        match Self::attempt(pin_path)? {
            Some(lock) => Ok(lock),
            None => Err(KeyError::new(
                "datapath.pin_path",
                format!(
                    "another daemon{} runs on {}; stop it, or name another path and other interfaces",
                    holder(pin_path)?
                        .map(|pid| format!(" (process {})", pid.as_raw_pid()))
                        .unwrap_or_default(),
                    pin_path.display()
                ),
            )
            .into()),
        }
    }

    /// Takes the lock; a daemon that has it is asked to end.
    pub(super) fn take_from_daemon(pin_path: &Path) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let mut asked = None;
        loop {
            if let Some(lock) = Self::attempt(pin_path)? {
                return Ok(lock);
            }
            let holder = holder(pin_path)?;
            if let Some(pid) = holder.filter(|_| asked != holder) {
                info!("asking the daemon (process {}) to end", pid.as_raw_pid());
                // It may have ended by itself in the meantime.
                let _ = kill_process(pid, Signal::TERM);
                asked = holder;
            }
            if Instant::now() > deadline {
                bail!(
                    "the daemon on {} does not end within {} s; kill it and try again",
                    pin_path.display(),
                    PATIENCE.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether what is locked is still what is found there.
    pub(super) fn is_on(&self, pin_path: &Path) -> bool {
        let there = fs::metadata(pin_path).ok();
        let locked = fstat(&self.0).ok();
        locked
            .zip(there)
            .is_some_and(|(locked, there)| locked.st_ino == there.ino() && locked.st_dev == there.dev())
    }

    fn attempt(pin_path: &Path) -> anyhow::Result<Option<Self>> {
        let at = || format!("cannot lock {}", pin_path.display());
        let directory = open(pin_path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .with_context(at)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                // An unload may have removed it in between.
                let lock = Self(directory);
                Ok(lock.is_on(pin_path).then_some(lock))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(at),
        }
    }
}

/// The process that holds the lock on a directory.
fn holder(pin_path: &Path) -> anyhow::Result<Option<Pid>> {
    let metadata = fs::metadata(pin_path).with_context(|| format!("cannot read {}", pin_path.display()))?;
    let locks = procfs::locks().context("cannot read /proc/locks")?;
    let lock = locks.iter().find(|lock| {
        lock.inode == metadata.ino() && rustix::fs::makedev(lock.devmaj, lock.devmin) == metadata.dev()
    });
    Ok(lock.and_then(|lock| lock.pid).and_then(Pid::from_raw))
}
