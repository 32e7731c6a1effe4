//! HTTP/JSON over the daemon's Unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`types::Status`] |
//! | `GET /v1/stats` | | [`types::Stats`] |
//! | `GET /v1/pools` | | array of [`types::Pool`] |
//! | `GET /v1/eips` | | array of [`types::Eip`] |
//! | `POST /v1/eips` | [`types::Allocate`] | 201 and [`types::Eip`] |
//! | `GET /v1/eips/{eip}` | | [`types::Eip`] |
//! | `DELETE /v1/eips/{eip}` | | [`types::Eip`] as it was last |
//! | `PUT /v1/eips/{eip}/target` | [`types::Attach`] | [`types::Eip`]; fine if it is so already |
//! | `DELETE /v1/eips/{eip}/target` | | [`types::Eip`]; fine if it is so already |
//! | `GET /v1/eips/{eip}/counters` | | [`types::Counters`] |
//!
//! Everything else, and every refusal, is answered with a fitting status and a [`types::Failure`].

pub mod client;
pub mod server;
pub mod socket;
pub mod types;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};

use crate::control::{self, Control, Shared};
use crate::model::{Command, Kind, NameError};

/// Largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// The API over a control plane.
pub fn router(control: Shared) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/pools", get(pools))
        .route("/v1/eips", get(list).post(allocate))
        .route("/v1/eips/{eip}", get(show).delete(release))
        .route("/v1/eips/{eip}/target", put(attach).delete(detach))
        .route("/v1/eips/{eip}/counters", get(counters))
        .fallback(async || ApiError(StatusCode::NOT_FOUND, "no such resource".to_owned()))
        .method_not_allowed_fallback(async || {
            ApiError(StatusCode::METHOD_NOT_ALLOWED, "no such method for this resource".to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control)
}

type Answer<T> = Result<Json<T>, ApiError>;
type Eip = Result<Path<Ipv4Addr>, PathRejection>;

async fn status(State(control): State<Shared>) -> Answer<types::Status> {
    let status = |control: &mut Control| types::Status {
        ready: control.problem().is_none(),
        revision: control.revision(),
        bindings: control.model().bound(),
        interfaces: control.ports(),
        problems: control.problem().into_iter().map(str::to_owned).collect(),
    };
    Ok(Json(control::call(&control, status).await?))
}

async fn stats(State(control): State<Shared>) -> Answer<types::Stats> {
    let verdicts = control::call(&control, |control| control.verdicts()).await??;
    Ok(Json((&verdicts).into()))
}

async fn pools(State(control): State<Shared>) -> Answer<Vec<types::Pool>> {
    let pools = |control: &mut Control| control.model().pools(SystemTime::now()).map(Into::into).collect();
    Ok(Json(control::call(&control, pools).await?))
}

async fn list(State(control): State<Shared>) -> Answer<Vec<types::Eip>> {
    let eips = |control: &mut Control| control.model().eips().map(Into::into).collect();
    Ok(Json(control::call(&control, eips).await?))
}

async fn show(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    let Path(eip) = eip?;
    let shown =
        control::call(&control, move |control| control.model().eip(eip).map(types::Eip::from)).await?;
    Ok(Json(shown.map_err(control::Error::Refused)?))
}

async fn counters(State(control): State<Shared>, eip: Eip) -> Answer<types::Counters> {
    let Path(eip) = eip?;
    Ok(Json(control::call(&control, move |control| control.meter(eip)).await??.into()))
}

async fn allocate(
    State(control): State<Shared>,
    body: Result<Json<types::Allocate>, JsonRejection>,
) -> Result<(StatusCode, Json<types::Eip>), ApiError> {
    let Json(types::Allocate { pool, address, account }) = body?;
    let allocated = execute(&control, Command::Allocate { pool, address, account }).await?;
    Ok((StatusCode::CREATED, allocated))
}

async fn attach(
    State(control): State<Shared>,
    eip: Eip,
    body: Result<Json<types::Attach>, JsonRejection>,
) -> Answer<types::Eip> {
    let (Path(eip), Json(types::Attach { target })) = (eip?, body?);
    execute(&control, Command::Attach(eip, target.parse()?)).await
}

async fn detach(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    execute(&control, Command::Detach(eip?.0)).await
}

async fn release(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    execute(&control, Command::Release(eip?.0)).await
}

async fn execute(control: &Shared, command: Command) -> Answer<types::Eip> {
    let execute = move |control: &mut Control| control.execute(&command, SystemTime::now());
    Ok(Json((&control::call(control, execute).await??).into()))
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

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

#[cfg(test)]
mod tests;
