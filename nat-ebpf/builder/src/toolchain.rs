//! Looking for a compiler and a linker that can make BPF programs.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::TARGET;
use crate::programs::find_program;

/// Environment variable that names the [`Way`] to build by: `nightly` or `debian`. Unset or empty: the first that
/// works.
pub const OVERRIDE: &str = "EIPNAT_EBPF_TOOLCHAIN";

/// The nightly that set-up installs. It is dated, since bpf-linker reads only bitcode of its own LLVM version or
/// an older one, and a plain `nightly` moves on to the next LLVM some day.
pub const NIGHTLY: &str = "nightly-2026-05-20";

/// The bpf-linker that set-up installs, and the oldest that is taken.
pub const BPF_LINKER_VERSION: (u32, u32, u32) = (0, 13, 0);

/// The LLVM that bpf-linker is built with, and so the newest that a compiler may have.
pub const LLVM_VERSION: u32 = 22;

/// Where Debian's compiler stands. Not looked for on the PATH, where rustup's proxies come first.
const DEBIAN_BIN: &str = "/usr/bin";

/// A way to get `core` for the BPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// rustup's nightly compiles it from `rust-src`.
    Nightly,
    /// Debian's `libstd-rust-web-dev-bpf` has it ready-made.
    Debian,
}

impl Way {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Nightly, Self::Debian];

    /// Its name in [`OVERRIDE`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nightly => "nightly",
            Self::Debian => "debian",
        }
    }

    /// The ways that [`OVERRIDE`] leaves open.
    ///
    /// # Errors
    /// When it names none.
    pub fn allowed() -> anyhow::Result<Vec<Self>> {
        let wanted = env::var(OVERRIDE).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(Self::ALL.to_vec());
        }
        match Self::ALL.into_iter().find(|way| way.name() == wanted) {
            Some(way) => Ok(vec![way]),
            None => anyhow::bail!(
                "{OVERRIDE}={wanted}: must be nightly or debian, or unset for whichever there is"
            ),
        }
    }

    /// Looks for this way's compiler: its directory and what it says of itself.
    ///
    /// # Errors
    /// Says what is missing, in a few words.
    pub fn find_compiler(self) -> Result<(PathBuf, String), String> {
        match self {
            Self::Nightly => find_nightly(),
            Self::Debian => find_debian(),
        }
    }
}

/// A complete set of programs for building `nat-ebpf`.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// How `core` is come by.
    pub way: Way,
    /// The compiler's version, such as `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    pub version: String,
    /// Why each way that stands before this one in [`Way::ALL`] was not taken.
    pub passed_over: Vec<(Way, String)>,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) linker: PathBuf,
}

/// What is not there, way by way. Its text is one line and says what to do.
#[derive(Debug)]
pub struct Missing {
    /// Why each way cannot be taken.
    pub compilers: Vec<(Way, String)>,
    /// Why there is no linker, if that is so.
    pub linker: Option<String>,
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no toolchain for the BPF target: run `cargo xtask setup` (")?;
        let compilers = self.compilers.iter().map(|(way, why)| format!("{}: {why}", way.name()));
        let all: Vec<String> = compilers.chain(self.linker.clone()).collect();
        write!(f, "{})", all.join("; "))
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.way.name(), self.version)
    }
}

impl Toolchain {
    /// Takes the first [`Way`] that is complete.
    ///
    /// # Errors
    /// [`Missing`] when none is, or a word on [`OVERRIDE`] when it has a wrong value.
    pub fn detect() -> anyhow::Result<Self> {
        let mut passed_over = Vec::new();
        let linker = find_linker();
        for way in Way::allowed()? {
            match (way.find_compiler(), &linker) {
                (Ok((bin, version)), Ok(linker)) => {
                    let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
                    return Ok(Self { way, version, passed_over, cargo, rustc, linker: linker.clone() });
                }
                (Ok(_), Err(_)) => {}
                (Err(why), _) => passed_over.push((way, why)),
            }
        }
        Err(Missing { compilers: passed_over, linker: linker.err() }.into())
    }

    /// The files whose replacement makes what was built with this toolchain out of date.
    #[must_use]
    pub fn programs(&self) -> [&Path; 2] {
        [&self.rustc, &self.linker]
    }
}

