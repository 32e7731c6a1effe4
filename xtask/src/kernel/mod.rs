//! Tests on the kernel that users run: Debian's, booted in qemu. Programs and libraries are this machine's, in an
//! initramfs; the kernel alone is another.

mod image;
mod initramfs;
mod machine;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nat_ebpf_builder::find_program;
use serde_json::Value;

use crate::shell::{cargo, target_dir};
use crate::test::{Outcome, root};
use image::Image;
use initramfs::Initramfs;

/// A kernel that there are tests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's.
    #[value(name = "6.1")]
    Debian12,
}

impl Kernel {
    /// What the tests on it are called in the report.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Debian12 => "tests on Linux 6.1 (qemu)",
        }
    }

    /// The versions that Debian calls this kernel begin so.
    const fn series(self) -> &'static str {
        match self {
            Self::Debian12 => "6.1",
        }
    }
}

/// A test program, and which of its tests run.
struct Suite {
    /// A file in tests/tests.
    program: &'static str,
    /// The tests' full names.
    tests: &'static [&'static str],
}

/// What this kernel has to show: that every packet comes out as on any other, that daemon, command line and real
/// clients get along with it, and that its own SCTP, UDP-Lite and ESP, which not every kernel has, cross the node.
const SUITES: &[Suite] = &[
    Suite {
        program: "fixtures",
        tests: &[
            "in_the_kernel",
            "explained_in_the_kernel",
            "who_does_not_know_the_secret_is_billed",
            "traced_in_the_kernel",
        ],
    },
    Suite { program: "traffic", tests: &["two_armed_native", "two_armed_generic"] },
    Suite { program: "sockets", tests: &["sctp", "udp_lite_with_any_coverage"] },
    Suite { program: "ipsec", tests: &["esp_plain_and_in_udp"] },
];

/// What this kernel has and not every one does: with it in the environment, tests must not do without.
const HAS: &str = "EIPNAT_KERNEL_HAS=esp,sctp,udp-lite";

/// The daemon that [`SUITES`] start.
const DAEMON: &str = "eipnat-under-test";

/// What [`SUITES`] call besides. The set-up has installed all of it.
const PROGRAMS: &[&str] = &["ip", "ethtool", "ping", "curl", "tcpdump", "socat"];

/// Where the tests stand in the virtual machine.
const TESTS_DIR: &str = "tests";

/// Builds the tests and runs those of [`SUITES`] on the kernel. What they say is shown as it comes.
///
/// # Errors
/// When the kernel cannot be had, something does not compile, or qemu cannot be started.
pub(crate) fn run(kernel: Kernel) -> anyhow::Result<Outcome> {
    if std::env::consts::ARCH != "x86_64" {
        anyhow::bail!("the virtual machine is an x86-64 one, and this machine is not");
    }
    let Some(image) = image::find(kernel.series())? else {
        let series = kernel.series();
        anyhow::bail!(
            "this system's package sources have no Debian kernel {series}: tests that need it cannot run"
        );
    };
    let executables = build()?;
    // A file without a name, so that nothing of it stays, however this ends.
    let mut initramfs = tempfile::tempfile_in(target_dir()?).context("cannot make a file in target/")?;
    pack(&image, &executables)?.write(&mut initramfs)?;
    println!("test: booting {} in qemu", image.name);
    let console = machine::run(&image.vmlinuz, initramfs)?;
    Ok(match verdict::judge(&console, kernel.series(), SUITES) {
        Ok(()) => Outcome::Ok,
        Err(why) => Outcome::Failed(why),
    })
}

/// Builds the test programs of [`SUITES`], just as `cargo test` would, and returns them and the daemon by their names.
fn build() -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
    let mut command = cargo();
    command
        .current_dir(root()?)
        .args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"])
        // Cargo builds the programs of their package along with them, among these the daemon.
        .args(SUITES.iter().flat_map(|suite| ["--test", suite.program]))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile, see above");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let tests = SUITES.iter().map(|suite| (suite.program, "test"));
    let wanted = tests.chain([(DAEMON, "bin")]);
    wanted
        .map(|(name, kind)| {
            let path = messages.lines().find_map(|message| executable(message, name, kind));
            Ok((name, path.with_context(|| format!("cargo has built no {name}"))?))
        })
        .collect()
}

