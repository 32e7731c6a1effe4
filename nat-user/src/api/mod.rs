//! HTTP/JSON over the daemon's Unix socket.
//!
//! What there is, `GET /v1/openapi.json` tells.
//!
//! Everything else, and every refusal, is answered with a fitting status and a [`types::Failure`].

pub mod client;
mod handlers;
mod import;
mod list;
pub mod pieces;
mod probes;
pub mod server;
pub mod socket;
pub mod types;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use governor::{Quota, RateLimiter};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::control::{self, Shared};
use crate::explain;
use crate::model::{Kind, NameError};
use crate::store::NoCursor;
use crate::trace::{self, Hub};

/// Largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// Largest packet to be explained, in bytes: twice as many digits as bytes, and white space.
const MAX_QUESTION: usize = 64 * 1024;

/// Largest import, in bytes: a million lines and more.
const MAX_IMPORT: usize = 128 * 1024 * 1024;

/// How long a request may take to arrive and to have its turn. A command that has begun is finished.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many may look at the rates at one time.
const MAX_VIEWS: usize = 4;

/// How long one may take that carries a whole state.
const LONG_PATIENCE: Duration = Duration::from_mins(15);

/// How long a connection may last.
pub const MAX_CONNECTION: Duration = Duration::from_mins(16);

/// The API over a control plane, for at most `rate` requests a second: each has its turn at the one control
/// plane, and many take the disk. After a pause, as many are answered at once.
pub fn router(control: Shared, hub: Arc<Hub>, rate: NonZeroU32) -> Router {
    let (router, openapi) = routes().split_for_parts();
    let limiter = Arc::new(RateLimiter::direct(Quota::per_second(rate)));
    router
        .route("/v1/openapi.json", get(async || Json(openapi)))
        .fallback(async || ApiError(StatusCode::NOT_FOUND, "no such resource".to_owned()))
        .method_not_allowed_fallback(async || {
            ApiError(StatusCode::METHOD_NOT_ALLOWED, "no such method for this resource".to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let limiter = Arc::clone(&limiter);
            async move {
                match limiter.check() {
                    Ok(()) => next.run(request).await,
                    Err(_) => too_many(rate).into_response(),
                }
            }
        }))
        .layer(Extension(hub))
        .with_state(control)
}

/// What the API can do, in the words of `OpenAPI` 3.1.
#[must_use]
pub fn openapi() -> OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Shared> {
    #[derive(utoipa::OpenApi)]
    #[openapi(info(
        title = "eipnat",
        description = "Elastic IPs by stateless 1:1 NAT: the daemon's API, over its Unix socket. A PUT, and the DELETE of \
                       a target, can be asked for again: it is done once. Every refusal is one line that says what to do."
    ))]
    struct Document;

    let long = OpenApiRouter::new()
        .routes(routes!(handlers::import).layer(DefaultBodyLimit::max(MAX_IMPORT)))
        .routes(routes!(handlers::backup))
        .layer(middleware::from_fn_with_state(LONG_PATIENCE, in_time))
        // Each takes as much memory as the whole state.
        .layer(middleware::from_fn_with_state(
            Places::new(1, "another import or backup is under way"),
            in_place,
        ));
    let views = OpenApiRouter::new()
        .routes(routes!(handlers::top))
        .layer(middleware::from_fn_with_state(PATIENCE, in_time))
        // Each takes 40 bytes an EIP.
        .layer(middleware::from_fn_with_state(
            Places::new(MAX_VIEWS, "too many look at the rates already"),
            in_place,
        ));
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(handlers::status))
        .routes(routes!(handlers::stats))
        .routes(routes!(handlers::pools))
        .routes(routes!(handlers::list, handlers::allocate))
        .routes(routes!(handlers::show, handlers::release))
        .routes(routes!(handlers::attach, handlers::detach))
        .routes(routes!(handlers::counters))
        .routes(routes!(handlers::drops))
        .routes(routes!(handlers::usage))
        .routes(routes!(handlers::vms))
        .routes(routes!(handlers::show_vm, handlers::create_vm, handlers::destroy_vm))
        .routes(routes!(probes::explain).layer(DefaultBodyLimit::max(MAX_QUESTION)))
        .routes(routes!(probes::trace))
        .layer(middleware::from_fn_with_state(PATIENCE, in_time))
        .merge(views)
        .merge(long)
}

/// Room for requests of a kind.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    /// What is told to whoever finds no room.
    full: &'static str,
}

impl Places {
    fn new(count: usize, full: &'static str) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), full }
    }
}

/// Refuses a request for which there is no room.
async fn in_place(State(places): State<Places>, request: Request, next: Next) -> Response {
    if let Ok(_place) = places.free.try_acquire() {
        return next.run(request).await;
    }
    let what = format!("{}; try again when it has ended", places.full);
    ApiError(StatusCode::SERVICE_UNAVAILABLE, what).into_response()
}

/// Gives a request up that takes too long.
async fn in_time(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        let what =
            format!("the request did not arrive, or was not answered, within {} s", patience.as_secs());
        ApiError(StatusCode::REQUEST_TIMEOUT, what).into_response()
    })
}

fn too_many(rate: NonZeroU32) -> ApiError {
    let what = format!(
        "more than {rate} requests a second; ask again in a second, import many EIPs at once, or raise api.rate"
    );
    ApiError(StatusCode::TOO_MANY_REQUESTS, what)
}

/// An answer that is no success.
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0, Json(types::Failure { error: self.1 })).into_response()
    }
}

impl From<control::Error> for ApiError {
    fn from(error: control::Error) -> Self {
        let status = match &error {
            control::Error::Refused(refusal) => match refusal.kind() {
                Kind::Missing => StatusCode::NOT_FOUND,
                Kind::Senseless => StatusCode::BAD_REQUEST,
                Kind::Conflict => StatusCode::CONFLICT,
            },
            control::Error::Line(_) => StatusCode::CONFLICT,
            control::Error::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        control::Error::Failed(error).into()
    }
}

impl From<explain::Error> for ApiError {
    fn from(error: explain::Error) -> Self {
        match error {
            explain::Error::Senseless(what) => Self(StatusCode::BAD_REQUEST, what),
            explain::Error::Failed(error) => error.into(),
        }
    }
}

impl From<trace::Refused> for ApiError {
    fn from(refused: trace::Refused) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, refused.to_string())
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

impl From<NoCursor> for ApiError {
    fn from(error: NoCursor) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

#[cfg(test)]
mod tests;
