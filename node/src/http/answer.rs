//! Successful answers: bodies written member by member in the contract's order, and the headers that
//! go with them. Decides nothing.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use kv_core::command::OperationKind;
use kv_core::contract::Written;
use kv_core::entry::EntryId;
use serde::Serialize;

use super::entity_tag;

/// The id that is applied on the node that answers.
pub(crate) const X_KV_ID: HeaderName = HeaderName::from_static("x-kv-id");
/// Where the next page of `/keys` begins.
pub(crate) const X_KV_CURSOR: HeaderName = HeaderName::from_static("x-kv-cursor");
pub(crate) const IDEMPOTENT_REPLAY: HeaderName = HeaderName::from_static("idempotent-replay");

pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// 200 with a body that is JSON already.
pub(crate) fn json(body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

pub(crate) fn document<T: Serialize>(document: &T) -> Response {
    json(serde_json::to_vec(document).expect("documents are plain structs with string keys"))
}

/// Says what the answer is true at.
pub(crate) fn at(mut response: Response, id: EntryId) -> Response {
    response.headers_mut().insert(X_KV_ID, number(id.0));
    response
}

pub(crate) fn tagged(mut response: Response, id: EntryId) -> Response {
    response.headers_mut().insert(ETAG, entity_tag::tag(id));
    response
}

pub(crate) fn replayed(mut response: Response) -> Response {
    response.headers_mut().insert(IDEMPOTENT_REPLAY, HeaderValue::from_static("true"));
    response
}

/// 304: the client holds the entry's value.
pub(crate) fn not_modified(id: EntryId) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    tagged(response, id)
}

pub(crate) fn number(n: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(n)).expect("digits are legal")
}

/// Writes one JSON text into a buffer of about the right size.
pub(crate) struct JsonWriter(Vec<u8>);

impl JsonWriter {
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn raw(&mut self, json: &[u8]) -> &mut Self {
        self.0.extend_from_slice(json);
        self
    }

    pub(crate) fn number(&mut self, n: u64) -> &mut Self {
        self.0.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        serde_json::to_writer(&mut self.0, text).expect("a string is JSON and a Vec takes it");
        self
    }

    pub(crate) fn take(self) -> Vec<u8> {
        self.0
    }
}

/// Room for the names, numbers and punctuation of a body.
const BODY_OVERHEAD_BYTES: usize = 80;

/// `{"key":...,"value":...,"version":n}`
pub(crate) fn value_body(key: &str, value: &[u8], version: u64) -> Vec<u8> {
    let mut w = JsonWriter::with_room(key.len() + value.len() + BODY_OVERHEAD_BYTES);
    w.raw(b"{\"key\":").text(key).raw(b",\"value\":").raw(value).raw(b",\"version\":").number(version).raw(b"}");
    w.take()
}

/// The body of a write that took effect; the `result` of `/request_status`, too.
pub(crate) fn written_body(written: &Written) -> Vec<u8> {
    let key = written.key.as_str();
    let mut w = JsonWriter::with_room(key.len() + BODY_OVERHEAD_BYTES);
    w.raw(b"{\"status\":\"ok\",\"id\":").number(written.id.0);
    if written.operation == OperationKind::Set {
        w.raw(b",\"key\":").text(key).raw(b",\"version\":").number(written.version);
    }
    w.raw(b"}");
    w.take()
}
