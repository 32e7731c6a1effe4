//! What a power cut, a full disk and many clients at once leave of the store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use proptest::prelude::*;
use tempfile::TempDir;
use tests::durability::{Disk, Event, fingerprint, ledger_adds_up, open, read_trace};
use tests::lab::beside_this_program;

/// How many commands the traced run carries out.
const COMMANDS: &str = "150";

/// What a store's writer did to the disk.
#[derive(Debug)]
struct Run {
    events: Vec<Event>,
    /// Where the store was. It is played again in the same place: where a transaction is over two databases, the journals
    /// name a file by its whole path.
    store: PathBuf,
    _directory: TempDir,
}

impl Run {
    /// Leaves in the store's place what a power cut leaves of it.
    fn cut(&self, disk: &Disk, chance: &mut dyn FnMut() -> bool) -> Result<()> {
        if self.store.exists() {
            fs::remove_dir_all(&self.store)?;
        }
        fs::create_dir(&self.store)?;
        disk.cut(&self.store, chance)
    }
}

fn trace() -> Result<Run> {
    let directory = tempfile::tempdir()?;
    let (store, trace) = (directory.path().join("store"), directory.path().join("trace"));
    let calls =
        "openat,close,write,pwrite64,ftruncate,fsync,fdatasync,unlink,rename,renameat,pwritev,writev,mmap";
    // Lines of stdout are acknowledgements; they must not go through a pipe's buffer.
    let output = Command::new("strace")
        .args(["-f", "-xx", "-s", "10000000", "-e", &format!("trace={calls}"), "-o"])
        .arg(&trace)
        .arg(beside_this_program("eipnat-store-writer")?)
        .arg(&store)
        .arg(COMMANDS)
        .output()
        .context("strace cannot be run; `cargo xtask setup --profile test` installs it")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events = read_trace(&fs::read_to_string(&trace)?, &store.to_string_lossy())?;
    Ok(Run { events, store, _directory: directory })
}

/// The one run, for one test at a time.
fn traced() -> MutexGuard<'static, Run> {
    static RUN: LazyLock<Mutex<Run>> = LazyLock::new(|| Mutex::new(trace().expect("a traced run")));
    RUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Revision and fingerprint of each acknowledged commit among events.
fn acknowledged(events: &[Event]) -> Vec<(u64, u64)> {
    let parse = |said: &str| {
        let (revision, fingerprint) = said.split_once(' ')?;
        Some((revision.parse().ok()?, fingerprint.parse().ok()?))
    };
    events
        .iter()
        .filter_map(|event| match event {
            Event::Said(said) => parse(said),
            _ => None,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Whenever the power goes, what is on disk is what was acknowledged last, or the commit that was under way.
    #[test]
    fn a_power_cut_loses_nothing_acknowledged(instant in any::<prop::sample::Index>(), seed in any::<u64>()) {
        let run = traced();
        let (events, directory) = (&run.events, &run.store);
        let all = acknowledged(events);
        let instant = instant.index(events.len());
        let (past, mut disk) = (&events[..instant], Disk::default());
        for event in past {
            disk.play(event);
        }
        let mut state = seed | 1;
        let mut chance = || {
            // xorshift64
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state & 4 != 0
        };
        run.cut(&disk, &mut chance).unwrap();
        let done = acknowledged(past).len();
        if !directory.join("eipnat.db").exists() {
            // The power went while the store was made, before anything was promised.
            prop_assert_eq!(done, 0);
            return Ok(());
        }
        let failed = |error| TestCaseError::fail(format!("{error:#}"));
        let mut store = open(directory).map_err(failed)?;
        let found = (store.revision(), fingerprint(&store).map_err(failed)?);
        prop_assert!(ledger_adds_up(&mut store).map_err(failed)?, "the ledger does not add up");
        let before = done.checked_sub(1).map_or(0, |last| all[last].0);
        let allowed = store.revision() == before || all.get(done) == Some(&found);
        prop_assert!(allowed, "revision {} after {before} was acknowledged", store.revision());
        prop_assert!(store.revision() == 0 || all.contains(&found), "another state than at revision {}", found.0);
    }
}

#[test]
fn the_trace_tells_of_commits_and_syncs() -> Result<()> {
    let run = traced();
    let events = &run.events;
    let all = acknowledged(events);
    assert!(all.len() > 60, "{} commits", all.len());
    assert!(all.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1), "one revision after another");
    let syncs = events.iter().filter(|event| matches!(event, Event::Sync { .. })).count();
    assert!(syncs > all.len(), "{syncs} syncs for {} commits", all.len());
    // Without a cut, everything is there.
    let mut disk = Disk::default();
    for event in events {
        disk.play(event);
    }
    run.cut(&disk, &mut || true)?;
    let store = open(&run.store)?;
    assert_eq!(Some(&(store.revision(), fingerprint(&store)?)), all.last());
    Ok(())
}
