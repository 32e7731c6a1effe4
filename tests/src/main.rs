//! `eipnat-lab`: the network-namespace lab at the command line.

mod demo;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tests::lab::{self, Config, Daemon, Lab, Topology};

/// A network in network namespaces (internet - NAT node - two VMs) with eipnat on the node
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows eipnat at work: real traffic, live counters, clean end
    Demo(demo::Options),
    /// Makes the network and keeps it until Ctrl-C
    Up {
        /// Also run this daemon on the node
        #[arg(long, value_name = "PATH")]
        eipnat: Option<PathBuf>,
        /// Uplink and downlink are the same interface
        #[arg(long)]
        one_armed: bool,
    },
    /// Takes away what labs have left that were killed
    Sweep,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Up { eipnat, one_armed } => up(eipnat, one_armed),
        Command::Sweep => lab::sweep(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(eipnat: Option<PathBuf>, one_armed: bool) -> Result<()> {
    let lab = Lab::new(if one_armed { Topology::OneArmed } else { Topology::TwoArmed })?;
    let daemon = eipnat.map(|eipnat| Daemon::start(&lab, &eipnat, Config::of(&lab))).transpose()?;
    for host in [&lab.internet, &lab.node, &lab.vm1, &lab.vm2] {
        println!("nsenter --net=/run/netns/{} bash", host.name());
    }
    if let Some(daemon) = &daemon {
        println!("export EIPNAT_SOCKET={}", daemon.config().socket().display());
    }
    println!("The lab is up; Ctrl-C takes it away.");
    lab::take_first_signal();
    while !lab::signalled() {
        std::thread::sleep(Duration::from_millis(50));
    }
    if let Some(mut daemon) = daemon {
        daemon.stop()?;
        daemon.unload()?;
    }
    lab.remove()
}
