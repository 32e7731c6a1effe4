//! Records of the ledger, looked up a page at a time.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::bail;
use rusqlite::{Connection, params};

use super::{Damage, RANGE, fields};
use crate::model::Name;
use crate::usage::{Payer, Record, Seconds};

/// Most records of a query that are counted before they are read.
const CHECKED: i64 = 200_000;

/// Which records are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Those of this public address.
    pub eip: Option<Ipv4Addr>,
    /// Those that this account pays for.
    pub account: Option<Name>,
    /// Those that begin then or later.
    pub from: Seconds,
    /// Those that begin earlier than that; without it, up to now.
    pub to: Option<Seconds>,
}

impl Query {
    /// Whether it is asked for records of a payer.
    #[must_use]
    pub fn is_about(&self, payer: &Payer) -> bool {
        self.eip.is_none_or(|eip| eip == payer.address)
            && self.account.as_ref().is_none_or(|account| *account == payer.account)
    }

    /// Whether it is asked for a record.
    #[must_use]
    pub fn wants(&self, record: &Record) -> bool {
        self.is_about(&record.payer)
            && self.from <= record.begin
            && self.to.is_none_or(|to| record.begin < to)
    }
}

/// How far a row of readings has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Records that were written later are not among it.
    last: i64,
    /// When the last one began that was read, and its place.
    after: (i64, i64),
    /// Whether they were counted, by the very index that they are read by.
    is_counted: bool,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.last, self.after.0, self.after.1, u8::from(self.is_counted))
    }
}

/// A text that is no [`Cursor`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing to go on from; use the `next` of the page before")]
pub struct NoCursor(String);

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Self, NoCursor> {
        let numbers: Vec<i64> = text.split('.').filter_map(|number| number.parse().ok()).collect();
        match numbers[..] {
            [last, begin, id, counted] => Ok(Self { last, after: (begin, id), is_counted: counted == 1 }),
            _ => Err(NoCursor(text.to_owned())),
        }
    }
}

/// Where a row of readings begins. Looks whether any record is missing, if there are not too many.
pub(in crate::store) fn cursor(connection: &Connection, query: &Query) -> anyhow::Result<Cursor> {
    let is_counted = check(connection, query)?;
    let last = connection.query_row("SELECT coalesce(max(id), 0) FROM ledger.usage", [], |row| row.get(0))?;
    Ok(Cursor { last, after: (-1, 0), is_counted })
}

/// Some of the records that have ended and that are asked for, by their beginnings, and where those after them begin.
pub(in crate::store) fn some(
    connection: &Connection,
    query: &Query,
    Cursor { last, mut after, is_counted }: Cursor,
    limit: u32,
) -> anyhow::Result<(Vec<Record>, Option<Cursor>)> {
    let filter = match query {
        // The other indices may have fewer.
        _ if is_counted => "AND ?5 IS NOT ''",
        Query { eip: Some(_), .. } => "AND address = ?5",
        Query { account: Some(_), .. } => "AND account = ?5",
        _ => "AND ?5 IS NULL",
    };
    let by = query.eip.map(|eip| eip.to_string()).or_else(|| query.account.as_ref().map(ToString::to_string));
    let mut rows = connection.prepare(&format!(
        "SELECT address, account, vm, begin, end, in_bytes, in_packets, out_bytes, out_packets, sum, id \
         FROM ledger.usage WHERE begin >= ?1 AND begin < ?2 AND (begin, id) > (?3, ?4) {filter} \
         ORDER BY begin, id LIMIT ?6"
    ))?;
    let begin = query.from.cast_signed().max(after.0);
    let to = query.to.map_or(i64::MAX, u64::cast_signed);
    let mut rows = rows.query(params![begin, to, after.0, after.1, by, limit])?;
    let (mut records, mut read) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        read += 1;
        let (payer, begin, end, carried) = fields(row)?;
        after = (begin.cast_signed(), row.get(10)?);
        let record = Record { payer, begin, end: end.cast_unsigned(), carried };
        if after.1 <= last && query.wants(&record) {
            records.push(record);
        }
    }
    Ok((records, (read == limit).then_some(Cursor { last, after, is_counted })))
}

/// Compares the records that begin in the ranges of a query with what was noted when they were written.
/// Says whether it has; where there are too many, it has not.
fn check(connection: &Connection, query: &Query) -> anyhow::Result<bool> {
    let from = (query.from - query.from % RANGE).cast_signed();
    let to = query.to.map_or(i64::MAX, u64::cast_signed);
    let mut noted = connection.prepare(
        "SELECT begin, records, sum FROM ledger.range WHERE begin >= ?1 AND begin < ?2 ORDER BY begin",
    )?;
    let noted = noted.query_map([from, to], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let noted: Vec<(i64, i64, i64)> = noted.collect::<Result<_, _>>()?;
    if noted.iter().map(|(_, records, _)| records).sum::<i64>() > CHECKED {
        return Ok(false);
    }
    // What the index says must be what stands in the record.
    let mut sums = connection.prepare(
        "SELECT record.sum FROM ledger.usage AS place INDEXED BY by_time \
         JOIN ledger.usage AS record ON record.id = place.id AND record.begin = place.begin \
         WHERE place.begin >= ?1 AND place.begin < ?2",
    )?;
    for (begin, records, sum) in noted {
        let (mut actual, mut count) = (0_i64, 0);
        let mut rows = sums.query([begin, begin + RANGE.cast_signed()])?;
        while let Some(row) = rows.next()? {
            (actual, count) = (actual.wrapping_add(row.get(0)?), count + 1);
        }
        if (actual, count) != (sum, records) {
            bail!(Damage(format!("{count} of {records} records are there of the hour from {begin} s on")));
        }
    }
    Ok(true)
}
