//! docs/rfc-compliance.md answers every requirement, and names only tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::fixtures;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

/// The cells of each row of the document's tables.
fn tables() -> Result<Vec<Vec<String>>> {
    let file = root().join("docs/rfc-compliance.md");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let row = |line: &str| {
        let cells = line.strip_prefix('|')?.strip_suffix('|')?.split('|');
        Some(cells.map(|cell| cell.trim().to_owned()).collect())
    };
    Ok(text.lines().filter_map(row).collect())
}

/// Requirement, answer and proof of each row that answers a requirement.
fn rows() -> Result<Vec<[String; 3]>> {
    let answers = tables()?
        .into_iter()
        .filter(|cells| cells.len() == 4 && cells[0] != "ID" && cells[0].starts_with(['A', 'F', 'G']));
    Ok(answers.map(|cells| [cells[0].clone(), cells[2].clone(), cells[3].clone()]).collect())
}

/// The rows about real programs, which stand in the table of three columns.
fn programs() -> Result<Vec<Vec<String>>> {
    let is_content = |cells: &Vec<String>| cells.len() == 3 && cells[0] != "program" && cells[0] != "---";
    Ok(tables()?.into_iter().filter(is_content).collect())
}

/// Names in backticks.
fn names(proof: &str) -> impl Iterator<Item = &str> {
    proof.split('`').skip(1).step_by(2)
}

#[test]
fn every_requirement_is_answered() -> Result<()> {
    let rows = rows()?;
    let expected: Vec<String> = [("A", 21), ("F", 8), ("G", 13)]
        .iter()
        .flat_map(|(of, last)| (1..=*last).map(move |n| format!("{of}{n}")))
        .collect();
    let answered: Vec<&String> = rows.iter().map(|[id, ..]| id).collect();
    ensure!(answered == expected.iter().collect::<Vec<_>>(), "the document answers {answered:?}");
    for [id, answer, _] in &rows {
        ensure!(["met", "different", "not yet"].contains(&answer.as_str()), "{id} is answered by `{answer}`");
    }
    Ok(())
}

/// Whether a function of that name is a test that runs: the attributes and comments before it say so.
fn is_test(sources: &str, name: &str) -> bool {
    let Some((before, _)) = sources.split_once(&format!("fn {name}(")) else { return false };
    let attributes = before.rsplit('\n').skip(1).map(str::trim);
    let attributes = attributes.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<_> = attributes.collect();
    attributes.iter().any(|line| matches!(*line, "#[test]" | "#[tokio::test]"))
        && !attributes.iter().any(|line| line.starts_with("#[ignore") || line.starts_with("#[cfg"))
}

#[test]
fn what_does_not_run_is_no_test() {
    let sources = "#[test]\n/// Says so.\nfn a() {}\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\nfn c() {}\n
        #[cfg(any())]\n#[test]\nfn d() {}\n// #[test]\nfn e() {}\n";
    let tests = ["a", "b", "c", "d", "e", "f"].map(|name| is_test(sources, name));
    assert_eq!(tests, [true, false, false, false, false, false]);
}

/// The text of all programs in these directories.
fn sources(directories: &[&str]) -> Result<String> {
    let mut sources = String::new();
    for directory in directories {
        for entry in fs::read_dir(root().join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &fs::read_to_string(path)?;
            }
        }
    }
    Ok(sources)
}

/// A name proves something only as what it stands for: a fixture that says so itself, or, where checksums are
/// computed, a test of the translator's own; or, where the node makes packets, one of the slow path's or with real programs.
#[test]
fn every_requirement_is_proved_by_what_it_names() -> Result<()> {
    let fixtures = fixtures::all();
    let units = sources(&["nat-common/src", "nat-common/tests"])?;
    let makers = sources(&["nat-user/src/slowpath/tests", "tests/tests"])?;
    for [id, answer, proof] in rows()? {
        ensure!(answer != "met" || names(&proof).next().is_some(), "{id} is met, but by which test?");
        for name in names(&proof) {
            match fixtures.iter().find(|fixture| fixture.name == name) {
                Some(fixture) => {
                    ensure!(
                        fixture.meets.contains(&id.as_str()),
                        "{id} names `{name}`, which claims {:?}",
                        fixture.meets
                    );
                }
                None => ensure!(
                    id.starts_with('F') && is_test(&units, name)
                        || id.starts_with('G') && is_test(&makers, name),
                    "{id} names `{name}`, which proves nothing"
                ),
            }
        }
    }
    Ok(())
}

#[test]
fn every_program_is_shown_by_tests_that_run() -> Result<()> {
    let tests = sources(&["tests/tests"])?;
    let mut named = 0;
    for row in programs()? {
        let proof = row.last().context("a row without cells")?;
        ensure!(names(proof).next().is_some(), "no test shows {row:?}");
        for name in names(proof) {
            ensure!(is_test(&tests, name), "{row:?} names `{name}`, which is no test");
            named += 1;
        }
    }
    ensure!(named >= 10, "only {named} tests are found");
    Ok(())
}

#[test]
fn every_fixture_that_meets_a_requirement_names_one_that_exists() -> Result<()> {
    let rows = rows()?;
    for fixture in fixtures::all() {
        for id in fixture.meets {
            ensure!(rows.iter().any(|[known, ..]| known == id), "`{}` claims to meet {id}", fixture.name);
        }
    }
    Ok(())
}
