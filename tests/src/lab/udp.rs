//! Numbered UDP packets: which arrived, where, and from whom.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::Namespace;

/// A packet that a [`Sink`] received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The number that the [`Sender`] gave it.
    pub number: u64,
    /// The source as it arrived.
    pub source: SocketAddr,
}

/// Receives on a UDP port until it is stopped.
#[derive(Debug)]
pub struct Sink {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Received>>>,
}

impl Sink {
    /// Listens on every address of the namespace.
    ///
    /// # Errors
    /// When the port is taken there.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::start_at(namespace, Ipv4Addr::UNSPECIFIED, port)
    }

    /// Listens on one address of the namespace.
    ///
    /// # Errors
    /// When the address is not there, or the port is taken.
    pub fn start_at(namespace: &Namespace, address: Ipv4Addr, port: u16) -> Result<Self> {
        let socket = namespace.run(|| UdpSocket::bind((address, port)))??;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        // A test that runs beside others may be put off the CPU for a while: nothing is to be lost here.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || receive(&socket, &stopped));
        Ok(Self { stop, thread })
    }

    /// Waits until everything that is under way has arrived, and returns what was received, in order.
    ///
    /// # Errors
    /// When receiving failed.
    pub fn stop(self) -> Result<Vec<Received>> {
        std::thread::sleep(Duration::from_millis(100));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the receiver panicked"))?
    }
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Vec<Received>> {
    let mut all = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, source)) => {
                let number = buffer.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)).unwrap_or_default();
                all.push(Received { number, source });
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                if stop.load(Ordering::Relaxed) {
                    return Ok(all);
                }
            }
            Err(error) => return Err(error).context("cannot receive"),
        }
    }
}

/// Sends numbered packets at a steady rate until it is stopped.
#[derive(Debug)]
pub struct Sender {
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Sender {
    /// Begins to send `rate` packets a second of `size` bytes of payload.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn start(namespace: &Namespace, to: (Ipv4Addr, u16), rate: u32, size: usize) -> Result<Self> {
        let socket = namespace.run(client)??;
        Ok(Self::start_by(rate, size, move |payload| Ok(socket.send_to(payload, to)?)))
    }

    /// The same, each packet from a client that is new.
    #[must_use]
    pub fn start_anew(namespace: &Namespace, to: (Ipv4Addr, u16), rate: u32, size: usize) -> Self {
        let namespace = namespace.clone();
        Self::start_by(rate, size, move |payload| Ok(namespace.run(client)??.send_to(payload, to)?))
    }

    fn start_by(rate: u32, size: usize, send_one: impl Fn(&[u8]) -> Result<usize> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicU64::new(0));
        let (stopped, numbers) = (Arc::clone(&stop), Arc::clone(&next));
        let thread = std::thread::spawn(move || send(send_one, rate, size.max(8), &stopped, &numbers));
        Self { stop, next, thread }
    }

    /// The next packet's number. A packet with this number or a higher one leaves after this call has begun.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Waits until `count` more packets have been sent.
    ///
    /// # Errors
    /// When they have not been sent in time.
    pub fn send_more(&self, count: u64) -> Result<()> {
        let goal = self.next() + count;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.next() <= goal {
            anyhow::ensure!(
                Instant::now() < deadline && !self.thread.is_finished(),
                "the sender has stopped"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Stops sending and returns how many packets were sent.
    ///
    /// # Errors
    /// When sending failed.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(self.next.load(Ordering::SeqCst))
    }
}

fn client() -> std::io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn send(
    send_one: impl Fn(&[u8]) -> Result<usize>,
    rate: u32,
    size: usize,
    stop: &AtomicBool,
    next: &AtomicU64,
) -> Result<()> {
    let mut payload = vec![0; size];
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        // The number is taken before the packet leaves: see `Sender::next`.
        let number = next.fetch_add(1, Ordering::SeqCst);
        payload[..8].copy_from_slice(&number.to_be_bytes());
        send_one(&payload).context("cannot send")?;
        let due = Duration::from_nanos((number + 1) * 1_000_000_000 / u64::from(rate));
        if let Some(early) = due.checked_sub(begin.elapsed()) {
            std::thread::sleep(early);
        }
    }
    Ok(())
}
