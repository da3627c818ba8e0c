//! One key as a register with version, entry id and existence: what each operation needs of the state
//! before it, and what it makes of it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::shown;
use super::writes::{Change, Write, Writes, change_of};
use crate::history::{Action, Condition, Entity, Operation, Outcome};

/// The register between two operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    held: Option<Held>,
    /// The highest id among the writes so far of which it is known.
    last_id: u64,
}

/// What the key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Held {
    /// None: written by one that nobody ever saw the effect of.
    id: Option<u64>,
    version: u64,
}

/// An operation as the search sees it.
#[derive(Debug)]
pub(super) struct Item<'a> {
    pub(super) invoked: u64,
    /// None: it need not happen.
    pub(super) returned: Option<u64>,
    pub(super) step: Step,
    operation: &'a Operation,
}

#[derive(Debug)]
pub(super) enum Step {
    Write {
        change: Change,
        condition: Condition,
        id: Option<u64>,
        version: Option<u64>,
        /// Of unknown writes: its kind, and how many of its kind were called before. They are interchangeable, so
        /// the search takes them in this order.
        rank: Option<(usize, usize)>,
    },
    /// What leaves the state as it is.
    Observation(Observation),
}

#[derive(Debug)]
pub(super) enum Observation {
    Read {
        /// id and version
        value: Option<(u64, u64)>,
        /// The key's last known id at or below `X-Kv-Id`.
        last_id: Option<u64>,
    },
    Absent,
    Conflict {
        provided: u64,
        current: u64,
    },
    Failed {
        change: Change,
        condition: Condition,
    },
    /// A refusal that no state explains.
    Never,
}

/// All operations on one key that must or may be put in order.
#[derive(Debug)]
pub(super) struct KeyHistory<'a> {
    pub(super) items: Vec<Item<'a>>,
    /// Kinds of unknown writes.
    pub(super) kinds: usize,
    /// All ids of this key's writes that are known.
    ids: BTreeSet<u64>,
}

/// Where the search got to and no further.
#[derive(Debug)]
pub(super) struct Stuck {
    pub(super) state: State,
    /// In order.
    pub(super) placed: Vec<usize>,
    /// The operation that had to come next.
    pub(super) blocked: usize,
}

/// Operations of the longest order found that are shown.
const SHOWN_PLACED: usize = 8;

