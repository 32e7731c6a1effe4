//! The API from the other side: a connection to the daemon's socket for each request.

mod lines;

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{self, Poll};
use std::time::Duration;

use anyhow::Context;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::types::{
    AddressDrops, Allocate, Attach, Counters, CreateVm, Eip, Failure, Imported, Pool, Stats, Status, Top,
    TopQuery, UsagePage, UsageQuery, Vm,
};
use crate::explain::{Explanation, Question};
use crate::model::Name;
use crate::trace::Interest;
pub use lines::{List, Watch};

/// How long the daemon may take to answer: longer than it takes to say that it has taken too long.
const PATIENCE: Duration = Duration::from_secs(35);

/// After how long it is tried again to connect where there was no room.
const NO_ROOM: Duration = Duration::from_millis(10);

/// How long a million lines may take, or a copy of the store; likewise.
const IMPORT_PATIENCE: Duration = Duration::from_mins(16);

/// A client of the daemon at a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer, or not the hoped-for one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No daemon that this user may talk to.
    #[error("{0}")]
    NoDaemon(String),
    /// The daemon said no.
    #[error("{0}")]
    Refused(String),
    /// The daemon answered in no sensible way.
    #[error("{0:#}")]
    Broken(anyhow::Error),
}

type Result<T> = std::result::Result<T, Error>;

impl Client {
    /// A client of the daemon at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// How the daemon is.
    ///
    /// # Errors
    /// As every call: no daemon, a refusal, or no sensible answer.
    pub async fn status(&self) -> Result<Status> {
        self.call(Method::GET, "/v1/status", None::<()>).await
    }

    /// Packets by what became of them.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn stats(&self) -> Result<Stats> {
        self.call(Method::GET, "/v1/stats", None::<()>).await
    }

    /// The EIPs that carry most just now; the answer takes as long as the interval that is asked for.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn top(&self, query: &TopQuery) -> Result<Top> {
        let query = serde_urlencoded::to_string(query).map_err(|error| Error::Broken(error.into()))?;
        self.call(Method::GET, &format!("/v1/top?{query}"), None::<()>).await
    }

    /// Every pool.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        self.call(Method::GET, "/v1/pools", None::<()>).await
    }

    /// Every EIP.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn eips(&self) -> Result<List<Eip>> {
        Ok(List::of(self.stream(Method::GET, "/v1/eips", Body::empty()).await?))
    }

    /// One EIP.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn eip(&self, eip: Ipv4Addr) -> Result<Eip> {
        self.call(Method::GET, &format!("/v1/eips/{eip}"), None::<()>).await
    }

    /// What an EIP has carried.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn counters(&self, eip: Ipv4Addr) -> Result<Counters> {
        self.call(Method::GET, &format!("/v1/eips/{eip}/counters"), None::<()>).await
    }

    /// The packets that were dropped of late which concern a public address.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn drops(&self, address: Ipv4Addr) -> Result<Vec<AddressDrops>> {
        self.call(Method::GET, &format!("/v1/drops/{address}"), None::<()>).await
    }

    /// A page of the bill.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn usage(&self, query: &UsageQuery) -> Result<UsagePage> {
        let query = serde_urlencoded::to_string(query).map_err(|error| Error::Broken(error.into()))?;
        self.call(Method::GET, &format!("/v1/usage?{query}"), None::<()>).await
    }

    /// Allocates an EIP.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn allocate(&self, wanted: &Allocate) -> Result<Eip> {
        self.call(Method::POST, "/v1/eips", Some(wanted)).await
    }

    /// Attaches an EIP to a private IP or to a VM's name.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn attach(&self, eip: Ipv4Addr, target: &str, reassign: bool) -> Result<Eip> {
        let body = Attach { target: target.to_owned(), reassign };
        self.call(Method::PUT, &format!("/v1/eips/{eip}/target"), Some(body)).await
    }

    /// Detaches an EIP.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn detach(&self, eip: Ipv4Addr) -> Result<Eip> {
        self.call(Method::DELETE, &format!("/v1/eips/{eip}/target"), None::<()>).await
    }

    /// Releases an EIP, and answers what it was.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn release(&self, eip: Ipv4Addr) -> Result<Eip> {
        self.call(Method::DELETE, &format!("/v1/eips/{eip}"), None::<()>).await
    }

    /// Every VM.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn vms(&self) -> Result<List<Vm>> {
        Ok(List::of(self.stream(Method::GET, "/v1/vms", Body::empty()).await?))
    }

    /// Creates a VM.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn create_vm(&self, name: &Name, wanted: &CreateVm) -> Result<Vm> {
        self.call(Method::PUT, &format!("/v1/vms/{name}"), Some(wanted)).await
    }

    /// Destroys a VM, and answers what it was.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn destroy_vm(&self, name: &Name) -> Result<Vm> {
        self.call(Method::DELETE, &format!("/v1/vms/{name}"), None::<()>).await
    }

    /// Imports lines `eip,private_ip[,account]`, all of them or none. `progress` is told how many bytes the daemon has.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn import(&self, lines: Vec<u8>, progress: impl Fn(u64) + Send + 'static) -> Result<Imported> {
        let body = Body::of(lines, progress);
        self.json(self.exchange(Method::POST, "/v1/import", body, IMPORT_PATIENCE).await?)
    }

    /// What would become of a packet, and why.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn explain(&self, question: &Question) -> Result<Explanation> {
        self.call(Method::POST, "/v1/explain", Some(question)).await
    }

    /// Watches packets.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn trace(&self, interest: &Interest) -> Result<Watch> {
        let interest = serde_json::to_vec(interest).map_err(|error| Error::Broken(error.into()))?;
        Ok(Watch::of(self.stream(Method::POST, "/v1/trace", Body::of(interest, |_| {})).await?))
    }

    /// A copy of the daemon's store.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn backup(&self) -> Result<Bytes> {
        let (status, content) =
            self.exchange(Method::GET, "/v1/store", Body::empty(), IMPORT_PATIENCE).await?;
        if status.is_success() { Ok(content) } else { Err(self.failure(&content)) }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
    ) -> Result<T> {
        let body = match body {
            Some(body) => {
                Body::of(serde_json::to_vec(&body).map_err(|error| Error::Broken(error.into()))?, |_| {})
            }
            None => Body::empty(),
        };
        self.json(self.exchange(method, path, body, PATIENCE).await?)
    }

    /// Begins what is answered a part at a time.
    async fn stream(&self, method: Method, path: &str, body: Body) -> Result<Incoming> {
        let stream =
            connect(&self.socket, PATIENCE).await.map_err(|error| no_daemon(&self.socket, &error))?;
        let begin = async { timeout(PATIENCE, begin(stream, method, path, body)).await? };
        let answer = begin.await.map_err(|error| self.no_answer(error))?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let content = answer.into_body().collect().await.map_err(|error| self.no_answer(error.into()))?;
        Err(self.failure(&content.to_bytes()))
    }

    fn json<T: DeserializeOwned>(&self, (status, answer): (StatusCode, Bytes)) -> Result<T> {
        if status.is_success() {
            serde_json::from_slice(&answer).map_err(|_| self.not_eipnat())
        } else {
            Err(self.failure(&answer))
        }
    }

    fn failure(&self, answer: &[u8]) -> Error {
        match serde_json::from_slice(answer) {
            Ok(Failure { error }) => Error::Refused(error),
            Err(_) => self.not_eipnat(),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Body,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let stream =
            connect(&self.socket, patience).await.map_err(|error| no_daemon(&self.socket, &error))?;
        let exchange = async { timeout(patience, exchange(stream, method, path, body)).await? };
        exchange.await.map_err(|error| self.no_answer(error))
    }

    fn no_answer(&self, error: anyhow::Error) -> Error {
        Error::Broken(error.context(format!("the daemon at {} gave no answer", self.socket.display())))
    }

    fn not_eipnat(&self) -> Error {
        let socket = self.socket.display();
        Error::Broken(anyhow::anyhow!(
            "what answers at {socket} is not an eipnat of this version; look at --socket"
        ))
    }
}

