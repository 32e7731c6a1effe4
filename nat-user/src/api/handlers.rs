//! What each request does.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use anyhow::Context as _;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::task::block_in_place;

use super::{ApiError, import as lines, list, types};
use crate::control::{self, Control, Shared};
use crate::memory;
use crate::model::{Allocation, Command, Model, Name, Subject};
use crate::store;
use crate::top;

type Answer<T> = Result<Json<T>, ApiError>;
type Eip = Result<Path<Ipv4Addr>, PathRejection>;
type VmName = Result<Path<Name>, PathRejection>;

/// How the daemon is.
#[utoipa::path(
    get,
    path = "/v1/status",
    responses((status = OK, body = types::Status), (status = "default", body = types::Failure))
)]
pub(super) async fn status(State(control): State<Shared>) -> Answer<types::Status> {
    Ok(Json(control::call(&control, |control| types::Status::of(control)).await?))
}

/// Packets by what became of them.
#[utoipa::path(
    get,
    path = "/v1/stats",
    responses((status = OK, body = types::Stats), (status = "default", body = types::Failure))
)]
pub(super) async fn stats(State(control): State<Shared>) -> Answer<types::Stats> {
    let stats = |control: &mut Control| -> anyhow::Result<types::Stats> {
        Ok(types::Stats::of(&control.verdicts()?, &control.slow_path()?))
    };
    Ok(Json(control::call(&control, stats).await??))
}

/// The EIPs that carry most just now: what they have carried within an interval, at whose end the answer comes.
#[utoipa::path(
    get,
    path = "/v1/top",
    params(types::TopQuery),
    responses((status = OK, body = types::Top), (status = "default", body = types::Failure))
)]
pub(super) async fn top(
    State(control): State<Shared>,
    query: Result<Query<types::TopQuery>, QueryRejection>,
) -> Answer<types::Top> {
    let Query(query) = query?;
    let question = query.question().map_err(|what| ApiError(StatusCode::BAD_REQUEST, what))?;
    Ok(Json(top::measure(&control, question).await?))
}

/// Every pool.
#[utoipa::path(
    get,
    path = "/v1/pools",
    responses((status = OK, body = Vec<types::Pool>), (status = "default", body = types::Failure))
)]
pub(super) async fn pools(State(control): State<Shared>) -> Answer<Vec<types::Pool>> {
    let pools = |control: &mut Control| control.model().pools(SystemTime::now()).map(Into::into).collect();
    Ok(Json(control::call(&control, pools).await?))
}

/// Every EIP, by address. What comes or goes while the answer is sent may or may not be in it.
#[utoipa::path(
    get,
    path = "/v1/eips",
    responses((status = OK, body = Vec<types::Eip>), (status = "default", body = types::Failure))
)]
pub(super) async fn list(State(control): State<Shared>) -> Result<Response, ApiError> {
    list::answer(control, Ipv4Addr::UNSPECIFIED, |control, from| {
        let model = control.model();
        let mut eips = model.eips_from(from);
        let some = eips.by_ref().take(list::AT_ONCE).map(|eip| types::Eip::of(model, eip)).collect();
        (some, eips.next().map(|eip| eip.address))
    })
    .await
}

/// One EIP.
#[utoipa::path(
    get,
    path = "/v1/eips/{eip}",
    params(("eip" = String, Path, description = "The public address")),
    responses((status = OK, body = types::Eip), (status = "default", body = types::Failure))
)]
pub(super) async fn show(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    let Path(eip) = eip?;
    let show = |control: &mut Control| {
        let model = control.model();
        model.eip(eip).map(|eip| types::Eip::of(model, eip))
    };
    Ok(Json(control::call(&control, show).await?.map_err(control::Error::Refused)?))
}

/// What an EIP has carried since it was allocated.
#[utoipa::path(
    get,
    path = "/v1/eips/{eip}/counters",
    params(("eip" = String, Path, description = "The public address")),
    responses((status = OK, body = types::Counters), (status = "default", body = types::Failure))
)]
pub(super) async fn counters(State(control): State<Shared>, eip: Eip) -> Answer<types::Counters> {
    let Path(eip) = eip?;
    Ok(Json(control::call(&control, |control| control.carried(eip)).await??))
}

