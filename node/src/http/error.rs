//! What can go wrong with a request, and the only table from there to a status. Every answer that is
//! not a success is a [`Failure`]; handlers return it and never build an error by themselves.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use kv_core::command::Invalid;
use kv_core::contract::Refusal;
use kv_core::entry::EntryId;
use serde::Serialize;

use super::answer;
use crate::driver::CallError;

/// The stable code of an error, for clients to branch on.
pub(crate) const X_KV_ERROR: HeaderName = HeaderName::from_static("x-kv-error");

/// Seconds after which a client should try again what is refused for the moment: an election is over by then.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The kinds of errors that clients can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    VersionConflict,
    PreconditionFailed,
    RequestReused,
    TooLarge,
    NoLeader,
    Overloaded,
    Timeout,
    /// The client took too long over its own request.
    SlowClient,
    OutcomeUnknown,
    StorageFull,
    NotReady,
    Behind,
    IdentityMismatch,
    NameTaken,
    /// What was asked presupposes another state of the group or of the node.
    Conflict,
    Unauthorized,
    /// Our bug, or damage on disk.
    Internal,
}

impl Code {
    /// The table.
    pub(crate) const fn row(self) -> (StatusCode, &'static str) {
        match self {
            Self::InvalidRequest => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "invalid_request"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::VersionConflict => (StatusCode::CONFLICT, "version_conflict"),
            Self::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "precondition_failed"),
            Self::RequestReused => (StatusCode::UNPROCESSABLE_ENTITY, "request_reused"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no_leader"),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded"),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Self::SlowClient => (StatusCode::REQUEST_TIMEOUT, "timeout"),
            Self::OutcomeUnknown => (StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown"),
            Self::StorageFull => (StatusCode::INSUFFICIENT_STORAGE, "storage_full"),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
            Self::Behind => (StatusCode::CONFLICT, "behind"),
            Self::IdentityMismatch => (StatusCode::CONFLICT, "identity_mismatch"),
            Self::NameTaken => (StatusCode::CONFLICT, "name_taken"),
            Self::Conflict => (StatusCode::CONFLICT, "precondition_failed"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    fn extra_header(self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::NoLeader | Self::Overloaded | Self::NotReady | Self::OutcomeUnknown => {
                Some((RETRY_AFTER, RETRY_AFTER_SECONDS))
            }
            Self::Unauthorized => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::SlowClient => Some((CONNECTION, HeaderValue::from_static("close"))),
            _ => None,
        }
    }
}

/// What a failed request asked for: decides what silence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing changes, whether it was carried out or not.
    Read,
    /// It may have been proposed.
    Write,
}

/// One thing wrong with a request, in the form of the original (pydantic).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    loc: Vec<String>,
    msg: String,
    r#type: &'static str,
}

