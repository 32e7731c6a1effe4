//! Where the desired state is kept: a SQLite database, one row a record.
//!
//! **Invariant:** [`Store::commit`] is the only way to change the model, so what the model shows is on disk.
//!
//! SQLite keeps a commit whole, but it does not notice a byte that the disk has changed. So there is a digest of all
//! rows, kept along with them: a database that does not fit its digest is refused.

mod digest;
mod files;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod usage;

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use rusqlite::{Connection, MAIN_DB, OptionalExtension as _, Transaction, params};

use self::digest::Digest;
pub use self::files::{Made, restore, write_backup};
pub use self::usage::{Cursor, NoCursor, Query, Remembered};
use crate::config::KeyError;
use crate::model::{Change, Model, Record, Spec, meters};
use crate::usage::{self as bill, Entries, Ledger, Seconds};

/// The database's name in the directory of the configuration.
pub(crate) const FILE: &str = "eipnat.db";

/// The desired state and its revision.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    model: Model,
    revision: u64,
    digest: Digest,
    remembered: Remembered,
    made: Made,
}

impl Store {
    /// Opens the database in `directory`, which it makes if need be; a new one begins with nothing, at revision 0.
    ///
    /// # Errors
    /// [`KeyError`] if another daemon has it open, it is damaged, a newer version made it, or it cannot be made.
    pub fn open(directory: &Path, spec: Spec, capacity: u32) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let mut made = files::prepare(directory, &path)?;
        if !path.exists() {
            made.create(&path, schema::prepare).map_err(|error| explained(&path, error))?;
        }
        let open = || {
            let connection = Connection::open(&path)?;
            Self::load(connection, spec, capacity)
        };
        let store = open().map_err(|error| explained(&path, error))?;
        let path = directory.join(usage::FILE);
        if std::fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            return Err(usage::explained(&path, anyhow!(Damage("it is empty".to_owned()))));
        }
        if !path.exists() {
            made.create(&path, usage::make).map_err(|error| explained(&path, error))?;
        }
        let attach = || {
            store.attach(&path)?;
            usage::remembered(&store.connection)
        };
        let remembered = attach().map_err(|error| usage::explained(&path, error))?;
        Ok(Self { remembered, made, ..store })
    }

    fn attach(&self, ledger: &Path) -> anyhow::Result<()> {
        let name = ledger.to_str().context("its name is not UTF-8")?;
        self.connection.execute("ATTACH ?1 AS ledger", [name])?;
        self.connection.execute_batch("PRAGMA ledger.synchronous = EXTRA")?;
        Ok(())
    }

    /// What the ledger was closed with; empty if it was asked for already.
    pub fn take_remembered(&mut self) -> Remembered {
        std::mem::take(&mut self.remembered)
    }

    /// What opening it has made, for a start that fails later.
    #[must_use]
    pub fn made(&self) -> Made {
        self.made.clone()
    }

    /// A store that ends with this process, for tests.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn in_memory(spec: Spec, capacity: u32) -> anyhow::Result<Self> {
        let mut store = Self::load(Connection::open_in_memory()?, spec, capacity)?;
        let mut ledger = Connection::open_in_memory()?;
        usage::make(&mut ledger)?;
        let made = ledger.serialize(MAIN_DB)?.to_vec();
        store.connection.execute_batch("ATTACH ':memory:' AS ledger")?;
        store.connection.deserialize_read_exact("ledger", made.as_slice(), made.len(), false)?;
        Ok(store)
    }

    fn load(mut connection: Connection, spec: Spec, capacity: u32) -> anyhow::Result<Self> {
        files::claim(&connection)?;
        schema::prepare(&mut connection)?;
        let (revision, digest) = read_head(&connection)?;
        let mut model = Model::new(spec, capacity);
        let mut outdated = Vec::new();
        let actual = rows::for_each(&mut connection, |(record, old)| {
            if let Some(old) = old {
                outdated.push((record.clone(), old));
            }
            check_meter(&record, capacity)?;
            model.insert(record).map_err(|what| anyhow!(Damage(what)))
        })?;
        let bound = model.bound();
        if bound > capacity as usize {
            let what = format!(
                "{capacity} is too few for the {bound} bindings in the store; write at least that many"
            );
            return Err(KeyError::new("datapath.max_bindings", what).into());
        }
        if actual.with_revision(revision) != digest {
            bail!(Damage("its contents do not fit their checksum".to_owned()));
        }
        let mut store = Self {
            connection,
            model,
            revision,
            digest: actual,
            remembered: Remembered::default(),
            made: Made::default(),
        };
        store.rewrite(&outdated)?;
        Ok(store)
    }

    /// Writes records again that an older version has written in other words: the digest is of the very text.
    fn rewrite(&mut self, outdated: &[(Record, String)]) -> anyhow::Result<()> {
        if outdated.is_empty() {
            return Ok(());
        }
        let mut digest = self.digest;
        let transaction = self.connection.transaction()?;
        for (record, old) in outdated {
            let ((kind, key), new) = (record.key(), schema::text(record));
            digest.remove(kind, &key, old);
            digest.add(kind, &key, &new);
            transaction.execute(
                "UPDATE record SET value = ?3 WHERE kind = ?1 AND key = ?2",
                params![kind, key, new],
            )?;
        }
        transaction.execute("UPDATE head SET digest = ?1", [digest.with_revision(self.revision)])?;
        transaction.commit()?;
        self.digest = digest;
        Ok(())
    }

    /// The state as it was committed last.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// How many changes were committed.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Commits a change that [`Model`] made of the present state: when this returns, it is on disk. Answers the
    /// revision that it makes.
    ///
    /// # Errors
    /// If it cannot be written; then nothing has changed.
    pub fn commit(&mut self, change: Change) -> anyhow::Result<u64> {
        self.commit_with(change, None)
    }

    /// The same, with entries of the ledger in the same transaction.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_with(&mut self, change: Change, noted: Option<&Noted<'_>>) -> anyhow::Result<u64> {
        let (revision, digest) = self.write(&change, noted).map_err(unwritable)?;
        (self.revision, self.digest) = (revision, digest);
        self.model.apply(change);
        Ok(revision)
    }

    /// Writes entries of the ledger down, and changes nothing else.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn note(&mut self, noted: &Noted<'_>) -> anyhow::Result<()> {
        let mut write = || -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            noted.write(&transaction)?;
            transaction.commit()
        };
        write().map_err(unwritable)
    }

    /// Where a look at the ledger's records begins that have ended.
    ///
    /// # Errors
    /// If they cannot be read, or are damaged.
    pub fn records_from(&self, query: &Query) -> anyhow::Result<Cursor> {
        usage::cursor(&self.connection, query).context("the ledger cannot be read")
    }

    /// Some of the records that are asked for, and where those after them begin.
    ///
    /// # Errors
    /// As [`Store::records_from`].
    pub fn some_records(
        &self,
        query: &Query,
        from: Cursor,
        limit: u32,
    ) -> anyhow::Result<(Vec<bill::Record>, Option<Cursor>)> {
        usage::some(&self.connection, query, from, limit).context("the ledger cannot be read")
    }

    /// Removes some of the records that began before a time; says whether there may be more.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn forget_records(&mut self, before: Seconds, limit: u32) -> anyhow::Result<bool> {
        usage::forget(&mut self.connection, before, limit).map_err(unwritable)
    }

    fn write(&mut self, change: &Change, noted: Option<&Noted<'_>>) -> rusqlite::Result<(u64, Digest)> {
        let revision = self.revision + u64::from(!change.is_bookkeeping());
        let mut digest = self.digest;
        let transaction = self.connection.transaction()?;
        rows::write(&transaction, change.edits(), &mut digest)?;
        let sum = digest.with_revision(revision);
        // An earlier commit that seemed to fail may stand all the same: then this one must not.
        let old = self.digest.with_revision(self.revision);
        let changed = transaction.execute(
            "UPDATE head SET revision = ?1, digest = ?2 WHERE digest = ?3",
            params![revision.cast_signed(), sum, old],
        )?;
        if changed != 1 {
            return Err(rusqlite::Error::StatementChangedRows(changed));
        }
        noted.map_or(Ok(()), |noted| noted.write(&transaction))?;
        transaction.commit()?;
        Ok((revision, digest))
    }

    /// A copy of the whole database as it is now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn backup(&mut self) -> anyhow::Result<Vec<u8>> {
        let copy = self.connection.serialize(MAIN_DB).context("the store cannot be copied")?;
        Ok(copy.to_vec())
    }
}

