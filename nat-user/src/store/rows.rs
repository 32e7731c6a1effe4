//! Records as rows of the database. A million of them are put into words, or made of them, on another CPU than the one that has
//! the rest of the work.

use anyhow::Context as _;
use rusqlite::{Connection, Transaction, params};

use super::digest::Digest;
use super::{Damage, schema};
use crate::ahead::read_ahead;
use crate::model::{Edit, Record};

/// How many are handed over at a time.
const AT_ONCE: usize = 4096;

/// A row that is to be written.
struct Row {
    kind: &'static str,
    key: String,
    /// `None` if it goes.
    value: Option<String>,
}

/// The rows that edits come to, and what these add to the digest.
fn rows(edits: &[Edit]) -> (Vec<Row>, Digest) {
    let mut digest = Digest::default();
    let rows = edits.iter().filter_map(|edit| {
        let (kind, key) = edit.key()?;
        if let Some(before) = &edit.before {
            digest.remove(kind, &key, &schema::text(before));
        }
        let value = edit.after.as_ref().map(schema::text);
        if let Some(value) = &value {
            digest.add(kind, &key, value);
        }
        Some(Row { kind, key, value })
    });
    (rows.collect(), digest)
}

/// Writes records, and keeps their digest up to date.
pub(super) fn write(
    transaction: &Transaction<'_>,
    edits: &[Edit],
    digest: &mut Digest,
) -> rusqlite::Result<()> {
    let mut put = transaction.prepare(
        "INSERT INTO record (kind, key, value) VALUES (?1, ?2, ?3) \
         ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
    )?;
    let mut delete = transaction.prepare("DELETE FROM record WHERE kind = ?1 AND key = ?2")?;
    let mut write = |(rows, more): (Vec<Row>, Digest)| -> rusqlite::Result<()> {
        for Row { kind, key, value } in rows {
            match value {
                Some(value) => put.execute(params![kind, key, value])?,
                None => delete.execute(params![kind, key])?,
            };
        }
        digest.merge(more);
        Ok(())
    };
    if edits.len() <= AT_ONCE {
        return write(rows(edits));
    }
    // If writing fails, nobody takes more.
    let make = |send: &mut dyn FnMut(_) -> bool| {
        edits.chunks(AT_ONCE).map(rows).all(send);
        Ok(())
    };
    read_ahead(make, write)
}

/// A record, and its text if an older version has written it in other words.
pub(super) type Read = (Record, Option<String>);

/// Sends all records, as long as somebody takes them, and answers their digest.
fn read(connection: &mut Connection, send: &mut dyn FnMut(Vec<Read>) -> bool) -> anyhow::Result<Digest> {
    let (mut digest, mut some) = (Digest::default(), Vec::with_capacity(AT_ONCE));
    let mut again = Vec::new();
    let mut rows = connection.prepare("SELECT kind, key, value FROM record")?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
        let (kind, key, value) = (text(0)?, text(1)?, text(2)?);
        digest.add(kind, key, value);
        let record = schema::parse(kind, value).with_context(|| Damage(format!("{kind} {key}")))?;
        again.clear();
        schema::write(&record, &mut again);
        let outdated = (again != value.as_bytes()).then(|| value.to_owned());
        some.push((record, outdated));
        if some.len() == AT_ONCE && !send(std::mem::replace(&mut some, Vec::with_capacity(AT_ONCE))) {
            return Ok(digest);
        }
    }
    // Whoever takes no more has an error of its own.
    let _ = send(some);
    Ok(digest)
}

/// Reads all records on a thread of its own, and tells each.
pub(super) fn for_each(
    connection: &mut Connection,
    mut tell: impl FnMut(Read) -> anyhow::Result<()>,
) -> anyhow::Result<Digest> {
    read_ahead(|send| read(connection, send), |some: Vec<Read>| some.into_iter().try_for_each(&mut tell))
}
