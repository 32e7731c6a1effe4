//! docs/rfc-compliance.md answers every requirement, and names only tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::fixtures;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a workspace").to_owned()
}

/// Requirement, answer and proof of each row of the document's tables.
fn rows() -> Result<Vec<[String; 3]>> {
    let file = root().join("docs/rfc-compliance.md");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    Ok(text
        .lines()
        .map(cells)
        .filter(|cells| cells.len() == 6 && cells[1].starts_with(['A', 'F']))
        .map(|cells| [cells[1].clone(), cells[3].clone(), cells[4].clone()])
        .collect())
}

/// Names in backticks.
fn names(proof: &str) -> impl Iterator<Item = &str> {
    proof.split('`').skip(1).step_by(2)
}

#[test]
fn every_requirement_is_answered() -> Result<()> {
    let rows = rows()?;
    let expected: Vec<String> =
        (1..=21).map(|n| format!("A{n}")).chain((1..=8).map(|n| format!("F{n}"))).collect();
    let answered: Vec<&String> = rows.iter().map(|[id, ..]| id).collect();
    ensure!(answered == expected.iter().collect::<Vec<_>>(), "the document answers {answered:?}");
    for [id, answer, proof] in &rows {
        ensure!(["met", "different", "not yet"].contains(&answer.as_str()), "{id} is answered by `{answer}`");
        ensure!(answer != "met" || names(proof).next().is_some(), "{id} is met, but by which test?");
    }
    Ok(())
}

#[test]
fn every_named_test_exists() -> Result<()> {
    let fixtures = fixtures::all();
    let mut sources = String::new();
    for directory in ["nat-common/src", "nat-common/tests", "tests/tests"] {
        for entry in fs::read_dir(root().join(directory))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                sources += &fs::read_to_string(path)?;
            }
        }
    }
    for [id, _, proof] in rows()? {
        for name in names(&proof) {
            let is_fixture = fixtures.iter().any(|fixture| fixture.name == name);
            let is_test = sources.contains(&format!("fn {name}("));
            ensure!(is_fixture || is_test, "{id} names `{name}`, which is neither a fixture nor a test");
        }
    }
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