/// Whether there is a store in a directory.
#[must_use]
pub fn exists(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

/// What a commit writes in the ledger.
#[derive(Debug)]
pub struct Noted<'a> {
    /// The entries.
    pub entries: &'a Entries,
    /// The ledger that they are of, as it was before.
    pub ledger: &'a Ledger,
    /// Of which meters it speaks: [`Dataplane::meters_id`](crate::dataplane::Dataplane::meters_id).
    pub meters: &'a [u8],
    /// Now.
    pub at: Seconds,
}

impl Noted<'_> {
    fn write(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        usage::write(transaction, self.entries, self.ledger, self.meters, self.at)
    }
}

fn unwritable(error: rusqlite::Error) -> anyhow::Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => anyhow!(
            "the store's disk is full, and nothing has changed; make room and try again, the daemon goes on by itself"
        ),
        _ => anyhow!(error).context("the store cannot be written, and nothing has changed"),
    }
}

/// A record's meter must be one that the datapath has.
fn check_meter(record: &Record, capacity: u32) -> anyhow::Result<()> {
    let has = meters(capacity);
    match record.meter().filter(|meter| *meter >= has) {
        None => Ok(()),
        Some(meter) => {
            let least = capacity + (meter - has) + 1;
            let what = format!(
                "{capacity} is too few: {} in the store counts on meter {meter}, so write at least {least}, or detach it first",
                record.key().1
            );
            Err(KeyError::new("datapath.max_bindings", what).into())
        }
    }
}

fn read_head(connection: &Connection) -> anyhow::Result<(u64, Vec<u8>)> {
    let head = connection
        .query_row("SELECT revision, digest FROM head", [], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?))
        })
        .optional()?;
    head.ok_or_else(|| anyhow!(Damage("it has no revision".to_owned())))
}

/// What is wrong with a database that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damage(String);

/// Says what to do about a database that cannot be opened.
fn explained(path: &Path, error: anyhow::Error) -> anyhow::Error {
    if error.is::<KeyError>() {
        return error;
    }
    let at = path.display();
    let code = error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    let what = match code {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            format!("another daemon has {at} open; end it, or name another directory")
        }
        Some(rusqlite::ErrorCode::DiskFull) => {
            format!("the disk of {at} is full; make room, and start again")
        }
        Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::PermissionDenied) => {
            format!("{at} cannot be opened ({error:#}); name a directory that root can write to")
        }
        _ => format!(
            "{at} is damaged ({error:#}) and nothing was changed; put a backup in its place with `eipnat store restore FILE`"
        ),
    };
    KeyError::new("store.path", what).into()
}
