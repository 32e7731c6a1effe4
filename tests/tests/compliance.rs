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
    let answers = tables()?.into_iter().filter(|cells| cells.len() == 4 && cells[0].starts_with(['A', 'F']));
    Ok(answers.map(|cells| [cells[0].clone(), cells[2].clone(), cells[3].clone()]).collect())
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

/// Whether a function of that name is a test: the attributes and comments before it say so.
fn is_test(sources: &str, name: &str) -> bool {
    let Some((before, _)) = sources.split_once(&format!("fn {name}(")) else { return false };
    let attributes = before.rsplit('\n').skip(1).map(str::trim);
    let mut attributes = attributes.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    attributes.any(|line| matches!(line, "#[test]" | "#[tokio::test]"))
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
    let mut named = 0;
    for row in tables()? {
        let proof = row.last().context("a row without cells")?;
        for name in names(proof) {
            let is_fixture = fixtures.iter().any(|fixture| fixture.name == name);
            let is_test = is_test(&sources, name);
            ensure!(is_fixture || is_test, "{row:?} names `{name}`, which is neither a fixture nor a test");
            named += 1;
        }
    }
    ensure!(named > 100, "only {named} names are found");
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
