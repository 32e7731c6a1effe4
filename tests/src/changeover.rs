//! What a daemon does with the datapath at its start, as a program of its own: it sets the datapath up or takes one
//! over, and ends. There are two of them, this version's and one with another ABI, so that tests can go from one to the
//! other and back, and kill either at any instant.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nat_user::dataplane::xdp::XdpDataplane;
use nat_user::dataplane::{Binding, Dataplane, Owner};
use nat_user::model::Bindings;
use nat_user::reconcile;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::lab::{EIP1, EIP2, Lab, POOL, VM1, VM2, beside_this_program, datapath, default_pool};

/// The bindings of the lab.
const BINDINGS: [(Ipv4Addr, Ipv4Addr); 2] = [(EIP1, VM1), (EIP2, VM2)];

/// Sets the lab's datapath up, or takes it over, and prints what it has counted
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    pin_path: PathBuf,
    #[arg(long)]
    max_bindings: u32,
    /// Each binding counts on another meter, as after a restore of the store
    #[arg(long)]
    restored: bool,
}

/// The program itself.
#[must_use]
pub fn main() -> ExitCode {
    env_logger::init();
    match change_over(Arguments::parse()) {
        Ok(counts) => {
            println!("{counts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn change_over(arguments: Arguments) -> Result<Value> {
    let config = datapath(arguments.pin_path, arguments.max_bindings);
    let pool = default_pool(POOL, Duration::ZERO)?;
    let mut dataplane = XdpDataplane::start(&config, &[pool])?;
    let first = u32::from(arguments.restored);
    let bindings = (first..)
        .map(|meter| meter % 2)
        .zip(BINDINGS)
        .map(|(meter, (public_ip, private_ip))| Binding { public_ip, tenant: 0, private_ip, meter });
    let bindings: Bindings = bindings.collect();
    reconcile::everything(&mut dataplane, &bindings)?;
    dataplane.activate(&|meter| bindings.get(meter).map(Owner::Binding))?;
    let meters = dataplane.meters(&[0, 1])?;
    let verdicts = dataplane.verdicts()?;
    let sent_on = verdicts.forward + verdicts.punts.iter().map(|(_, packets)| packets).sum::<u64>();
    Ok(json!({
        "sent_on": sent_on,
        "dropped": verdicts.drops.iter().map(|(_, packets)| packets).sum::<u64>(),
        "meters": meters.iter().map(|meter| {
            [meter.in_packets, meter.in_bytes, meter.out_packets, meter.out_bytes]
        }).collect::<Vec<_>>(),
    }))
}

/// What a datapath has counted since it was first set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Packets that were forwarded or handed to the kernel translated.
    pub sent_on: u64,
    /// Packets that were dropped.
    pub dropped: u64,
    /// For [`EIP1`] and [`EIP2`]: packets in, bytes in, packets out, bytes out.
    pub meters: Vec<[u64; 4]>,
}

/// A program that changes the lab's datapath over to itself.
#[derive(Clone, Debug)]
pub struct Changeover {
    /// Which one.
    pub program: PathBuf,
    /// `datapath.max_bindings`.
    pub max_bindings: u32,
    /// The log level. With `debug` the XDP program is another one, too.
    pub log: &'static str,
    /// Whether each binding counts on another meter than otherwise, as after a restore of the store.
    pub restored: bool,
}

impl Changeover {
    /// This version.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn this_version() -> Result<Self> {
        let program = beside_this_program("eipnat-changeover")?;
        Ok(Self { program, max_bindings: 1024, log: "info", restored: false })
    }

    /// A version with another ABI.
    ///
    /// # Errors
    /// When it does not compile, or has not been built.
    pub fn next_abi() -> Result<Self> {
        Ok(Self { program: next_abi_program("eipnat-changeover-next-abi")?, ..Self::this_version()? })
    }

    /// Changes over.
    ///
    /// # Errors
    /// When that is refused or fails; the error holds what it said.
    pub fn run(&self, lab: &Lab) -> Result<Counts> {
        let output = lab.node.output(self.command(lab))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", self.program.display());
        let counts: Value = serde_json::from_slice(&output.stdout)?;
        Ok(Counts {
            sent_on: counts["sent_on"].as_u64().context("no sent_on")?,
            dropped: counts["dropped"].as_u64().context("no dropped")?,
            meters: serde_json::from_value(counts["meters"].clone())?,
        })
    }

    /// Changes over, and returns the calls of bpf(2) that its main thread makes, in order: strace numbers each thread's by themselves.
    ///
    /// # Errors
    /// When it cannot be traced, or fails.
    pub fn run_traced(&self, lab: &Lab) -> Result<Vec<String>> {
        let trace = lab.file("strace.log");
        let output = lab.node.output(self.strace(lab, &trace, &["-e", "trace=bpf"]))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", self.program.display());
        let trace = std::fs::read_to_string(trace)?;
        let main = trace.split_whitespace().next().context("strace has seen nothing")?;
        let is_its = |line: &&str| line.contains(" bpf(") && line.split_whitespace().next() == Some(main);
        Ok(trace.lines().filter(is_its).map(str::to_owned).collect())
    }

    /// Changes over, and is killed when a thread of its makes a system call for the n-th time. Returns whether it came that far.
    ///
    /// # Errors
    /// When it cannot be traced, or fails before.
    pub fn run_and_kill_at(&self, lab: &Lab, call: &str, number: usize) -> Result<bool> {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
        let output =
            lab.node.output(self.strace(lab, Path::new("/dev/null"), &["-e", &trace, "-e", &inject]))?;
        // strace ends as the program that it traces does.
        let killed = output.status.signal() == Some(Signal::KILL.as_raw());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(killed || output.status.success(), "{}: {said}", self.program.display());
        Ok(killed)
    }

    fn strace(&self, lab: &Lab, log: &Path, options: &[&str]) -> Command {
        let mut strace = Command::new("strace");
        strace.arg("-f").arg("-o").arg(log).args(options).arg(&self.program).args(self.arguments(lab));
        strace
    }

    /// Where the datapath is pinned.
    #[must_use]
    pub fn pin_path(lab: &Lab) -> PathBuf {
        lab.file("bpf")
    }

    fn command(&self, lab: &Lab) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments(lab)).env("RUST_LOG", self.log);
        command
    }

    fn arguments(&self, lab: &Lab) -> Vec<String> {
        let pin_path = Self::pin_path(lab).to_string_lossy().into_owned();
        let mut arguments =
            vec!["--pin-path".into(), pin_path, "--max-bindings".into(), self.max_bindings.to_string()];
        arguments.extend(self.restored.then(|| "--restored".into()));
        arguments
    }
}

/// The daemon of a version with another ABI.
///
/// # Errors
/// When it does not compile, or has not been built.
pub fn next_abi_eipnat() -> Result<PathBuf> {
    next_abi_program("eipnat-next-abi")
}

/// A program with another ABI. It is built if the target directory is this user's, so that it is up to date.
fn next_abi_program(name: &str) -> Result<PathBuf> {
    // A sibling that cargo builds along with the tests tells where programs stand, and in which profile.
    let sibling = beside_this_program("eipnat-changeover")?;
    let programs = sibling.parent().context("a program stands in a directory")?;
    let target = programs.parent().context("it stands in a profile's directory")?;
    let owner = std::fs::metadata(target)?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.args(["build", "--locked", "--package", "tests", "--bin", name, "--features", "next-abi"]);
        cargo.arg("--target-dir").arg(target);
        if programs.ends_with("release") {
            cargo.arg("--release");
        }
        ensure!(cargo.status()?.success(), "{name} does not compile");
    }
    beside_this_program(name)
}

/// Names of the directories of maps that are pinned.
///
/// # Errors
/// When the pins cannot be read.
pub fn generations(pin_path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(pin_path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("maps_") {
            names.push(name);
        }
    }
    Ok(names)
}
