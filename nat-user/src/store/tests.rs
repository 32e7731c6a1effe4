use std::fs;
use std::time::{Duration, SystemTime};

use super::*;
use crate::model::{Allocation, Carried, Command, Name, PoolSpec};
use crate::usage::Payer;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn spec() -> Spec {
    let pool = PoolSpec {
        name: Name::default_one(),
        cidrs: vec!["203.0.113.0/24".parse().unwrap()],
        reserve: [].into(),
        reuse_delay: Duration::from_mins(1),
    };
    Spec { pools: vec![pool], ..Spec::default() }
}

fn open(directory: &Path) -> anyhow::Result<Store> {
    Store::open(directory, spec(), 16)
}

fn allocate(store: &mut Store) {
    let command = Command::Allocate(Allocation::default());
    let change = store.model().plan(&command, NOW).unwrap();
    store.commit(change).unwrap();
}

/// A store of some revisions: EIPs, a VM, an address that was given back and a meter to be read.
fn filled(directory: &Path) -> Store {
    let mut store = open(directory).unwrap();
    (0..3).for_each(|_| allocate(&mut store));
    let eip = [203, 0, 113, 0].into();
    let vm = Command::CreateVm {
        name: "web".parse().unwrap(),
        private_ip: [10, 0, 0, 2].into(),
        account: None,
        public_ip: true,
        pool: None,
    };
    let attach = Command::Attach { eip, target: "web".parse().unwrap(), reassign: false };
    for command in [vm, attach, Command::Release([203, 0, 113, 1].into())] {
        let change = store.model().plan(&command, NOW).unwrap();
        store.commit(change).unwrap();
    }
    store
}

fn state(store: &Store) -> (u64, String) {
    let model = store.model();
    let eips: Vec<_> = model.eips().collect();
    let vms: Vec<_> = model.vms().collect();
    let closing: Vec<_> = model.closing().collect();
    (store.revision(), format!("{eips:?} {vms:?} {closing:?} {:?}", model.pools(NOW).collect::<Vec<_>>()))
}

#[test]
fn what_was_committed_is_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(directory.path());
    let before = state(&store);
    assert_eq!(before.0, 6);
    drop(store);
    assert_eq!(state(&open(directory.path()).unwrap()), before);
}

#[test]
fn one_daemon_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.starts_with("store.path: another daemon has "), "{error}");
    drop(store);
    open(directory.path()).unwrap();
}

/// Each byte of the file in turn is changed: what is opened is the whole state, or nothing is.
#[test]
fn a_flipped_byte_gives_the_whole_state_or_a_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let whole = state(&filled(directory.path()));
    let path = directory.path().join(FILE);
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match open(directory.path()) {
            Ok(store) => assert_eq!(state(&store), whole, "byte {at}"),
            Err(error) => {
                refused += 1;
                let error = error.to_string();
                assert!(error.starts_with("store.path: ") && !error.contains('\n'), "{error}");
                assert_eq!(fs::read(&path).unwrap(), bad, "byte {at}: what is refused is not touched");
            }
        }
    }
    // Most of a small database's pages are empty.
    assert!(refused > 500, "{refused} of {} refused", good.len());
}

#[test]
fn a_cut_file_gives_the_whole_state_or_a_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let whole = state(&filled(directory.path()));
    let path = directory.path().join(FILE);
    let good = fs::read(&path).unwrap();
    for length in (0..good.len()).step_by(97) {
        fs::write(&path, &good[..length]).unwrap();
        if let Ok(store) = open(directory.path()) {
            assert_eq!(state(&store), whole, "cut to {length}");
        }
        assert_eq!(fs::read(&path).unwrap(), &good[..length], "cut to {length}: not touched");
    }
}

#[test]
fn other_databases_and_newer_ones_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 3; CREATE TABLE t (x)").unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("another program's database"), "{error}");
    fs::remove_file(&path).unwrap();
    drop(filled(directory.path()));
    Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    let error = open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("a newer eipnat made the store (schema 99, this one knows 1)"), "{error}");
}