/// The pinned nightly, or else whichever nightly the user has, if it will do.
fn find_nightly() -> Result<(PathBuf, String), String> {
    let rustup = find_program("rustup").ok_or("rustup is not installed")?;
    let mut reasons = Vec::new();
    for name in [NIGHTLY, "nightly"] {
        // An installed toolchain only: newer rustups would fetch one that is named.
        let which = output(
            Command::new(&rustup)
                .args(["which", "--toolchain", name, "rustc"])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        );
        let Some(rustc) = which.map(|path| PathBuf::from(path.trim())) else {
            reasons.push(format!("{name} is not installed"));
            continue;
        };
        match check_nightly(&rustc) {
            Ok(found) => return Ok(found),
            Err(reason) => reasons.push(format!("{name} {reason}")),
        }
    }
    Err(reasons.join(", "))
}

fn check_nightly(rustc: &Path) -> Result<(PathBuf, String), String> {
    let bin = rustc.parent().ok_or("has no directory")?;
    let source = bin.join("../lib/rustlib/src/rust/library/core/Cargo.toml");
    if !source.exists() {
        return Err("has no rust-src".to_owned());
    }
    check_compiler(bin)
}

fn find_debian() -> Result<(PathBuf, String), String> {
    let bin = Path::new(DEBIAN_BIN);
    for program in ["cargo", "rustc"] {
        if !bin.join(program).exists() {
            return Err(format!("{DEBIAN_BIN}/{program} is not installed"));
        }
    }
    let libdir =
        output(Command::new(bin.join("rustc")).args(["--print", "target-libdir", "--target", TARGET]));
    let libdir = libdir.ok_or_else(|| format!("{DEBIAN_BIN}/rustc does not know {TARGET}"))?;
    let has_core = std::fs::read_dir(libdir.trim()).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    if !has_core {
        return Err(format!("{DEBIAN_BIN}/rustc has no core for {TARGET}"));
    }
    check_compiler(bin)
}

/// Whether bpf-linker will understand what the compiler in `bin` puts out.
fn check_compiler(bin: &Path) -> Result<(PathBuf, String), String> {
    let report = output(Command::new(bin.join("rustc")).arg("-vV")).ok_or("does not run")?;
    let llvm = report.lines().find_map(|line| line.strip_prefix("LLVM version: ")).and_then(major);
    match llvm {
        Some(llvm) if llvm <= LLVM_VERSION => {
            let version = report.lines().next().unwrap_or_default();
            Ok((bin.to_owned(), version.trim_end_matches(" (built from a source tarball)").to_owned()))
        }
        Some(llvm) => Err(format!("has LLVM {llvm}, newer than bpf-linker's {LLVM_VERSION}")),
        None => Err("does not tell its LLVM version".to_owned()),
    }
}

/// Looks for a bpf-linker that is new enough.
///
/// # Errors
/// Says what is the matter, in a few words.
pub fn find_linker() -> Result<PathBuf, String> {
    let linker = find_program("bpf-linker").ok_or("bpf-linker is not installed")?;
    let version = output(Command::new(&linker).arg("--version")).ok_or("bpf-linker does not run")?;
    let number = version.trim().trim_start_matches("bpf-linker ");
    if parse_version(number).is_some_and(|version| version >= BPF_LINKER_VERSION) {
        Ok(linker)
    } else {
        let (major, minor, patch) = BPF_LINKER_VERSION;
        Err(format!("bpf-linker {number} is older than {major}.{minor}.{patch}"))
    }
}

/// Standard output of a command that succeeds.
fn output(command: &mut Command) -> Option<String> {
    crate::scrub(command);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn parse_version(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split(['.', '-', ' ', '+']).map(str::parse::<u32>);
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("0.13.0") >= Some(BPF_LINKER_VERSION));
        assert!(parse_version("0.13.1-rc1") > Some(BPF_LINKER_VERSION));
        assert!(parse_version("1.0.0 (abc)") > Some(BPF_LINKER_VERSION));
        assert!(parse_version("0.9.14") < Some(BPF_LINKER_VERSION));
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn what_is_missing_is_said_in_one_line_with_the_mend_first() {
        let missing = Missing {
            compilers: vec![
                (Way::Nightly, "has no rust-src".into()),
                (Way::Debian, "is not installed".into()),
            ],
            linker: Some("bpf-linker is not installed".into()),
        };
        assert_eq!(
            missing.to_string(),
            "no toolchain for the BPF target: run `cargo xtask setup` (nightly: has no rust-src; debian: is not \
             installed; bpf-linker is not installed)"
        );
    }
}
