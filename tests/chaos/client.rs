//! One client: asks one node after the other, keeps its connections, and records every call and answer.
//! Knows what an answer means for the history, and never judges it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kv_tests::history::{Action, Call, Condition, Entity, Outcome, Recorder};
use kv_tests::pass;
use reqwest::{Client as Http, RequestBuilder};
use serde_json::Value;

use crate::dice::Dice;

/// Keys that all clients fight over.
pub(crate) const KEYS: usize = 12;
/// A client gives an attempt up after this.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts after a failure.
const BACK_OFF: Duration = Duration::from_millis(25);
/// Attempts of one request that carries a request id.
const ATTEMPTS_MAX: usize = 8;
/// Most values are short; some fill segments.
const LONG_VALUE_BYTES: usize = 6_000;
/// Answers that no client should ever get, of which the first are kept.
const STRANGE_MAX: usize = 20;

/// What all clients share.
pub(crate) struct Field {
    pub(crate) recorder: Recorder,
    pub(crate) http: Http,
    pub(crate) urls: Vec<(String, String)>,
    pub(crate) stop: AtomicBool,
    /// Writes answered with success.
    pub(crate) written: AtomicU64,
    pub(crate) strange: std::sync::Mutex<Vec<String>>,
}

pub(crate) struct Client {
    field: Arc<Field>,
    name: String,
    dice: Dice,
    /// The node asked at present.
    node: usize,
    count: u64,
    last_id: u64,
}

/// An answer as the history takes it.
struct Answered {
    outcome: Outcome,
    kv_id: Option<u64>,
}

impl Answered {
    fn without(outcome: Outcome) -> Self {
        Self { outcome, kv_id: None }
    }
}

impl Client {
    pub(crate) fn new(field: Arc<Field>, index: u64, seed: u64) -> Self {
        let node = usize::try_from(index).expect("a few clients") % field.urls.len();
        Self { field, name: format!("c{index}"), dice: Dice::of(seed, index), node, count: 0, last_id: 0 }
    }

    pub(crate) async fn run(mut self) {
        while !self.field.stop.load(Ordering::Relaxed) {
            let key = format!("key-{}", self.dice.below(KEYS));
            match self.dice.below(100) {
                0..20 => _ = self.put(&key, Condition::default()).await,
                20..42 => self.modify(&key).await,
                42..48 => self.create(&key).await,
                48..60 => self.delete(&key).await,
                60..78 => _ = self.read(&key).await,
                _ => _ = self.read_local(&key).await,
            }
            if self.dice.percent(3) {
                self.next_node();
            }
        }
    }

    fn next_node(&mut self) {
        self.node = (self.node + 1) % self.field.urls.len();
    }

    /// Read, then write on the condition that nobody did meanwhile.
    async fn modify(&mut self, key: &str) {
        let seen = if self.dice.percent(50) { self.read(key).await } else { self.read_local(key).await };
        let condition = match seen {
            Outcome::Value { id, .. } if self.dice.percent(50) => Condition { version: None, entity: Entity::Is(id) },
            Outcome::Value { version, .. } => Condition { version: Some(version), entity: Entity::Any },
            Outcome::NotFound => Condition { version: Some(0), entity: Entity::Any },
            _ => return,
        };
        self.put(key, condition).await;
    }

    async fn create(&mut self, key: &str) {
        let condition = match self.dice.below(3) {
            0 => Condition { version: Some(0), entity: Entity::Any },
            1 => Condition { version: None, entity: Entity::Present },
            _ => Condition { version: None, entity: Entity::Absent },
        };
        self.put(key, condition).await;
    }

    async fn delete(&mut self, key: &str) {
        let mut condition = Condition::default();
        if self.dice.percent(30)
            && let Outcome::Value { id, .. } = self.read_local(key).await
        {
            condition.entity = Entity::Is(id);
        }
        self.write(key, Action::Delete { condition }).await;
    }

    async fn put(&mut self, key: &str, condition: Condition) {
        self.count += 1;
        let length = if self.dice.percent(4) { LONG_VALUE_BYTES } else { self.dice.below(60) };
        let value = format!("\"{}-{}-{}\"", self.name, self.count, "v".repeat(length));
        self.write(key, Action::Put { value, condition }).await;
    }

    /// Half of the writes carry a request id and are sent until they are answered, to any node.
    async fn write(&mut self, key: &str, action: Action) {
        self.count += 1;
        let request = self.dice.percent(60).then(|| format!("r{}", self.count));
        let attempts = if request.is_some() { ATTEMPTS_MAX } else { 1 };
        for _ in 0..attempts {
            match self.attempt(key, action.clone(), request.clone()).await {
                Outcome::Unknown | Outcome::NotExecuted => {}
                Outcome::Written { id, .. } | Outcome::Deleted { id, .. } => {
                    self.last_id = self.last_id.max(id);
                    self.field.written.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                _ => break,
            }
        }
        // A copy that nobody needs, as a proxy or an impatient user would send it.
        if request.is_some() && self.dice.percent(5) {
            self.attempt(key, action, request).await;
        }
    }

    async fn read(&mut self, key: &str) -> Outcome {
        self.attempt(key, Action::Read { min_id: None }, None).await
    }

    /// Some read what they wrote.
    async fn read_local(&mut self, key: &str) -> Outcome {
        let min_id = (self.last_id > 0 && self.dice.percent(30)).then_some(self.last_id);
        self.attempt(key, Action::LocalRead { min_id }, None).await
    }

    async fn attempt(&mut self, key: &str, action: Action, request: Option<String>) -> Outcome {
        let (node, url) = self.field.urls[self.node].clone();
        let call = Call { client: self.name.clone(), node, key: key.to_owned(), action, request };
        let outcome = ask(&self.field, &url, call).await;
        if matches!(outcome, Outcome::Unknown | Outcome::NotExecuted) {
            self.next_node();
            pass(BACK_OFF).await;
        }
        outcome
    }
}

/// One recorded call.
pub(crate) async fn ask(field: &Field, url: &str, call: Call) -> Outcome {
    let request = request(&field.http, url, &call).timeout(ATTEMPT_TIMEOUT);
    let is_write = matches!(call.action, Action::Put { .. } | Action::Delete { .. });
    let shown = format!("{call:?}");
    let ticket = field.recorder.invoke(call);
    let answered = match send(request).await {
        Ok(answer) => answer.meaning(is_write).unwrap_or_else(|| {
            let mut strange = field.strange.lock().expect("nobody panics with it");
            if strange.len() < STRANGE_MAX {
                strange.push(format!("{shown} was answered {} {:?}: {}", answer.status, answer.code, answer.body));
            }
            Answered::without(if is_write { Outcome::Unknown } else { Outcome::NotExecuted })
        }),
        Err(error) if is_write && !error.is_connect() => Answered::without(Outcome::Unknown),
        Err(_) => Answered::without(Outcome::NotExecuted),
    };
    field.recorder.complete(ticket, answered.outcome.clone(), answered.kv_id);
    answered.outcome
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
        Some(Answered { outcome, kv_id: Some(self.kv_id?) })
    }
}
