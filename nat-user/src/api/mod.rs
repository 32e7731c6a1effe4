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
//! | `POST /v1/import` | lines `eip,private_ip[,account]` | [`types::Imported`]; all or nothing |
//! | `PUT /v1/eips/{eip}/target` | [`types::Attach`] | [`types::Eip`]; fine if it is so already |
//! | `DELETE /v1/eips/{eip}/target` | | [`types::Eip`]; fine if it is so already |
//! | `GET /v1/eips/{eip}/counters` | | [`types::Counters`] |
//! | `GET /v1/vms` | | array of [`types::Vm`] |
//! | `GET /v1/vms/{name}` | | [`types::Vm`] |
//! | `PUT /v1/vms/{name}` | [`types::CreateVm`] | [`types::Vm`]; fine if it is so already |
//! | `DELETE /v1/vms/{name}` | | [`types::Vm`] as it was last |
//! | `GET /v1/store` | | the store, for a backup |
//!
//! What `PUT` and `DELETE` ask for can be asked for again: it is done once.
//!
//! Everything else, and every refusal, is answered with a fitting status and a [`types::Failure`].

pub mod client;
mod import;
pub mod server;
pub mod socket;
pub mod types;

use std::net::Ipv4Addr;
use std::time::SystemTime;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};

use crate::control::{self, Control, Shared};
use crate::model::{Command, Kind, Model, Name, NameError, Subject};

/// Largest request body, in bytes.
const MAX_BODY: usize = 16 * 1024;

/// Largest import, in bytes: a million lines and more.
const MAX_IMPORT: usize = 128 * 1024 * 1024;

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
        .route("/v1/import", post(import).layer(DefaultBodyLimit::max(MAX_IMPORT)))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{name}", get(show_vm).put(create_vm).delete(destroy_vm))
        .route("/v1/store", get(backup))
        .fallback(async || ApiError(StatusCode::NOT_FOUND, "no such resource".to_owned()))
        .method_not_allowed_fallback(async || {
            ApiError(StatusCode::METHOD_NOT_ALLOWED, "no such method for this resource".to_owned())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(control)
}

type Answer<T> = Result<Json<T>, ApiError>;
type Eip = Result<Path<Ipv4Addr>, PathRejection>;
type VmName = Result<Path<Name>, PathRejection>;

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
    let eips = |control: &mut Control| {
        let model = control.model();
        model.eips().map(|eip| types::Eip::of(model, eip)).collect()
    };
    Ok(Json(control::call(&control, eips).await?))
}

async fn show(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    let Path(eip) = eip?;
    let show = move |control: &mut Control| {
        let model = control.model();
        model.eip(eip).map(|eip| types::Eip::of(model, eip))
    };
    Ok(Json(control::call(&control, show).await?.map_err(control::Error::Refused)?))
}

async fn counters(State(control): State<Shared>, eip: Eip) -> Answer<types::Counters> {
    let Path(eip) = eip?;
    Ok(Json(control::call(&control, move |control| control.carried(eip)).await??))
}

async fn allocate(
    State(control): State<Shared>,
    body: Result<Json<types::Allocate>, JsonRejection>,
) -> Result<(StatusCode, Json<types::Eip>), ApiError> {
    let Json(types::Allocate { pool, address, account }) = body?;
    let allocated = eip_command(&control, Command::Allocate { pool, address, account }).await?;
    Ok((StatusCode::CREATED, allocated))
}

async fn attach(
    State(control): State<Shared>,
    eip: Eip,
    body: Result<Json<types::Attach>, JsonRejection>,
) -> Answer<types::Eip> {
    let (Path(eip), Json(types::Attach { target, reassign })) = (eip?, body?);
    eip_command(&control, Command::Attach { eip, target: target.parse()?, reassign }).await
}

async fn detach(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    eip_command(&control, Command::Detach(eip?.0)).await
}

async fn release(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    eip_command(&control, Command::Release(eip?.0)).await
}

async fn import(
    State(control): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<types::Imported> {
    let lines = import::parse(&body?).map_err(|what| ApiError(StatusCode::BAD_REQUEST, what))?;
    let import = move |control: &mut Control| control.import(&lines, SystemTime::now());
    Ok(Json(types::Imported { imported: control::call(&control, import).await?? }))
}

async fn vms(State(control): State<Shared>) -> Answer<Vec<types::Vm>> {
    let vms = |control: &mut Control| {
        let model = control.model();
        model.vms().map(|vm| types::Vm::of(model, vm)).collect()
    };
    Ok(Json(control::call(&control, vms).await?))
}

async fn show_vm(State(control): State<Shared>, name: VmName) -> Answer<types::Vm> {
    let Path(name) = name?;
    let show = move |control: &mut Control| {
        let model = control.model();
        model.vm(&name).map(|vm| types::Vm::of(model, vm))
    };
    Ok(Json(control::call(&control, show).await?.map_err(control::Error::Refused)?))
}

async fn create_vm(
    State(control): State<Shared>,
    name: VmName,
    body: Result<Json<types::CreateVm>, JsonRejection>,
) -> Answer<types::Vm> {
    let (Path(name), Json(types::CreateVm { private_ip, account, public_ip, pool })) = (name?, body?);
    vm_command(&control, Command::CreateVm { name, private_ip, account, public_ip, pool }).await
}

async fn destroy_vm(State(control): State<Shared>, name: VmName) -> Answer<types::Vm> {
    vm_command(&control, Command::DestroyVm(name?.0)).await
}

async fn backup(State(control): State<Shared>) -> Result<Response, ApiError> {
    let copy = control::call(&control, Control::backup).await??;
    Ok(([(header::CONTENT_TYPE, "application/vnd.sqlite3")], copy).into_response())
}

async fn eip_command(control: &Shared, command: Command) -> Answer<types::Eip> {
    command_about(control, command, |model, subject| match subject {
        Subject::Eip(eip) => Some(types::Eip::of(model, eip)),
        _ => None,
    })
    .await
}

async fn vm_command(control: &Shared, command: Command) -> Answer<types::Vm> {
    command_about(control, command, |model, subject| match subject {
        Subject::Vm(vm) => Some(types::Vm::of(model, vm)),
        _ => None,
    })
    .await
}

/// Carries a command out, and answers what it was about.
async fn command_about<T: Send + 'static>(
    control: &Shared,
    command: Command,
    answer: fn(&Model, &Subject) -> Option<T>,
) -> Answer<T> {
    let execute = move |control: &mut Control| {
        let subject = control.execute(&command, SystemTime::now())?;
        let answer = answer(control.model(), &subject).context("a command was about something else")?;
        Ok::<T, control::Error>(answer)
    };
    Ok(Json(control::call(control, execute).await??))
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

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

#[cfg(test)]
mod tests;