/// The body of an error.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Document {
    Detail { detail: Cow<'static, str> },
    Problems { detail: [Problem; 1] },
    VersionConflict { status: &'static str, message: String, current_version: u64 },
}

/// A request that is not answered with success.
#[derive(Debug)]
pub(crate) struct Failure(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: Code,
    document: Document,
    /// What the answer is true at; None: it says nothing of the state.
    at: Option<EntryId>,
}

impl Failure {
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::of(code, Document::Detail { detail: detail.into() })
    }

    fn of(code: Code, document: Document) -> Self {
        Self(Box::new(Inner { code, document, at: None }))
    }

    /// Says what the answer is true at, as [`answer::at`] does: a later id could be that of the key's creation.
    pub(crate) fn at(mut self, id: EntryId) -> Self {
        self.0.at = Some(id);
        self
    }

    /// 422 that names the member: `place` is "body", "query", "path" or "header".
    pub(crate) fn invalid(place: &str, member: &str, msg: impl Into<String>) -> Self {
        Self::problem(place, member, msg, "value_error")
    }

    /// A member that must be there and is not.
    pub(crate) fn missing(place: &str, member: &str) -> Self {
        Self::problem(place, member, "Field required", "missing")
    }

    fn problem(place: &str, member: &str, msg: impl Into<String>, kind: &'static str) -> Self {
        let path = member.split('.').filter(|part| !part.is_empty()).map(str::to_owned);
        let loc = std::iter::once(place.to_owned()).chain(path).collect();
        Self::of(Code::InvalidRequest, Document::Problems { detail: [Problem { loc, msg: msg.into(), r#type: kind }] })
    }

    pub(crate) fn key_not_found() -> Self {
        Self::new(Code::NotFound, "Key not found")
    }

    pub(crate) fn version_conflict(provided: u64, current: u64) -> Self {
        let how = if provided > current { "ahead" } else { "outdated" };
        let message = format!("Version conflict: provided version {provided} is {how}");
        Self::of(
            Code::VersionConflict,
            Document::VersionConflict { status: "error", message, current_version: current },
        )
    }

    pub(crate) fn precondition_failed() -> Self {
        Self::new(Code::PreconditionFailed, "The key's current entry does not match the precondition")
    }

    pub(crate) fn request_reused() -> Self {
        Self::new(
            Code::RequestReused,
            "This client_id and request_id were used for the same operation with another key, value or precondition",
        )
    }

    pub(crate) fn no_leader() -> Self {
        Self::new(Code::NoLeader, "No leader is known; nothing was changed")
    }

    pub(crate) fn outcome_unknown() -> Self {
        Self::new(
            Code::OutcomeUnknown,
            "The write may or may not take effect; with client_id and request_id it can be sent again safely",
        )
    }

    pub(crate) fn not_ready(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotReady, why)
    }

    pub(crate) fn internal(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::Internal, why)
    }

    pub(crate) fn call(error: CallError, asked: Asked) -> Self {
        match (error, asked) {
            (CallError::Busy, _) => Self::new(Code::Overloaded, "The node's request queue is full"),
            (_, Asked::Write) => Self::outcome_unknown(),
            (CallError::TimedOut, Asked::Read) => Self::new(Code::Timeout, "The node could not answer in time"),
            (CallError::Stopped, Asked::Read) => Self::not_ready("The node is stopping"),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotLeader { .. } => Self::no_leader(),
            Refusal::NotConfirmed => Self::new(Code::NoLeader, "No majority confirmed the leader in time"),
            Refusal::OutcomeUnknown => Self::outcome_unknown(),
            Refusal::Overloaded => Self::new(Code::Overloaded, "Too many requests are waiting; nothing was changed"),
            Refusal::StorageFull => Self::new(Code::StorageFull, "Storage is full; reads and deletes go on"),
            Refusal::NotReady(why) => Self::not_ready(why),
            Refusal::Behind { ahead } => Self::new(Code::Behind, format!("{ahead} is ahead of this node")),
            Refusal::IdentityMismatch { cluster_id, member_id, config_id, epoch } => {
                let cluster_id = cluster_id.map_or("none".to_owned(), |id| id.to_string());
                Self::new(
                    Code::IdentityMismatch,
                    format!(
                        "This node's own are cluster_id {cluster_id}, member_id {member_id}, config_id {config_id}, \
                         epoch {epoch}"
                    ),
                )
            }
            Refusal::NameTaken { holder } => {
                Self::new(Code::NameTaken, format!("The name is held by member {holder}, which was heard lately"))
            }
            Refusal::Conflict(why) => Self::new(Code::Conflict, why),
            Refusal::Invalid(why) => Self::new(Code::InvalidRequest, why),
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        let text = invalid.to_string();
        match invalid {
            Invalid::KeyEmpty | Invalid::KeyTooLong(_) => Self::invalid("path", "key", text),
            Invalid::ValueTooLarge { .. } => Self::new(Code::TooLarge, text),
            Invalid::ValueTooDeep | Invalid::ValueMalformed => Self::invalid("body", "value", text),
            Invalid::RequestPart { part, .. } => Self::invalid("query", part, text),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Inner { code, document, at } = *self.0;
        let (status, name) = code.row();
        let body = serde_json::to_vec(&document).expect("error documents are plain structs");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, JSON);
        headers.insert(X_KV_ERROR, HeaderValue::from_static(name));
        if let Some((header, value)) = code.extra_header() {
            headers.insert(header, value);
        }
        match at {
            Some(id) => answer::at(response, id),
            None => response,
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use kv_core::entry::Epoch;
    use kv_core::group::{ClusterId, MemberId, NodeName};

    use super::*;

    async fn shown(failure: Failure) -> (u16, String, String) {
        let response = failure.into_response();
        let status = response.status().as_u16();
        let code = response.headers()[X_KV_ERROR].to_str().unwrap().to_owned();
        let waits = response.headers().contains_key(RETRY_AFTER);
        assert_eq!(waits, status == 503, "{code}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn every_refusal_has_its_status_and_code() {
        let name = || NodeName::new("follower-1").unwrap();
        let mismatch = Refusal::IdentityMismatch {
            cluster_id: Some(ClusterId::new("c1").unwrap()),
            member_id: MemberId(10),
            config_id: EntryId(7),
            epoch: Epoch(3),
        };
        for (refusal, status, code, text) in [
            (Refusal::NotLeader { leader: None }, 503, "no_leader", "No leader"),
            (Refusal::NotConfirmed, 503, "no_leader", "majority"),
            (Refusal::OutcomeUnknown, 503, "outcome_unknown", "may or may not"),
            (Refusal::Overloaded, 503, "overloaded", "Too many"),
            (Refusal::StorageFull, 507, "storage_full", "full"),
            (Refusal::NotReady("empty".to_owned()), 503, "not_ready", "empty"),
            (Refusal::Behind { ahead: name() }, 409, "behind", "follower-1"),
            (mismatch, 409, "identity_mismatch", "cluster_id c1, member_id 000000000000000a, config_id 7, epoch 3"),
            (Refusal::NameTaken { holder: MemberId(10) }, 409, "name_taken", "000000000000000a"),
            (Refusal::Conflict("one at a time".to_owned()), 409, "precondition_failed", "one at a time"),
            (Refusal::Invalid("seven voters".to_owned()), 422, "invalid_request", "seven voters"),
        ] {
            let (got_status, got_code, body) = shown(refusal.into()).await;
            assert_eq!((got_status, got_code.as_str()), (status, code));
            assert!(body.starts_with("{\"detail\":\"") && body.contains(text), "{body}");
        }
    }

    #[tokio::test]
    async fn silence_means_different_things_for_reads_and_writes() {
        for (error, asked, status, code) in [
            (CallError::Busy, Asked::Write, 503, "overloaded"),
            (CallError::TimedOut, Asked::Write, 503, "outcome_unknown"),
            (CallError::Stopped, Asked::Write, 503, "outcome_unknown"),
            (CallError::TimedOut, Asked::Read, 504, "timeout"),
            (CallError::Stopped, Asked::Read, 503, "not_ready"),
        ] {
            let (got_status, got_code, _) = shown(Failure::call(error, asked)).await;
            assert_eq!((got_status, got_code.as_str()), (status, code));
        }
    }

    #[tokio::test]
    async fn conflicts_and_problems_have_their_own_bodies() {
        let outdated =
            r#"{"status":"error","message":"Version conflict: provided version 1 is outdated","current_version":2}"#;
        assert_eq!(
            shown(Failure::version_conflict(1, 2)).await,
            (409, "version_conflict".to_owned(), outdated.to_owned())
        );
        let (_, _, ahead) = shown(Failure::version_conflict(9, 2)).await;
        assert!(ahead.contains("provided version 9 is ahead"));
        let missing = r#"{"detail":[{"loc":["body","value"],"msg":"Field required","type":"missing"}]}"#;
        assert_eq!(
            shown(Failure::missing("body", "value")).await,
            (422, "invalid_request".to_owned(), missing.to_owned())
        );
        let (status, code, body) = shown(Invalid::ValueTooLarge { got: 9, limit: 8 }.into()).await;
        assert_eq!((status, code.as_str()), (413, "too_large"));
        assert!(body.contains("the limit is 8"));
    }
}
