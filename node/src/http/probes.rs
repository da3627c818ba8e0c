//! `/livez`, `/readyz` and `/metrics`. The first is answered before recovery has ended, so that a
//! long recovery is not taken for a dead process.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Request};
use axum::response::Response;

use super::App;
use super::answer;
use super::error::Failure;
use super::query::Query;
use super::status;
use crate::metrics;

const OK: &str = r#"{"status":"ok"}"#;

#[utoipa::path(get, path = "/livez", tag = "probes", summary = "Whether the process should go on",
    responses((status = 200, body = super::openapi::OkDocument), super::openapi::LocalErrors))]
pub(crate) async fn livez(State(app): State<App>) -> Result<Response, Failure> {
    match app.handle() {
        Ok(handle) if !handle.is_live() => {
            Err(Failure::not_ready("The node has been stuck for 30 seconds or has stopped"))
        }
        _ => Ok(answer::json(OK)),
    }
}

#[utoipa::path(get, path = "/readyz", tag = "probes", summary = "Whether clients should be sent here",
    responses((status = 200, body = super::openapi::OkDocument), super::openapi::LocalErrors))]
pub(crate) async fn readyz(State(app): State<App>) -> Result<Response, Failure> {
    if app.handle()?.is_ready() {
        return Ok(answer::json(OK));
    }
    Err(Failure::not_ready("The node has not caught up with a leader since its start, or is draining or unfit"))
}

#[utoipa::path(get, path = "/metrics", tag = "probes", summary = "Metrics for Prometheus",
    responses((status = 200, content_type = "text/plain", body = String), super::openapi::LocalErrors))]
pub(crate) async fn metrics(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    let text = match (app.handle(), status::node_status(&app).await) {
        (Ok(handle), Ok(status)) => app.metrics().render(Some(&metrics::State {
            status: &status,
            sessions: handle.sessions().counts(),
            keys: handle.keyspace().len(),
            segments: handle.reader().segments().len(),
        })),
        // Recovery goes on, or the driver is stuck: what was counted is of use just then.
        _ => app.metrics().render(None),
    };
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    Ok(response)
}
