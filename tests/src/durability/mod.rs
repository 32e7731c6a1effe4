//! What a power cut leaves of a store: every write and every sync of a real run, played again up to any instant.

mod disk;
mod trace;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use nat_user::model::{Allocation, Command, Name, Spec, Target};
use nat_user::store::Store;

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
    for number in 0..commands {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(number);
        // What is refused changes nothing.
        if let Ok(change) = store.model().plan(&command(number), now)
            && !change.is_nothing()
        {
            let revision = store.commit(change)?;
            committed(revision, fingerprint(&store))?;
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

/// A number that stands for everything in the store.
#[must_use]
pub fn fingerprint(store: &Store) -> u64 {
    let model = store.model();
    let (eips, vms): (Vec<_>, Vec<_>) = (model.eips().collect(), model.vms().collect());
    let (closing, pools): (Vec<_>, Vec<_>) =
        (model.closing().collect(), model.pools(SystemTime::UNIX_EPOCH).collect());
    let mut hasher = DefaultHasher::new();
    format!("{} {eips:?} {vms:?} {closing:?} {pools:?}", store.revision()).hash(&mut hasher);
    hasher.finish()
}
