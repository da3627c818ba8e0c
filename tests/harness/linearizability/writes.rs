//! From attempts to writes: all copies of a request are one write, and a value that was read tells of
//! the write that made it. Checks on the way that copies agree and that every value was written.

use std::collections::HashMap;

use super::{Failure, shown};
use crate::history::{Action, Condition, Operation, Outcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Change {
    Put,
    Delete,
}

/// A write that took effect once, or perhaps.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) change: Change,
    pub(super) condition: Condition,
    /// The call of the first copy that may have had the effect.
    pub(super) invoked: u64,
    /// When the first answer came that shows the effect. None: nobody knows of one.
    pub(super) returned: Option<u64>,
    pub(super) id: Option<u64>,
    /// Of a put.
    pub(super) version: Option<u64>,
    /// One of its copies; for reports.
    pub(super) operation: &'a Operation,
}

impl<'a> Write<'a> {
    fn new(operation: &'a Operation, change: Change, condition: Condition) -> Self {
        Self { change, condition, invoked: operation.invoked, returned: None, id: None, version: None, operation }
    }

    /// An answer shows that the write took effect, so and not otherwise.
    fn observe(&mut self, by: &Operation, id: u64, version: Option<u64>) -> Result<(), Failure> {
        let differs = self.id.is_some_and(|known| known != id) || (self.version.is_some() && self.version != version);
        if differs {
            let text = format!("one write, two results:\n  {}\n  {}", shown(self.operation), shown(by));
            return Err(Failure::Violation(text));
        }
        self.id = Some(id);
        self.version = version;
        let returned = by.returned.ok_or_else(|| Failure::Unusable(format!("answered at no time: {}", shown(by))))?;
        self.returned = Some(self.returned.map_or(returned, |known| known.min(returned)));
        Ok(())
    }
}

/// Names one request: client, request id, change.
type RequestName<'a> = (&'a str, &'a str, Change);

/// All writes of a history.
#[derive(Debug, Default)]
pub(super) struct Writes<'a> {
    all: Vec<Write<'a>>,
    /// By key and value.
    by_value: HashMap<(&'a str, &'a str), usize>,
    by_request: HashMap<RequestName<'a>, usize>,
    /// By the moment of a call that may have had the effect.
    by_call: HashMap<u64, usize>,
}

impl<'a> Writes<'a> {
    pub(super) fn gather(operations: &'a [Operation]) -> Result<Self, Failure> {
        let mut writes = Self::default();
        for operation in operations {
            if let Some((change, condition)) = change_of(operation) {
                writes.add(operation, change, condition)?;
            }
        }
        for operation in operations {
            writes.take_answer(operation)?;
        }
        writes.check_copies(operations)?;
        Ok(writes)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Write<'a>> {
        self.all.iter()
    }

    /// The write whose effect this operation may have had; for copies of one request the same.
    pub(super) fn of_operation(&self, operation: &Operation) -> Option<(usize, &Write<'a>)> {
        let index = *self.by_call.get(&operation.invoked)?;
        Some((index, &self.all[index]))
    }

    /// Takes in what may have taken effect.
    fn add(&mut self, operation: &'a Operation, change: Change, condition: Condition) -> Result<(), Failure> {
        if !matches!(operation.outcome, Outcome::Written { .. } | Outcome::Deleted { .. } | Outcome::Unknown) {
            return Ok(());
        }
        let call = &operation.call;
        let name = request_name(operation);
        let known = name.and_then(|name| self.by_request.get(&name).copied());
        let index = known.unwrap_or(self.all.len());
        self.by_call.insert(operation.invoked, index);
        if known.is_some() {
            let write = &mut self.all[index];
            if write.operation.call.key != call.key || write.operation.call.action != call.action {
                return Err(Failure::Unusable(format!("a request id stands for two: {}", shown(operation))));
            }
            write.invoked = write.invoked.min(operation.invoked);
            return Ok(());
        }
        self.all.push(Write::new(operation, change, condition));
        self.by_request.extend(name.map(|name| (name, index)));
        if let Action::Put { value, .. } = &call.action
            && self.by_value.insert((&call.key, value), index).is_some()
        {
            return Err(Failure::Unusable(format!("two writes of one value: {}", shown(operation))));
        }
        Ok(())
    }

    /// Takes what an answer tells of writes: of its own, or of the one whose value it shows.
    fn take_answer(&mut self, operation: &Operation) -> Result<(), Failure> {
        let own = self.by_call.get(&operation.invoked).copied();
        let misplaced = || Failure::Unusable(format!("no answer to this: {}", shown(operation)));
        match (&operation.outcome, &operation.call.action) {
            (&Outcome::Written { id, version, .. }, Action::Put { .. }) => {
                self.all[own.ok_or_else(misplaced)?].observe(operation, id, Some(version))
            }
            (&Outcome::Deleted { id, .. }, Action::Delete { .. }) => {
                self.all[own.ok_or_else(misplaced)?].observe(operation, id, None)
            }
            (Outcome::Value { value, version, id }, Action::Read { .. } | Action::LocalRead { .. }) => {
                let Some(&write) = self.by_value.get(&(operation.call.key.as_str(), value.as_str())) else {
                    return Err(Failure::Violation(format!("nobody wrote this value: {}", shown(operation))));
                };
                let write = &mut self.all[write];
                if operation.returned < Some(write.invoked) {
                    return Err(Failure::Violation(format!("read before it was written: {}", shown(operation))));
                }
                write.observe(operation, *id, Some(*version))
            }
            (Outcome::Written { .. } | Outcome::Deleted { .. } | Outcome::Value { .. }, _) => Err(misplaced()),
            _ => Ok(()),
        }
    }

    /// After a request is known to have taken effect, its copies are answered with success, as replays.
    fn check_copies(&self, operations: &[Operation]) -> Result<(), Failure> {
        let mut firsts: HashMap<usize, &Operation> = HashMap::new();
        for operation in operations {
            let Some(&index) = request_name(operation).and_then(|name| self.by_request.get(&name)) else { continue };
            let write = &self.all[index];
            let two = |other: &Operation| format!("\n  {}\n  {}", shown(other), shown(operation));
            match operation.outcome {
                Outcome::Written { replay: false, .. } | Outcome::Deleted { replay: false, .. } => {
                    if let Some(first) = firsts.insert(index, operation) {
                        return Err(Failure::Violation(format!(
                            "two copies of a request are the first:{}",
                            two(first)
                        )));
                    }
                }
                Outcome::NotFound | Outcome::Conflict { .. } | Outcome::PreconditionFailed
                    if write.returned.is_some_and(|returned| returned < operation.invoked) =>
                {
                    let text = format!("refused after it had taken effect:{}", two(write.operation));
                    return Err(Failure::Violation(text));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn change_of(operation: &Operation) -> Option<(Change, Condition)> {
    match operation.call.action {
        Action::Put { condition, .. } => Some((Change::Put, condition)),
        Action::Delete { condition } => Some((Change::Delete, condition)),
        Action::Read { .. } | Action::LocalRead { .. } => None,
    }
}

fn request_name(operation: &Operation) -> Option<RequestName<'_>> {
    let (change, _) = change_of(operation)?;
    Some((&operation.call.client, operation.call.request.as_deref()?, change))
}
