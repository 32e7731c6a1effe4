//! The `eipnat` daemon on the lab's node, and its command line.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nat_user::config::{Datapath, Mode, SlowPath};
use nat_user::model::{Name, PoolSpec};
use rustix::process::Signal;
use serde_json::Value;

use super::{Lab, Meter, Namespace, Process, Topology};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// The metrics' address, in the node's namespace.
pub const METRICS: &str = "127.0.0.1:9464";

/// A configuration file for the lab's node.
#[derive(Clone, Debug)]
pub struct Config {
    /// `datapath.uplinks`.
    pub uplinks: Vec<String>,
    /// `datapath.downlinks`.
    pub downlinks: Vec<String>,
    /// `datapath.mode`.
    pub mode: String,
    /// `datapath.max_bindings`.
    pub max_bindings: u32,
    /// CIDRs of the pool.
    pub cidrs: Vec<String>,
    /// `reuse_delay` of the pool, in seconds.
    pub reuse_delay: u32,
    /// Further arguments of `eipnat run`.
    pub arguments: Vec<String>,
    /// `datapath.pin_path`.
    pub pin_path: PathBuf,
    /// Where socket and store go.
    pub dir: PathBuf,
}

impl Config {
    /// What fits the lab, everything in the lab's directory.
    #[must_use]
    pub fn of(lab: &Lab) -> Self {
        let (uplink, downlink) = lab.topology.ports();
        Self {
            uplinks: vec![uplink.into()],
            downlinks: vec![downlink.into()],
            mode: "auto".into(),
            max_bindings: 1024,
            cidrs: vec![super::POOL.to_owned()],
            reuse_delay: 60,
            pin_path: lab.file("bpf"),
            dir: lab.dir().to_owned(),
            arguments: Vec::new(),
        }
    }

    /// `api.socket`.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// `store.path`.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// The file's text.
    #[must_use]
    pub fn to_toml(&self) -> String {
        format!(
            r#"[node]
name = "nat-1"
[datapath]
uplinks = {:?}
downlinks = {:?}
mode = "{}"
max_bindings = {}
pin_path = "{}"
[store]
path = "{}"
[api]
socket = "{}"
[metrics]
listen = "{METRICS}"
[[pool]]
name = "default"
cidrs = {:?}
reuse_delay = "{}s"
"#,
            self.uplinks,
            self.downlinks,
            self.mode,
            self.max_bindings,
            self.pin_path.display(),
            self.store().display(),
            self.socket().display(),
            self.cidrs,
            self.reuse_delay,
        )
    }
}

/// The two-armed node's datapath, for tests without a daemon.
#[must_use]
pub fn datapath(pin_path: PathBuf, max_bindings: u32) -> Datapath {
    let (uplink, downlink) = Topology::TwoArmed.ports();
    Datapath {
        uplinks: vec![uplink.into()],
        downlinks: vec![downlink.into()],
        mode: Mode::Native,
        max_bindings,
        pin_path,
        public_ip: None,
        replace_program: false,
        // What a test sends through the datapath alone is not to be finished by a worker beside it.
        slow_path: SlowPath { enabled: false, ..SlowPath::default() },
    }
}

/// The pool `default` of one CIDR, for tests without a daemon.
///
/// # Errors
/// When it is no CIDR.
pub fn default_pool(cidr: &str, reuse_delay: Duration) -> Result<PoolSpec> {
    Ok(PoolSpec { name: Name::default_one(), cidrs: vec![cidr.parse()?], reserve: [].into(), reuse_delay })
}

/// A running daemon. Dropping it kills it; the datapath stays until `unload`, or until the lab goes.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    /// Stays open: the daemon also says that it is ending.
    notify: UnixDatagram,
    node: Namespace,
    eipnat: PathBuf,
    file: PathBuf,
    config: Config,
}

impl Daemon {
    /// Writes the configuration, starts the daemon on the lab's node and waits until it says `READY=1`.
    ///
    /// # Errors
    /// When the daemon ends before that or takes too long; the error holds its log.
    pub fn start(lab: &Lab, eipnat: &Path, config: Config) -> Result<Self> {
        Self::start_on(&lab.node, eipnat, config)
    }

