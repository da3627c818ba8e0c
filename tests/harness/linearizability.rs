//! Judges a history: is there an order of the writes that explains every answer? Per key by the search
//! of Wing and Gong with Lowe's memoisation, on a linked list of calls and returns as porcupine keeps
//! it; over all keys by what entry ids promise. Pure: never talks to a store. Called by the chaos
//! runner and by the simulator.
//!
//! The rules:
//! - A linearizable read, and a refusal (404, 409, 412), is true at some moment between its call and its
//!   return; so is a write, whose effect all later ones see. A write of unknown outcome takes effect at
//!   some moment after its call, or never.
//! - Ids are the order: unique, and rising with real time over all keys. A write that was called after any
//!   answer had shown `X-Kv-Id` n has an id above n.
//! - A read's `X-Kv-Id` is not below the id of the value shown, and what is shown is exactly what the writes
//!   up to that id give: reads, local ones too, show a prefix of the order. A linearizable read's is not
//!   below any that was shown before its call.
//! - All copies of one request have one effect, and after it was answered one answer.
//!
//! A history must be shorter than the deduplication window, and its values unique for each key.

mod ids;
mod register;
mod search;
mod writes;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::history::Operation;
use register::KeyHistory;
use search::{Found, search};
use writes::Writes;

/// How much the search of one key may do before it gives up.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Tries to put one write next.
    pub steps_max: u64,
    /// Bytes of remembered dead ends.
    pub memory_bytes_max: usize,
}

impl Default for Bounds {
    /// A few seconds of one core, and a memory that any machine has.
    fn default() -> Self {
        Self { steps_max: 20_000_000, memory_bytes_max: 256 * 1024 * 1024 }
    }
}

/// What a history that holds was made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    pub operations: usize,
    pub keys: usize,
    /// Writes that certainly took effect.
    pub effects: usize,
    /// Writes of which nobody knows.
    pub unknown: usize,
    /// Tries of the search, over all keys.
    pub steps: u64,
}

/// Why a history was not found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A promise is broken.
    Violation(String),
    /// The bounds were reached first. In a test, that is a failure, too.
    Undecided { key: String, steps: u64 },
    /// The history is not one that can be judged; the fault of who recorded it.
    Unusable(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(what) => write!(f, "a promise is broken: {what}"),
            Self::Undecided { key, steps } => write!(f, "undecided after {steps} steps over key {key:?}"),
            Self::Unusable(why) => write!(f, "the history cannot be judged: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

/// Checks a whole history.
pub fn check(operations: &[Operation], bounds: &Bounds) -> Result<Checked, Failure> {
    let writes = Writes::gather(operations)?;
    ids::check(operations, &writes)?;
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.call.key).or_default().push(operation);
    }
    let effects = writes.iter().filter(|write| write.returned.is_some()).count();
    let unknown = writes.iter().count() - effects;
    let mut checked = Checked { operations: operations.len(), keys: by_key.len(), effects, unknown, steps: 0 };
    for (key, operations) in by_key {
        let history = KeyHistory::new(&operations, &writes);
        match search(&history, bounds) {
            (Found::Order, steps) => checked.steps += steps,
            (Found::Undecided, steps) => return Err(Failure::Undecided { key: key.to_owned(), steps }),
            (Found::NoOrder(stuck), _) => return Err(Failure::Violation(history.describe(key, &stuck))),
        }
    }
    Ok(checked)
}

/// An operation in a report: short, and with all that judging it by hand needs.
fn shown(operation: &Operation) -> String {
    let Operation { call, invoked, returned, outcome, kv_id } = operation;
    let returned = returned.map_or("-".to_owned(), |at| at.to_string());
    let request = call.request.as_ref().map_or(String::new(), |request| format!(" request {request}"));
    let kv_id = kv_id.map_or(String::new(), |id| format!(" X-Kv-Id {id}"));
    format!(
        "[{invoked}..{returned}] {} at {}: {:?} {:?}{request} -> {outcome:?}{kv_id}",
        call.client, call.node, call.key, call.action
    )
}
