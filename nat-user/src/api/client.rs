//! The API from the other side: a connection to the daemon's socket for each request.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::types::{Allocate, Attach, Counters, Eip, Failure, Pool, Stats, Status};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
    pub async fn eips(&self) -> Result<Vec<Eip>> {
        self.call(Method::GET, "/v1/eips", None::<()>).await
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
    pub async fn attach(&self, eip: Ipv4Addr, target: &str) -> Result<Eip> {
        let body = Attach { target: target.to_owned() };
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

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<impl Serialize>,
    ) -> Result<T> {
        let stream =
            UnixStream::connect(&self.socket).await.map_err(|error| no_daemon(&self.socket, &error))?;
        let exchange = async { timeout(PATIENCE, exchange(stream, method, path, body)).await? };
        let (status, answer) = exchange.await.map_err(|error| {
            Error::Broken(error.context(format!("the daemon at {} gave no answer", self.socket.display())))
        })?;
        if status.is_success() {
            serde_json::from_slice(&answer).map_err(|_| self.not_eipnat())
        } else {
            let Failure { error } = serde_json::from_slice(&answer).map_err(|_| self.not_eipnat())?;
            Err(Error::Refused(error))
        }
    }

    fn not_eipnat(&self) -> Error {
        let socket = self.socket.display();
        Error::Broken(anyhow::anyhow!(
            "what answers at {socket} is not an eipnat of this version; look at --socket"
        ))
    }
}

fn no_daemon(socket: &Path, error: &std::io::Error) -> Error {
    let socket = socket.display();
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
    body: Option<impl Serialize>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
    let mut content = Bytes::new();
    if let Some(body) = body {
        request = request.header(CONTENT_TYPE, "application/json");
        content = serde_json::to_vec(&body)?.into();
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request.body(Full::new(content))?).await?;
    let status = answer.status();
    let content = answer.into_body().collect().await.context("the answer was cut short")?.to_bytes();
    Ok((status, content))
}
