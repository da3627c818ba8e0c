//! `/key/{key}` and `/keys`: from the request's parts to a [`Command`] or a read, and from the reply
//! to the contract's body. A default GET touches nothing but the concurrent map of current values.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Uri};
use axum::response::Response;
use kv_core::command::{Change, Command, Invalid, KEY_BYTES_MAX, Key, OperationKind, Precondition, RequestId};
use kv_core::contract::{self, Reply};
use kv_core::entry::EntryId;
use kv_core::keyspace::{Keyspace, Page, Read};

use super::App;
use super::answer::{self, JsonWriter, X_KV_CURSOR};
use super::body::{self, PUT_OVERHEAD_BYTES};
use super::entity_tag::{self, WriteCondition};
use super::error::{Asked, Failure};
use super::forward::{self, Done, LeaderRequest, Repeat};
use super::history;
use super::query::Query;
use super::reads::{self, Admitted, Freshness};
use super::results::{Question, Remembered};
use crate::driver::Handle;

/// Keys of one page of `/keys`: the default and the most.
pub(crate) const PAGE_KEYS_MAX: u64 = 10_000;

/// The key in a path, percent-decoded; within its limits.
pub(crate) fn key_of(uri: &Uri) -> Result<Cow<'_, str>, Failure> {
    let rest = uri.path().strip_prefix("/key/").expect("only routes under /key/ ask for a key");
    let segment = rest.split('/').next().unwrap_or_default();
    let key = if memchr::memchr(b'%', segment.as_bytes()).is_none() {
        Cow::Borrowed(segment)
    } else {
        let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
        decoded.map_err(|_| Failure::invalid("path", "key", "The key is not UTF-8"))?
    };
    match key.len() {
        0 => Err(Invalid::KeyEmpty.into()),
        n if n > KEY_BYTES_MAX => Err(Invalid::KeyTooLong(n).into()),
        _ => Ok(key),
    }
}

pub(crate) async fn empty_key() -> Failure {
    Invalid::KeyEmpty.into()
}

/// A value as it is shown.
pub(crate) struct Shown {
    pub(crate) at: EntryId,
    pub(crate) id: EntryId,
    pub(crate) body: Vec<u8>,
}

#[utoipa::path(get, path = "/key/{key}", tag = "keys", summary = "Read a value",
    params(super::openapi::KeyParam, super::openapi::ReadParams, super::openapi::RequestParams,
        ("If-None-Match" = Option<String>, Header, description = "An ETag: 304 when it is still the current one")),
    responses((status = 200, body = super::openapi::ValueDocument, headers(
            ("ETag" = String, description = "The id of the entry that wrote the value, in quotes"))),
        (status = 304, description = "The client holds this value"), super::openapi::ReadErrors))]
pub(crate) async fn get(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let key = key_of(&parts.uri)?;
    let asked = ReadQuery::of(parts.uri.query())?;
    let handle = app.handle()?;
    if let Admitted::Relayed(response) = reads::admit(&app, handle, &parts, asked.freshness).await? {
        return Ok(response);
    }
    if let Some(request) = asked.request {
        return get_once(&app, handle, &parts, Question { key: key.into(), version: asked.version }, request).await;
    }
    let shown = read(handle, &key, asked.version).await?;
    Ok(show(&parts, shown))
}

#[derive(Default)]
struct ReadQuery {
    version: Option<u64>,
    request: Option<RequestId>,
    freshness: Freshness,
}

impl ReadQuery {
    fn of(query: Option<&str>) -> Result<Self, Failure> {
        if query.is_none() {
            return Ok(Self::default());
        }
        let known = ["version", "client_id", "request_id", reads::FRESHNESS[0], reads::FRESHNESS[1]];
        let query = Query::parse(query, &known)?;
        Ok(Self { version: query.number("version")?, request: query.request_id()?, freshness: Freshness::of(&query)? })
    }
}

async fn read(handle: &Handle, key: &str, version: Option<u64>) -> Result<Shown, Failure> {
    match version {
        None => read_current(&handle.keyspace(), key),
        Some(version) => history::read_version(handle, key, version).await,
    }
}

fn read_current(keyspace: &Keyspace, key: &str) -> Result<Shown, Failure> {
    let Read { at, found } = keyspace.get(key);
    let current = found.ok_or_else(|| Failure::key_not_found().at(at))?;
    let body = answer::value_body(key, &current.value, current.version);
    Ok(Shown { at, id: current.id, body })
}