    /// The same on any host, with a directory of its own in the configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(node: &Namespace, eipnat: &Path, config: Config) -> Result<Self> {
        let file = config.dir.join("eipnat.toml");
        std::fs::write(&file, config.to_toml())?;
        let notify = config.dir.join("notify.sock");
        let _ = std::fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut command = Command::new(eipnat);
        command.arg("run").arg("--config").arg(&file).args(&config.arguments);
        clean_environment(&mut command).env("NOTIFY_SOCKET", &notify);
        let process = node.spawn(command, config.dir.join("daemon.log"))?;
        let mut daemon =
            Self { process, notify: socket, node: node.clone(), eipnat: eipnat.to_owned(), file, config };
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut message = [0; 4096];
        loop {
            match self.notify.recv(&mut message) {
                Ok(len) if message[..len].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") => {
                    return Ok(());
                }
                Err(error)
                    if !matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    return Err(error).context("cannot read the notify socket");
                }
                _ => {}
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("the daemon ended ({status}) before it was ready:\n{}", self.log());
            }
            ensure!(
                Instant::now() < deadline,
                "the daemon is not ready after {READY_TIMEOUT:?}:\n{}",
                self.log()
            );
        }
    }

    /// Every public address that the daemon lists with a private one, EIPs and VMs' public IPs.
    ///
    /// # Errors
    /// When it does not list them, or one of them twice.
    pub fn bindings(&self) -> Result<BTreeMap<Ipv4Addr, Ipv4Addr>> {
        let address = |value: &Value| value.as_str().map(str::parse::<Ipv4Addr>).transpose();
        let mut all = BTreeMap::new();
        let (eips, vms) = (self.json(&["eip", "list"])?, self.json(&["vm", "list"])?);
        for (list, public) in [(&eips, "eip"), (&vms, "public_ip")] {
            for entry in list.as_array().context("no list")? {
                if let (Some(public), Some(private)) =
                    (address(&entry[public])?, address(&entry["private_ip"])?)
                {
                    ensure!(all.insert(public, private).is_none(), "{public} is listed twice");
                }
            }
        }
        Ok(all)
    }

    /// The configuration that the daemon was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.file
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Whether the daemon is still there.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Runs `eipnat` with these arguments on the node, against this daemon's socket.
    ///
    /// # Errors
    /// When it cannot be run; its own failure is not an error.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        let socket = self.config.socket();
        let mut all = vec!["--socket".to_owned(), socket.to_string_lossy().into_owned()];
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        run_eipnat(&self.node, &self.eipnat, &all)
    }

    /// Starts an `eipnat` that goes on until it is ended; what it says goes to the file `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn watch(&self, args: &[&str], log: PathBuf) -> Result<Process> {
        let mut command = Command::new(&self.eipnat);
        command.arg("--socket").arg(self.config.socket()).args(args);
        clean_environment(&mut command);
        self.node.spawn(command, log)
    }

    /// Runs a command that has to succeed, and returns its standard output.
    ///
    /// # Errors
    /// When the exit code is not 0; the error holds what the command said.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.cli(args)?;
        ensure!(output.status.success(), "eipnat {}: {}", args.join(" "), said(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command that has to succeed with `-o json`, and returns the answer.
    ///
    /// # Errors
    /// As [`Self::ok`], and when the answer is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.ok(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("eipnat {}: no JSON: {text}", args.join(" ")))
    }

    /// Allocates an address, unless it is held since an earlier daemon, and attaches it.
    ///
    /// # Errors
    /// When either is refused.
    pub fn bind(&self, eip: Ipv4Addr, private_ip: Ipv4Addr) -> Result<()> {
        let (eip, private_ip) = (eip.to_string(), private_ip.to_string());
        if !self.cli(&["eip", "show", &eip])?.status.success() {
            self.ok(&["eip", "allocate", "--address", &eip])?;
        }
        self.ok(&["eip", "attach", &eip, &private_ip])?;
        Ok(())
    }

    /// How many packets were dropped for this reason.
    ///
    /// # Errors
    /// When the daemon cannot be asked or does not know the reason.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        stats["drops"][reason].as_u64().with_context(|| format!("no drop reason {reason} in {stats}"))
    }

    /// The text that `/metrics` answers with.
    ///
    /// # Errors
    /// When it does not answer with 200.
    pub fn metrics(&self) -> Result<String> {
        self.node
            .succeed("curl", &["-sS", "--fail", "--max-time", "20", &format!("http://{METRICS}/metrics")])
    }

    /// What an EIP has carried.
    ///
    /// # Errors
    /// When `/metrics` does not tell.
    pub fn meter(&self, eip: Ipv4Addr) -> Result<Meter> {
        Meter::parse(&self.metrics()?, eip)
    }

    /// What an EIP is billed for, all its records together.
    ///
    /// # Errors
    /// When `eipnat usage` does not tell.
    pub fn usage(&self, eip: Ipv4Addr) -> Result<Meter> {
        let records = self.json(&["usage", "--eip", &eip.to_string()])?;
        let mut sum = Meter::default();
        for record in records.as_array().context("no list")? {
            sum.add(record)?;
        }
        Ok(sum)
    }

    /// The value of the one metric that begins like this, such as `eipnat_bindings ` or
    /// `eipnat_packets_total{verdict="forward"}`.
    ///
    /// # Errors
    /// When there is none.
    pub fn metric(&self, prefix: &str) -> Result<u64> {
        let text = self.metrics()?;
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        let value = line.ok_or_else(|| anyhow!("no metric {prefix} in\n{text}"))?;
        Ok(value.trim().parse()?)
    }

    /// Ends the daemon by SIGTERM; it has to exit with 0.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.stop(Signal::TERM, STOP_TIMEOUT)?;
        ensure!(status.success(), "the daemon ended with {status} on SIGTERM:\n{}", self.log());
        Ok(())
    }

    /// Ends the daemon by SIGKILL.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn kill(&mut self) -> Result<()> {
        self.process.stop(Signal::KILL, STOP_TIMEOUT)?;
        Ok(())
    }

    /// Waits for the daemon to end by itself, with 0.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.process.wait(STOP_TIMEOUT)?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// `eipnat unload --config FILE`, which needs no daemon and has to succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn unload(&self) -> Result<()> {
        let file = self.file.to_string_lossy();
        let output = run_eipnat(&self.node, &self.eipnat, &["unload", "--config", &file])?;
        ensure!(output.status.success(), "eipnat unload: {}", said(&output));
        Ok(())
    }
}

