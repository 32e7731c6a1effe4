//! The daemon's socket in the file system: one daemon, the right permissions, nothing left behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use tokio::net::UnixListener;

use crate::config::{self, Api, KeyError};

/// Connections that may wait for the daemon to accept them.
const BACKLOG: i32 = 1024;

/// A socket that is there and that nobody can connect to yet, and the right to serve it, which no second daemon gets.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    socket: OwnedFd,
    _place: Place,
}

/// The place in the file system where the socket goes. Whose it is says a lock on a file next to the socket: that a
/// socket is there does not tell whether its daemon lives.
#[derive(Debug)]
struct Place {
    lock_path: PathBuf,
    _lock: File,
    /// Directories that were made for it, the outermost first.
    directories: Vec<PathBuf>,
}

impl Claim {
    /// Makes the socket, in the place of one that a dead daemon left, and its directory if need be.
    ///
    /// # Errors
    /// If a daemon serves it already, something else stands there, or it cannot be made. Nothing is left behind then.
    pub fn take(api: &Api) -> anyhow::Result<Self> {
        let path = api.socket.clone();
        if fs::symlink_metadata(&path).is_ok_and(|there| !there.file_type().is_socket()) {
            let what =
                format!("{} exists and is not a socket; remove it or write another path", path.display());
            return Err(KeyError::new("api.socket", what).into());
        }
        let group = api.group.as_deref().map(config::group_id).transpose()?;
        let place = Place::take(&path)?;
        if UnixStream::connect(&path).is_ok() {
            let what = format!("another program serves {}; end it or write another path", path.display());
            return Err(KeyError::new("api.socket", what).into());
        }
        let socket = make(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let claim = Self { path, socket, _place: place };
        // Nobody can connect before listen(), so no moment has the wrong permissions.
        chown(&claim.path, None, group)
            .and_then(|()| fs::set_permissions(&claim.path, fs::Permissions::from_mode(0o660)))
            .with_context(|| format!("cannot set who may use {}", claim.path.display()))?;
        Ok(claim)
    }

    /// Lets clients connect.
    ///
    /// # Errors
    /// If the system has no resources for it.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let socket = self.socket.try_clone()?;
        listen(&socket, BACKLOG)?;
        UnixListener::from_std(socket.into())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Place {
    fn take(socket: &Path) -> anyhow::Result<Self> {
        let lock_path = socket.with_added_extension("lock");
        let directory = socket.parent().unwrap_or(Path::new("/"));
        let directories = make_directories(directory)?;
        let lock = lock(&lock_path).inspect_err(|_| remove_directories(&directories));
        match lock.with_context(|| format!("cannot write to {}; run this as root", directory.display()))? {
            Some(lock) => Ok(Self { lock_path, _lock: lock, directories }),
            None => {
                bail!(
                    "a daemon serves {} already; end it, or give this one another api.socket",
                    socket.display()
                )
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Still locked: whoever has opened the file in the meantime finds that it is gone and begins again.
        let _ = fs::remove_file(&self.lock_path);
        remove_directories(&self.directories);
    }
}

fn make(path: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Locks the file, which it makes if need be (for root alone, or anybody could hold the lock); `None` if another process has it locked.
fn lock(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Its last owner may have removed it in between.
        let (locked, there) = (file.metadata()?, fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
            return Ok(Some(file));
        }
    }
}

/// Makes a directory and the missing ones above it, and says which.
fn make_directories(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut missing: Vec<PathBuf> =
        directory.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
    missing.reverse();
    for (made, path) in missing.iter().enumerate() {
        if let Err(error) = make_directory(path) {
            remove_directories(&missing[..made]);
            return Err(error).with_context(|| {
                format!("cannot make {}; run this as root, or set api.socket elsewhere", path.display())
            });
        }
    }
    Ok(missing)
}

/// Makes a directory that the socket's group can enter, whatever the umask.
fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755))),
    }
}

/// Removes directories that were made here, as far as nobody else has put anything into them.
fn remove_directories(directories: &[PathBuf]) {
    for directory in directories.iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}
