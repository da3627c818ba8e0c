//! One worker: writes keys of its own with values that are never repeated, changes keys that all fight over
//! on the condition that nobody did meanwhile, and reads. Keeps its connection, gives an attempt up after two
//! seconds and waits 20 ms between attempts. Remembers what was acknowledged; judges nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_tests::history::{Action, Call, Condition, Outcome};
use kv_tests::random::Random;
use kv_tests::{Caller, pass};
use serde_json::Value;

use crate::window::Window;

/// As users have it that ask a Service.
pub(crate) const WORKERS: usize = 8;
/// A client gives an attempt up after this.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts, after success and failure alike.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);
/// Keys that all workers fight over.
pub(crate) const SHARED_KEYS: u64 = 16;
/// A request that carries a request id is sent until it is answered; longer than any outage that the suite makes.
const PATIENCE: Duration = Duration::from_secs(180);

/// What all workers share.
pub(crate) struct Field {
    pub(crate) caller: Caller,
    pub(crate) url: String,
    pub(crate) seed: u64,
    pub(crate) stop: AtomicBool,
    pub(crate) window: Window,
    pub(crate) acknowledged: Mutex<Vec<Acknowledged>>,
}

/// A write of a key of its own that was answered 200.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) id: u64,
}

/// One that is kept alive; the image has no roots of trust, and needs none.
pub(crate) fn connection() -> reqwest::Client {
    let builder = reqwest::Client::builder().pool_max_idle_per_host(1).no_proxy().tls_certs_only([]);
    builder.build().expect("nothing in this configuration depends on the machine")
}

/// Returns once new connections lead to so many nodes. A Service whose pods have just become ready may lead to the first one
/// alone, and who connects then stays there.
pub(crate) async fn reach(url: &str, nodes: usize) {
    let mut reached = BTreeSet::new();
    while reached.len() < nodes {
        if let Ok(answer) = connection().get(format!("{url}/status")).timeout(ATTEMPT_TIMEOUT).send().await
            && let Ok(status) = answer.json::<Value>().await
        {
            reached.extend(status["member_id"].as_str().map(str::to_owned));
        }
        pass(BETWEEN_ATTEMPTS).await;
    }
}

pub(crate) fn shared_key(seed: u64, number: u64) -> String {
    format!("shared-{seed}-{number}")
}

pub(crate) struct Worker {
    field: Arc<Field>,
    /// Of its own: one connection at a time, as a client with keep-alive has it.
    http: reqwest::Client,
    index: usize,
    /// Not that of any worker before, whose requests the cluster may still remember.
    client: String,
    random: Random,
    seed: u64,
    count: u64,
}

impl Worker {
    pub(crate) fn new(field: Arc<Field>, index: usize) -> Self {
        let seed = field.seed;
        let http = connection();
        let random = Random::new(seed.wrapping_mul(WORKERS as u64) + index as u64);
        let client = format!("w{index}-of-{seed}");
        Self { field, http, index, client, random, seed, count: 0 }
    }

    pub(crate) async fn run(mut self) {
        while !self.field.stop.load(Ordering::Relaxed) {
            match self.random.below(100) {
                0..60 => self.create().await,
                60..90 => self.modify().await,
                90..94 => {
                    let key = self.shared_key();
                    self.operation(&key, Action::Delete { condition: Condition::default() }).await;
                }
                _ => {
                    let key = self.shared_key();
                    self.operation(&key, Action::LocalRead { min_id: None }).await;
                }
            }
        }
    }

    fn shared_key(&mut self) -> String {
        shared_key(self.seed, self.random.below(SHARED_KEYS))
    }

    fn value(&mut self) -> String {
        self.count += 1;
        format!("\"w{}-{}\"", self.index, self.count)
    }

    async fn create(&mut self) {
        let value = self.value();
        let key = format!("own-{}-{}-{}", self.seed, self.index, self.count);
        let action = Action::Put { value: value.clone(), condition: Condition::default() };
        if let Outcome::Written { id, .. } = self.operation(&key, action).await {
            let mut acknowledged = self.field.acknowledged.lock().expect("nobody panics with it");
            acknowledged.push(Acknowledged { key, value, id });
        }
    }

    /// Read, then write on the condition that nobody did meanwhile.
    async fn modify(&mut self) {
        let key = self.shared_key();
        let seen = self.operation(&key, Action::Read { min_id: None }).await;
        let Some(condition) = Condition::unchanged_since(&seen, || self.random.percent(50)) else { return };
        let value = self.value();
        self.operation(&key, Action::Put { value, condition }).await;
    }

    /// Most writes carry a request id and are sent until they are answered; the others, once: whether they took
    /// effect may stay unknown. Reads are repeated, too.
    async fn operation(&mut self, key: &str, action: Action) -> Outcome {
        self.count += 1;
        let is_read = matches!(action, Action::Read { .. } | Action::LocalRead { .. });
        let request = (!is_read && self.random.percent(70)).then(|| format!("r{}", self.count));
        let (began, mut failing) = (Instant::now(), None);
        loop {
            let call = Call {
                client: self.client.clone(),
                node: self.field.url.clone(),
                key: key.to_owned(),
                action: action.clone(),
                request: request.clone(),
            };
            let outcome = self.attempt(call).await;
            let is_answered = !matches!(outcome, Outcome::Unknown | Outcome::NotExecuted);
            let is_over = is_answered || !(is_read || request.is_some()) || began.elapsed() > PATIENCE;
            if is_over || self.field.stop.load(Ordering::Relaxed) {
                self.field.window.answered(began.elapsed(), failing.map(|since: Instant| since.elapsed()));
                return outcome;
            }
            failing.get_or_insert_with(Instant::now);
        }
    }

    async fn attempt(&self, call: Call) -> Outcome {
        let answered = self.field.caller.ask_with(&self.http, &self.field.url, call).await;
        if matches!(answered.outcome, Outcome::Written { .. } | Outcome::Deleted { .. }) {
            self.field.window.written(self.index);
        }
        if let Some(failure) = answered.failure {
            self.field.window.failed(&failure);
        }
        pass(BETWEEN_ATTEMPTS).await;
        answered.outcome
    }
}
