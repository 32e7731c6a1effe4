//! A terminal without anybody in front of it, by tmux.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{Lab, Namespace, Process};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A terminal in which a command runs. Dropping it ends both.
#[derive(Debug)]
pub struct Screen {
    /// The server of this terminal alone.
    _tmux: Process,
    node: Namespace,
    socket: PathBuf,
}

impl Screen {
    /// Runs a line of shell on the lab's node, in a terminal of so many columns and rows.
    ///
    /// # Errors
    /// When tmux does not start.
    pub fn start(lab: &Lab, name: &str, (columns, rows): (u16, u16), line: &str) -> Result<Self> {
        let node = lab.node.clone();
        let socket = lab.file(&format!("{name}.tmux"));
        let mut command = Command::new("tmux");
        // -D: in the foreground, so that it is ours to end.
        command.arg("-S").arg(&socket).args(["-u", "-f", "/dev/null", "-D"]);
        let tmux = node.spawn(command, lab.file(&format!("{name}.log")))?;
        let screen = Self { _tmux: tmux, node, socket };
        let deadline = Instant::now() + TIMEOUT;
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let session = ["-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, line];
        while let Err(error) = screen.tmux(&session) {
            if Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(screen)
    }

    /// What stands on it, line by line, without what is blank at the end of a line.
    ///
    /// # Errors
    /// When tmux is gone.
    pub fn lines(&self) -> Result<Vec<String>> {
        let text = self.tmux(&["capture-pane", "-p"])?;
        Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
    }

    /// Waits until it looks as it should, and returns how it looks.
    ///
    /// # Errors
    /// When it does not in time; the error shows how it looks instead.
    pub fn wait_for(&self, what: &str, is_there: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let lines = self.lines()?;
            if is_there(&lines) {
                return Ok(lines);
            }
            if Instant::now() > deadline {
                bail!("{what}: not on the screen after {TIMEOUT:?}:\n{}", lines.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Types keys, in tmux's words: a letter, `Enter`, `Escape`, `C-c`, `PageDown`.
    ///
    /// # Errors
    /// When tmux is gone.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Makes it larger or smaller.
    ///
    /// # Errors
    /// When tmux is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = [columns.to_string(), rows.to_string()];
        self.tmux(&["resize-window", "-x", &size[0], "-y", &size[1]]).map(drop)
    }

    /// What tmux knows of the terminal, such as `#{alternate_on}` or `#{pane_pid}`.
    ///
    /// # Errors
    /// When tmux is gone.
    pub fn tell(&self, format: &str) -> Result<String> {
        Ok(self.tmux(&["display-message", "-p", format])?.trim_end().to_owned())
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket.to_string_lossy();
        // -N: a server of its own would outlive the test.
        self.node.succeed("tmux", &[&["-N", "-u", "-S", &socket], args].concat())
    }
}