/// Connects, and tries again where so many do that the kernel says that there is no room.
async fn connect(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let connect = async {
        loop {
            match UnixStream::connect(socket).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(NO_ROOM).await,
                connected => return connected,
            }
        }
    };
    timeout(patience, connect).await.unwrap_or_else(|_| Err(ErrorKind::WouldBlock.into()))
}

fn no_daemon(socket: &Path, error: &io::Error) -> Error {
    let socket = socket.display();
    if error.kind() == ErrorKind::WouldBlock {
        return Error::Broken(anyhow::anyhow!(
            "the daemon at {socket} is busy and takes no connection; try again"
        ));
    }
    Error::NoDaemon(match error.kind() {
        ErrorKind::PermissionDenied => {
            format!(
                "permission denied at {socket}; run this as root or as a member of the group in [api] group"
            )
        }
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no daemon at {socket}; start it with `eipnat run`, or name its socket with --socket")
        }
        _ => format!("no daemon at {socket}: {error}; name its socket with --socket"),
    })
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Body,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let answer = begin(stream, method, path, body).await?;
    let status = answer.status();
    let content = answer.into_body().collect().await.context("the answer was cut short")?.to_bytes();
    Ok((status, content))
}

/// Sends a request, and answers the beginning of the answer.
async fn begin(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Body,
) -> anyhow::Result<Response<Incoming>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request.body(body)?).await?)
}

/// The body of a request, which tells how far it is sent.
struct Body {
    rest: Bytes,
    sent: u64,
    progress: Box<dyn Fn(u64) + Send>,
}

impl Body {
    /// How much is sent at a time, in bytes.
    const CHUNK: usize = 64 * 1024;

    fn of(content: Vec<u8>, progress: impl Fn(u64) + Send + 'static) -> Self {
        Self { rest: content.into(), sent: 0, progress: Box::new(progress) }
    }

    fn empty() -> Self {
        Self::of(Vec::new(), |_| {})
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(Self::CHUNK);
        let chunk = self.rest.split_to(length);
        self.sent += length as u64;
        (self.progress)(self.sent);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
