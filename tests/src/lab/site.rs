//! What a lab leaves in the system, and how all of it goes again: on drop, on a signal, and after a SIGKILL by
//! whoever makes a lab next.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::namespace::NETNS_DIR;

/// A directory for each lab. Whoever holds the lock in one of them is alive; the kernel lets go of the lock of a
/// process that is not.
const ROOT: &str = "/run/eipnat-lab";

/// The labs of this process, for the signal handler.
static SITES: Mutex<Vec<Weak<Site>>> = Mutex::new(Vec::new());
static NEXT: AtomicU32 = AtomicU32::new(0);
static PREPARED: Once = Once::new();
static FIRST_SIGNAL_IS_OURS: AtomicBool = AtomicBool::new(false);
static SIGNALLED: AtomicBool = AtomicBool::new(false);

/// A claim on a name that nothing else on this machine uses, and on everything that carries it.
#[derive(Debug)]
pub(super) struct Site {
    id: String,
    dir: PathBuf,
    /// Held locked until the end; `None` when sweeping up after somebody else.
    lock: Option<File>,
    undone: Mutex<bool>,
}

impl Site {
    /// Claims a new site, after the leftovers of dead processes have been swept up.
    pub(super) fn claim() -> Result<Arc<Self>> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the network-namespace lab needs root: run this as root or with sudo"
        );
        PREPARED.call_once(|| {
            if let Err(error) = sweep().and_then(|()| watch_signals()) {
                eprintln!("eipnat-lab: {error:#}");
            }
        });
        let _everybody = lock_root()?;
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(ROOT).join(&id);
        DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let site = Arc::new(Self { id, dir, lock: Some(lock), undone: Mutex::new(false) });
        let mut sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
        sites.retain(|site| site.strong_count() > 0);
        sites.push(Arc::downgrade(&site));
        drop(sites);
        Ok(site)
    }

    /// A directory for the lab's files.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The full name of a network namespace of this lab.
    pub(super) fn namespace(&self, role: &str) -> String {
        format!("eipnat-{}-{role}", self.id)
    }

    /// Takes everything away. Doing it twice is fine.
    pub(super) fn undo(&self) -> Result<()> {
        let mut undone = self.undone.lock().unwrap_or_else(PoisonError::into_inner);
        if *undone {
            return Ok(());
        }
        let namespaces = self.namespaces()?;
        let inodes =
            namespaces.iter().filter_map(|path| Some(path.metadata().ok()?.ino())).collect::<Vec<_>>();
        kill_inside(&inodes)?;
        for mount in mounts_under(&self.dir)? {
            unmount(&mount, UnmountFlags::DETACH)
                .with_context(|| format!("cannot unmount {}", mount.display()))?;
        }
        for path in namespaces {
            // Not mounted: `ip netns add` was cut short between making the file and mounting on it.
            let _ = unmount(&path, UnmountFlags::DETACH);
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        std::fs::remove_dir_all(&self.dir)
            .with_context(|| format!("cannot remove {}", self.dir.display()))?;
        *undone = true;
        Ok(())
    }

    /// What there is of the lab just now, to be asked later what is left of it.
    pub(super) fn footprint(&self, programs: Vec<u32>) -> Result<Footprint> {
        let namespaces = self.namespaces()?;
        let inodes = namespaces.iter().map(|path| Ok(path.metadata()?.ino())).collect::<Result<_>>()?;
        Ok(Footprint { dir: self.dir.clone(), namespaces, inodes, programs })
    }

    fn namespaces(&self) -> Result<Vec<PathBuf>> {
        let prefix = self.namespace("");
        let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("eipnat-lab: {} is not all gone: {error:#}", self.id);
        }
        drop(self.lock.take());
    }
}

/// Everything that a lab had in the system at one time.
#[derive(Clone, Debug)]
pub struct Footprint {
    dir: PathBuf,
    namespaces: Vec<PathBuf>,
    inodes: Vec<u64>,
    programs: Vec<u32>,
}