/// The packets that were dropped of late which concern a public address: for it, or from what it stands for.
#[utoipa::path(
    get,
    path = "/v1/drops/{address}",
    params(("address" = String, Path, description = "The public address, whether it is held or not")),
    responses((status = OK, body = Vec<types::AddressDrops>), (status = "default", body = types::Failure))
)]
pub(super) async fn drops(State(control): State<Shared>, address: Eip) -> Answer<Vec<types::AddressDrops>> {
    let Path(address) = address?;
    let drops = control::call(&control, |control| control.drops(address)).await??;
    Ok(Json(drops.iter().map(Into::into).collect()))
}

/// What was carried for whom and when, a page at a time.
#[utoipa::path(
    get,
    path = "/v1/usage",
    params(types::UsageQuery),
    responses((status = OK, body = types::UsagePage), (status = "default", body = types::Failure))
)]
pub(super) async fn usage(
    State(control): State<Shared>,
    query: Result<Query<types::UsageQuery>, QueryRejection>,
) -> Answer<types::UsagePage> {
    let Query(query) = query?;
    let after = query.after.as_deref().map(str::parse).transpose()?;
    let asked = store::Query::from(&query);
    let page = |control: &mut Control| match after {
        None => control.usage(&asked, SystemTime::now()),
        Some(after) => control.ended_usage(&asked, after),
    };
    let (records, next) = control::call(&control, page).await??;
    let rows = records.into_iter().map(Into::into).collect();
    Ok(Json(types::UsagePage { rows, next: next.map(|next| next.to_string()) }))
}

/// Allocate an EIP.
#[utoipa::path(
    post,
    path = "/v1/eips",
    request_body = types::Allocate,
    responses((status = CREATED, body = types::Eip), (status = "default", body = types::Failure))
)]
pub(super) async fn allocate(
    State(control): State<Shared>,
    body: Result<Json<types::Allocate>, JsonRejection>,
) -> Result<(StatusCode, Json<types::Eip>), ApiError> {
    let Json(types::Allocate { pool, address, account, request }) = body?;
    let wanted = Allocation { pool, address, account, request };
    let allocated = eip_command(&control, Command::Allocate(wanted)).await?;
    Ok((StatusCode::CREATED, allocated))
}

/// Attach an EIP; fine if it is so already.
#[utoipa::path(
    put,
    path = "/v1/eips/{eip}/target",
    params(("eip" = String, Path, description = "The public address")),
    request_body = types::Attach,
    responses((status = OK, body = types::Eip), (status = "default", body = types::Failure))
)]
pub(super) async fn attach(
    State(control): State<Shared>,
    eip: Eip,
    body: Result<Json<types::Attach>, JsonRejection>,
) -> Answer<types::Eip> {
    let (Path(eip), Json(types::Attach { target, reassign })) = (eip?, body?);
    eip_command(&control, Command::Attach { eip, target: target.parse()?, reassign }).await
}

/// Detach an EIP; fine if it is so already.
#[utoipa::path(
    delete,
    path = "/v1/eips/{eip}/target",
    params(("eip" = String, Path, description = "The public address")),
    responses((status = OK, body = types::Eip), (status = "default", body = types::Failure))
)]
pub(super) async fn detach(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    eip_command(&control, Command::Detach(eip?.0)).await
}

/// Give a detached EIP back; the answer is as it was.
#[utoipa::path(
    delete,
    path = "/v1/eips/{eip}",
    params(("eip" = String, Path, description = "The public address")),
    responses((status = OK, body = types::Eip), (status = "default", body = types::Failure))
)]
pub(super) async fn release(State(control): State<Shared>, eip: Eip) -> Answer<types::Eip> {
    eip_command(&control, Command::Release(eip?.0)).await
}

