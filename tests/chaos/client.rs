//! One client: asks one node after the other, keeps its connections, and has every call and answer recorded.
//! Chooses what is asked; never judges what is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kv_tests::history::{Action, Call, Condition, Entity, Outcome};
use kv_tests::{Caller, pass};

use crate::dice::Dice;

/// Keys that all clients fight over.
pub(crate) const KEYS: usize = 12;
/// A client gives an attempt up after this.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts after a failure.
const BACK_OFF: Duration = Duration::from_millis(25);
/// Attempts of one request that carries a request id.
const ATTEMPTS_MAX: usize = 8;
/// Most values are short; some fill segments.
const LONG_VALUE_BYTES: usize = 6_000;

/// What all clients share.
pub(crate) struct Field {
    pub(crate) caller: Caller,
    pub(crate) urls: Vec<(String, String)>,
    pub(crate) stop: AtomicBool,
    /// Writes answered with success.
    pub(crate) written: AtomicU64,
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
        if let Some(condition) = Condition::unchanged_since(&seen, || self.dice.percent(50)) {
            self.put(key, condition).await;
        }
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
        let outcome = self.field.caller.ask(&url, call).await.outcome;
        if matches!(outcome, Outcome::Unknown | Outcome::NotExecuted) {
            self.next_node();
            pass(BACK_OFF).await;
        }
        outcome
    }
}