impl<'a> KeyHistory<'a> {
    /// `operations` are those of one key.
    pub(super) fn new(operations: &[&'a Operation], writes: &Writes<'a>) -> Self {
        let mut history = Self { items: Vec::new(), kinds: 0, ids: BTreeSet::new() };
        let own = unique_writes(operations, writes);
        history.ids = own.iter().filter_map(|write| write.id).collect();
        let called: HashMap<u64, u64> = own.iter().filter_map(|write| Some((write.id?, write.invoked))).collect();
        history.add_writes(&own);
        for operation in operations {
            let Some(returned) = operation.returned else { continue };
            let Some(observation) = history.observation(operation) else { continue };
            let invoked = match (&operation.call.action, &observation) {
                // It may show any earlier state, but none before the write that it has to follow.
                (Action::LocalRead { .. }, Observation::Read { last_id: Some(id), .. }) => {
                    called.get(id).copied().unwrap_or(0)
                }
                (Action::LocalRead { .. }, _) => 0,
                _ => operation.invoked,
            };
            let step = Step::Observation(observation);
            history.items.push(Item { invoked, returned: Some(returned), step, operation });
        }
        history
    }

    fn add_writes(&mut self, writes: &[&Write<'a>]) {
        let mut kinds: HashMap<(Change, Condition), (usize, usize)> = HashMap::new();
        for write in writes {
            let &&Write { change, condition, invoked, returned, id, version, operation } = write;
            let rank = returned.is_none().then(|| {
                let next_kind = kinds.len();
                let (kind, used) = kinds.entry((change, condition)).or_insert((next_kind, 0));
                *used += 1;
                (*kind, *used - 1)
            });
            let step = Step::Write { change, condition, id, version, rank };
            self.items.push(Item { invoked, returned, step, operation });
        }
        self.kinds = kinds.len();
    }

    fn observation(&self, operation: &Operation) -> Option<Observation> {
        match (&operation.outcome, change_of(operation)) {
            (&Outcome::Value { version, id, .. }, _) => Some(self.read(operation, Some((id, version)))),
            (Outcome::NotFound, None) => Some(self.read(operation, None)),
            (Outcome::NotFound, Some(_)) => Some(Observation::Absent),
            (&Outcome::Conflict { current_version }, Some((_, Condition { version: Some(provided), .. }))) => {
                Some(Observation::Conflict { provided, current: current_version })
            }
            (Outcome::PreconditionFailed, Some((change, condition))) => Some(Observation::Failed { change, condition }),
            (Outcome::Conflict { .. } | Outcome::PreconditionFailed, _) => Some(Observation::Never),
            _ => None,
        }
    }

    fn read(&self, operation: &Operation, value: Option<(u64, u64)>) -> Observation {
        let last_at = |kv_id| self.ids.range(..=kv_id).next_back().copied().unwrap_or(0);
        Observation::Read { value, last_id: operation.kv_id.map(last_at) }
    }

    /// The state after the write; None: it cannot be next.
    pub(super) fn write(&self, state: State, step: &Step) -> Option<State> {
        let &Step::Write { change, condition, id, version: known, .. } = step else { return None };
        if id.is_some_and(|id| id <= state.last_id) || self.holds(state, condition) == Some(false) {
            return None;
        }
        let last_id = id.unwrap_or(state.last_id);
        match change {
            Change::Delete => state.held.map(|_| State { held: None, last_id }),
            Change::Put => {
                let version = state.version() + 1;
                let fits = known.is_none_or(|known| known == version);
                fits.then_some(State { held: Some(Held { id, version }), last_id })
            }
        }
    }

    /// Whether the answer is true of this state.
    pub(super) fn is_true(&self, state: State, observation: &Observation) -> bool {
        match *observation {
            Observation::Read { value, last_id } => {
                let held = state.held.map(|held| (held.id, held.version));
                last_id.is_none_or(|id| id == state.last_id) && held == value.map(|(id, version)| (Some(id), version))
            }
            Observation::Absent => state.held.is_none(),
            Observation::Conflict { provided, current } => state.version() == current && provided != current,
            // A DELETE of an absent key is 404 whatever its condition.
            Observation::Failed { change: Change::Delete, .. } if state.held.is_none() => false,
            Observation::Failed { condition, .. } => {
                let of_version = Condition { entity: Entity::Any, ..condition };
                self.holds(state, of_version) == Some(true) && self.holds(state, condition) != Some(true)
            }
            Observation::Never => false,
        }
    }

    /// None: it depends on an id that nobody knows.
    fn holds(&self, state: State, condition: Condition) -> Option<bool> {
        if condition.version.is_some_and(|version| version != state.version()) {
            return Some(false);
        }
        match (condition.entity, state.held) {
            (Entity::Any, _) | (Entity::Present, Some(_)) | (Entity::Absent, None) => Some(true),
            (Entity::Is(id), Some(Held { id: Some(held), .. })) => Some(id == held),
            (Entity::Is(id), Some(Held { id: None, .. })) if !self.ids.contains(&id) => None,
            _ => Some(false),
        }
    }

    /// Why there is no order, for a person.
    pub(super) fn describe(&self, key: &str, stuck: &Stuck) -> String {
        let Stuck { state, placed, blocked } = stuck;
        let item = |index: &usize| format!("\n  {}", shown(self.items[*index].operation));
        let last: String = placed[placed.len().saturating_sub(SHOWN_PLACED)..].iter().map(item).collect();
        format!(
            "no order explains the answers on key {key:?}. {} of {} operations are in order, the last:{last}\n\
             after which the key is {state:?}, and this cannot be explained:{}",
            placed.len(),
            self.items.len(),
            item(blocked)
        )
    }
}

impl State {
    /// 0: the key is absent.
    fn version(self) -> u64 {
        self.held.map_or(0, |held| held.version)
    }
}

/// The writes of these operations, each once, by the time of their call.
fn unique_writes<'w, 'a>(operations: &[&'a Operation], writes: &'w Writes<'a>) -> Vec<&'w Write<'a>> {
    let mut seen = HashSet::new();
    let found = operations.iter().filter_map(|operation| writes.of_operation(operation));
    let mut own: Vec<&Write<'a>> = found.filter(|(index, _)| seen.insert(*index)).map(|(_, write)| write).collect();
    own.sort_by_key(|write| write.invoked);
    own
}
