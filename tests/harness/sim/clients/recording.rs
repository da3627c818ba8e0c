//! The history of all clients, as the chaos runner over real processes records it, and its judgement by
//! the same judge. It knows nothing of the canon: a second opinion on what clients were told.

use kv_core::command::{Change, Command, Entity, Precondition, RequestId};
use kv_core::contract::Reply;
use kv_core::entry::EntryId;

use super::{Call, Consistency, Shown, Wish};
use crate::history::{self, Action, Condition, Outcome};
use crate::linearizability::{Bounds, Failure, check};
use crate::sim::coverage::Reached;
use crate::sim::world::World;

/// Histories that need more are left to the other checks.
const BOUNDS: Bounds = Bounds { steps_max: 300_000, memory_bytes_max: 64 << 20 };

impl World {
    pub(super) fn record_call(&mut self, number: u64, call: &Call) {
        let min_id = call.min_id.map(|id| id.0);
        let (key, action, request) = match &call.wish {
            Wish::Write(Command { key, change, precondition, request }) => {
                let condition = condition_of(precondition);
                let action = match change {
                    Change::Set(value) => {
                        Action::Put { value: String::from_utf8_lossy(value.as_bytes()).into_owned(), condition }
                    }
                    Change::Delete => Action::Delete { condition },
                };
                // With what it is asked for: an id that is used for something else names another request here.
                let name = |request: &RequestId| format!("{} {key:?} {change:?} {precondition:?}", request.request_id);
                (key, action, request.as_ref().map(name))
            }
            Wish::Read(key, Consistency::Linearizable) => (key, Action::Read { min_id }, None),
            Wish::Read(key, Consistency::Local) => (key, Action::LocalRead { min_id }, None),
        };
        let client = format!("client{}", call.client);
        let called = history::Call { client, node: String::new(), key: key.as_str().to_owned(), action, request };
        let ticket = self.clients.recorder.invoke(called);
        self.clients.tickets.insert(number, ticket);
    }

    /// A refusal takes back no attempt that was given up: that one may still take effect, once.
    pub(super) fn record_reply(&mut self, number: u64, call: &Call, reply: &Reply) {
        if call.is_open && !matches!(reply, Reply::Written { .. }) {
            return;
        }
        let (outcome, kv_id) = match reply {
            Reply::Written { written, replay } if written.version == 0 => {
                (Outcome::Deleted { id: written.id.0, replay: *replay }, Some(written.id.0))
            }
            Reply::Written { written, replay } => {
                let outcome = Outcome::Written { id: written.id.0, version: written.version, replay: *replay };
                (outcome, Some(written.id.0))
            }
            Reply::NotFound => (Outcome::NotFound, None),
            Reply::VersionConflict { current, .. } => (Outcome::Conflict { current_version: *current }, None),
            Reply::PreconditionFailed => (Outcome::PreconditionFailed, None),
            _ => return,
        };
        self.record(number, outcome, kv_id);
    }

    pub(super) fn record_value(&mut self, number: u64, found: Option<Shown>, at: EntryId) {
        let value = |Shown { id, version, text }| Outcome::Value { value: text, version, id: id.0 };
        self.record(number, found.map_or(Outcome::NotFound, value), Some(at.0));
    }

    pub(super) fn record(&mut self, number: u64, outcome: Outcome, kv_id: Option<u64>) {
        if let Some(ticket) = self.clients.tickets.remove(&number) {
            self.clients.recorder.complete(ticket, outcome, kv_id);
        }
    }

    /// Of a run in which no request is forgotten.
    pub(crate) fn judge_history(&mut self) {
        if self.shape.forgets_requests {
            return;
        }
        match check(&self.clients.recorder.operations(), &BOUNDS) {
            Ok(_) => self.coverage.count(Reached::HistoryJudged),
            Err(Failure::Undecided { .. }) => self.coverage.count(Reached::HistoryUndecided),
            Err(failure) => panic!("{failure}"),
        }
    }
}

fn condition_of(precondition: &Precondition) -> Condition {
    let entity = match precondition.entity {
        Entity::Any => history::Entity::Any,
        Entity::Is(id) => history::Entity::Is(id.0),
        Entity::Present => history::Entity::Present,
        Entity::Absent => history::Entity::Absent,
    };
    Condition { version: precondition.version, entity }
}