fn show(parts: &Parts, shown: Shown) -> Response {
    let Shown { at, id, body } = shown;
    if entity_tag::is_known_to_client(&parts.headers, id) {
        return answer::at(answer::not_modified(id), at);
    }
    answer::at(answer::tagged(answer::json(body), id), at)
}

/// GET with request ids: the first answer is given again.
async fn get_once(
    app: &App,
    handle: &Handle,
    parts: &Parts,
    question: Question,
    request: RequestId,
) -> Result<Response, Failure> {
    let expiry = handle.sessions().expiry();
    if let Some(remembered) = app.results().lookup(&request, expiry) {
        return replay(app, &remembered, &question);
    }
    let shown = read(handle, &question.key, question.version).await?;
    if entity_tag::is_known_to_client(&parts.headers, shown.id) {
        return Ok(show(parts, shown));
    }
    app.counters().note_first_result(handle, app.results(), &request, OperationKind::Get);
    let body = axum::body::Bytes::from(shown.body);
    let first = Remembered { question: question.clone(), id: shown.id, body: body.clone() };
    match app.results().remember(request, first, expiry) {
        Some(earlier) => replay(app, &earlier, &question),
        None => Ok(answer::at(answer::tagged(answer::json(body), shown.id), shown.at)),
    }
}

fn replay(app: &App, remembered: &Remembered, question: &Question) -> Result<Response, Failure> {
    if remembered.question != *question {
        return Err(Failure::request_reused());
    }
    app.count_replay();
    Ok(answer::replayed(answer::tagged(answer::json(remembered.body.clone()), remembered.id)))
}

#[utoipa::path(put, path = "/key/{key}", tag = "keys", summary = "Write a value",
    params(super::openapi::KeyParam, super::openapi::RequestParams,
        ("If-Match" = Option<String>, Header, description = "An ETag or *: 412 unless the current entry matches"),
        ("If-None-Match" = Option<String>, Header, description = "*: 412 if the key exists")),
    request_body(content = super::openapi::PutDocument, description = "Any content type; other members are ignored"),
    responses((status = 200, body = super::openapi::SetDocument, headers(
            ("ETag" = String, description = "The id of the entry, in quotes"),
            ("Idempotent-Replay" = String, description = "true: the result of an earlier copy of the request"))),
        super::openapi::WriteErrors))]
pub(crate) async fn put(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let target = WriteTarget::of(&parts)?;
    let value_bytes_max = app.config().value_bytes_max;
    let body = body::read(&parts.headers, body, app.body_limits(value_bytes_max + PUT_OVERHEAD_BYTES)).await?;
    let body::Put { value, version } = body::put(&body, value_bytes_max)?;
    write(&app, &parts, &body, target, Change::Set(value), version).await
}

#[utoipa::path(delete, path = "/key/{key}", tag = "keys", summary = "Delete a key with all its versions",
    params(super::openapi::KeyParam, super::openapi::RequestParams,
        ("If-Match" = Option<String>, Header, description = "An ETag or *: 412 unless the current entry matches")),
    responses((status = 200, body = super::openapi::DeletedDocument), super::openapi::WriteErrors))]
pub(crate) async fn delete(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let target = WriteTarget::of(&parts)?;
    let body = body::read(&parts.headers, body, app.body_limits(PUT_OVERHEAD_BYTES)).await?;
    write(&app, &parts, &body, target, Change::Delete, None).await
}

/// What a write's path, query and headers say.
struct WriteTarget {
    key: Key,
    request: Option<RequestId>,
    condition: WriteCondition,
}

impl WriteTarget {
    fn of(parts: &Parts) -> Result<Self, Failure> {
        let query = Query::parse(parts.uri.query(), &["client_id", "request_id"])?;
        Ok(Self {
            key: Key::new(&key_of(&parts.uri)?)?,
            request: query.request_id()?,
            condition: entity_tag::write_condition(&parts.headers)?,
        })
    }
}

async fn write(
    app: &App,
    parts: &Parts,
    body: &axum::body::Bytes,
    target: WriteTarget,
    change: Change,
    version: Option<u64>,
) -> Result<Response, Failure> {
    let started = std::time::Instant::now();
    let WriteTarget { key, request, condition } = target;
    let WriteCondition::Holds(entity) = condition else { return Err(Failure::precondition_failed()) };
    let command = Command { key, change, precondition: Precondition { version, entity }, request };
    let handle = app.handle()?;
    let noted = app.counters().before_write(handle, app.results(), &command);
    let repeat = if command.request.is_some() { Repeat::Harmless } else { Repeat::Never };
    let request = LeaderRequest { parts, body, repeat, asked: Asked::Write };
    let here = contract::Request::Write(command);
    let done = forward::carry_out(app, handle, request, here, app.deadline()).await?;
    let response = match done {
        Done::Relayed(response) => {
            app.counters().after_relayed(noted, &response);
            Ok(response)
        }
        Done::Here(reply) => {
            app.counters().after_write(noted, &reply);
            written(app, reply)
        }
    };
    app.metrics().observe_write(started.elapsed());
    response
}

