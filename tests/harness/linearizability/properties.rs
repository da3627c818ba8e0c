//! Random executions of a simple store hold, one by one and overlapping; with one answer changed they
//! do not.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Bounds, Failure, check};
use crate::history::{Action, Call, Condition, Entity, Operation, Outcome};

const KEYS: usize = 3;
/// Ids of two writes are so far apart, as if other entries lay between them.
const ID_STEP: u64 = 10;
/// Moments between two executions.
const PACE: u64 = 100;

/// What a client does next, before the state decides what that is exactly.
#[derive(Debug, Clone)]
struct Wish {
    key: usize,
    kind: Kind,
    condition: Wanted,
    fate: Fate,
    /// Picks among what is there: an old id, a state to read from.
    pick: usize,
    /// How long before and after its execution the call and the return are.
    spread: (u64, u64),
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Put,
    Delete,
    Read,
    LocalRead,
}

#[derive(Debug, Clone, Copy)]
enum Wanted {
    Nothing,
    Version,
    WrongVersion,
    Id,
    OldId,
    Present,
    Absent,
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    /// Executed, and nobody knows.
    Unheard,
    /// Not executed, and nobody knows.
    Vanished,
    /// Unheard, and sent again with its request id.
    SentAgain,
}

fn wish(fates: Vec<(u32, Fate)>, spread_max: u64) -> impl Strategy<Value = Wish> {
    let kind =
        prop_oneof![4 => Just(Kind::Put), 2 => Just(Kind::Delete), 2 => Just(Kind::Read), 2 => Just(Kind::LocalRead)];
    let condition = prop_oneof![
        6 => Just(Wanted::Nothing), 2 => Just(Wanted::Version), 1 => Just(Wanted::WrongVersion), 2 => Just(Wanted::Id),
        1 => Just(Wanted::OldId), 1 => Just(Wanted::Present), 1 => Just(Wanted::Absent)
    ];
    let fate = proptest::strategy::Union::new_weighted(fates.into_iter().map(|(w, fate)| (w, Just(fate))).collect());
    let parts = (0..KEYS, kind, condition, fate, any::<usize>(), (0..=spread_max, 0..=spread_max));
    parts.prop_map(|(key, kind, condition, fate, pick, spread)| Wish { key, kind, condition, fate, pick, spread })
}

type Held = BTreeMap<usize, (String, u64, u64)>;

/// A store that executes at one moment, and all its states.
#[derive(Default)]
struct Store {
    /// By id.
    states: BTreeMap<u64, Held>,
    operations: Vec<Operation>,
}

impl Store {
    fn run(wishes: &[Wish]) -> Vec<Operation> {
        let mut store = Self::default();
        store.states.insert(0, Held::default());
        for (n, wish) in wishes.iter().enumerate() {
            store.execute(n as u64 + 1, wish);
        }
        store.operations
    }

    fn last(&self) -> (u64, &Held) {
        let (id, held) = self.states.last_key_value().unwrap();
        (*id, held)
    }

    fn execute(&mut self, n: u64, wish: &Wish) {
        let condition = self.condition(wish);
        let action = match wish.kind {
            Kind::Put => Action::Put { value: n.to_string(), condition },
            Kind::Delete => Action::Delete { condition: Condition { version: None, ..condition } },
            Kind::Read => Action::Read { min_id: None },
            Kind::LocalRead => Action::LocalRead { min_id: None },
        };
        let is_write = matches!(wish.kind, Kind::Put | Kind::Delete);
        if is_write && wish.fate == Fate::Vanished {
            return self.record(n, wish, action, Outcome::Unknown, None);
        }
        let (outcome, kv_id) = self.outcome(&action, wish);
        if !is_write || wish.fate == Fate::Answered {
            return self.record(n, wish, action, outcome, Some(kv_id));
        }
        self.record(n, wish, action.clone(), Outcome::Unknown, None);
        if wish.fate == Fate::SentAgain {
            let again = match outcome {
                Outcome::Written { id, version, .. } => Outcome::Written { id, version, replay: true },
                Outcome::Deleted { id, .. } => Outcome::Deleted { id, replay: true },
                _ => return, // evaluated afresh: another operation
            };
            self.record(n, wish, action, again, Some(kv_id));
            self.name_request(n);
        }
    }

