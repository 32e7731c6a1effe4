//! What is sent across the NAT, and how it came out.

use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use comfy_table::Table;
use tests::lab::{EIP1, INTERNET, Iperf, Lab, Namespace, content, curl, ping};

use super::plain_table;
use super::screen::{bytes, per_second, rate};

/// Size of one download, in bytes.
const DOWNLOAD: usize = 8_000_000;

/// Longer than any demonstration: a stream is stopped, it does not end.
const ENDLESS: u32 = 86_400;

/// How often a download and a row of pings are done anew.
const PAUSE: Duration = Duration::from_millis(500);

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ping,
    Download,
    Stream,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Download => "curl",
            Self::Stream => "iperf3 (TCP)",
        }
    }
}

/// An end of a path: where a program runs.
#[derive(Clone, Copy, Debug)]
enum Host {
    Internet,
    Vm1,
    Vm2,
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Self::Internet => "internet",
            Self::Vm1 => "vm1",
            Self::Vm2 => "vm2",
        }
    }

    fn namespace(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Internet => &lab.internet,
            Self::Vm1 => &lab.vm1,
            Self::Vm2 => &lab.vm2,
        }
    }
}

/// One thing that is done, again and again.
#[derive(Debug)]
struct Activity {
    kind: Kind,
    from: Host,
    /// The address that the client uses, and whose it is.
    to: (Ipv4Addr, Host),
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Pings sent, or downloads and streams begun.
    begun: u64,
    /// Pings answered, or downloads and streams that came out right.
    done: u64,
    bytes: u64,
    /// How long the bytes took.
    busy: Duration,
    rtt: Option<Duration>,
    failure: Option<String>,
}

/// Everything that is done.
#[derive(Debug)]
pub(crate) struct Board(Vec<Activity>);

impl Default for Board {
    fn default() -> Self {
        let paths = [
            (Kind::Ping, Host::Internet, (EIP1, Host::Vm1)),
            (Kind::Ping, Host::Vm1, (INTERNET, Host::Internet)),
            (Kind::Download, Host::Internet, (EIP1, Host::Vm1)),
            (Kind::Download, Host::Vm2, (INTERNET, Host::Internet)),
            (Kind::Download, Host::Vm2, (EIP1, Host::Vm1)),
            (Kind::Stream, Host::Internet, (EIP1, Host::Vm1)),
            (Kind::Stream, Host::Vm2, (INTERNET, Host::Internet)),
        ];
        Self(paths.map(|(kind, from, to)| Activity { kind, from, to, tally: Mutex::default() }).into())
    }
}

impl Board {
    /// Sends one row of pings and one download over each path, one after the other. Here not one may be lost.
    pub(crate) fn try_each_once(&self, lab: &Lab) {
        for activity in self.0.iter().filter(|activity| activity.kind != Kind::Stream) {
            activity.round(lab, &|| false);
            let mut tally = activity.tally();
            if tally.done < tally.begun && tally.failure.is_none() {
                tally.failure = Some(format!("{} of {} answered", tally.done, tally.begun));
            }
        }
    }

