//! How records are written down, and how older databases are brought up to date.

use anyhow::Context as _;
use rusqlite::{Connection, Transaction};

use crate::config::KeyError;
use crate::model::{Record, Spec};

/// What tells an eipnat database from any other (`PRAGMA application_id`): "eipn".
const APPLICATION: i32 = 0x6569_706e;

/// Steps from each version of the schema to the next; the first makes a new database. A version is
/// `PRAGMA user_version`, the number of steps that were taken.
///
/// **Invariant:** a step that has been released is never changed again.
const MIGRATIONS: &[fn(&Transaction<'_>) -> rusqlite::Result<()>] = &[first];

/// Version 1: a row a record, its value in JSON; the revision and the checksum of all rows.
fn first(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch(
        "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, \
             PRIMARY KEY (kind, key)) WITHOUT ROWID, STRICT;
         CREATE TABLE head (revision INTEGER NOT NULL, digest BLOB NOT NULL) STRICT;",
    )?;
    let digest = super::Digest::default().with_revision(0);
    transaction.execute("INSERT INTO head (revision, digest) VALUES (0, ?1)", [digest])?;
    transaction.pragma_update(None, "application_id", APPLICATION)
}

/// Brings the database to the newest version, in one transaction.
pub(super) fn prepare(connection: &mut Connection) -> anyhow::Result<()> {
    let version = version(connection)?;
    let Some(steps) = MIGRATIONS.get(version..).filter(|steps| !steps.is_empty()) else { return Ok(()) };
    let transaction = connection.transaction()?;
    for step in steps {
        step(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len())?)?;
    transaction.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> anyhow::Result<usize> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let is_empty = || {
        let tables =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        tables.is_ok_and(|tables| tables == 0)
    };
    if (version != 0) != (application == APPLICATION) || version == 0 && !is_empty() {
        return Err(KeyError::new(
            "store.path",
            format!("{} there is another program's database; name another directory", super::FILE),
        )
        .into());
    }
    match usize::try_from(version) {
        Ok(version) if version <= MIGRATIONS.len() => Ok(version),
        _ => Err(KeyError::new(
            "store.path",
            format!(
                "a newer eipnat made the store (schema {version}, this one knows {}); run that one",
                MIGRATIONS.len()
            ),
        )
        .into()),
    }
}

/// A record's value as it is written down.
pub(super) fn text(record: &Record) -> String {
    let mut text = Vec::with_capacity(256);
    write(record, &mut text);
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Adds it to a text.
pub(super) fn write(record: &Record, text: &mut Vec<u8>) {
    let written = match record {
        Record::Eip(eip) => serde_json::to_writer(text, eip),
        Record::Vm(vm) => serde_json::to_writer(text, vm),
        Record::Returned(returned) => serde_json::to_writer(text, returned),
        Record::Closing(closing) => serde_json::to_writer(text, closing),
    };
    written.expect("records have nothing that JSON has not");
}

/// A record that was written down.
pub(super) fn parse(kind: &str, value: &str) -> anyhow::Result<Record> {
    Ok(match kind {
        "eip" => Record::Eip(serde_json::from_str(value)?),
        "vm" => Record::Vm(serde_json::from_str(value)?),
        "returned" => Record::Returned(serde_json::from_str(value)?),
        "closing" => Record::Closing(serde_json::from_str(value)?),
        _ => None.with_context(|| format!("a record of the unknown kind {kind:?}"))?,
    })
}

/// Reads a whole database, to see whether it is one.
pub(super) fn check(connection: Connection) -> anyhow::Result<u64> {
    if version(&connection)? == 0 {
        anyhow::bail!("it is empty");
    }
    let store = super::Store::load(connection, Spec::default(), u32::MAX)?;
    Ok(store.revision())
}
