//! `eipnat-lab demo` as people run it: it ends well, ends well when interrupted, and tells what failed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tests::lab::eipnat_binary;

fn demo(eipnat: &Path, seconds: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eipnat-lab"));
    command.args(["demo", "--seconds", seconds, "--eipnat"]).arg(eipnat);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What is left of the lab of a process.
fn left_of(child: u32) -> Result<Vec<String>> {
    let mine = [format!("eipnat-{child}-"), format!("{child}-")];
    let mut left = Vec::new();
    for dir in ["/run/netns", "/run/eipnat-lab"] {
        for entry in std::fs::read_dir(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if mine.iter().any(|prefix| name.starts_with(prefix)) {
                left.push(name);
            }
        }
    }
    Ok(left)
}

#[test]
fn it_shows_traffic_and_counters_and_leaves_nothing() -> Result<()> {
    let child = demo(&eipnat_binary()?, "2").spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    let (stdout, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{}\n{stderr}\n{stdout}", output.status);
    assert_eq!(stderr, "");
    for expected in [
        "$ eipnat eip attach 203.0.113.10 10.0.0.10",
        "ping from internet to 203.0.113.10 (vm1): 10 of 10 answered",
        "  2 s  203.0.113.11 (vm2)  in ",
        "IN BYTES",
        "nothing is left",
    ] {
        assert!(stdout.contains(expected), "no {expected:?} in\n{stdout}");
    }
    assert_eq!(left_of(pid)?, Vec::<String>::new());
    Ok(())
}

/// Reads the child's output up to a line that holds this.
fn read_to(child: &mut Child, needle: &str) -> Result<BufReader<std::process::ChildStdout>> {
    let mut reader = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut line = String::new();
    while !line.contains(needle) {
        line.clear();
        anyhow::ensure!(reader.read_line(&mut line)? > 0, "ended without {needle:?}");
    }
    Ok(reader)
}

#[test]
fn ctrl_c_ends_it_in_order() -> Result<()> {
    let mut child = demo(&eipnat_binary()?, "600").spawn()?;
    let mut reader = read_to(&mut child, "  1 s  203.0.113.10 ")?;
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut reader, &mut rest)?;
    let status = child.wait()?;
    assert!(status.success() && rest.contains("nothing is left"), "{status}\n{rest}");
    assert_eq!(left_of(child.id())?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_failed_is_said_and_nothing_is_left() -> Result<()> {
    for (program, complaint) in
        [("/bin/false", "before it was ready"), ("/nonexistent/eipnat", "cannot start eipnat")]
    {
        let child = demo(Path::new(program), "1").spawn()?;
        let pid = child.id();
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{program}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(complaint), "{program}: {stderr}");
        assert_eq!(left_of(pid)?, Vec::<String>::new(), "{program}");
    }
    Ok(())
}