/// Runs `eipnat` with these arguments on the node.
///
/// # Errors
/// When it cannot be run; its own failure is not an error.
pub fn run_eipnat(node: &Namespace, eipnat: &Path, args: &[impl AsRef<str>]) -> Result<Output> {
    let mut command = Command::new(eipnat);
    command.args(args.iter().map(AsRef::as_ref));
    clean_environment(&mut command);
    node.run(|| super::process::output(command, COMMAND_TIMEOUT))?
}

/// Asserts that a command was refused: exit code 1, nothing on stdout, and on stderr one line `error: …`, which
/// is returned without that prefix.
///
/// # Errors
/// When it was not.
pub fn refused(output: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "not refused with exit code 1: {}", said(output));
    ensure!(output.stdout.is_empty(), "something on stdout of a refused command: {}", said(output));
    let text = stderr.strip_suffix('\n').and_then(|line| line.strip_prefix("error: "));
    match text {
        Some(text) if !text.contains('\n') => Ok(text.to_owned()),
        _ => bail!("stderr is not one line \"error: …\": {stderr:?}"),
    }
}

/// The `eipnat` for end-to-end tests, which cargo builds along with them; `EIPNAT` in the environment names another.
///
/// # Errors
/// When it has not been built.
pub fn eipnat_binary() -> Result<PathBuf> {
    match std::env::var_os("EIPNAT") {
        Some(path) => Ok(path.into()),
        None => beside_this_program("eipnat-under-test"),
    }
}

/// A program that was built together with the running one, a test or a tool.
///
/// # Errors
/// When it has not been built.
pub fn beside_this_program(name: &str) -> Result<PathBuf> {
    // target/PROFILE/eipnat-lab, or target/PROFILE/deps/TEST-HASH.
    let exe = std::env::current_exe()?;
    let near = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = near.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}; cargo build --workspace", exe.display()))
}

/// What a finished command said, for error messages.
fn said(output: &Output) -> String {
    format!(
        "{}; stderr: {:?}; stdout: {:?}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    )
}

fn clean_environment(command: &mut Command) -> &mut Command {
    command.env_remove("NOTIFY_SOCKET").env_remove("EIPNAT_SOCKET").env_remove("RUST_LOG")
}
