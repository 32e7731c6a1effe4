//! Questions about packets: what would become of one, and what becomes of those that come.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::server::Stay;
use super::{ApiError, types};
use crate::control::{self, Control, Shared};
use crate::explain::{Explanation, Question};
use crate::trace::{Hub, Interest, Line, Shown};

/// What would become of a packet, and why. Nothing is sent, counted or billed.
#[utoipa::path(
    post,
    path = "/v1/explain",
    request_body = Question,
    responses((status = OK, body = Explanation), (status = "default", body = types::Failure))
)]
pub(super) async fn explain(
    State(control): State<Shared>,
    body: Result<Json<Question>, JsonRejection>,
) -> Result<Json<Explanation>, ApiError> {
    let Json(question) = body?;
    Ok(Json(control::call(&control, |control| control.explain(&question)).await??))
}

/// Watch packets: a line of JSON for each, for as long as the connection lasts. A line `{"left_out":N}` says that so many
/// packets are missing: by the rate, since the client is slow, or since other traces had too many. The first line is such
/// a one, and says that packets are watched from now on. A line `{"error":"…"}` says why there are no more, and is the last.
#[utoipa::path(
    post,
    path = "/v1/trace",
    request_body = Interest,
    responses(
        (status = OK, body = crate::trace::Packet, content_type = "application/x-ndjson"),
        (status = "default", body = types::Failure)
    )
)]
pub(super) async fn trace(
    State(control): State<Shared>,
    Extension(hub): Extension<Arc<Hub>>,
    Extension(stay): Extension<Stay>,
    body: Result<Json<Interest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(interest) = body?;
    interest.check().map_err(|what| ApiError(StatusCode::BAD_REQUEST, what))?;
    let look = |control: &mut Control| {
        let shown = interest.eips.iter().map(|&eip| Ok((eip, control.shown_by(eip)?)));
        Ok::<_, control::Error>((shown.collect::<Result<Shown, control::Error>>()?, control.ports()))
    };
    let (shown, ports) = control::call(&control, look).await??;
    let lines = Lines(hub.join(&interest, &shown, &ports)?);
    stay.for_as_long_as_it_takes();
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(lines)).into_response())
}

/// Lines as the body of an answer.
struct Lines(mpsc::UnboundedReceiver<Line>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line.into_bytes().into()))))
    }
}
