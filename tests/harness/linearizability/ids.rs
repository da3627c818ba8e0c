//! What entry ids promise over all keys: unique, rising with real time, never ahead of what is shown.

use std::collections::HashMap;

use super::writes::{Write, Writes};
use super::{Failure, shown};
use crate::history::{Action, Operation, Outcome};

/// What happens at one moment.
enum Event<'a> {
    /// An answer showed that this id is committed.
    Shown(u64, &'a Operation),
    /// A write that took effect with this id was called.
    Write(u64, &'a Write<'a>),
    /// A linearizable read was called that was answered from the state at this id.
    Read(u64, &'a Operation),
}

pub(super) fn check(operations: &[Operation], writes: &Writes<'_>) -> Result<(), Failure> {
    are_unique(writes)?;
    operations.iter().try_for_each(is_covered)?;
    rise_with_time(operations, writes)
}

fn are_unique(writes: &Writes<'_>) -> Result<(), Failure> {
    let mut holders: HashMap<u64, &Write<'_>> = HashMap::new();
    for write in writes.iter() {
        let Some(id) = write.id else { continue };
        if let Some(other) = holders.insert(id, write) {
            let (first, second) = (shown(other.operation), shown(write.operation));
            return Err(Failure::Violation(format!("two writes with id {id}:\n  {first}\n  {second}")));
        }
    }
    Ok(())
}

/// `X-Kv-Id` is not below the id that the answer tells of, nor below what was asked for.
fn is_covered(operation: &Operation) -> Result<(), Failure> {
    let Some(kv_id) = operation.kv_id else { return Ok(()) };
    let told = match operation.outcome {
        Outcome::Written { id, .. } | Outcome::Deleted { id, .. } | Outcome::Value { id, .. } => id,
        _ => 0,
    };
    let asked = match (&operation.outcome, &operation.call.action) {
        (Outcome::Value { .. } | Outcome::NotFound, Action::Read { min_id } | Action::LocalRead { min_id }) => *min_id,
        _ => None,
    };
    if kv_id < told.max(asked.unwrap_or(0)) {
        return Err(Failure::Violation(format!("X-Kv-Id is below what is shown or asked for: {}", shown(operation))));
    }
    Ok(())
}

fn rise_with_time(operations: &[Operation], writes: &Writes<'_>) -> Result<(), Failure> {
    let mut events = Vec::new();
    for operation in operations {
        if let (Some(returned), Some(id)) = (operation.returned, shown_id(operation)) {
            events.push((returned, Event::Shown(id, operation)));
        }
        if let (Action::Read { .. }, Outcome::Value { .. } | Outcome::NotFound, Some(id)) =
            (&operation.call.action, &operation.outcome, operation.kv_id)
        {
            events.push((operation.invoked, Event::Read(id, operation)));
        }
    }
    events.extend(writes.iter().filter_map(|write| Some((write.invoked, Event::Write(write.id?, write)))));
    events.sort_by_key(|(time, _)| *time);
    let mut highest: Option<(u64, &Operation)> = None;
    for (_, event) in &events {
        let known = highest.map_or(0, |(id, _)| id);
        let (late, id) = match *event {
            Event::Shown(id, operation) => {
                highest = highest.filter(|_| known >= id).or(Some((id, operation)));
                continue;
            }
            Event::Write(id, write) if id <= known => (write.operation, id),
            Event::Read(id, read) if id < known => (read, id),
            Event::Write(..) | Event::Read(..) => continue,
        };
        let (earlier, late) = (highest.map_or(String::new(), |(_, by)| shown(by)), shown(late));
        return Err(Failure::Violation(format!("{known} was shown, then {id} came:\n  {earlier}\n  {late}")));
    }
    Ok(())
}

/// The highest id that an answer shows to be committed.
fn shown_id(operation: &Operation) -> Option<u64> {
    let told = match operation.outcome {
        Outcome::Written { id, .. } | Outcome::Deleted { id, .. } | Outcome::Value { id, .. } => Some(id),
        _ => None,
    };
    told.max(operation.kv_id)
}
