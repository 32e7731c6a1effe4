//! Real clients: ping, curl, iperf3.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Namespace, Process, content, process};

/// What `ping` reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pings {
    /// Requests sent.
    pub sent: u32,
    /// Replies received, each counted once.
    pub received: u32,
    /// Mean round-trip time, if anything came back.
    pub rtt: Option<Duration>,
}

/// Sends `count` echo requests, 20 ms apart, with further options of ping.
///
/// # Errors
/// When ping fails in another way than by loss, or reports duplicates or damaged replies.
pub fn ping(from: &Namespace, to: Ipv4Addr, count: u32, options: &[&str]) -> Result<Pings> {
    let mut command = Command::new("ping");
    command
        .args(["-n", "-q", "-i", "0.02", "-W", "1", "-c", &count.to_string()])
        .args(options)
        .arg(to.to_string());
    let output = from.run(|| process::output(command, Duration::from_mins(1)))??;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_ping(&text).with_context(|| {
        format!(
            "ping {to} in {}: {}\n{text}{}",
            from.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn parse_ping(text: &str) -> Result<Pings> {
    ensure!(!text.contains("duplicates") && !text.contains("corrupted"), "not every reply was right");
    let summary = text.lines().find(|line| line.contains("packets transmitted")).context("no summary")?;
    let mut numbers = summary.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok());
    let (sent, received) = numbers.next().zip(numbers.next()).context("no counts")?;
    // rtt min/avg/max/mdev = 0.042/0.051/0.060/0.009 ms
    let times = text.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "));
    let mean = times.and_then(|times| times.split('/').nth(1)).and_then(|mean| mean.parse::<f64>().ok());
    Ok(Pings { sent, received, rtt: mean.map(|ms| Duration::from_secs_f64(ms / 1000.0)) })
}

/// What traceroute sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// UDP datagrams to ports that nobody listens on.
    Udp,
    /// Echo requests.
    Icmp,
    /// SYNs to port 80.
    Tcp,
}

/// Who answers on the way, as traceroute shows it: one entry for each hop, `None` where there is no answer.
///
/// # Errors
/// When traceroute fails, or shows anything but plain answers.
pub fn traceroute(from: &Namespace, to: Ipv4Addr, probe: Probe) -> Result<Vec<Option<Ipv4Addr>>> {
    let method: &[&str] = match probe {
        Probe::Udp => &[],
        Probe::Icmp => &["-I"],
        Probe::Tcp => &["-T", "-p", "80"],
    };
    let to = to.to_string();
    let text =
        from.succeed("traceroute", &[&["-n", "-q", "1", "-w", "1", "-m", "12"], method, &[&to]].concat())?;
    parse_traceroute(&text).with_context(|| format!("traceroute {probe:?} {to} in {}:\n{text}", from.name()))
}

/// Reads lines such as ` 2  192.0.2.1  0.048 ms` and ` 3  *`.
fn parse_traceroute(text: &str) -> Result<Vec<Option<Ipv4Addr>>> {
    let hop = |(number, line): (usize, &str)| {
        let words: Vec<_> = line.split_whitespace().collect();
        ensure!(words.first() == Some(&number.to_string().as_str()), "not hop {number}: {line}");
        match words[1..] {
            ["*"] => Ok(None),
            [address, _, "ms"] => Ok(Some(address.parse()?)),
            _ => anyhow::bail!("no plain answer: {line}"),
        }
    };
    (1..).zip(text.lines().skip(1)).map(hop).collect()
}

/// Fetches a URL with curl, with further options of curl.
///
/// # Errors
/// When curl fails; a status of 400 or more is a failure.
pub fn curl(from: &Namespace, url: &str, options: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--noproxy", "*", "--connect-timeout", "10", "--max-time", "60"]);
    command.args(options).arg(url);
    let output = from.run(|| process::output(command, Duration::from_secs(70)))??;
    ensure!(
        output.status.success(),
        "curl {url} in {}: {}: {}",
        from.name(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// Downloads from a [`WebServer`](super::WebServer) with curl and compares every byte.
///
/// # Errors
/// When curl fails or the content is another.
pub fn download(from: &Namespace, server: Ipv4Addr, size: usize) -> Result<()> {
    let url = format!("http://{server}/{size}");
    let got = curl(from, &url, &[])?;
    ensure!(got == content(size), "{url} gave {} bytes that are not what was served", got.len());
    Ok(())
}

/// A stream of iperf3, from client to server.
#[derive(Clone, Copy, Debug)]
pub struct Iperf<'a> {
    /// Where the client runs.
    pub client: &'a Namespace,
    /// Where the server runs.
    pub server: &'a Namespace,
    /// The address that the client sends to.
    pub target: Ipv4Addr,
    /// How long it sends, in seconds.
    pub seconds: u32,
    /// UDP at this rate in bit/s, or TCP as fast as it goes.
    pub udp: Option<u32>,
}

/// What an iperf3 run brought across.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IperfReport {
    /// Payload bytes.
    pub bytes: u64,
    /// Payload bits a second.
    pub bits_per_second: f64,
    /// UDP datagrams that were missing.
    pub lost: u64,
    /// UDP datagrams that were sent.
    pub datagrams: u64,
}

impl Iperf<'_> {
    /// Runs iperf3 to its end. `log` is a file in the lab's directory for the server's output.
    ///
    /// # Errors
    /// When either side fails.
    pub fn run(self, log: PathBuf) -> Result<IperfReport> {
        self.run_until(log, &|| false)
    }

    /// Runs iperf3 to its end, or until `stop` says so.
    ///
    /// # Errors
    /// When either side fails.
    pub fn run_until(self, log: PathBuf, stop: &(dyn Fn() -> bool + Sync)) -> Result<IperfReport> {
        let mut server = iperf_server(self.server, log)?;
        let mut command = Command::new("iperf3");
        command.args(["--json", "--connect-timeout", "10000", "-c", &self.target.to_string()]);
        command.args(["-t", &self.seconds.to_string()]);
        if let Some(rate) = self.udp {
            command.args(["-u", "-l", "1200", "-b", &rate.to_string()]);
        }
        let limit = Duration::from_secs(u64::from(self.seconds) + 30);
        let output = self.client.run(|| process::output_until(command, limit, stop))??;
        let report: Value = serde_json::from_slice(&output.stdout).context("iperf3 gives no JSON")?;
        let stopped = report["error"].as_str().is_some_and(|error| error.starts_with("interrupt"));
        ensure!(
            output.status.success() || stopped,
            "iperf3 to {}: {}\n{}",
            self.target,
            report["error"],
            server.log()
        );
        server.wait(Duration::from_secs(10))?;
        self.report(&report["end"], stopped)
    }

    fn report(self, end: &Value, stopped: bool) -> Result<IperfReport> {
        let sum = match self.udp {
            Some(_) => &end["sum"],
            // A client that was stopped does not learn what the server received.
            None if stopped => &end["sum_sent"],
            None => &end["sum_received"],
        };
        let number = |key: &str| sum[key].as_u64().with_context(|| format!("no {key} in iperf3's {sum}"));
        Ok(IperfReport {
            bytes: number("bytes")?,
            bits_per_second: sum["bits_per_second"].as_f64().context("no rate from iperf3")?,
            lost: if self.udp.is_some() { number("lost_packets")? } else { 0 },
            datagrams: if self.udp.is_some() { number("packets")? } else { 0 },
        })
    }
}

fn iperf_server(namespace: &Namespace, log: PathBuf) -> Result<Process> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]);
    let mut server = namespace.spawn(command, log)?;
    server.wait_for("Server listening", Duration::from_secs(10))?;
    Ok(server)
}