    /// The two operations recorded last are copies of one request; the second one was sent after the first.
    fn name_request(&mut self, n: u64) {
        let at = self.operations.len() - 2;
        for copy in &mut self.operations[at..] {
            copy.call.request = Some(n.to_string());
        }
        self.operations[at + 1].invoked += 2;
        self.operations[at + 1].returned = self.operations[at + 1].returned.map(|returned| returned + 2);
    }

    /// Calls and returns all have moments of their own: four for each execution, and none is shared.
    fn record(&mut self, n: u64, wish: &Wish, action: Action, outcome: Outcome, kv_id: Option<u64>) {
        let moment = |at: u64, part: u64| at * (PACE * PACE) + n * 4 + part;
        let at = (n + PACE) * PACE;
        let invoked = moment(at - wish.spread.0, 0);
        let returned = kv_id.map(|_| moment(at + wish.spread.1, 1));
        let call = Call { client: "c".into(), node: "n".into(), key: wish.key.to_string(), action, request: None };
        self.operations.push(Operation { call, invoked, returned, outcome, kv_id });
    }

    fn condition(&self, wish: &Wish) -> Condition {
        let held = self.last().1.get(&wish.key);
        let version = held.map_or(0, |held| held.2);
        let old = *self.states.keys().nth(wish.pick % self.states.len()).unwrap();
        let entity = |entity| Condition { version: None, entity };
        match wish.condition {
            Wanted::Nothing => Condition::default(),
            Wanted::Version => Condition { version: Some(version), ..Condition::default() },
            Wanted::WrongVersion => Condition { version: Some(version + 1), ..Condition::default() },
            Wanted::Id => held.map_or(entity(Entity::Absent), |held| entity(Entity::Is(held.1))),
            Wanted::OldId => entity(Entity::Is(old)),
            Wanted::Present => entity(Entity::Present),
            Wanted::Absent => entity(Entity::Absent),
        }
    }

    fn outcome(&mut self, action: &Action, wish: &Wish) -> (Outcome, u64) {
        let (last, held) = self.last();
        let (id, mut after) = (last + ID_STEP, held.clone());
        let current = after.get(&wish.key).cloned();
        let refused = |outcome| (outcome, last);
        let (condition, version) = match *action {
            Action::Put { condition, .. } | Action::Delete { condition } => {
                (condition, current.as_ref().map_or(0, |held| held.2))
            }
            Action::Read { .. } => return refused(shown(held.get(&wish.key))),
            Action::LocalRead { .. } => {
                let (at, held) = self.states.iter().nth(wish.pick % self.states.len()).unwrap();
                return (shown(held.get(&wish.key)), *at);
            }
        };
        if matches!(action, Action::Delete { .. }) && current.is_none() {
            return refused(Outcome::NotFound);
        }
        if condition.version.is_some_and(|wanted| wanted != version) {
            return refused(Outcome::Conflict { current_version: version });
        }
        let fits = match condition.entity {
            Entity::Any => true,
            Entity::Is(wanted) => current.is_some_and(|held| held.1 == wanted),
            Entity::Present => current.is_some(),
            Entity::Absent => current.is_none(),
        };
        if !fits {
            return refused(Outcome::PreconditionFailed);
        }
        let outcome = match action {
            Action::Put { value, .. } => {
                after.insert(wish.key, (value.clone(), id, version + 1));
                Outcome::Written { id, version: version + 1, replay: false }
            }
            _ => {
                after.remove(&wish.key);
                Outcome::Deleted { id, replay: false }
            }
        };
        self.states.insert(id, after);
        (outcome, id)
    }
}

fn shown(held: Option<&(String, u64, u64)>) -> Outcome {
    held.map_or(Outcome::NotFound, |(value, id, version)| Outcome::Value {
        value: value.clone(),
        id: *id,
        version: *version,
    })
}

