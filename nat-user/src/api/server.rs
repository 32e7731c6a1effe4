//! An HTTP server whose every dimension is bounded: connections, requests on each, and time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use log::debug;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most connections at one time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: u32 = 64;

/// A connection that has not sent its request's head by then is cut: those who send nothing lock nobody out for long.
const MAX_HEAD_DURATION: Duration = Duration::from_secs(5);

/// How long connections may take to end once the server does.
const GRACE: Duration = Duration::from_secs(5);

/// Serves `router` on `listener` until `shutdown`, then lets the requests that are under way finish.
/// A connection carries one request and its answer, within `limit`.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    limit: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let accept_all = async {
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            let (io, _) = listener.accept().await;
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut http = http1::Builder::new();
                http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(MAX_HEAD_DURATION);
                match timeout(limit, http.serve_connection(TokioIo::new(io), service)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!("a connection broke: {error}"),
                    Err(_) => debug!("a connection took longer than {limit:?}"),
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accept_all => {}
        () = shutdown => {}
    }
    if timeout(GRACE, room.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        debug!("connections were still open at the end");
    }
}
