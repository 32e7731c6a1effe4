//! A web server in a namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{ConnectInfo, Path, State};
use axum::routing::get;
use tokio::runtime::Runtime;

use super::Namespace;

/// Serves [`content`] under `/SIZE` on port 80 of every address of the namespace, and remembers who asked.
#[derive(Debug)]
pub struct WebServer {
    // Ends the server when it is dropped.
    _runtime: Runtime,
    clients: Clients,
}

type Clients = Arc<Mutex<Vec<SocketAddr>>>;

impl WebServer {
    /// Starts serving.
    ///
    /// # Errors
    /// When port 80 is taken in that namespace.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let listener = namespace.run(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))?;
        let listener = listener.with_context(|| format!("cannot serve port 80 in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let clients = Clients::default();
        let app = Router::new()
            .route("/{size}", get(serve))
            .with_state(Arc::clone(&clients))
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener) })?;
        runtime.spawn(async move { axum::serve(listener, app).await });
        Ok(Self { _runtime: runtime, clients })
    }

    /// The clients so far, as the server saw them.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(
    State(clients): State<Clients>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Path(size): Path<usize>,
) -> Vec<u8> {
    clients.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    content(size)
}

/// Bytes that do not repeat soon, so that a lost, doubled or swapped piece shows: always the same for one size.
#[must_use]
pub fn content(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // Xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
