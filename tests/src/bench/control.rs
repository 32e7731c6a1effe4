//! What the daemon takes for what it is asked.

use std::fs::File;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nat_user::api::client::Client;
use serde_json::Value;

use super::device::Kind;
use super::figures::{Figure, Section, Target, float, quantile};
use super::path::Path;
use super::{resident, say, works};
use crate::lab::{Daemon, Ground, METRICS, Sender, Sink, eipnat_binary, pins};

/// Ports of the two flows.
const PORT: u16 = 7000;
const STEADY: u16 = 7001;

/// Packets a second of a flow: so much does an attachment take longer to be seen than it takes.
const RATE: u32 = 5000;

/// A number that no import attaches.
const LATE: u32 = (1 << 20) - 16;

pub(super) fn measure(quick: bool) -> Result<Section> {
    let (count, attachments): (u32, _) = if quick { (1 << 16, 24) } else { (1_000_000, 200) };
    say(&format!("the daemon with {count} EIPs"));
    let ground = Ground::new()?;
    let path = Path::without_works(Kind::Eipnat, &ground)?;
    let max_bindings = count.next_power_of_two();
    let mut daemon = works::daemon(&ground, &path.node, max_bindings)?;
    let case = format!("{count} EIPs");
    let figure = |what, unit, value: f64| Figure::new(Kind::Eipnat.name(), case.clone(), what, unit, value);
    // What is to be is said of a million.
    let aim = |figure: Figure, most| if quick { figure } else { figure.target(Target::AtMost(most)) };
    let mut figures = Vec::new();

    let imported = works::import(&daemon, &ground, works::first(count))?;
    figures.push(aim(figure("import", "s", imported.as_secs_f64()), 10.0));
    let [answers, wire] = attach(&path, &daemon, attachments)?;
    figures.push(figure("attach, p50", "ms", quantile(&answers, 0.5)));
    figures.push(aim(figure("attach, p99", "ms", quantile(&answers, 0.99)), 2.0));
    let disk = disk(&daemon.config().dir.join("disk"), attachments)?;
    for (what, times, at) in [
        ("the disk alone, as often as a commit waits for it, p50", &disk, 0.5),
        ("the disk alone, as often as a commit waits for it, p99", &disk, 0.99),
        ("attach to wire, p50", &wire, 0.5),
        ("attach to wire, p99", &wire, 0.99),
    ] {
        figures.push(figure(what, "ms", quantile(times, at)));
    }
    let (listing, peak) = list(&daemon, ground.file("list.txt"), count)?;
    figures.push(figure("eip list", "s", listing));
    figures.push(figure("eip list, peak RSS of the client", "MB", peak / 1e6));
    let (time, size) = scrape(&path)?;
    figures.push(figure("scrape of /metrics", "s", time));
    figures.push(figure("scrape of /metrics, size", "kB", size / 1e3));
    let rss = float(resident(daemon.pid(), "VmRSS")?) / 1e6;
    figures.push(aim(figure("RSS of the daemon", "MB", rss), 400.0));
    let (ready, sent, lost) = restart(&path, &mut daemon)?;
    figures.push(aim(figure("restart to ready", "s", ready), 5.0));
    figures.push(figure("restart, packets of a steady flow", "packets", sent));
    figures.push(aim(figure("restart, packets lost", "packets", lost), 0.0));
    figures.push(figure(
        "RSS of the daemon after the restart",
        "MB",
        float(resident(daemon.pid(), "VmRSS")?) / 1e6,
    ));
    let maps = float(map_memory(&path, &daemon)?);
    figures.push(figure("memory of all maps", "MB", maps / 1e6));
    figures.push(figure(
        "memory of all maps, for each of max_bindings",
        "bytes",
        maps / f64::from(max_bindings),
    ));
    Ok(Section { name: "control", title: "What the daemon takes for what it is asked", figures })
}

/// How long it takes, in milliseconds, from the request to attach an EIP until the answer, by the daemon's own client; and until the
/// first packet of a steady flow arrives.
fn attach(path: &Path, daemon: &Daemon, times: u32) -> Result<[Vec<f64>; 2]> {
    let (eip, vm) = (works::pair(LATE).0, Path::own());
    // The address of the VM is bound: its EIP makes room.
    daemon.ok(&["eip", "detach", &path.target().to_string()])?;
    daemon.ok(&["eip", "allocate", "--address", &eip.to_string()])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(daemon.config().socket());
    let sender = Sender::start(&path.client, (eip, PORT), RATE, 32)?;
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..times {
        let arrivals = arrivals(path)?;
        let start = Instant::now();
        runtime.block_on(client.attach(eip, &vm.to_string(), false))?;
        let answered = Instant::now();
        let first = arrivals.recv_timeout(Duration::from_secs(5)).context("nothing arrives")??;
        for (all, end) in all.iter_mut().zip([answered, first]) {
            all.push((end - start).as_secs_f64() * 1e3);
        }
        runtime.block_on(client.detach(eip))?;
        // What was under way when it was detached is not to be taken for the next one's.
        sleep(Duration::from_millis(20));
    }
    sender.stop()?;
    daemon.ok(&["eip", "attach", &path.target().to_string(), &vm.to_string()])?;
    Ok(all)
}

