//! What can be written on the command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use super::packets::{Capture, Explain, Trace};
use crate::api::types::{Instant, SortBy, TopQuery};
use crate::config::DEFAULT_SOCKET;
use crate::model::Name;

const GLOBAL: &str = "Global options";

/// Elastic IPs by stateless 1:1 NAT in XDP.
#[derive(Debug, Parser)]
#[command(name = "eipnat", version, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Cli {
    /// The daemon's socket
    #[arg(long, global = true, help_heading = GLOBAL, env = "EIPNAT_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(super) socket: PathBuf,
    /// Tables for people, or exact numbers for programs
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
    Csv,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon in the foreground
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Replace the program that runs already, even by the same one
        #[arg(long)]
        replace_program: bool,
    },
    /// Show whether every binding forwards, and on which interfaces; exit code 1 if not
    Status,
    /// Detach from the interfaces and remove everything from the kernel; a daemon that runs is ended
    Unload {
        /// The configuration file that the daemon ran with, if it sets another pin path
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Where public addresses come from
    #[command(subcommand)]
    Pool(Pool),
    /// Elastic IPs
    #[command(subcommand)]
    Eip(Eip),
    /// VMs
    #[command(subcommand)]
    Vm(Vm),
    /// The desired state on disk
    #[command(subcommand)]
    Store(Store),
    /// Show what was carried for whom and when: the bill
    Usage {
        /// Of this public address
        #[arg(long)]
        eip: Option<Ipv4Addr>,
        /// On this account
        #[arg(long)]
        account: Option<Name>,
        /// Records that begin then or later: 2026-01-31T12:00:00Z, 2026-01-31, or how long ago as in 24h
        #[arg(long, value_name = "T")]
        from: Option<Instant>,
        /// Records that begin earlier than that
        #[arg(long, value_name = "T")]
        to: Option<Instant>,
    },
    /// Show live which EIPs carry most, and why packets are dropped; `h` tells the keys
    Top(Top),
    /// Show packets by verdict, and dropped ones by reason
    Stats {
        /// Say of every counter what it means and what to do (in tables)
        #[arg(long)]
        explain: bool,
    },
    /// Say what would become of a packet, step by step, by the running program; nothing is sent, counted or billed
    Explain(Box<Explain>),
    /// Show packets as they come, a line each, until Ctrl-C
    Trace(Trace),
    /// Write packets to a file as they come and as they leave, until Ctrl-C
    Capture(Capture),
}

#[derive(Debug, Args)]
pub(super) struct Top {
    /// Measure for so many seconds, again and again
    #[arg(long, value_name = "SECS", default_value = "1", value_parser = seconds)]
    pub(super) interval: Duration,
    /// Show at most so many EIPs
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u16).range(1..=1000))]
    pub(super) limit: u16,
    /// What comes first
    #[arg(long, value_enum, default_value_t)]
    pub(super) sort: SortBy,
    /// The last ones first
    #[arg(long)]
    pub(super) reverse: bool,
    /// EIPs of this account alone
    #[arg(long)]
    pub(super) account: Option<Name>,
    /// EIPs and private IPs that begin with this or are in this network, VMs and accounts with this in their names
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Option<String>,
    /// Measure once and print it, without a terminal too
    #[arg(long)]
    pub(super) once: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let [shortest, longest] = TopQuery::INTERVALS_MS.map(Duration::from_millis);
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| (shortest..=longest).contains(duration)).ok_or_else(|| {
        format!("not a number of seconds from {} to {}", shortest.as_secs_f64(), longest.as_secs_f64())
    })
}

#[derive(Debug, Subcommand)]
pub(super) enum Pool {
    /// Show every pool
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Eip {
    /// Take an EIP from a pool
    Allocate {
        /// The pool; without it `default`, or the only one
        #[arg(long)]
        pool: Option<Name>,
        /// The very address that is wanted
        #[arg(long)]
        address: Option<Ipv4Addr>,
        /// Who is to hold it [default: default]
        #[arg(long)]
        account: Option<Name>,
        /// A name of your own for it: repeated with the same, the command gives the same EIP
        #[arg(long, value_name = "NAME")]
        request: Option<Name>,
    },
    /// Let an EIP stand for a target; done when it returns
    Attach {
        /// The EIP
        eip: Ipv4Addr,
        /// A private IP, or a VM's name
        target: String,
        /// Take it from what it stands for now, in one step
        #[arg(long)]
        reassign: bool,
    },
    /// Let an EIP stand for nothing; done when it returns
    Detach {
        /// The EIP
        eip: Ipv4Addr,
    },
    /// Give a detached EIP back to its pool
    Release {
        /// The EIP
        eip: Ipv4Addr,
    },
    /// Allocate and attach many EIPs, all of them or none
    Import {
        /// Lines `eip,private_ip[,account]`; `#` begins a comment
        file: PathBuf,
    },
    /// Show every EIP
    List,
    /// Show an EIP and what it has carried
    Show {
        /// The EIP
        eip: Ipv4Addr,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Vm {
    /// Give a VM its place, and a public IP
    Create {
        /// Its name
        name: Name,
        /// Its address
        #[arg(long)]
        private_ip: Ipv4Addr,
        /// Whose it is [default: default]
        #[arg(long)]
        account: Option<Name>,
        /// The pool for its public IP; without it `default`, or the only one
        #[arg(long, conflicts_with = "no_public_ip")]
        pool: Option<Name>,
        /// It is to have no public IP, now or later
        #[arg(long)]
        no_public_ip: bool,
    },
    /// Take a VM away; its EIP stays with its account, detached
    Destroy {
        /// Its name
        name: Name,
    },
    /// Show every VM
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Store {
    /// Copy the store of the running daemon to a file
    Backup {
        /// A file that does not exist yet
        file: PathBuf,
    },
    /// Put a backup in the place of the store of a daemon that does not run; the old one is kept beside it
    Restore {
        /// The backup
        file: PathBuf,
        /// The configuration file of the daemon, if it sets another store path
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}
