//! Makes calls over HTTP and has each recorded: what is asked becomes a request, what is answered an
//! outcome of the history. Knows the contract's answers, keeps what the contract has no answer for, and
//! judges nothing. Called by clients whose history is checked afterwards.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client as Http, RequestBuilder};
use serde_json::Value;

use crate::history::{Action, Call, Entity, Outcome, Recorder};

/// Answers that no client should ever get, of which the first are kept.
const STRANGE_MAX: usize = 20;

/// Records the calls of any number of clients.
pub struct Caller {
    pub recorder: Recorder,
    http: Http,
    attempt_timeout: Duration,
    strange: Mutex<Vec<String>>,
}

/// How a call ended.
#[derive(Debug)]
pub struct Answered {
    pub outcome: Outcome,
    kv_id: Option<u64>,
    /// What went wrong: an error code of the contract, or how the connection failed.
    pub failure: Option<String>,
}

impl Answered {
    fn without(outcome: Outcome, failure: &str) -> Self {
        Self { outcome, kv_id: None, failure: Some(failure.to_owned()) }
    }
}

impl Caller {
    /// A client gives an attempt up after `attempt_timeout`.
    pub fn new(http: Http, attempt_timeout: Duration) -> Self {
        Self { recorder: Recorder::default(), http, attempt_timeout, strange: Mutex::default() }
    }

    /// One recorded call.
    pub async fn ask(&self, url: &str, call: Call) -> Answered {
        self.ask_with(&self.http, url, call).await
    }

    /// One recorded call over the connections of this client.
    pub async fn ask_with(&self, http: &Http, url: &str, call: Call) -> Answered {
        let request = request(http, url, &call).timeout(self.attempt_timeout);
        let is_write = matches!(call.action, Action::Put { .. } | Action::Delete { .. });
        let shown = format!("{call:?}");
        let ticket = self.recorder.invoke(call);
        let nothing = if is_write { Outcome::Unknown } else { Outcome::NotExecuted };
        let answered = match send(request).await {
            Ok(answer) => answer.meaning(is_write).unwrap_or_else(|| {
                self.keep(format!("{shown} was answered {} {:?}: {}", answer.status, answer.code, answer.body));
                Answered::without(nothing, "strange")
            }),
            Err(error) if error.is_connect() => Answered::without(Outcome::NotExecuted, "not connected"),
            Err(error) if error.is_timeout() => Answered::without(nothing, "no answer in time"),
            Err(_) => Answered::without(nothing, "connection lost"),
        };
        self.recorder.complete(ticket, answered.outcome.clone(), answered.kv_id);
        answered
    }

    /// Takes the answers that the contract does not have.
    pub fn take_strange(&self) -> Vec<String> {
        std::mem::take(&mut *self.strange.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, what: String) {
        let mut strange = self.strange.lock().unwrap_or_else(PoisonError::into_inner);
        if strange.len() < STRANGE_MAX {
            strange.push(what);
        }
    }
}

fn request(http: &Http, url: &str, call: &Call) -> RequestBuilder {
    let mut address = format!("{url}/key/{}?", call.key);
    if let Some(request) = &call.request {
        address += &format!("client_id={}&request_id={request}&", call.client);
    }
    let conditional = |request: RequestBuilder, entity: Entity| match entity {
        Entity::Any => request,
        Entity::Is(id) => request.header("if-match", format!("\"{id}\"")),
        Entity::Present => request.header("if-match", "*"),
        Entity::Absent => request.header("if-none-match", "*"),
    };
    match &call.action {
        Action::Put { value, condition } => {
            let version = condition.version.map_or(String::new(), |version| format!(",\"version\":{version}"));
            conditional(http.put(address), condition.entity).body(format!("{{\"value\":{value}{version}}}"))
        }
        Action::Delete { condition } => conditional(http.delete(address), condition.entity),
        Action::Read { .. } => http.get(address + "consistency=linearizable"),
        Action::LocalRead { min_id: None } => http.get(address),
        Action::LocalRead { min_id: Some(id) } => http.get(address + &format!("min_id={id}")),
    }
}

/// A whole answer.
struct Answer {
    status: u16,
    code: String,
    kv_id: Option<u64>,
    entity: Option<u64>,
    replay: bool,
    body: Value,
}

async fn send(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let header =
        |name| response.headers().get(name).and_then(|value: &reqwest::header::HeaderValue| value.to_str().ok());
    let (status, code) = (response.status().as_u16(), header("x-kv-error").unwrap_or_default().to_owned());
    let kv_id = header("x-kv-id").and_then(|id| id.parse().ok());
    let entity = header("etag").and_then(|tag| tag.trim_matches('"').parse().ok());
    let replay = header("idempotent-replay") == Some("true");
    let body = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
    Ok(Answer { status, code, kv_id, entity, replay, body })
}

impl Answer {
    /// None: the contract has no such answer.
    fn meaning(&self, is_write: bool) -> Option<Answered> {
        let number = |name: &str| self.body[name].as_u64();
        let outcome = match (self.status, self.code.as_str()) {
            (200, _) if !is_write => {
                Outcome::Value { value: self.body["value"].to_string(), version: number("version")?, id: self.entity? }
            }
            (200, _) if self.body["version"].is_null() => Outcome::Deleted { id: number("id")?, replay: self.replay },
            (200, _) => Outcome::Written { id: number("id")?, version: number("version")?, replay: self.replay },
            (404, "not_found") => Outcome::NotFound,
            (409, "version_conflict") => Outcome::Conflict { current_version: number("current_version")? },
            (412, "precondition_failed") => Outcome::PreconditionFailed,
            (503, "no_leader" | "not_ready" | "overloaded") | (507, "storage_full") => Outcome::NotExecuted,
            (503, "outcome_unknown") if is_write => Outcome::Unknown,
            (504, "timeout") if !is_write => Outcome::NotExecuted,
            _ => return None,
        };
        let failure = matches!(outcome, Outcome::NotExecuted | Outcome::Unknown).then(|| self.code.clone());
        Some(Answered { outcome, kv_id: Some(self.kv_id?), failure })
    }
}