/// The database of the first release, as it was written then.
#[test]
fn a_store_of_schema_1_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    Connection::open(&path).unwrap().execute_batch(include_str!("tests/schema-1.sql")).unwrap();
    let mut store = open(directory.path()).unwrap();
    assert_eq!((store.revision(), store.model().eips().count(), store.model().vms().count()), (6, 2, 1));
    assert_eq!(store.model().bound(), 1);
    allocate(&mut store);
    drop(store);
    assert_eq!(open(directory.path()).unwrap().revision(), 7);
}

#[test]
fn what_is_restored_is_what_was_backed_up() {
    let directory = tempfile::tempdir().unwrap();
    let (store, backup) = (directory.path().join("store"), directory.path().join("backup"));
    let mut running = filled(&store);
    let before = state(&running);
    write_backup(&backup, &running.backup().unwrap()).unwrap();
    allocate(&mut running);
    let error = restore(&store, &backup).unwrap_err().to_string();
    assert!(error.contains("another daemon has"), "{error}");
    drop(running);
    let (old, revision) = restore(&store, &backup).unwrap();
    assert_eq!((old, revision), (Some(store.join("eipnat.db.old")), 6));
    assert_eq!(state(&open(&store).unwrap()), before);

    let mut torn = fs::read(&backup).unwrap();
    torn.truncate(5000);
    fs::write(&backup, torn).unwrap();
    let error = restore(&store, &backup).unwrap_err().to_string();
    assert!(error.contains("is no whole backup"), "{error}");
    assert_eq!(state(&open(&store).unwrap()), before);
}

#[test]
fn a_restore_that_fails_leaves_the_store_and_takes_no_other_database() {
    let directory = tempfile::tempdir().unwrap();
    let (store, backup) = (directory.path().join("store"), directory.path().join("backup"));
    let mut running = filled(&store);
    let before = state(&running);
    write_backup(&backup, &running.backup().unwrap()).unwrap();
    drop(running);
    // Nothing can be written where the new one has to be first.
    fs::create_dir(store.join("eipnat.db.part")).unwrap();
    assert!(restore(&store, &backup).is_err());
    assert!(!store.join("eipnat.db.old").exists(), "another name of the very store");
    assert_eq!(state(&open(&store).unwrap()), before);

    let foreign = directory.path().join("foreign");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let error = restore(&store, &foreign).unwrap_err().to_string();
    assert!(error.contains("is no whole backup"), "{error}");
    fs::copy(&foreign, store.join(FILE)).unwrap();
    let error = open(&store).unwrap_err().to_string();
    assert!(error.contains("another program's database"), "{error}");
}

#[test]
fn too_little_room_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path(), spec(), 200).unwrap();
    let lines: Vec<crate::model::Line> = (0..100_u8)
        .map(|number| crate::model::Line {
            number: number.into(),
            eip: [203, 0, 113, number].into(),
            private_ip: [10, 0, 0, number].into(),
            account: None,
        })
        .collect();
    let change = store.model().plan_import(&lines, NOW).unwrap();
    store.commit(change).unwrap();
    drop(store);
    // Of 64 more there are meters, but no room in the maps.
    for capacity in [16, 36, 99] {
        let error = Store::open(directory.path(), spec(), capacity).unwrap_err().to_string();
        assert!(error.starts_with(&format!("datapath.max_bindings: {capacity} is too few")), "{error}");
    }
    Store::open(directory.path(), spec(), 100).unwrap();
}

/// Of a commit that a kill cut off; SQLite would play it into whatever has the database's name.
#[test]
fn the_journal_of_a_removed_database_does_not_come_into_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("eipnat.db-journal");
    let mut store = filled(directory.path());
    drop(store);
    let connection = Connection::open(directory.path().join(FILE)).unwrap();
    connection
        .execute_batch(
            "PRAGMA cache_spill = 1; PRAGMA cache_size = 1; BEGIN; UPDATE record SET value = value || ' ';",
        )
        .unwrap();
    let hot = fs::read(&journal).unwrap();
    assert!(hot.len() > 512, "{} bytes are no journal", hot.len());
    drop(connection);
    fs::remove_file(directory.path().join(FILE)).unwrap();
    fs::write(&journal, hot).unwrap();
    store = open(directory.path()).unwrap();
    assert_eq!((store.revision(), store.model().eips().count()), (0, 0));
}

