//! Debian's packages.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nat_ebpf_builder::{cargo_bin, find_program};

use crate::shell::{Step, as_root, cache_dir, say};

/// A package and what it is for.
pub(crate) type Wanted = (&'static str, &'static str);

/// Refuses what apt does not have, before anything is changed, and brings its lists up to date for the rest.
///
/// # Errors
/// One line that names every package that cannot be had.
pub(crate) fn prepare(wanted: &[Wanted]) -> anyhow::Result<()> {
    if find_program("apt-get").is_none() {
        bail!("this system has no apt-get; install by hand: {}", list(wanted.iter().copied()));
    }
    update()?;
    let known = candidates(wanted)?;
    let unknown = wanted.iter().copied().filter(|(package, _)| !known.iter().any(|name| name == package));
    let unknown = list(unknown);
    if !unknown.is_empty() {
        bail!("this system's package sources do not have {unknown}; install that by hand and run this again");
    }
    Ok(())
}

/// Brings apt's lists up to date; if that fails it says so, and those that are there have to do.
///
/// # Errors
/// Without a way to become root.
pub(crate) fn update() -> anyhow::Result<()> {
    let mut update = apt_get()?;
    if let Err(error) =
        Step::new("package lists (apt-get update): they may be too old").run(update.arg("update"))
    {
        say(format_args!("{error:#}"));
        say("going on with the package lists that are there");
    }
    Ok(())
}

/// Installs packages, after [`prepare`].
///
/// # Errors
/// When apt-get fails, with its last lines. Nothing that is installed is ever removed.
pub(crate) fn install(wanted: &[Wanted]) -> anyhow::Result<()> {
    for (package, why) in wanted {
        say(format_args!("{package}: {why}"));
    }
    let mut command = apt_get()?;
    command
        .args(["install", "-y", "--no-install-recommends", "--no-remove", "-o", "APT::Status-Fd=1"])
        .args(wanted.iter().map(|(package, _)| package));
    let title = format!("{} packages (apt-get install)", wanted.len());
    Step { title: &title, progress: Some(progress), patience: None }.run(&mut command)
}

/// Unpacks a package beside the system, with those that it needs and this system lacks, after [`prepare`]; and puts into
/// cargo's directory of programs a script of that name which runs the program in it.
///
/// # Errors
/// When they cannot be fetched, or the program is not in them.
pub(crate) fn unpack_program(program: &str, package: &str, why: &str) -> anyhow::Result<()> {
    let bin = cargo_bin().context("there is neither CARGO_HOME nor HOME")?;
    let place = cache_dir()?.join(package);
    let title = format!("{program} (Debian's package, unpacked in {}): {why}", place.display());
    // Packages that are only fetched get in nobody's way: apt may plan to remove what it likes.
    let script = r#"
        rm -rf "$2" && mkdir -p "$2/debs/partial" && cd "$2"
        apt-get install -q -y --download-only --no-install-recommends -o Debug::NoLocking=true \
            -o Dir::Cache::archives="$2/debs" "$1"
        for deb in debs/*.deb; do dpkg-deb -x "$deb" .; done
        rm -r debs
        test -x "usr/bin/$3"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=$(echo "%s"/usr/lib/*-linux-gnu) exec "%s" "$@"\n' "$2" "$2/usr/bin/$3" >"$4/$3"
        chmod 755 "$4/$3""#;
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh", package]).arg(place).arg(program).arg(bin).env("LC_ALL", "C.UTF-8");
    Step::new(&title).run(&mut command)
}

fn apt_get() -> anyhow::Result<Command> {
    let mut command = as_root("env", "installing packages")?;
    // NEEDRESTART_SUSPEND: Ubuntu would ask which services to restart.
    command.args(["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "LC_ALL=C.UTF-8"]).args([
        "apt-get",
        "-q",
        "-o",
        "DPkg::Lock::Timeout=300",
    ]);
    Ok(command)
}

/// The packages among these that there is a version of to install.
fn candidates(wanted: &[Wanted]) -> anyhow::Result<Vec<String>> {
    let mut command = Command::new("apt-cache");
    command.arg("policy").args(wanted.iter().map(|(package, _)| package)).env("LC_ALL", "C.UTF-8");
    let output = command.stdin(Stdio::null()).output().context("cannot start apt-cache")?;
    Ok(parse_policy(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_policy(text: &str) -> Vec<String> {
    let mut package = "";
    let mut known = Vec::new();
    for line in text.lines() {
        if let Some(candidate) = line.trim_start().strip_prefix("Candidate:") {
            if candidate.trim() != "(none)" {
                known.push(package.to_owned());
            }
        } else if let Some(name) = line.strip_suffix(':')
            && !name.starts_with(' ')
        {
            package = name;
        }
    }
    known
}

/// Reads `dlstatus:NUMBER:PERCENT:WORDS` and `pmstatus:PACKAGE:PERCENT:WORDS`: fetching, then installing.
pub(crate) fn progress(line: &str) -> Option<(f32, &str)> {
    let mut fields = line.splitn(4, ':');
    let start = match fields.next()? {
        "dlstatus" => 0.0,
        "pmstatus" => 0.5,
        _ => return None,
    };
    let percent: f32 = fields.nth(1)?.parse().ok()?;
    Some((start + percent / 200.0, fields.next().unwrap_or_default()))
}

fn list(wanted: impl Iterator<Item = Wanted>) -> String {
    wanted.map(|(package, why)| format!("{package} ({why})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_without_a_candidate_are_not_known() {
        let policy = "gcc:\n  Installed: (none)\n  Candidate: 4:12.2.0-3\n  Version table:\n     4:12.2.0-3 500\n        \
                      500 http://deb.debian.org/debian bookworm/main amd64 Packages\n\
                      c-compiler:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n\
                      g++:\n  Installed: 4:12.2.0-3\n  Candidate: 4:12.2.0-3\n";
        assert_eq!(parse_policy(policy), ["gcc", "g++"]);
    }

    #[test]
    fn status_lines_are_progress_and_others_are_not() {
        assert_eq!(
            progress("dlstatus:3:50.0:Retrieving file 3 of 6"),
            Some((0.25, "Retrieving file 3 of 6"))
        );
        assert_eq!(progress("pmstatus:gcc:50:Unpacking gcc (amd64)"), Some((0.75, "Unpacking gcc (amd64)")));
        assert_eq!(progress("Unpacking gcc (4:12.2.0-3) ..."), None);
        assert_eq!(progress("pmerror:/x.deb:20.0:broken"), None);
    }
}
