//! What a power cut leaves of a store: every write and every sync of a real run, played again up to any instant.

mod disk;
mod trace;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use nat_user::model::{Allocation, Carried, Command, Name, Spec, Target};
use nat_user::store::{Noted, Query, Store};
use nat_user::usage::{Entries, Ledger, Payer, Record};

use crate::lab::default_pool;

pub use disk::Disk;
pub use trace::{Event, read_trace};

/// How many bindings the stores of these tests have room for.
const CAPACITY: u32 = 64;

/// Opens the store of these tests.
///
/// # Errors
/// As [`Store::open`].
pub fn open(directory: &Path) -> Result<Store> {
    let pool = default_pool("203.0.113.0/27", Duration::from_secs(3))?;
    Store::open(directory, Spec { pools: vec![pool], ..Spec::default() }, CAPACITY)
}

/// Commits changes one after another, and tells `committed` of each, with its revision and a fingerprint of the state.
///
/// # Errors
/// When the store cannot be written, or `committed` fails.
pub fn write(
    directory: &Path,
    commands: u64,
    mut committed: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let mut store = open(directory)?;
    let mut ledger = Ledger::new(Duration::from_hours(1), SystemTime::UNIX_EPOCH);
    for number in 0..commands {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        // What is refused changes nothing.
        if let Ok(change) = store.model().plan(&command(number), now)
            && !change.is_nothing()
        {
            let (mut entries, meter) = (Entries::default(), METERS[(number % 2) as usize]);
            // A record in each commit, of a byte more than the one before: who has lost one, or has one twice, has another sum.
            let reading = ledger.reading(meter);
            let reading = Carried { in_bytes: reading.in_bytes + number, ..reading };
            ledger.end(&mut entries, meter, reading, now, &payer(), false);
            let noted = Noted { entries: &entries, ledger: &ledger, meters: &[1; 16], at: number };
            let revision = store.commit_with(change, Some(&noted))?;
            ledger.apply(entries);
            committed(revision, fingerprint(&store)?)?;
        }
    }
    Ok(())
}

/// The commands of a run: always the same, of every kind.
fn command(number: u64) -> Command {
    let last = |modulus: u64| u8::try_from(number * 7 % modulus).unwrap_or_default();
    let eip = Ipv4Addr::new(203, 0, 113, last(11));
    let private_ip = Ipv4Addr::new(10, 0, 0, last(5));
    let name = || Name::default_one();
    match number % 6 {
        0 | 3 => Command::Allocate(Allocation::default()),
        1 => Command::Attach { eip, target: Target::PrivateIp(private_ip), reassign: true },
        2 => Command::CreateVm { name: name(), private_ip, account: None, public_ip: true, pool: None },
        4 if number % 12 == 4 => Command::DestroyVm(name()),
        4 => Command::Detach(eip),
        _ => Command::Release(eip),
    }
}

/// The meters that the runs count on: their readings are written to different places.
const METERS: [u32; 2] = [3, 5000];

fn payer() -> Payer {
    Payer { address: Ipv4Addr::new(203, 0, 113, 1), account: Name::default_one(), vm: None }
}

/// Every record in the store's ledger.
///
/// # Errors
/// When it cannot be read.
pub fn records(store: &Store) -> Result<Vec<Record>> {
    let query = Query::default();
    let (mut records, mut next) = (Vec::new(), Some(store.records_from(&query)?));
    while let Some(from) = next {
        let (some, after) = store.some_records(&query, from, 16)?;
        records.extend(some);
        next = after;
    }
    Ok(records)
}

/// Whether the records of a store that was just opened come to what it has accounted for.
///
/// # Errors
/// When the ledger cannot be read.
pub fn ledger_adds_up(store: &mut Store) -> Result<bool> {
    let billed: u64 = records(store)?.iter().map(|record| record.carried.in_bytes).sum();
    let accounted: u64 = store.take_remembered().readings.iter().map(|(_, reading)| reading.in_bytes).sum();
    Ok(billed == accounted)
}

/// A number that stands for everything in the store.
///
/// # Errors
/// When its ledger cannot be read.
pub fn fingerprint(store: &Store) -> Result<u64> {
    let model = store.model();
    let (eips, vms): (Vec<_>, Vec<_>) = (model.eips().collect(), model.vms().collect());
    let (closing, pools): (Vec<_>, Vec<_>) =
        (model.closing().collect(), model.pools(SystemTime::UNIX_EPOCH).collect());
    let mut hasher = DefaultHasher::new();
    let records = records(store)?;
    format!("{} {eips:?} {vms:?} {closing:?} {pools:?} {records:?}", store.revision()).hash(&mut hasher);
    Ok(hasher.finish())
}