/// How long it takes, in milliseconds, until the disk has what a commit writes: the journal, its header, the database, and that the
/// journal is void, each before the next.
fn disk(file: &std::path::Path, times: u32) -> Result<Vec<f64>> {
    const WRITES: u64 = 4;
    let file = File::create(file)?;
    file.write_all_at(&vec![0; 64 * 1024], 0)?;
    file.sync_all()?;
    let commit = |_| {
        let start = Instant::now();
        for write in 0..WRITES {
            file.write_all_at(&[1; 4096], 8192 * write)?;
            file.sync_all()?;
        }
        let taken = start.elapsed().as_secs_f64() * 1e3;
        sleep(Duration::from_millis(20));
        Ok(taken)
    };
    (0..times).map(commit).collect()
}

/// When the next packet arrives at the VM.
fn arrivals(path: &Path) -> Result<Receiver<Result<Instant>>> {
    let socket = path.vm.run(|| UdpSocket::bind((Path::own(), PORT)))??;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (tell, arrivals) = channel();
    std::thread::spawn(move || {
        let came = socket.recv(&mut [0; 64]);
        let now = Instant::now();
        // Whoever does not wait any more has told why.
        let _ = tell.send(came.map(|_| now).map_err(Into::into));
    });
    Ok(arrivals)
}

/// Seconds of a list of all EIPs, and the most memory that its client had.
fn list(daemon: &Daemon, log: PathBuf, count: u32) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut client = daemon.watch(&["eip", "list"], log)?;
    let mut peak = 0;
    while client.try_wait()?.is_none() {
        // Once it has ended there is nothing to be read.
        peak = resident(client.pid(), "VmHWM").unwrap_or(peak);
        sleep(Duration::from_millis(1));
    }
    let taken = start.elapsed().as_secs_f64();
    let lines = client.log().lines().count();
    ensure!(lines > count as usize, "only {lines} lines of {count} EIPs");
    Ok((taken, float(peak)))
}

/// Seconds and bytes of a scrape.
fn scrape(path: &Path) -> Result<(f64, f64)> {
    let url = format!("http://{METRICS}/metrics");
    let wanted = "%{http_code} %{time_total} %{size_download}";
    let text = path.node.succeed("curl", &["-sS", "--fail", "-o", "/dev/null", "-w", wanted, &url])?;
    let mut numbers = text.split_whitespace().skip(1).map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(time), Some(size)) => Ok((time?, size?)),
        _ => anyhow::bail!("curl says {text:?}"),
    }
}

/// Stops the daemon and starts it again: how long until it is ready, and how many packets of a flow were sent and lost meanwhile.
fn restart(path: &Path, daemon: &mut Daemon) -> Result<(f64, f64, f64)> {
    let sink = Sink::start_at(&path.vm, Path::own(), STEADY)?;
    let sender = Sender::start(&path.client, (path.target(), STEADY), 1000, 32)?;
    sender.send_more(200)?;
    daemon.stop()?;
    let start = Instant::now();
    *daemon = Daemon::start_on(&path.node, &eipnat_binary()?, daemon.config().clone())?;
    let ready = start.elapsed().as_secs_f64();
    sender.send_more(200)?;
    let sent = sender.stop()?;
    let came = u64::try_from(sink.stop()?.len())?;
    Ok((ready, float(sent), float(sent) - float(came)))
}

/// Bytes of all maps that the datapath has.
fn map_memory(path: &Path, daemon: &Daemon) -> Result<u64> {
    let root = &daemon.config().pin_path;
    let mut found = Vec::new();
    for name in pins(daemon.config())? {
        let pin = root.join(name);
        if pin.is_dir() {
            found
                .extend(std::fs::read_dir(&pin)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?);
        } else {
            found.push(pin);
        }
    }
    let mut sum = 0;
    for pin in found {
        let mut command = std::process::Command::new("bpftool");
        command.args(["-j", "map", "show", "pinned"]).arg(&pin);
        let output = path.node.output(command)?;
        // Programs and links are pinned there as well.
        if output.status.success() {
            sum += locked(&String::from_utf8_lossy(&output.stdout))?;
        }
    }
    ensure!(sum > 0, "no maps are pinned under {}", root.display());
    Ok(sum)
}

/// Bytes that a map takes, as bpftool tells.
fn locked(text: &str) -> Result<u64> {
    let map: Value = serde_json::from_str(text).context("bpftool gives no JSON")?;
    map["bytes_memlock"].as_u64().with_context(|| format!("no bytes_memlock in {text}"))
}

#[cfg(test)]
mod tests {
    use super::locked;

    #[test]
    fn what_a_map_takes_is_read() {
        let text = r#"{"id":5,"type":"hash","name":"EIPS","bytes_key":4,"max_entries":16,"bytes_memlock":8192,"frozen":0}"#;
        assert_eq!(locked(text).ok(), Some(8192));
        assert!(locked(r#"{"error":"can't get link"}"#).is_err());
        assert!(locked("").is_err());
    }
}
