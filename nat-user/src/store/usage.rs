//! The ledger on disk: a database of its own, so that putting an older state back does not take bills back, attached to the
//! one of the state, so that one transaction writes to both.
//!
//! Records and what else is remembered carry checksums of their own: SQLite does not notice a byte that the disk has
//! changed. For each interval in which records begin their number and the sum of their checksums are kept, so that a
//! missing one is noticed as well when a whole range is read.

mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{anyhow, ensure};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, Statement, Transaction, params};
use twox_hash::XxHash3_128;

pub use self::read::{Cursor, NoCursor, Query};
pub(super) use self::read::{cursor, some};
use super::Damage;
use crate::config::KeyError;
use crate::model::{Carried, Name};
use crate::usage::{Entries, Ledger, Open, Payer, Record, Seconds};

/// The database's name in the directory of the configuration.
pub(super) const FILE: &str = "usage.db";

/// What tells the ledger from any other database (`PRAGMA application_id`): "eipu".
const APPLICATION: i32 = 0x6569_7075;

/// `PRAGMA user_version`.
const VERSION: i64 = 1;

/// How many readings are in a row: as many as fit on a page of the database.
const CHUNK: u32 = 120;

/// How long the ranges are whose records are counted, in seconds.
const RANGE: Seconds = 3600;