/// A ledger with records that have ended and one that is under way.
fn billed(directory: &Path) {
    let mut store = open(directory).unwrap();
    let mut ledger = Ledger::new(Duration::from_hours(1), NOW);
    let payer = |host| Payer {
        address: [203, 0, 113, host].into(),
        account: "acme".parse().unwrap(),
        vm: Some("web".parse().unwrap()),
    };
    for number in 1..40_u8 {
        let now = NOW + Duration::from_secs(900 * u64::from(number));
        let reading = Carried { in_bytes: 1000 * u64::from(number), out_packets: 1, ..Carried::default() };
        let mut entries = Entries::default();
        ledger.account(&mut entries, u32::from(number % 3), reading, now, || Some(payer(number % 3)));
        store.note(&Noted { entries: &entries, ledger: &ledger, meters: &[7; 16], at: 1 }).unwrap();
        ledger.apply(entries);
    }
}

/// Everything that a ledger tells, or why it tells nothing.
fn told(directory: &Path) -> anyhow::Result<String> {
    let mut store = open(directory)?;
    let remembered = format!("{:?}", store.take_remembered());
    let (query, mut records) = (Query::default(), Vec::new());
    let mut next = Some(store.records_from(&query)?);
    while let Some(from) = next {
        let (some, after) = store.some_records(&query, from, 10)?;
        records.extend(some);
        next = after;
    }
    // The order of those that began at one time is no part of the bill.
    records.sort_by_key(|record| format!("{record:?}"));
    Ok(format!("{records:?} {remembered}"))
}

#[test]
fn a_flipped_byte_in_the_ledger_gives_the_whole_bill_or_a_refusal() {
    let directory = tempfile::tempdir().unwrap();
    billed(directory.path());
    let whole = told(directory.path()).unwrap();
    let path = directory.path().join(usage::FILE);
    let good = fs::read(&path).unwrap();
    let (mut refused, mut wrong) = (0, Vec::new());
    for at in 0..good.len() {
        // Empty space says nothing.
        if good[at] == 0 && at % 16 != 0 {
            continue;
        }
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match told(directory.path()) {
            Ok(told) if told != whole => {
                let differs = told.bytes().zip(whole.bytes()).position(|(a, b)| a != b).unwrap_or_default();
                wrong.push((at, told[differs.saturating_sub(80)..].chars().take(200).collect::<String>()));
            }
            Ok(_) => {}
            Err(error) => {
                refused += 1;
                assert!(!format!("{error:#}").contains('\n'), "{error:#}");
            }
        }
    }
    assert_eq!(wrong, Vec::<(usize, String)>::new(), "bytes that change the bill unseen");
    assert!(refused > 1000, "{refused} of {} refused", good.len());
}

#[test]
fn a_cut_ledger_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    billed(directory.path());
    let whole = told(directory.path()).unwrap();
    let path = directory.path().join(usage::FILE);
    let good = fs::read(&path).unwrap();
    for length in (0..good.len()).step_by(997) {
        fs::write(&path, &good[..length]).unwrap();
        match told(directory.path()) {
            Ok(told) => assert_eq!(told, whole, "cut to {length}"),
            Err(error) => assert!(format!("{error:#}").contains("usage.db"), "{error:#}"),
        }
    }
}

/// So many that they are put into words on another thread.
#[test]
fn a_big_change_is_read_again_as_it_was_written() {
    let mut spec = spec();
    spec.pools[0].cidrs = vec!["203.0.0.0/16".parse().unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path(), spec.clone(), 20_000).unwrap();
    let line = |number: u32| crate::model::Line {
        number: number.into(),
        eip: (0xcb00_0000 + number).into(),
        private_ip: (0x0a00_0000 + number).into(),
        account: None,
    };
    let lines: Vec<_> = (0..10_000).map(line).collect();
    let change = store.model().plan_import(&lines, NOW).unwrap();
    store.commit(change).unwrap();
    let written = store.model().eips().cloned().collect::<Vec<_>>();
    drop(store);
    let store = Store::open(directory.path(), spec, 20_000).unwrap();
    assert_eq!(store.model().eips().cloned().collect::<Vec<_>>(), written);
    assert_eq!((store.revision(), store.model().bound()), (1, 10_000));
}
