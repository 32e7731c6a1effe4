//! The demonstration: real traffic across eipnat in the lab, its counters live, and a clean end.

mod picture;
mod screen;
mod traffic;

use std::io::IsTerminal;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use tests::lab::{self, Config, Daemon, EIP1, EIP2, INTERNET, Lab, Meter, Topology, VM1, VM2, WebServer};

use screen::Live;
use traffic::Board;

/// How long the traffic runs where nobody can press Ctrl-C.
const WITHOUT_TERMINAL: Duration = Duration::from_secs(10);

/// The addresses that are attached, and the VMs' names.
const BINDINGS: [(Ipv4Addr, Ipv4Addr, &str); 2] = [(EIP1, VM1, "vm1"), (EIP2, VM2, "vm2")];

/// Options of `eipnat-lab demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The daemon [default: the eipnat beside this program]
    #[arg(long, value_name = "PATH")]
    eipnat: Option<PathBuf>,
    /// How long the traffic runs [default: until Ctrl-C on a terminal, else 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
}

/// Shows the whole thing. An error tells what failed, after everything has been taken away.
pub(crate) fn run(options: &Options) -> Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let duration = match options.seconds {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => (!terminal).then_some(WITHOUT_TERMINAL),
    };
    let eipnat = options.eipnat.clone().map_or_else(|| lab::beside_this_program("eipnat"), Ok)?;
    lab::take_first_signal();
    println!("{}", picture::topology());

    let begin = Instant::now();
    let lab = Lab::new(Topology::TwoArmed)?;
    step(begin, &format!("five network namespaces: {}, …", lab.internet.name()));
    let mut daemon = Daemon::start(&lab, &eipnat, Config::of(&lab))?;
    step(begin, "the daemon is ready");
    let footprint = lab.footprint()?;
    let shown = show(&lab, &daemon, begin, duration, terminal);
    // Whatever happened, it ends in order; the first failure is the one that is told.
    let ended = end(&lab, &mut daemon, begin);
    drop(daemon);
    let removed = lab.remove();
    let remains = footprint.remains()?;
    shown.and(ended).and(removed)?;
    ensure!(remains.is_empty(), "not everything is gone: {}", remains.join(", "));
    step(begin, "nothing is left: no namespace, process, BPF program, pin or mount");
    Ok(())
}

fn show(
    lab: &Lab,
    daemon: &Daemon,
    begin: Instant,
    duration: Option<Duration>,
    terminal: bool,
) -> Result<()> {
    command(daemon, &["status"])?;
    for (eip, private_ip, _) in BINDINGS {
        command(daemon, &["eip", "allocate", "--address", &eip.to_string()])?;
        command(daemon, &["eip", "attach", &eip.to_string(), &private_ip.to_string()])?;
    }
    command(daemon, &["eip", "list"])?;
    let servers = Servers { internet: WebServer::start(&lab.internet)?, vm1: WebServer::start(&lab.vm1)? };
    let board = Board::default();
    println!();
    board.try_each_once(lab);
    servers.check()?;
    for line in board.lines() {
        step(begin, &line);
    }
    board.failures()?;

    let until =
        duration.map_or_else(|| "until Ctrl-C".to_owned(), |time| format!("for {} s", time.as_secs()));
    step(begin, &format!("an iperf3 TCP stream each way, downloads and pings beside it, {until}"));
    println!();
    let before = meters(daemon)?;
    let board = under_load(lab, daemon, duration, Live::new(terminal, before.clone()))?;
    let after = meters(daemon)?;
    println!("{}\n\n{}", board.table(), counters(&after));
    command(daemon, &["stats"])?;
    println!();
    board.failures()?;
    for ((eip, ..), (before, after)) in BINDINGS.iter().zip(before.iter().zip(&after)) {
        let moved = after.in_bytes > before.in_bytes && after.out_bytes > before.out_bytes;
        ensure!(moved, "the counters of {eip} have not moved: {before:?}, then {after:?}");
    }
    Ok(())
}

/// Sends until the time is over or somebody has had enough, and shows the counters meanwhile.
fn under_load(lab: &Lab, daemon: &Daemon, duration: Option<Duration>, mut live: Live) -> Result<Board> {
    let begin = Instant::now();
    let is_over = || lab::signalled() || duration.is_some_and(|duration| begin.elapsed() >= duration);
    let board = Board::default();
    std::thread::scope(|scope| {
        board.start(scope, lab, &is_over);
        while !is_over() {
            std::thread::sleep(live.interval());
            live.show(begin.elapsed(), &meters(daemon)?, &board)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    live.end()?;
    Ok(board)
}

/// The web servers, which know who has come to them.
struct Servers {
    internet: WebServer,
    vm1: WebServer,
}

impl Servers {
    /// After the first round: each client came once, from its public address.
    fn check(&self) -> Result<()> {
        let came = |server: &WebServer| {
            server.clients().iter().map(|client| client.ip().to_string()).collect::<Vec<_>>()
        };
        let (at_internet, at_vm1) = (came(&self.internet), came(&self.vm1));
        ensure!(
            at_internet == [EIP2.to_string()],
            "the server on the internet was visited by {at_internet:?}"
        );
        ensure!(
            at_vm1 == [INTERNET.to_string(), EIP2.to_string()],
            "the server on vm1 was visited by {at_vm1:?}"
        );
        Ok(())
    }
}

fn meters(daemon: &Daemon) -> Result<Vec<Meter>> {
    let text = daemon.metrics()?;
    BINDINGS.iter().map(|(eip, ..)| Meter::parse(&text, *eip)).collect()
}

fn counters(meters: &[Meter]) -> Table {
    let mut table = plain_table(&["EIP", "VM", "IN BYTES", "IN PACKETS", "OUT BYTES", "OUT PACKETS"]);
    for ((eip, _, vm), meter) in BINDINGS.iter().zip(meters) {
        let numbers = [meter.in_bytes, meter.in_packets, meter.out_bytes, meter.out_packets];
        let cells = [eip.to_string(), (*vm).to_owned()].into_iter();
        table.add_row(cells.chain(numbers.map(screen::grouped)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A table without lines.
fn plain_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

/// Ends the daemon, sees that traffic goes on without it, and takes the datapath off.
fn end(lab: &Lab, daemon: &mut Daemon, begin: Instant) -> Result<()> {
    daemon.stop()?;
    step(begin, "SIGTERM: the daemon has ended with exit code 0");
    let pings = lab::ping(&lab.internet, EIP1, 5, &[])?;
    step(begin, &format!("without it: {} of {} pings to {EIP1} answered", pings.received, pings.sent));
    daemon.unload()?;
    step(begin, "eipnat unload: programs detached, pins removed");
    // If the daemon was told nothing, there is nothing to go on either.
    if pings.received < pings.sent && !lab::signalled() {
        bail!("traffic does not outlive the daemon");
    }
    let programs = lab.programs().context("cannot look for XDP programs")?;
    ensure!(programs.is_empty(), "still attached after unload: {programs:?}");
    Ok(())
}

/// Runs a command of eipnat and shows it as if it had been typed.
fn command(daemon: &Daemon, args: &[&str]) -> Result<()> {
    println!("\n$ eipnat {}\n{}", args.join(" "), daemon.ok(args)?.trim_end());
    Ok(())
}

fn step(begin: Instant, what: &str) {
    println!("{:6.1} s  {what}", begin.elapsed().as_secs_f64());
}
