//! `/deduplication_stats` and `/request_status`, and the counting behind the first: what this
//! process replayed, and known request ids that came with another operation.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Request;
use axum::response::Response;
use kv_core::command::{Change, Command, OperationKind, RequestId};
use kv_core::contract::{self, Reply};
use serde::Serialize;

use super::App;
use super::answer::{self, IDEMPOTENT_REPLAY, JsonWriter};
use super::error::{Asked, Failure};
use super::forward::{self, Done, LeaderRequest, Repeat};
use super::query::Query;
use super::results::Results;
use crate::driver::Handle;

/// Since the process started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    replays: AtomicU64,
    other_operations: AtomicU64,
}

/// Whether a write, if it is the first of its kind, brings a known pair with a new operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pair {
    New,
    Known,
}

impl Counters {
    pub(crate) fn count_replay(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    /// Looked at before the write, since afterwards every pair is known.
    pub(crate) fn before_write(&self, handle: &Handle, results: &Results, command: &Command) -> Pair {
        let operation = match command.change {
            Change::Set(_) => OperationKind::Set,
            Change::Delete => OperationKind::Delete,
        };
        command.request.as_ref().map_or(Pair::New, |request| pair(handle, results, request, operation))
    }

    pub(crate) fn after_write(&self, pair: Pair, reply: &Reply) {
        if pair == Pair::Known && matches!(reply, Reply::Written { replay: false, .. }) {
            self.other_operations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The leader decided it; this node gave the answer.
    pub(crate) fn after_relayed(&self, pair: Pair, response: &Response) {
        if response.headers().contains_key(IDEMPOTENT_REPLAY) {
            self.count_replay();
        } else if pair == Pair::Known && response.status().is_success() {
            self.other_operations.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn note_first_result(
        &self,
        handle: &Handle,
        results: &Results,
        request: &RequestId,
        operation: OperationKind,
    ) {
        if pair(handle, results, request, operation) == Pair::Known {
            self.other_operations.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn pair(handle: &Handle, results: &Results, request: &RequestId, operation: OperationKind) -> Pair {
    let sessions = handle.sessions();
    let elsewhere = sessions.knows_pair(request) && sessions.held(request, operation).is_none();
    let remembered = operation != OperationKind::Get && results.lookup(request, sessions.expiry()).is_some();
    if elsewhere || remembered { Pair::Known } else { Pair::New }
}

/// The body of `/deduplication_stats`.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct StatsDocument {
    service_name: String,
    /// Results held: those of PUT and DELETE by the group, until the first entry after their expiry; those of GET by
    /// this node.
    current_cache_size: u64,
    unique_request_ids: u64,
    total_client_count: u64,
    /// Results stored since the process started.
    total_requests_cached: u64,
    /// Replays given since the process started.
    total_duplicates_detected: u64,
    same_operation_duplicates: u64,
    /// Known pairs of client and request id that came with a new operation.
    different_operation_duplicates: u64,
    /// Sweeps that removed something.
    total_cache_cleanups: u64,
}

#[utoipa::path(get, path = "/deduplication_stats", tag = "requests", summary = "What this node remembers of requests",
    responses((status = 200, body = StatsDocument), super::openapi::LocalErrors))]
pub(crate) async fn stats(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    let handle = app.handle()?;
    let sessions = handle.sessions();
    let group = sessions.counts();
    let local = app.results().counts();
    let requests = app.results().requests(sessions.expiry());
    let alone: Vec<_> = requests.iter().filter(|request| !sessions.knows_pair(request)).collect();
    let new_clients: HashSet<_> =
        alone.iter().map(|request| &request.client_id).filter(|client| !sessions.knows_client(client)).collect();
    let replays = app.counters().replays.load(Ordering::Relaxed);
    Ok(answer::document(&StatsDocument {
        service_name: app.config().name.to_string(),
        current_cache_size: group.records + requests.len() as u64,
        unique_request_ids: group.unique_request_ids + alone.len() as u64,
        total_client_count: group.clients + new_clients.len() as u64,
        total_requests_cached: group.stored_total + local.stored_total,
        total_duplicates_detected: replays,
        same_operation_duplicates: replays,
        different_operation_duplicates: app.counters().other_operations.load(Ordering::Relaxed),
        total_cache_cleanups: group.cleanups_total + local.sweeps_total,
    }))
}

#[utoipa::path(get, path = "/request_status", tag = "requests", summary = "Whether a request was processed",
    params(("client_id" = String, Query), ("request_id" = String, Query),
        ("operation" = super::openapi::OperationName, Query, description = "GET: as this node remembers")),
    responses((status = 200, body = super::openapi::RequestStatusDocument), super::openapi::ListErrors))]
pub(crate) async fn request_status(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let query = Query::parse(parts.uri.query(), &["client_id", "request_id", "operation"])?;
    let operation = match query.text("operation") {
        Some("SET") => OperationKind::Set,
        Some("DELETE") => OperationKind::Delete,
        Some("GET") => OperationKind::Get,
        Some(_) => return Err(Failure::invalid("query", "operation", "Must be SET, DELETE or GET")),
        None => return Err(Failure::missing("query", "operation")),
    };
    let request = query.request_id()?.ok_or_else(|| Failure::missing("query", "client_id"))?;
    let handle = app.handle()?;
    if operation == OperationKind::Get {
        let remembered = app.results().lookup(&request, handle.sessions().expiry());
        return Ok(processed(remembered.map(|result| result.body.to_vec())));
    }
    let asked = LeaderRequest { parts: &parts, body: &Bytes::new(), repeat: Repeat::Harmless, asked: Asked::Read };
    let here = contract::Request::RequestStatus { request, operation };
    match forward::carry_out(&app, handle, asked, here, app.deadline()).await? {
        Done::Relayed(response) => Ok(response),
        Done::Here(Reply::RequestStatus(written)) => {
            Ok(processed(written.map(|written| answer::written_body(&written))))
        }
        Done::Here(Reply::Refused(refusal)) => Err(refusal.into()),
        Done::Here(other) => Err(forward::unexpected(&other)),
    }
}

fn processed(result: Option<Vec<u8>>) -> Response {
    let Some(result) = result else { return answer::json(r#"{"processed":false}"#) };
    let mut w = JsonWriter::with_room(result.len() + 32);
    w.raw(b"{\"processed\":true,\"result\":").raw(&result).raw(b"}");
    answer::json(w.take())
}