/// The path of an executable, if this message of cargo's is about it.
fn executable(message: &str, name: &str, kind: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    let is_it = target["name"] == name && target["kind"].as_array()?.iter().any(|one| one == kind);
    if is_it { message["executable"].as_str().map(PathBuf::from) } else { None }
}

fn pack(image: &Image, executables: &[(&str, PathBuf)]) -> anyhow::Result<Initramfs> {
    let mut initramfs = Initramfs::default();
    for directory in ["dev", "proc", "run", "sys", "tmp"] {
        initramfs.directory(Path::new(directory));
    }
    // tcpdump wants its user to have a name.
    initramfs.text(Path::new("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n".to_owned());
    for name in PROGRAMS.iter().chain(["busybox"].iter()) {
        let program = find_program(name).with_context(|| format!("{name} is not installed"))?;
        initramfs.program(&program, &Path::new("bin").join(name))?;
    }
    for (name, path) in executables {
        initramfs.program(path, &Path::new(TESTS_DIR).join(name))?;
    }
    let mut modules = Vec::new();
    for (number, module) in image.modules.iter().enumerate() {
        // Numbered, for two kinds may be called alike.
        let to = PathBuf::from(format!("modules/{number}.ko"));
        initramfs.file(module, &to);
        modules.push(to);
    }
    let init = init(&modules, &initramfs.library_path());
    initramfs.text(Path::new("init"), init);
    Ok(initramfs)
}

/// The first process: it runs the tests, and says for [`verdict::judge`] how they ended. Where it fails itself the
/// kernel panics, and qemu ends.
fn init(modules: &[PathBuf], library_path: &str) -> String {
    let mut lines = vec![
        "#!/bin/busybox sh".to_owned(),
        "set -e".to_owned(),
        format!("export PATH=/bin LD_LIBRARY_PATH={library_path} EIPNAT=/{TESTS_DIR}/{DAEMON} {HAS}"),
    ];
    let mounts =
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")];
    lines.extend(mounts.map(|(kind, path)| format!("busybox mount -t {kind} {kind} {path}")));
    lines.extend(modules.iter().map(|module| format!("busybox insmod /{}", module.display())));
    lines.push(format!("echo {} $(busybox uname -r)", verdict::LINUX));
    for Suite { program, tests } in SUITES {
        lines.push("status=0".to_owned());
        lines.push(format!("/{TESTS_DIR}/{program} --exact {} || status=$?", tests.join(" ")));
        lines.push(format!("echo {} {program} $status", verdict::ENDED));
    }
    lines.push("busybox poweroff -f\n".to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let message = |kind: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"x"}},"executable":{executable}}}"#
            )
        };
        assert_eq!(executable(&message("test", r#""/t/x-1""#), "x", "test"), Some("/t/x-1".into()));
        assert_eq!(executable(&message("bin", r#""/t/x""#), "x", "test"), None);
        assert_eq!(executable(&message("test", "null"), "x", "test"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "x", "test"), None);
    }

    #[test]
    fn every_test_that_is_to_run_is_there() {
        for Suite { program, tests } in SUITES {
            let file = root().unwrap().join(format!("tests/tests/{program}.rs"));
            let source = std::fs::read_to_string(&file).unwrap();
            for test in *tests {
                assert!(source.contains(&format!("#[test]\nfn {test}(")), "{}: {test}", file.display());
            }
        }
    }

    /// The tests read the variable that the virtual machine's first process sets.
    #[test]
    fn what_the_kernel_has_is_told_to_the_tests() {
        let (name, facilities) = HAS.split_once('=').unwrap();
        let reader = std::fs::read_to_string(root().unwrap().join("tests/src/lab/facility.rs")).unwrap();
        for text in facilities.split(',').chain([name]) {
            assert!(reader.contains(&format!("{text:?}")), "{text}");
        }
        assert!(init(&[], "/lib").lines().any(|line| line.starts_with("export ") && line.contains(HAS)));
    }

    #[test]
    fn init_is_a_script_that_a_shell_takes() {
        let script = init(&["modules/0.ko".into()], "/lib");
        let checked = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
    }
}
