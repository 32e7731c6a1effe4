//! Running other programs, and telling people about it.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use nat_ebpf_builder::{find_program, search_path};

/// A line of the set-up's story.
pub(crate) fn say(text: impl fmt::Display) {
    eprintln!("set-up: {text}");
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    // The owner of a process's own directory is its effective user.
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

/// A command that runs as root: by itself where we are, else through sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>, what_for: &str) -> anyhow::Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find_program("sudo") else {
        bail!("{what_for} takes root, and there is no sudo: run this as root");
    };
    let mut command = Command::new(sudo);
    // sudo starts with a search path of its own.
    command.args(["--", "env"]).arg(path_variable()?).arg(program);
    Ok(command)
}

/// `PATH=...` with all directories that [`find_program`] looks in.
pub(crate) fn path_variable() -> anyhow::Result<OsString> {
    let mut variable = OsString::from("PATH=");
    variable.push(env::join_paths(search_path())?);
    Ok(variable)
}

/// The cargo that runs us, with nothing of ours in its environment.
///
/// `cargo run` describes the package that it runs in the environment; build scripts that look at such a variable
/// would run again each time that cargo is called by hand and by xtask in turns.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(ours) {
            command.env_remove(name);
        }
    }
    command
}

/// Where fetched things are kept: not under target/, so that a fresh clone finds them again.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    Ok(cache.context("there is neither XDG_CACHE_HOME nor HOME")?.join("eipnat"))
}

/// The workspace's target directory, wherever the user may have put it.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    // We stand in it: target/debug/xtask.
    let me = env::current_exe().context("cannot tell where xtask stands")?;
    let target =
        me.ancestors().nth(2).context("xtask stands in no target directory: run it as cargo xtask")?;
    Ok(target.to_owned())
}

/// How long a command may take.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Until it prints a line with `sign` in it.
    pub(crate) first: Duration,
    /// What shows that it is getting on.
    pub(crate) sign: &'static str,
    /// From then on.
    pub(crate) then: Duration,
}

/// Reads a command's progress off a line of its output: how much of it is done, from 0 to 1, and the words for it.
pub(crate) type ReadProgress = fn(&str) -> Option<(f32, &str)>;

/// A long command whose output nobody wants to see unless it fails.
pub(crate) struct Step<'a> {
    /// What it does and why, in one line.
    pub(crate) title: &'a str,
    /// How to read its progress, if it tells any.
    pub(crate) progress: Option<ReadProgress>,
    /// When to give up on it, if ever.
    pub(crate) patience: Option<Patience>,
}

/// Lines of a failed command's output that are shown.
const TAIL: usize = 30;

impl<'a> Step<'a> {
    pub(crate) fn new(title: &'a str) -> Self {
        Self { title, progress: None, patience: None }
    }

    /// Runs the command. A terminal sees a spinner or a bar and the command's last line, anything else two lines.
    ///
    /// # Errors
    /// With the last lines of the command's output.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let start = Instant::now();
        let bar = self.bar();
        if bar.is_hidden() {
            say(format_args!("{} ...", self.title));
        }
        let result = self.wait(command, &bar);
        bar.finish_and_clear();
        if result.is_ok() {
            say(format_args!("{}: done in {}", self.title, Seconds(start.elapsed())));
        }
        result
    }

    fn bar(&self) -> ProgressBar {
        let template = if self.progress.is_some() {
            "set-up: {prefix} [{bar:24}] {percent:>3} % {elapsed} {wide_msg}"
        } else {
            "set-up: {prefix} {spinner} {elapsed} {wide_msg}"
        };
        let style = ProgressStyle::with_template(template).expect("the template is a constant that parses");
        let bar = ProgressBar::new(1000).with_style(style).with_prefix(self.title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn wait(&self, command: &mut Command, bar: &ProgressBar) -> anyhow::Result<()> {
        let (reader, writer) = io::pipe()?;
        let program = command.get_program().display().to_string();
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        // The command holds the pipe's writing ends until it is pointed elsewhere, and we would wait for ourselves.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let tail = self.follow(&lines, &mut child, bar);
        let status = child.wait()?;
        let tail = tail.with_context(|| format!("{}: {program}", self.title))?;
        if !status.success() {
            let tail = Vec::from(tail).join("\n");
            bail!("{}: {program} failed ({status}). Its last lines:\n{tail}", self.title);
        }
        Ok(())
    }

    /// Shows the command's lines until its end, and returns the last ones. Kills it when patience is at its end.
    fn follow(
        &self,
        lines: &Receiver<String>,
        child: &mut Child,
        bar: &ProgressBar,
    ) -> anyhow::Result<VecDeque<String>> {
        let forever = Duration::from_hours(24);
        let start = Instant::now();
        let mut deadline = start + self.patience.map_or(forever, |patience| patience.first);
        let mut waits_for_sign = self.patience.map(|patience| (patience.sign, patience.then));
        let mut tail = VecDeque::new();
        loop {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    if let Some((sign, then)) = waits_for_sign
                        && line.contains(sign)
                    {
                        deadline = Instant::now() + then;
                        waits_for_sign = None;
                    }
                    if let Some((done, words)) = self.progress.and_then(|read| read(&line)) {
                        #[expect(
                            clippy::cast_possible_truncation,
                            clippy::cast_sign_loss,
                            reason = "0 to 1000"
                        )]
                        bar.set_position((done.clamp(0.0, 1.0) * 1000.0) as u64);
                        bar.set_message(words.to_owned());
                        continue;
                    }
                    bar.set_message(line.trim().to_owned());
                    tail.push_back(line);
                    if tail.len() > TAIL {
                        tail.pop_front();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(tail),
                // A service that a package starts may keep the pipe open, so its end alone is not waited for.
                Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => return Ok(tail),
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    child.kill()?;
                    bail!("gave up after {}", Seconds(start.elapsed()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// A duration as people say it.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f32();
        if seconds < 10.0 { write!(f, "{seconds:.1} s") } else { write!(f, "{seconds:.0} s") }
    }
}