impl Footprint {
    /// What is still there, one line each. Waits a little for what the kernel frees behind the scenes.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn remains(&self) -> Result<Vec<String>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let remains = self.present()?;
            if remains.is_empty() || Instant::now() > deadline {
                return Ok(remains);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is there just now, one line each.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn present(&self) -> Result<Vec<String>> {
        let mut remains = Vec::new();
        remains.extend(
            self.namespaces.iter().filter(|path| path.exists()).map(|p| format!("namespace {}", p.display())),
        );
        remains.extend(
            processes_inside(&self.inodes)?.iter().map(|pid| format!("process {}", pid.as_raw_nonzero())),
        );
        remains.extend(mounts_under(&self.dir)?.iter().map(|path| format!("mount {}", path.display())));
        if self.dir.exists() {
            remains.push(format!("directory {}", self.dir.display()));
        }
        remains.extend(loaded(&self.programs).iter().map(|id| format!("BPF program {id}")));
        Ok(remains)
    }
}

/// Which of these BPF programs the kernel still has. The kernel never gives an id twice.
fn loaded(programs: &[u32]) -> Vec<u32> {
    // An error is a program that went between being listed and being looked at.
    let present: Vec<_> = aya::programs::loaded_programs().flatten().map(|program| program.id()).collect();
    programs.iter().copied().filter(|id| present.contains(id)).collect()
}

/// From now on the first SIGINT, SIGTERM or SIGHUP does not end the process, it only makes [`signalled`] true.
/// The next one takes the labs away and ends the process.
pub fn take_first_signal() {
    FIRST_SIGNAL_IS_OURS.store(true, Ordering::Relaxed);
}

/// Whether a signal has come since [`take_first_signal`].
#[must_use]
pub fn signalled() -> bool {
    SIGNALLED.load(Ordering::Relaxed)
}

fn watch_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if FIRST_SIGNAL_IS_OURS.swap(false, Ordering::Relaxed) {
                SIGNALLED.store(true, Ordering::Relaxed);
                continue;
            }
            // Held to the end of the process: no lab is begun any more.
            let sites = SITES.lock().unwrap_or_else(PoisonError::into_inner);
            for site in sites.iter().filter_map(Weak::upgrade) {
                if let Err(error) = site.undo() {
                    eprintln!("eipnat-lab: {error:#}");
                }
            }
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    })?;
    Ok(())
}

/// Between a lab's directory and the lock in it nobody may sweep, so both want this lock.
fn lock_root() -> Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(ROOT)
        .with_context(|| format!("cannot create {ROOT}"))?;
    let lock = File::create(Path::new(ROOT).join(".lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// Takes away the labs of processes that were killed before they could do it themselves.
///
/// # Errors
/// Without root, or when something cannot be taken away.
pub fn sweep() -> Result<()> {
    let _everybody = lock_root()?;
    for entry in std::fs::read_dir(ROOT)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let lock = File::open(entry.path().join("lock")).ok();
        if lock.as_ref().is_some_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_err()) {
            continue;
        }
        let id = entry.file_name().to_string_lossy().into_owned();
        Site { id, dir: entry.path(), lock, undone: Mutex::new(false) }.undo()?;
    }
    Ok(())
}

fn kill_inside(inodes: &[u64]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let pids = processes_inside(inodes)?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in &pids {
            // By a handle, and only if it is still inside: the number may belong to another process by now.
            let Ok(handle) = pidfd_open(*pid, PidfdFlags::empty()) else { continue };
            if is_inside(*pid, inodes) {
                let _ = pidfd_send_signal(&handle, Signal::KILL);
                let mut fds = [PollFd::new(&handle, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&Timespec { tv_sec: 5, tv_nsec: 0 }));
            }
        }
        if Instant::now() > deadline {
            bail!("processes {pids:?} of the lab do not end");
        }
    }
}

fn processes_inside(inodes: &[u64]) -> Result<Vec<Pid>> {
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(number) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Some(pid) = Pid::from_raw(number) else { continue };
        if number != own && is_inside(pid, inodes) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn is_inside(pid: Pid, inodes: &[u64]) -> bool {
    // Neither a kernel thread nor a zombie has a namespace.
    let Ok(metadata) = std::fs::metadata(format!("/proc/{}/ns/net", pid.as_raw_nonzero())) else {
        return false;
    };
    inodes.contains(&metadata.ino())
}

/// Mount points below a directory, the innermost first.
fn mounts_under(dir: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut found: Vec<_> = points.filter(|point| point.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}