/// Makes the tables of a new ledger.
pub(super) fn make(connection: &mut Connection) -> anyhow::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE usage (id INTEGER PRIMARY KEY AUTOINCREMENT, address TEXT NOT NULL, account TEXT NOT NULL, vm TEXT, \
             begin INTEGER NOT NULL, end INTEGER NOT NULL, in_bytes INTEGER NOT NULL, in_packets INTEGER NOT NULL, \
             out_bytes INTEGER NOT NULL, out_packets INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
         CREATE INDEX by_time ON usage (begin);
         CREATE INDEX by_address ON usage (address, begin);
         CREATE INDEX by_account ON usage (account, begin);
         CREATE TABLE range (begin INTEGER PRIMARY KEY, records INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
         CREATE TABLE open (meter INTEGER PRIMARY KEY, address TEXT NOT NULL, account TEXT NOT NULL, vm TEXT, \
             begin INTEGER NOT NULL, in_bytes INTEGER NOT NULL, in_packets INTEGER NOT NULL, \
             out_bytes INTEGER NOT NULL, out_packets INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT;
         CREATE TABLE reading (chunk INTEGER PRIMARY KEY, readings BLOB NOT NULL, sum INTEGER NOT NULL) STRICT;
         CREATE TABLE account (account TEXT PRIMARY KEY, in_bytes INTEGER NOT NULL, in_packets INTEGER NOT NULL, \
             out_bytes INTEGER NOT NULL, out_packets INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID, STRICT;
         CREATE TABLE head (meters BLOB NOT NULL, at INTEGER NOT NULL, serial INTEGER NOT NULL, \
             sum INTEGER NOT NULL) STRICT;",
    )?;
    transaction.execute("INSERT INTO head VALUES (x'', 0, 0, ?1)", [head_sum(&[], 0, 0)])?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}

/// What a ledger was closed with.
#[derive(Debug, Default)]
pub struct Remembered {
    /// Of which meters it speaks: [`Dataplane::meters_id`](crate::dataplane::Dataplane::meters_id). Empty if of none.
    pub meters: Vec<u8>,
    /// When it was written last.
    pub at: Seconds,
    /// How often it was written.
    pub serial: u64,
    /// The records that were under way.
    pub open: Vec<(u32, Open, Payer)>,
    /// How much of each meter was accounted for.
    pub readings: Vec<(u32, Carried)>,
    /// What every account has carried since those meters began at zero.
    pub accounts: Vec<(Name, Carried)>,
}

/// Reads what the attached ledger remembers.
pub(super) fn remembered(connection: &Connection) -> anyhow::Result<Remembered> {
    let application: i32 = connection.query_row("PRAGMA ledger.application_id", [], |row| row.get(0))?;
    let version: i64 = connection.query_row("PRAGMA ledger.user_version", [], |row| row.get(0))?;
    ensure!(application == APPLICATION, Damage("it is another program's database".to_owned()));
    if version != VERSION {
        let what =
            format!("a newer eipnat made {FILE} (schema {version}, this one knows {VERSION}); run that one");
        return Err(KeyError::new("store.path", what).into());
    }
    let head = connection.query_row("SELECT meters, at, serial, sum FROM ledger.head", [], |row| {
        let (at, serial): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok((row.get::<_, Vec<u8>>(0)?, at.cast_unsigned(), serial.cast_unsigned(), row.get::<_, i64>(3)?))
    });
    let head = head.optional()?.filter(|(meters, at, serial, sum)| *sum == head_sum(meters, *at, *serial));
    let (meters, at, serial, _) = head.ok_or_else(|| anyhow!(Damage("its head".to_owned())))?;
    Ok(Remembered {
        meters,
        at,
        serial,
        open: open(connection)?,
        readings: readings(connection)?,
        accounts: accounts(connection)?,
    })
}

fn open(connection: &Connection) -> anyhow::Result<Vec<(u32, Open, Payer)>> {
    let mut rows = connection.prepare(
        "SELECT address, account, vm, begin, meter, in_bytes, in_packets, out_bytes, out_packets, sum FROM ledger.open",
    )?;
    let mut rows = rows.query([])?;
    let mut open = Vec::new();
    while let Some(row) = rows.next()? {
        let (payer, begin, meter, base) = fields(row)?;
        let meter = u32::try_from(meter).map_err(|_| anyhow!(Damage(format!("meter {meter}"))))?;
        open.push((meter, Open { begin, base }, payer));
    }
    Ok(open)
}

fn accounts(connection: &Connection) -> anyhow::Result<Vec<(Name, Carried)>> {
    let mut rows = connection
        .prepare("SELECT account, in_bytes, in_packets, out_bytes, out_packets, sum FROM ledger.account")?;
    let mut rows = rows.query([])?;
    let mut accounts = Vec::new();
    while let Some(row) = rows.next()? {
        let account: String = row.get(0)?;
        let carried = counts(row, 1)?;
        let name = account.parse().ok().filter(|_| row.get(5) == Ok(account_sum(&account, carried)));
        accounts.push((name.ok_or_else(|| anyhow!(Damage(format!("account {account:?}"))))?, carried));
    }
    Ok(accounts)
}

fn account_sum(account: &str, carried: Carried) -> i64 {
    hash(&[format!("{account} {carried:?}").as_bytes()])
}

fn readings(connection: &Connection) -> anyhow::Result<Vec<(u32, Carried)>> {
    let mut rows = connection.prepare("SELECT chunk, readings, sum FROM ledger.reading")?;
    let mut rows = rows.query([])?;
    let mut readings = Vec::new();
    while let Some(row) = rows.next()? {
        let (chunk, blob, sum): (u32, Vec<u8>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (numbers, _) = blob.as_chunks();
        let numbers: Vec<u64> = numbers.iter().copied().map(u64::from_ne_bytes).collect();
        ensure!(
            sum == hash(&[chunk.to_string().as_bytes(), &blob]) && numbers.len() == 4 * CHUNK as usize,
            Damage(format!("readings from {} on", chunk * CHUNK))
        );
        let carried =
            numbers.chunks_exact(4).map(|numbers| carried([numbers[0], numbers[1], numbers[2], numbers[3]]));
        readings.extend((chunk * CHUNK..).zip(carried).filter(|(_, reading)| *reading != Carried::default()));
    }
    Ok(readings)
}

/// Writes entries down.
pub(super) fn write(
    transaction: &Transaction<'_>,
    entries: &Entries,
    ledger: &Ledger,
    meters: &[u8],
    at: Seconds,
) -> rusqlite::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    write_records(transaction, &entries.records)?;
    let mut put = transaction
        .prepare("INSERT OR REPLACE INTO ledger.open VALUES (?5, ?1, ?2, ?3, ?4, ?6, ?7, ?8, ?9, ?10)")?;
    let mut delete = transaction.prepare("DELETE FROM ledger.open WHERE meter = ?1")?;
    for (meter, open) in &entries.open {
        let Some((Open { begin, base }, payer)) = open else {
            delete.execute([meter])?;
            continue;
        };
        put_row(&mut put, payer, *begin, (*meter).into(), *base)?;
    }
    write_readings(transaction, entries, ledger)?;
    write_accounts(transaction, entries, ledger)?;
    let (before, serial) = (ledger.serial(), ledger.serial() + 1);
    let changed = transaction.execute(
        "UPDATE ledger.head SET meters = ?1, at = ?2, serial = ?3, sum = ?4 WHERE serial = ?5",
        params![
            meters,
            at.cast_signed(),
            serial.cast_signed(),
            head_sum(meters, at, serial),
            before.cast_signed()
        ],
    )?;
    // An earlier writing that seemed to fail may stand all the same: then this one must not.
    if changed != 1 {
        return Err(rusqlite::Error::StatementChangedRows(changed));
    }
    Ok(())
}

/// Writes a row that [`fields`] reads, and answers its checksum.
fn put_row(
    put: &mut Statement<'_>,
    payer: &Payer,
    begin: Seconds,
    number: u64,
    carried: Carried,
) -> rusqlite::Result<i64> {
    let sum = sum(payer, begin, number, carried);
    put.execute(params![
        payer.address.to_string(),
        payer.account.as_str(),
        payer.vm.as_ref().map(Name::as_str),
        begin.cast_signed(),
        number.cast_signed(),
        carried.in_bytes.cast_signed(),
        carried.in_packets.cast_signed(),
        carried.out_bytes.cast_signed(),
        carried.out_packets.cast_signed(),
        sum
    ])?;
    Ok(sum)
}

fn write_records(transaction: &Transaction<'_>, records: &[Record]) -> rusqlite::Result<()> {
    let mut insert = transaction
        .prepare("INSERT INTO ledger.usage VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?;
    let mut ranges = BTreeMap::<Seconds, (i64, i64)>::new();
    for Record { payer, begin, end, carried } in records {
        let sum = put_row(&mut insert, payer, *begin, *end, *carried)?;
        let (count, all) = ranges.entry(begin - begin % RANGE).or_default();
        (*count, *all) = (*count + 1, all.wrapping_add(sum));
    }
    change_ranges(transaction, ranges)
}

/// Adds to the number and the sum that are noted of ranges.
fn change_ranges(
    transaction: &Transaction<'_>,
    changes: BTreeMap<Seconds, (i64, i64)>,
) -> rusqlite::Result<()> {
    let mut noted = transaction.prepare("SELECT records, sum FROM ledger.range WHERE begin = ?1")?;
    let mut put = transaction.prepare("INSERT OR REPLACE INTO ledger.range VALUES (?1, ?2, ?3)")?;
    for (begin, (count, more)) in changes {
        let begin = begin.cast_signed();
        let noted = noted.query_row([begin], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
        let (records, sum) = noted.optional()?.unwrap_or_default();
        put.execute(params![begin, records + count, sum.wrapping_add(more)])?;
    }
    Ok(())
}

fn write_readings(transaction: &Transaction<'_>, entries: &Entries, ledger: &Ledger) -> rusqlite::Result<()> {
    let chunks: BTreeSet<u32> = entries.readings.keys().map(|meter| meter / CHUNK).collect();
    let mut put = transaction.prepare("INSERT OR REPLACE INTO ledger.reading VALUES (?1, ?2, ?3)")?;
    for chunk in chunks {
        let meters = (chunk * CHUNK..).take(CHUNK as usize);
        let readings = meters
            .map(|meter| entries.readings.get(&meter).copied().unwrap_or_else(|| ledger.reading(meter)));
        let blob: Vec<u8> = readings
            .flat_map(|Carried { in_bytes, in_packets, out_bytes, out_packets }| {
                [in_bytes, in_packets, out_bytes, out_packets].map(u64::to_ne_bytes).concat()
            })
            .collect();
        let sum = hash(&[chunk.to_string().as_bytes(), &blob]);
        put.execute(params![chunk, blob, sum])?;
    }
    Ok(())
}

fn write_accounts(transaction: &Transaction<'_>, entries: &Entries, ledger: &Ledger) -> rusqlite::Result<()> {
    if entries.is_anew() {
        return transaction.execute("DELETE FROM ledger.account", []).map(drop);
    }
    let mut put =
        transaction.prepare("INSERT OR REPLACE INTO ledger.account VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for (account, more) in &entries.accounts {
        let carried = ledger.accounts().get(account).copied().unwrap_or_default().and(*more);
        put.execute(params![
            account.as_str(),
            carried.in_bytes.cast_signed(),
            carried.in_packets.cast_signed(),
            carried.out_bytes.cast_signed(),
            carried.out_packets.cast_signed(),
            account_sum(account.as_str(), carried)
        ])?;
    }
    Ok(())
}

/// Removes some of the records that began before a time; says whether there may be more.
pub(super) fn forget(connection: &mut Connection, before: Seconds, limit: u32) -> rusqlite::Result<bool> {
    let transaction = connection.transaction()?;
    let (mut ids, mut ranges) = (Vec::new(), BTreeMap::<Seconds, (i64, i64)>::new());
    {
        let mut old = transaction
            .prepare("SELECT id, begin, sum FROM ledger.usage WHERE begin < ?1 ORDER BY begin LIMIT ?2")?;
        let mut old = old.query(params![before.cast_signed(), limit])?;
        while let Some(row) = old.next()? {
            let (begin, sum): (i64, i64) = (row.get(1)?, row.get(2)?);
            ids.push(row.get::<_, i64>(0)?);
            let begin = begin.cast_unsigned();
            let (count, all) = ranges.entry(begin - begin % RANGE).or_default();
            (*count, *all) = (*count - 1, all.wrapping_sub(sum));
        }
        let mut delete = transaction.prepare("DELETE FROM ledger.usage WHERE id = ?1")?;
        for id in &ids {
            delete.execute([id])?;
        }
        change_ranges(&transaction, ranges)?;
        transaction.execute("DELETE FROM ledger.range WHERE records = 0 AND sum = 0", [])?;
    }
    transaction.commit()?;
    Ok(ids.len() == limit as usize)
}

/// Address, account, VM, beginning, a number, and counts: of a row that begins so, and whose tenth column is its checksum.
fn fields(row: &Row<'_>) -> anyhow::Result<(Payer, Seconds, i64, Carried)> {
    let damaged = |what: &str| anyhow!(Damage(format!("a record's {what}")));
    let (address, account, vm): (String, String, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let payer = Payer {
        address: address.parse().map_err(|_| damaged("address"))?,
        account: account.parse().map_err(|_| damaged("account"))?,
        vm: vm.map(|vm| vm.parse()).transpose().map_err(|_| damaged("VM"))?,
    };
    let (begin, number): (i64, i64) = (row.get(3)?, row.get(4)?);
    let (begin, carried) = (begin.cast_unsigned(), counts(row, 5)?);
    if sum(&payer, begin, number.cast_unsigned(), carried) != row.get::<_, i64>(9)? {
        return Err(damaged(&format!("checksum, of {address} from {begin} s on")));
    }
    Ok((payer, begin, number, carried))
}

/// Counts in a row from a column on.
fn counts(row: &Row<'_>, from: usize) -> rusqlite::Result<Carried> {
    let mut numbers = [0; 4];
    for (at, number) in (from..).zip(&mut numbers) {
        *number = row.get::<_, i64>(at)?.cast_unsigned();
    }
    Ok(carried(numbers))
}

const fn carried([in_bytes, in_packets, out_bytes, out_packets]: [u64; 4]) -> Carried {
    Carried { in_bytes, in_packets, out_bytes, out_packets }
}

fn sum(payer: &Payer, begin: Seconds, number: u64, carried: Carried) -> i64 {
    let Payer { address, account, vm } = payer;
    let vm = vm.as_ref().map_or("", Name::as_str);
    hash(&[format!("{address} {account} {vm} {begin} {number} {carried:?}").as_bytes()])
}

fn head_sum(meters: &[u8], at: Seconds, serial: u64) -> i64 {
    hash(&[meters, &at.to_be_bytes(), &serial.to_be_bytes()])
}

fn hash(parts: &[&[u8]]) -> i64 {
    let [half, _]: [i64; 2] = bytemuck::cast(XxHash3_128::oneshot(&parts.concat()));
    half
}

/// Says what to do about a ledger that cannot be used.
pub(super) fn explained(path: &Path, error: anyhow::Error) -> anyhow::Error {
    if error.is::<KeyError>() {
        return error;
    }
    let code = error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code);
    if let Some(
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::CannotOpen | ErrorCode::DiskFull,
    ) = code
    {
        return super::explained(path, error);
    }
    let what = format!(
        "{} is damaged ({error:#}) and nothing was changed; move it elsewhere, and the daemon begins a new ledger",
        path.display()
    );
    KeyError::new("store.path", what).into()
}
