//! Conventions of the repository, as tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines.
const MAX_LINES: usize = 500;

/// Where unsafe code may stand: raw packet memory, the types that cross the kernel boundary, the XDP program, the
/// `AF_XDP` rings, a system call that aya does not make, memory that is shared with the XDP program, the allocator, and test programs of BPF.
const UNSAFE_MAY_STAND_IN: [&str; 9] = [
    "nat-common/src/frame.rs",
    "nat-common/src/abi.rs",
    "nat-ebpf/src/",
    "nat-user/src/slowpath/socket.rs",
    "tests/yardsticks/src/main.rs",
    "nat-user/src/dataplane/xdp/batch.rs",
    "nat-user/src/dataplane/xdp/numbers.rs",
    "nat-user/src/dataplane/xdp/window.rs",
    "nat-user/src/memory.rs",
];

// In two parts, so that this file does not find itself.
const UNSAFE: &str = concat!("un", "safe");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask stands in the workspace")
}

/// The files in git that match, relative to the root.
fn tracked(pattern: &str) -> Vec<PathBuf> {
    // Tests run as root, and git refuses other people's repositories.
    let git = Command::new("git")
        .current_dir(root())
        .args(["-c", "safe.directory=*", "ls-files", "-z", pattern])
        .output();
    let git = git.expect("these tests take git");
    assert!(git.status.success(), "git: {}", String::from_utf8_lossy(&git.stderr));
    let names = String::from_utf8(git.stdout).expect("names of files are UTF-8");
    let files: Vec<PathBuf> = names.split_terminator('\0').map(PathBuf::from).collect();
    assert!(!files.is_empty(), "nothing matches {pattern}");
    files
}

fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    tracked("*.rs").into_iter().filter_map(|path| {
        // A file that was just removed is in git's index until the next commit.
        fs::read_to_string(root().join(&path)).ok().map(|text| (path, text))
    })
}

fn uses_unsafe(source: &str) -> bool {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .any(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == UNSAFE))
}

#[test]
fn no_file_is_too_long() {
    let long: Vec<String> = sources()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|&(_, lines)| lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn every_crate_takes_the_workspaces_lints() {
    let without: Vec<String> = tracked("*/Cargo.toml")
        .iter()
        .filter(|path| {
            let manifest = fs::read_to_string(root().join(path)).expect("a manifest can be read");
            // A workspace of its own, such as the fuzzers', has none to take.
            let is_member = !manifest.lines().any(|line| line == "[workspace]");
            is_member && !manifest.contains("[lints]\nworkspace = true")
        })
        .map(|path| path.display().to_string())
        .collect();
    assert!(without.is_empty(), "without `[lints] workspace = true`:\n{}", without.join("\n"));
}

#[test]
fn unsafe_code_stands_only_where_it_may() {
    let found: Vec<String> = sources()
        .filter(|(_, text)| uses_unsafe(text))
        .map(|(path, _)| path.display().to_string())
        .filter(|path| !UNSAFE_MAY_STAND_IN.iter().any(|place| path.starts_with(place)))
        .collect();
    assert!(found.is_empty(), "{UNSAFE} code outside of {UNSAFE_MAY_STAND_IN:?}:\n{}", found.join("\n"));
}

#[test]
fn unsafe_code_is_told_from_talk_of_it() {
    assert!(uses_unsafe(&format!("    {UNSAFE} {{ x() }}")));
    assert!(uses_unsafe(&format!("{UNSAFE} impl Pod for X {{}}")));
    assert!(uses_unsafe(&format!("#[{UNSAFE}(no_mangle)]")));
    assert!(!uses_unsafe(&format!("// {UNSAFE}: see above")));
    assert!(!uses_unsafe(&format!("#![deny({UNSAFE}_code)]")));
}