    /// Starts everything, to go on until `is_over`.
    pub(crate) fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        lab: &'scope Lab,
        is_over: &'scope (dyn Fn() -> bool + Sync),
    ) {
        for activity in &self.0 {
            scope.spawn(move || {
                while !is_over() {
                    activity.round(lab, is_over);
                    let next = Instant::now() + PAUSE;
                    while !is_over() && Instant::now() < next {
                        std::thread::sleep(PAUSE / 10);
                    }
                }
            });
        }
    }

    /// A line for each that was tried.
    pub(crate) fn lines(&self) -> Vec<String> {
        let tried = self.0.iter().filter(|activity| activity.tally().begun > 0);
        tried.map(|activity| format!("{}: {}", activity.title(), activity.outcome())).collect()
    }

    /// A row for each.
    pub(crate) fn table(&self) -> Table {
        let mut table = plain_table(&["TRAFFIC", "FROM", "TO", "OUTCOME"]);
        for activity in &self.0 {
            let to = format!("{} ({})", activity.to.0, activity.to.1.name());
            let cells =
                [activity.kind.name().to_owned(), activity.from.name().to_owned(), to, activity.outcome()];
            table.add_row(cells);
        }
        table
    }

    /// An error with everything that failed, if anything did. On a loaded machine a ping may be lost, but not all.
    pub(crate) fn failures(&self) -> Result<()> {
        let mut failures = Vec::new();
        for activity in &self.0 {
            let tally = activity.tally();
            if let Some(failure) = &tally.failure {
                failures.push(format!("{}: {failure}", activity.title()));
            } else if tally.begun > 0 && tally.done == 0 {
                failures.push(format!("{}: nothing came back", activity.title()));
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
    }
}

impl Activity {
    fn title(&self) -> String {
        let (address, whose) = self.to;
        format!("{} from {} to {address} ({})", self.kind.name(), self.from.name(), whose.name())
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it once and notes how it came out.
    fn round(&self, lab: &Lab, is_over: &(dyn Fn() -> bool + Sync)) {
        let client = self.from.namespace(lab);
        let target = self.to.0;
        let result = match self.kind {
            Kind::Ping => self.ping(client, target),
            Kind::Download => self.download(client, target),
            Kind::Stream => {
                let server = self.to.1.namespace(lab);
                let log = lab.file(&format!("iperf3-{}.log", self.from.name()));
                self.stream(Iperf { client, server, target, seconds: ENDLESS, udp: None }, log, is_over)
            }
        };
        if let Err(error) = result {
            self.tally().failure.get_or_insert_with(|| format!("{error:#}"));
        }
    }

    fn ping(&self, client: &Namespace, target: Ipv4Addr) -> Result<()> {
        let pings = ping(client, target, 10, &[])?;
        let mut tally = self.tally();
        tally.begun += u64::from(pings.sent);
        tally.done += u64::from(pings.received);
        tally.rtt = pings.rtt.or(tally.rtt);
        Ok(())
    }

    fn download(&self, client: &Namespace, target: Ipv4Addr) -> Result<()> {
        self.tally().begun += 1;
        let begin = Instant::now();
        let got = curl(client, &format!("http://{target}/{DOWNLOAD}"), &[])?;
        let busy = begin.elapsed();
        if got != content(DOWNLOAD) {
            bail!("{} bytes that are not what was served", got.len());
        }
        let mut tally = self.tally();
        tally.done += 1;
        tally.bytes += DOWNLOAD as u64;
        tally.busy += busy;
        Ok(())
    }

    fn stream(
        &self,
        run: Iperf<'_>,
        log: std::path::PathBuf,
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<()> {
        self.tally().begun += 1;
        let begin = Instant::now();
        let report = run.run_until(log, is_over)?;
        let mut tally = self.tally();
        tally.done += 1;
        tally.bytes += report.bytes;
        tally.busy += begin.elapsed();
        Ok(())
    }

    fn outcome(&self) -> String {
        let tally = self.tally();
        if let Some(failure) = &tally.failure {
            return format!("FAILED: {failure}");
        }
        let speed = rate(per_second(tally.bytes * 8, tally.busy));
        match self.kind {
            Kind::Ping => {
                let rtt =
                    tally.rtt.map_or_else(String::new, |rtt| format!(", {:.3} ms", rtt.as_secs_f64() * 1e3));
                format!("{} of {} answered{rtt}", tally.done, tally.begun)
            }
            Kind::Stream if tally.done == 0 => "under way".to_owned(),
            Kind::Download => {
                format!("{} × {} intact, {}", tally.done, bytes(DOWNLOAD as u64), speed)
            }
            Kind::Stream => format!("{}, {speed}", bytes(tally.bytes)),
        }
    }
}
