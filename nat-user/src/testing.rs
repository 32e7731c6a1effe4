//! A daemon in the test's own process: the real socket, the real command line, and a datapath in memory.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::config::{Api, Config, DEFAULT_RATE};
use crate::daemon::{Service, Sockets};
use crate::dataplane::memory::MemoryDataplane;
use crate::store::Store;

/// A daemon with the pools `default` (203.0.113.0/30) and `small` (198.51.100.7/32), and room for four bindings. It
/// ends when this is dropped.
pub(crate) struct TestDaemon {
    pub(crate) dataplane: MemoryDataplane,
    pub(crate) config: Config,
    metrics: SocketAddr,
    directory: TempDir,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl TestDaemon {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    /// Starts with a configuration that a test has changed.
    pub(crate) fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            store_path: directory.path().join("lib/eipnat"),
            ..config(&directory.path().join("run/eipnat/api.sock"))
        };
        change(&mut config);
        let dataplane = MemoryDataplane::new(4);
        let (stop, stopped) = oneshot::channel();
        let (listening, metrics) = oneshot::channel();
        let (its_config, its_dataplane) = (config.clone(), dataplane.clone());
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let serving = async {
                let sockets = Sockets::claim(&its_config).unwrap();
                listening.send(sockets.metrics_address().unwrap()).unwrap();
                let shutdown = async { stopped.await.unwrap_or_default() };
                let store = Store::open(&its_config.store_path, its_config.spec.clone(), 4).unwrap();
                let service = Service::start(&its_config, &sockets, store, Box::new(its_dataplane)).unwrap();
                service.run(shutdown).await.unwrap();
            };
            runtime.block_on(serving);
        });
        let metrics = metrics.blocking_recv().unwrap();
        let daemon = Self { dataplane, config, metrics, directory, running: Some((stop, thread)) };
        while daemon.eipnat("status").0 == 3 {
            assert!(daemon.running.as_ref().is_some_and(|(_, thread)| !thread.is_finished()), "it has ended");
        }
        daemon
    }

    /// Runs a command line, and answers its exit code and what it wrote to stdout and stderr.
    pub(crate) fn eipnat(&self, args: &str) -> (u8, String, String) {
        eipnat(&self.config.api.socket, args)
    }

    /// Runs a command line that has to be done, and answers what it wrote to stdout.
    pub(crate) fn done(&self, args: &str) -> String {
        let (code, out, err) = self.eipnat(args);
        assert_eq!((code, err.as_str()), (0, ""), "{args}");
        out
    }

    /// Sends a request as it is to the API and answers everything that comes back.
    pub(crate) fn http(&self, request: &str) -> String {
        exchange(UnixStream::connect(&self.config.api.socket).unwrap(), request)
    }

    /// What a scrape of `/metrics` brings, with the head.
    pub(crate) fn scrape(&self) -> String {
        exchange(TcpStream::connect(self.metrics).unwrap(), "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n")
    }

    /// Ends the daemon, and answers what is left of it in the file system.
    pub(crate) fn stop(mut self) -> Vec<PathBuf> {
        self.end();
        fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn end(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// A configuration with two pools and its sockets out of everybody's way.
pub(crate) fn config(socket: &Path) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = r#"
        datapath = { uplinks = ["up0"], downlinks = ["dn0"] }
        metrics.listen = "127.0.0.1:0"
        pool = [
            { name = "default", cidrs = ["203.0.113.0/30"], reuse_delay = "1h" },
            { name = "small", cidrs = ["198.51.100.7/32"] },
        ]
    "#;
    fs::write(file.path(), text).unwrap();
    Config {
        api: Api { socket: socket.to_owned(), group: None, rate: DEFAULT_RATE },
        ..Config::read(file.path()).unwrap()
    }
}

/// Runs a command line against the daemon at `socket`.
pub(crate) fn eipnat(socket: &Path, args: &str) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let words =
        ["eipnat", "--socket"].into_iter().chain([socket.to_str().unwrap()]).chain(args.split_whitespace());
    let code = crate::cli::run(words.map(Into::into), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn exchange(mut stream: impl Read + Write, request: &str) -> String {
    // A server that has seen enough may close before everything is written.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}
