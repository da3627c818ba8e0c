//! `/segments` and `/compaction/*` of the node asked. The compactor decides; this turns queries into
//! its calls and its documents into bodies.

use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use serde::Serialize;

use super::App;
use super::answer;
use super::error::Failure;
use super::query::Query;
use crate::compactor::{RunDocument, ScheduleChange, StatusDocument, Urgency};

/// One file in `/segments`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SegmentDocument {
    path: String,
    /// In bytes.
    size: u64,
    is_active: bool,
}

/// The body of `/segments`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SegmentsDocument {
    segments: Vec<SegmentDocument>,
    total_segments: usize,
    /// In bytes.
    max_segment_size: u64,
}

#[utoipa::path(get, path = "/segments", tag = "log", summary = "The segment files of this node's log",
    responses((status = 200, body = SegmentsDocument), super::openapi::LocalErrors))]
pub(crate) async fn segments(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    let segments: Vec<_> = app
        .handle()?
        .reader()
        .segments()
        .into_iter()
        .map(|segment| SegmentDocument { path: segment.path, size: segment.size_bytes, is_active: segment.is_active })
        .collect();
    let total_segments = segments.len();
    Ok(answer::document(&SegmentsDocument {
        segments,
        total_segments,
        max_segment_size: app.config().segment_bytes_max,
    }))
}

#[utoipa::path(post, path = "/compaction/run", tag = "log", summary = "Compact this node's log now",
    params(("force" = Option<bool>, Query, description = "Also within the minimum interval")),
    responses((status = 200, body = RunDocument), super::openapi::LocalErrors))]
pub(crate) async fn run(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let query = Query::parse(request.uri().query(), &["force"])?;
    let urgency = match query.flag("force")? {
        Some(true) => Urgency::Forced,
        Some(false) | None => Urgency::WhenDue,
    };
    let document = app.running()?.compactor.run(urgency).await;
    match document.message {
        Some(message) => Err(Failure::internal(message)),
        None => Ok(answer::document(&document)),
    }
}

#[utoipa::path(get, path = "/compaction/status", tag = "log", summary = "The schedule and the last runs",
    responses((status = 200, body = StatusDocument), super::openapi::LocalErrors))]
pub(crate) async fn status(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    Ok(answer::document(&app.running()?.compactor.status()))
}

#[utoipa::path(post, path = "/compaction/configure", tag = "log", summary = "Change the schedule until the next start",
    params(("enabled" = Option<bool>, Query), ("interval" = Option<u64>, Query, description = "Seconds, 60 or more"),
        ("min_interval" = Option<u64>, Query, description = "Seconds; no run begins earlier unless forced")),
    responses((status = 200, body = crate::compactor::ConfigureDocument), super::openapi::LocalErrors))]
pub(crate) async fn configure(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let query = Query::parse(request.uri().query(), &["enabled", "interval", "min_interval"])?;
    let change = ScheduleChange {
        enabled: query.flag("enabled")?,
        interval_seconds: query.number("interval")?,
        min_interval_seconds: query.number("min_interval")?,
    };
    let configured = app.running()?.compactor.configure(change);
    let document = configured.map_err(|error| Failure::invalid("query", error.setting, error.to_string()))?;
    Ok(answer::document(&document))
}