/// All wrong answers that could stand in the place of this one.
fn wrong_answers(operations: &[Operation], at: usize) -> Vec<Operation> {
    let operation = &operations[at];
    let mut outcomes = Vec::new();
    let earlier = operations[..at].iter().filter_map(id_of).next_back();
    let fresh = operations[..at].iter().filter_map(|o| o.kv_id).max().unwrap_or(0) + 1;
    match operation.outcome.clone() {
        Outcome::Written { id, version, replay } => {
            outcomes.push(Outcome::Written { id, version: version + 1, replay });
            outcomes.push(Outcome::Written { id, version: version - 1, replay });
            outcomes.extend(earlier.map(|id| Outcome::Written { id, version, replay }));
            outcomes.push(Outcome::Conflict { current_version: version - 1 });
            outcomes.push(Outcome::PreconditionFailed);
        }
        Outcome::Deleted { replay, .. } => {
            outcomes.extend(earlier.map(|id| Outcome::Deleted { id, replay }));
            outcomes.extend([Outcome::NotFound, Outcome::PreconditionFailed]);
        }
        Outcome::Value { value, version, id } => {
            outcomes.push(Outcome::NotFound);
            outcomes.push(Outcome::Value { value: value.clone(), version: version + 1, id });
            outcomes.push(Outcome::Value { value, version, id: id + 1 });
            outcomes.extend(values_of(operations, at).filter(|other| *other != operation.outcome));
        }
        Outcome::NotFound if matches!(operation.call.action, Action::Delete { .. }) => {
            outcomes.push(Outcome::Deleted { id: fresh, replay: false });
            outcomes.push(Outcome::PreconditionFailed);
        }
        Outcome::NotFound => outcomes.extend(values_of(operations, at)),
        Outcome::Conflict { current_version } => {
            outcomes.push(Outcome::Conflict { current_version: current_version + 1 });
            outcomes.push(Outcome::PreconditionFailed);
            outcomes.push(Outcome::Written { id: fresh, version: current_version + 1, replay: false });
        }
        Outcome::PreconditionFailed => {
            outcomes.push(Outcome::Conflict { current_version: 1 });
            outcomes.extend(match operation.call.action {
                Action::Put { .. } => {
                    (1..4).map(|v| Outcome::Written { id: fresh, version: v, replay: false }).collect()
                }
                _ => vec![Outcome::NotFound, Outcome::Deleted { id: fresh, replay: false }],
            });
        }
        Outcome::NotExecuted | Outcome::Unknown => {}
    }
    let in_its_place = |outcome| Operation { outcome, ..operation.clone() };
    let mut wrong: Vec<Operation> = outcomes.into_iter().map(in_its_place).collect();
    for answer in &mut wrong {
        answer.kv_id = answer.kv_id.max(id_of(answer).filter(|id| *id == fresh));
    }
    if let (Action::Read { .. }, Some(kv_id @ 1..)) = (&operation.call.action, operation.kv_id) {
        wrong.push(Operation { kv_id: Some(kv_id - 1), ..operation.clone() });
    }
    wrong
}

fn id_of(operation: &Operation) -> Option<u64> {
    match operation.outcome {
        Outcome::Written { id, .. } | Outcome::Deleted { id, .. } => Some(id),
        _ => None,
    }
}

/// What the key has held before, as a read would show it.
fn values_of(operations: &[Operation], at: usize) -> impl Iterator<Item = Outcome> {
    let key = &operations[at].call.key;
    operations[..at].iter().filter(move |operation| operation.call.key == *key).filter_map(|operation| {
        let Action::Put { value, .. } = &operation.call.action else { return None };
        let Outcome::Written { id, version, .. } = operation.outcome else { return None };
        Some(Outcome::Value { value: value.clone(), id, version })
    })
}

proptest! {
    #[test]
    fn what_is_executed_one_by_one_holds_and_no_answer_can_be_changed(
        wishes in prop::collection::vec(wish(vec![(1, Fate::Answered)], 0), 1..40),
        at in any::<prop::sample::Index>(),
    ) {
        let operations = Store::run(&wishes);
        prop_assert_eq!(check(&operations, &Bounds::default()).err(), None);
        let at = at.index(operations.len());
        for wrong in wrong_answers(&operations, at) {
            let mut changed = operations.clone();
            changed[at] = wrong;
            let judged = check(&changed, &Bounds::default());
            prop_assert!(matches!(judged, Err(Failure::Violation(_))), "{judged:?}: {:?}", changed[at]);
        }
    }

    #[test]
    fn overlapping_executions_with_unknown_outcomes_hold(
        wishes in prop::collection::vec(
            wish(vec![(6, Fate::Answered), (1, Fate::Unheard), (1, Fate::Vanished), (1, Fate::SentAgain)], 4 * PACE),
            1..60,
        ),
    ) {
        prop_assert_eq!(check(&Store::run(&wishes), &Bounds::default()).err(), None);
    }
}