fn written(app: &App, reply: Reply) -> Result<Response, Failure> {
    match reply {
        Reply::Written { written, replay } => {
            let response = answer::json(answer::written_body(&written));
            let response = match written.operation {
                OperationKind::Delete => response,
                OperationKind::Set | OperationKind::Get => answer::tagged(response, written.id),
            };
            if replay {
                app.count_replay();
                return Ok(answer::replayed(response));
            }
            // It was applied when it was answered, and a node that forwarded it waits for just this id.
            Ok(answer::at(response, written.id))
        }
        Reply::NotFound => Err(Failure::key_not_found()),
        Reply::VersionConflict { provided, current } => Err(Failure::version_conflict(provided, current)),
        Reply::PreconditionFailed => Err(Failure::precondition_failed()),
        Reply::RequestReused => Err(Failure::request_reused()),
        Reply::Refused(refusal) => Err(refusal.into()),
        other => Err(forward::unexpected(&other)),
    }
}

#[utoipa::path(get, path = "/keys", tag = "keys", summary = "List keys in order, by pages",
    params(("prefix" = Option<String>, Query, description = "Only keys that begin so"),
        ("limit" = Option<u64>, Query, description = "Most keys of this page: 1 to 10000, the default"),
        ("cursor" = Option<String>, Query, description = "X-Kv-Cursor of the page before"),
        ("consistency" = Option<String>, Query, description = "local (default) or linearizable"),
        ("min_id" = Option<u64>, Query, description = "Answer when this id is applied here")),
    responses((status = 200, body = super::openapi::KeysDocument, headers(
            ("X-Kv-Cursor" = String, description = "Set while more follow: the next cursor"))),
        super::openapi::ListErrors))]
pub(crate) async fn list(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, _) = request.into_parts();
    let known = ["prefix", "limit", "cursor", reads::FRESHNESS[0], reads::FRESHNESS[1]];
    let query = Query::parse(parts.uri.query(), &known)?;
    let limit = query.number("limit")?.unwrap_or(PAGE_KEYS_MAX);
    if !(1..=PAGE_KEYS_MAX).contains(&limit) {
        return Err(Failure::invalid("query", "limit", format!("Must be 1 to {PAGE_KEYS_MAX}")));
    }
    let after = query.text("cursor").map(cursor_key).transpose()?;
    let handle = app.handle()?;
    if let Admitted::Relayed(response) = reads::admit(&app, handle, &parts, Freshness::of(&query)?).await? {
        return Ok(response);
    }
    let limit = usize::try_from(limit).expect("at most PAGE_KEYS_MAX");
    Ok(page(handle.keyspace().page(query.text("prefix").unwrap_or_default(), after.as_deref(), limit)))
}

fn page(read: Read<Page>) -> Response {
    let Read { at, found: Page { keys, more } } = read;
    let mut w = JsonWriter::with_room(keys.iter().map(|key| key.as_str().len() + 3).sum());
    w.raw(b"{\"keys\":[");
    for (n, key) in keys.iter().enumerate() {
        w.raw(if n == 0 { b"" } else { b"," }).text(key.as_str());
    }
    w.raw(b"],\"count\":").number(keys.len() as u64).raw(b"}");
    let mut response = answer::at(answer::json(w.take()), at);
    if let Some(last) = keys.last().filter(|_| more) {
        response.headers_mut().insert(X_KV_CURSOR, cursor(last.as_str()));
    }
    response
}

/// A cursor is the last key shown, in hexadecimal: the same whether a client encodes it for a URL or not.
fn cursor(key: &str) -> HeaderValue {
    let digits: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&digits).expect("hexadecimal digits are legal")
}

fn cursor_key(cursor: &str) -> Result<String, Failure> {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = cursor.as_bytes().chunks(2).map(byte).collect();
    let key = bytes.and_then(|bytes| String::from_utf8(bytes).ok()).filter(|key| key.len() <= KEY_BYTES_MAX);
    key.ok_or_else(|| Failure::invalid("query", "cursor", "Not a cursor of this endpoint"))
}

impl App {
    pub(crate) fn count_replay(&self) {
        self.metrics().count_replay();
        self.counters().count_replay();
    }
}
