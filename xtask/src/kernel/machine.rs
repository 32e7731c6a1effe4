//! A virtual machine: qemu, without KVM, so that it needs neither a right nor a processor that has it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// How long it may run, in seconds: several times what it takes.
const LIMIT: &str = "600";

/// Exit code of timeout(1) when it has ended its command.
const TIMED_OUT: i32 = 124;

/// What a virtual machine has said on its console.
pub(super) struct Console {
    /// All of it.
    pub(super) text: String,
    /// How it came to its end.
    pub(super) end: String,
}

/// Boots a kernel with the initramfs that is in a file, shows its console and waits for the end.
///
/// # Errors
/// When qemu cannot be started.
pub(super) fn run(vmlinuz: &Path, initramfs: File) -> anyhow::Result<Console> {
    let (reader, writer) = io::pipe()?;
    // timeout(1) ends qemu even if nobody is left to wait for it. In the foreground, for Ctrl-C has to reach qemu.
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=5", LIMIT, "qemu-system-x86_64", "-accel", "tcg", "-m", "2048"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", "file:/dev/stdout", "-initrd", "/dev/stdin", "-kernel"])
        .arg(vmlinuz)
        // A panic restarts at once, which ends qemu.
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(initramfs)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let mut child = command.spawn().context("cannot start timeout")?;
    // The command holds the pipe's writing ends, and we would wait for ourselves.
    drop(command);

    let mut text = String::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        // Nobody may be listening any more, but the verdict counts.
        let _ = writeln!(io::stdout(), "{line}");
        text = text + &line + "\n";
    }
    let status = child.wait()?;
    let end = if status.code() == Some(TIMED_OUT) {
        format!("it was given up after {LIMIT} s")
    } else if let Some(panic) = text.lines().find(|line| line.contains("Kernel panic")) {
        panic.to_owned()
    } else {
        format!("qemu ended with {status}")
    };
    Ok(Console { text, end })
}