/// Allocate and attach many EIPs, all of them or none.
#[utoipa::path(
    post,
    path = "/v1/import",
    request_body(content = String, content_type = "text/csv", description = "Lines `eip,private_ip[,account]`; `#` begins a comment"),
    responses((status = OK, body = types::Imported), (status = "default", body = types::Failure))
)]
pub(super) async fn import(
    State(control): State<Shared>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<types::Imported> {
    let lines = lines::parse(&body?).map_err(|what| ApiError(StatusCode::BAD_REQUEST, what))?;
    let import = move |control: &mut Control| control.import(&lines, SystemTime::now());
    let imported = control::call(&control, import).await;
    block_in_place(memory::give_back);
    Ok(Json(types::Imported { imported: imported?? }))
}

/// Every VM, by name; likewise.
#[utoipa::path(
    get,
    path = "/v1/vms",
    responses((status = OK, body = Vec<types::Vm>), (status = "default", body = types::Failure))
)]
pub(super) async fn vms(State(control): State<Shared>) -> Result<Response, ApiError> {
    list::answer(control, None::<Name>, |control, from| {
        let model = control.model();
        let mut vms = model.vms_from(from.as_ref());
        let some = vms.by_ref().take(list::AT_ONCE).map(|vm| types::Vm::of(model, vm)).collect();
        (some, vms.next().map(|vm| Some(vm.name.clone())))
    })
    .await
}

/// One VM.
#[utoipa::path(
    get,
    path = "/v1/vms/{name}",
    params(("name" = String, Path, description = "The VM's name")),
    responses((status = OK, body = types::Vm), (status = "default", body = types::Failure))
)]
pub(super) async fn show_vm(State(control): State<Shared>, name: VmName) -> Answer<types::Vm> {
    let Path(name) = name?;
    let show = |control: &mut Control| {
        let model = control.model();
        model.vm(&name).map(|vm| types::Vm::of(model, vm))
    };
    Ok(Json(control::call(&control, show).await?.map_err(control::Error::Refused)?))
}

/// Create a VM; fine if it is there, just so.
#[utoipa::path(
    put,
    path = "/v1/vms/{name}",
    params(("name" = String, Path, description = "The VM's name")),
    request_body = types::CreateVm,
    responses((status = OK, body = types::Vm), (status = "default", body = types::Failure))
)]
pub(super) async fn create_vm(
    State(control): State<Shared>,
    name: VmName,
    body: Result<Json<types::CreateVm>, JsonRejection>,
) -> Answer<types::Vm> {
    let (Path(name), Json(types::CreateVm { private_ip, account, public_ip, pool })) = (name?, body?);
    vm_command(&control, Command::CreateVm { name, private_ip, account, public_ip, pool }).await
}

/// Destroy a VM; its EIP stays with its account; the answer is as it was.
#[utoipa::path(
    delete,
    path = "/v1/vms/{name}",
    params(("name" = String, Path, description = "The VM's name")),
    responses((status = OK, body = types::Vm), (status = "default", body = types::Failure))
)]
pub(super) async fn destroy_vm(State(control): State<Shared>, name: VmName) -> Answer<types::Vm> {
    let Path(name) = name?;
    let destroy = move |control: &mut Control| {
        let model = control.model();
        let as_it_was = model.vm(&name).map(|vm| types::Vm::of(model, vm))?;
        control.execute(&Command::DestroyVm(name), SystemTime::now())?;
        Ok::<types::Vm, control::Error>(as_it_was)
    };
    Ok(Json(control::call(&control, destroy).await??))
}

/// A copy of the store, as a database of SQLite.
#[utoipa::path(
    get,
    path = "/v1/store",
    responses((status = OK, body = Vec<u8>, content_type = "application/vnd.sqlite3"), (status = "default", body = types::Failure))
)]
pub(super) async fn backup(State(control): State<Shared>) -> Result<Response, ApiError> {
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
async fn command_about<T>(
    control: &Shared,
    command: Command,
    answer: fn(&Model, &Subject) -> Option<T>,
) -> Answer<T> {
    let execute = |control: &mut Control| {
        let subject = control.execute(&command, SystemTime::now())?;
        let answer = answer(control.model(), &subject).context("a command was about something else")?;
        Ok::<T, control::Error>(answer)
    };
    Ok(Json(control::call(control, execute).await??))
}
