//! The database among the files: its directory, backups, and what is put back.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rusqlite::{Connection, OpenFlags};

use super::{FILE, explained, schema};
use crate::config::KeyError;

/// Keeps everybody else off a database until the connection is closed, and makes its commits durable.
pub(super) fn claim(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // A commit has reached the disk when it returns, the directory entry of its journal included.
    connection.pragma_update(None, "synchronous", "EXTRA")?;
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")
}

/// Makes the directory, for root alone.
fn make_directory(directory: &Path) -> Result<(), KeyError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        let what = format!(
            "{} cannot be made: {error}; name a directory that root can write to",
            directory.display()
        );
        KeyError::new("store.path", what)
    })?;
    // What is acknowledged in it must not go with it in a power cut.
    for directory in directory.ancestors().skip(1).take(2) {
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
    }
    Ok(())
}

/// What was not there before.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// The innermost first.
    directories: Vec<PathBuf>,
    databases: Vec<PathBuf>,
}

impl Made {
    /// Makes a new database with these tables: whole, or not there.
    pub(super) fn create(&mut self, database: &Path, tables: Tables) -> anyhow::Result<()> {
        create(database, tables).inspect_err(|_| self.remove())?;
        self.databases.push(database.to_owned());
        Ok(())
    }

    /// Removes it again: nobody has been told of it yet. More than trying cannot be done.
    pub fn remove(&self) {
        for database in &self.databases {
            for suffix in ["", "-journal"] {
                let _ = fs::remove_file(with_suffix(database, suffix));
            }
        }
        for directory in &self.directories {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Makes the directory, and sees whether a database can be there.
pub(super) fn prepare(directory: &Path, database: &Path) -> anyhow::Result<Made> {
    let missing = directory.ancestors().take_while(|directory| !directory.exists());
    let made = Made { directories: missing.map(Path::to_owned).collect(), databases: Vec::new() };
    make_directory(directory)?;
    check_not_empty(database)?;
    Ok(made)
}

/// SQLite would take an empty file for a new database.
fn check_not_empty(database: &Path) -> Result<(), KeyError> {
    if fs::metadata(database).is_ok_and(|file| file.len() == 0) {
        let what = format!(
            "{} is empty, so something has cut it off; put a backup in its place with `eipnat store restore FILE`, or \
             remove it to begin with nothing",
            database.display()
        );
        return Err(KeyError::new("store.path", what));
    }
    Ok(())
}

/// What gives a new database its tables.
pub(super) type Tables = fn(&mut Connection) -> anyhow::Result<()>;

fn create(database: &Path, tables: Tables) -> anyhow::Result<()> {
    let part = with_suffix(database, ".new");
    for suffix in ["", "-journal"] {
        remove_if_there(&with_suffix(&part, suffix))?;
    }
    let make = || -> anyhow::Result<()> {
        let mut connection = Connection::open(&part)?;
        claim(&connection)?;
        tables(&mut connection)?;
        drop(connection);
        // One that was left of a database which is gone would be played into this one.
        remove_if_there(&with_suffix(database, "-journal"))?;
        fs::rename(&part, database)?;
        Ok(File::open(parent(database))?.sync_all()?)
    };
    make().inspect_err(|_| {
        // What failed is what has to be told.
        let _ = fs::remove_file(&part);
    })
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a copy of the database to a new file; it is whole or not there.
///
/// # Errors
/// If the file exists, or cannot be written.
pub fn write_backup(file: &Path, copy: &[u8]) -> anyhow::Result<()> {
    if file.exists() {
        bail!("{} exists; name a new file, or remove that one", file.display());
    }
    write_whole(file, copy)
}

/// Puts the database of a backup into `directory`. What was there is kept beside it; the answer is where, and the
/// backup's revision.
///
/// # Errors
/// If the backup is damaged or a daemon runs on the directory; then nothing has changed.
pub fn restore(directory: &Path, backup: &Path) -> anyhow::Result<(Option<PathBuf>, u64)> {
    let database = directory.join(FILE);
    let bytes = fs::read(backup).with_context(|| format!("cannot read {}", backup.display()))?;
    let revision = check(backup)?;
    make_directory(directory)?;
    let lock = if database.exists() { Some(lock(&database)?) } else { None };
    // First what takes room.
    let part = write_part(&database, &bytes)?;
    let old = lock.as_ref().map(|_| keep(&database)).transpose().inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })?;
    // The journal belongs to the old one, and would be applied to the new one.
    remove_if_there(&with_suffix(&database, "-journal"))?;
    put(&part, &database)?;
    Ok((old, revision))
}

/// Gives a database another name as well: it keeps its own until another one takes it, so that there is one at every
/// instant.
fn keep(database: &Path) -> anyhow::Result<PathBuf> {
    let old = unused(&database.with_extension("db.old"));
    for suffix in ["", "-journal"] {
        match fs::hard_link(with_suffix(database, suffix), with_suffix(&old, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let _ = fs::remove_file(&old);
                return Err(error).with_context(|| format!("cannot keep {}", database.display()));
            }
            _ => {}
        }
    }
    Ok(old)
}

/// Reads a backup, and answers its revision.
fn check(backup: &Path) -> anyhow::Result<u64> {
    let open = || -> anyhow::Result<u64> {
        let mut memory = Connection::open_in_memory()?;
        let mut file = Connection::open_with_flags(backup, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let copy = file.serialize(rusqlite::MAIN_DB)?.to_vec();
        memory.deserialize_read_exact(rusqlite::MAIN_DB, copy.as_slice(), copy.len(), false)?;
        schema::check(memory)
    };
    open().map_err(|error| anyhow::anyhow!("{} is no whole backup: {error:#}", backup.display()))
}

/// Keeps every daemon off a database.
fn lock(database: &Path) -> anyhow::Result<Connection> {
    let lock = || -> anyhow::Result<Connection> {
        let connection = Connection::open(database)?;
        claim(&connection)?;
        Ok(connection)
    };
    match lock() {
        Err(error) => match error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code) {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Err(explained(database, error))
            }
            // A damaged one is no reason not to put a good one in its place.
            _ => Ok(Connection::open_in_memory()?),
        },
        locked => locked,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The first of `path`, `path.1`, `path.2`, … that is not there.
fn unused(path: &Path) -> PathBuf {
    let numbered = (1_u32..).map(|number| path.with_added_extension(number.to_string()));
    let mut candidates = std::iter::once(path.to_owned()).chain(numbered);
    candidates.find(|path| !path.exists()).expect("there are more numbers than files")
}

/// Writes a file for root alone, so that it is there whole or not at all, also after a power cut.
fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    put(&write_part(path, bytes)?, path)
}

/// Writes a file under another name.
fn write_part(path: &Path, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let part = with_suffix(path, ".part");
    let write = || -> std::io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written = write().inspect_err(|_| {
        // What failed is what has to be told.
        let _ = fs::remove_file(&part);
    });
    written.with_context(|| format!("cannot write {}", part.display()))?;
    Ok(part)
}

/// Gives a file its name.
fn put(part: &Path, path: &Path) -> anyhow::Result<()> {
    let put = || -> std::io::Result<()> {
        fs::rename(part, path)?;
        File::open(parent(path))?.sync_all()
    };
    put().with_context(|| format!("cannot put {} in its place", path.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
