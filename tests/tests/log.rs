//! The XDP program's log, in the daemon's.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::lab::{Config, EIP_SPARE, INTERNET, Lab, Topology, eipnat_binary, ping, run_eipnat};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn debug_tells_of_each_drop_by_name() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    let config = Config::of(&lab);
    let file = lab.file("log.toml");
    fs::write(&file, config.to_toml())?;
    let file = file.to_string_lossy();
    let mut command = Command::new(eipnat_binary()?);
    command.args(["run", "--config", &*file]).env("RUST_LOG", "debug");
    let mut daemon = lab.node.spawn(command, lab.file("log"))?;
    daemon.wait_for("metrics at", PATIENCE)?;
    assert_eq!(ping(&lab.internet, EIP_SPARE, 1, &[])?.received, 0);
    daemon.wait_for(&format!("drop eip_unbound on up0: {INTERNET} -> {EIP_SPARE}"), PATIENCE)?;
    assert_eq!(ping(&lab.vm1, INTERNET, 1, &[])?.received, 0);
    daemon.wait_for(&format!("drop source_unbound on dn0: 10.0.0.10 -> {INTERNET}"), PATIENCE)?;
    assert!(run_eipnat(&lab.node, &eipnat_binary()?, &["unload", "--config", &*file])?.status.success());
    lab.remove()
}
