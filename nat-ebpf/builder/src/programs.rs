//! Looking for programs.

use std::env;
use std::path::PathBuf;

/// Where administrators' programs stand, which a plain user's PATH often lacks.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where rustup and `cargo install` put programs: there set-up puts those that the system does not package, so
/// that every clone finds them.
#[must_use]
pub fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| env::home_dir().map(|home| home.join(".cargo"))).map(|home| home.join("bin"))
}

/// The PATH, cargo's programs and the administrators'.
#[must_use]
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = Vec::new();
    for dir in env::split_paths(&path).chain(cargo_bin()).chain(SBIN.map(PathBuf::from)) {
        if !all.contains(&dir) {
            all.push(dir);
        }
    }
    all
}

/// Looks for a program on the [`search_path`].
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_once_and_by_name() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("no-such-program"), None);
        let path = search_path();
        assert!(path.iter().enumerate().all(|(i, dir)| !path[..i].contains(dir)));
    }
}
