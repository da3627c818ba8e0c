//! What clients asked of a store and what they were answered, in the order in which it happened.
//! Records and never judges: that is [`crate::linearizability`]. Called by whatever plays the clients,
//! over real processes or in a simulation; the recorder's own counter is the time.

use std::io::{BufRead, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What must hold of the key for a write to take effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Condition {
    /// `version` of the body; 0: the key must not exist.
    pub version: Option<u64>,
    pub entity: Entity,
}

impl Condition {
    /// That nobody has written since this was read; None: it was not read. What is there is named by its id or
    /// by its version.
    pub fn unchanged_since(seen: &Outcome, by_id: impl FnOnce() -> bool) -> Option<Self> {
        match seen {
            Outcome::Value { id, .. } if by_id() => Some(Self { version: None, entity: Entity::Is(*id) }),
            Outcome::Value { version, .. } => Some(Self { version: Some(*version), entity: Entity::Any }),
            Outcome::NotFound => Some(Self { version: Some(0), entity: Entity::Any }),
            _ => None,
        }
    }
}

/// `If-Match` and `If-None-Match`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Entity {
    #[default]
    Any,
    /// `If-Match: "<id>"`
    Is(u64),
    /// `If-Match: *`
    Present,
    /// `If-None-Match: *`
    Absent,
}

/// What was asked. `min_id`: the answer must be from a state that has applied it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The value as JSON text. No two writes of a key have the same one, other than retries of one request.
    Put {
        value: String,
        condition: Condition,
    },
    Delete {
        condition: Condition,
    },
    /// `consistency=linearizable`
    Read {
        min_id: Option<u64>,
    },
    LocalRead {
        min_id: Option<u64>,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// PUT, 200. `replay`: the answer says that it is an earlier copy's.
    Written { id: u64, version: u64, replay: bool },
    /// DELETE, 200.
    Deleted { id: u64, replay: bool },
    /// GET, 200; `id` is the one of the `ETag`.
    Value { value: String, version: u64, id: u64 },
    /// GET or DELETE, 404.
    NotFound,
    /// PUT, 409.
    Conflict { current_version: u64 },
    /// PUT or DELETE, 412.
    PreconditionFailed,
    /// It was certainly not carried out. For a read: it was not answered.
    NotExecuted,
    /// A write that takes effect at any later time, or never.
    Unknown,
}

/// A call as it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub client: String,
    /// Whom the client asked; for the reader of a report.
    pub node: String,
    pub key: String,
    pub action: Action,
    /// The request id. With the client and the operation it names one request, however often it is sent.
    pub request: Option<String>,
}

/// One call and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    #[serde(flatten)]
    pub call: Call,
    pub invoked: u64,
    /// None: no answer.
    pub returned: Option<u64>,
    pub outcome: Outcome,
    /// `X-Kv-Id` of the answer.
    pub kv_id: Option<u64>,
}

/// Names a call that was invoked and has not returned.
#[derive(Debug)]
#[must_use = "a call that never returns counts as unknown"]
pub struct Ticket(usize);

/// Shared by all clients of one run.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    operations: Vec<Operation>,
    now: u64,
}

impl Inner {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }
}

impl Recorder {
    /// Must happen before anything is sent.
    pub fn invoke(&self, call: Call) -> Ticket {
        let mut inner = self.lock();
        let invoked = inner.tick();
        inner.operations.push(Operation { call, invoked, returned: None, outcome: Outcome::Unknown, kv_id: None });
        Ticket(inner.operations.len() - 1)
    }

    /// Must happen after the whole answer has come.
    pub fn complete(&self, ticket: Ticket, outcome: Outcome, kv_id: Option<u64>) {
        let mut inner = self.lock();
        let returned = inner.tick();
        let operation = &mut inner.operations[ticket.0];
        *operation = Operation { returned: Some(returned), outcome, kv_id, call: operation.call.clone(), ..*operation };
    }

    /// Everything so far; what has not returned is of unknown outcome.
    pub fn operations(&self) -> Vec<Operation> {
        self.lock().operations.clone()
    }

    /// Calls so far.
    pub fn len(&self) -> usize {
        self.lock().operations.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One operation a line.
pub fn write_json_lines(operations: &[Operation], mut out: impl Write) -> std::io::Result<()> {
    for operation in operations {
        serde_json::to_writer(&mut out, operation)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// What [`write_json_lines`] wrote.
pub fn read_json_lines(lines: impl BufRead) -> std::io::Result<Vec<Operation>> {
    lines.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(action: Action) -> Call {
        Call { client: "c".into(), node: "n".into(), key: "k".into(), action, request: None }
    }

    #[test]
    fn calls_and_answers_are_in_one_order() {
        let recorder = Recorder::default();
        let first = recorder.invoke(call(Action::Delete { condition: Condition::default() }));
        let second = recorder.invoke(call(Action::Read { min_id: Some(3) }));
        recorder.complete(second, Outcome::NotFound, Some(3));
        let operations = recorder.operations();
        assert_eq!((operations[0].invoked, operations[0].returned), (1, None));
        assert_eq!(operations[0].outcome, Outcome::Unknown);
        assert_eq!((operations[1].invoked, operations[1].returned, operations[1].kv_id), (2, Some(3), Some(3)));
        recorder.complete(first, Outcome::Deleted { id: 4, replay: false }, None);
        assert_eq!(recorder.operations()[0].returned, Some(4));
    }

    #[test]
    fn a_history_is_read_back_as_it_was_written() {
        let recorder = Recorder::default();
        let condition = Condition { version: Some(0), entity: Entity::Is(7) };
        let put = recorder.invoke(call(Action::Put { value: "\"a\\n\"".into(), condition }));
        recorder.complete(put, Outcome::Conflict { current_version: 2 }, None);
        let _unanswered = recorder.invoke(call(Action::LocalRead { min_id: None }));
        let mut bytes = Vec::new();
        write_json_lines(&recorder.operations(), &mut bytes).unwrap();
        assert_eq!(read_json_lines(&bytes[..]).unwrap(), recorder.operations());
    }
}
