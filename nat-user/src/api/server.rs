//! An HTTP server whose every dimension is bounded: connections, requests on each, and time.

use std::future::{Future, pending};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use log::debug;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Most connections at one time; more wait in the kernel's backlog.
const MAX_CONNECTIONS: u32 = 64;

/// A connection that has not sent its request's head by then is cut: those who send nothing lock nobody out for long.
const MAX_HEAD_DURATION: Duration = Duration::from_secs(5);

/// How long connections may take to end once the server does.
const GRACE: Duration = Duration::from_secs(5);

/// How long a connection may last. Whoever answers its request can let it last for as long as the answer does.
#[derive(Clone, Debug, Default)]
pub struct Stay(Arc<AtomicBool>);

impl Stay {
    /// Takes the limit off. The answer has to be one of which there are few, and which ends when the server does.
    pub fn for_as_long_as_it_takes(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns when a connection has lasted for too long.
    async fn is_over(&self, limit: Duration) {
        sleep(limit).await;
        if self.0.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }
}

/// Serves `router` on `listener` until `shutdown`, then lets the requests that are under way finish.
/// A connection carries one request and its answer, within `limit`.
pub async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    limit: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let service = TowerToHyperService::new(router);
    let accept_all = async {
        while let Ok(place) = Arc::clone(&room).acquire_owned().await {
            let (io, _) = listener.accept().await;
            let stay = Stay::default();
            let service = service.clone();
            tokio::spawn(async move {
                let service = service_fn(|mut request: Request<Incoming>| {
                    request.extensions_mut().insert(stay.clone());
                    service.call(request)
                });
                let mut http = http1::Builder::new();
                http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(MAX_HEAD_DURATION);
                tokio::select! {
                    served = http.serve_connection(TokioIo::new(io), service) => {
                        served.unwrap_or_else(|error| debug!("a connection broke: {error}"));
                    }
                    () = stay.is_over(limit) => debug!("a connection took longer than {limit:?}"),
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
