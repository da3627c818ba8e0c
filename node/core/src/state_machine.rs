//! The only place where state changes: [`StateMachine::apply`] takes the committed entries in id order
//! and decides each one, the same way on every node and at every replay. What the leader decided when it
//! ordered the entry was a forecast. Never does I/O, reads no clock: time is the entries' `ts`.
//!
//! An entry that is refused changes nothing but the applied id (and what its `ts` lets expire). Its id
//! is kept, since compaction must not take the value of a refused SET for its key's latest.

mod digest;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::command::{Change, Entity, Key, OperationKind, Precondition, RequestId, Value};
use crate::contract::{Base, Written};
use crate::entry::{Body, Control, Entry, EntryId};
use crate::group::{FeatureLevel, Settings};
use crate::keyspace::{Current, History, Keyspace, Locator, Put, push_tight};
use crate::mutant::{self, Mutant};
use crate::sessions::{SessionRecord, Sessions, digest_write};

/// What apply decided on an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Written(Written),
    /// A copy of a request that took effect before, with the first one's result.
    Replay(Written),
    /// The same request id and operation with another key, value or precondition.
    RequestReused,
    /// DELETE of an absent key.
    NotFound,
    VersionConflict {
        provided: u64,
        current: u64,
    },
    PreconditionFailed,
    /// A control entry; it always takes effect.
    Control,
}

impl Outcome {
    /// Whether the entry changed nothing.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Written(_) | Self::Control => false,
            Self::Replay(_)
            | Self::RequestReused
            | Self::NotFound
            | Self::VersionConflict { .. }
            | Self::PreconditionFailed => true,
        }
    }
}

pub struct StateMachine {
    keyspace: Arc<Keyspace>,
    sessions: Arc<Sessions>,
    settings: Settings,
    feature_level: FeatureLevel,
    last_ts_ms: u64,
    /// Entries above the horizon that were refused, rising.
    refused: Vec<EntryId>,
    /// Of those, what the base says and apply has yet to reach.
    refused_before: VecDeque<EntryId>,
    /// SETs up to here are taken at their word; see [`StateMachine::pass_over_lost`].
    trusted_until: EntryId,
    /// History of the base whose keys' live lines are still to come.
    restoring: HashMap<Key, History, FixedState>,
}

/// A SET or DELETE, as apply looks at it.
struct Write<'a> {
    id: EntryId,
    /// Unix milliseconds; every line with request ids has a `ts`, and nothing else needs one.
    ts_ms: u64,
    key: &'a Key,
    /// Some for a SET.
    set: Option<(&'a Value, u64)>,
    precondition: &'a Precondition,
    request: Option<&'a RequestId>,
}

impl StateMachine {
    /// Empty, at the horizon of `base`. The seed only spreads keys over tables; no answer depends on it.
    pub fn new(base: &Base, hash_seed: u64) -> Self {
        let Base { horizon, configuration: _, settings, feature_level, refused, ts_ms } = base;
        let mut refused_before = refused.clone();
        refused_before.sort_unstable();
        Self {
            keyspace: Arc::new(Keyspace::new(horizon.id, hash_seed)),
            sessions: Arc::new(Sessions::new(settings, hash_seed)),
            settings: *settings,
            feature_level: *feature_level,
            last_ts_ms: *ts_ms,
            refused: Vec::new(),
            refused_before: refused_before.into(),
            trusted_until: EntryId::ZERO,
            restoring: HashMap::with_hasher(FixedState::with_seed(hash_seed)),
        }
    }

    /// An empty state becomes that of a group.
    pub fn found(&mut self, base: &Base) {
        assert_eq!(self.applied(), EntryId::ZERO, "a group is founded on an empty state");
        self.settings = base.settings;
        self.feature_level = base.feature_level;
        self.sessions.set_limits(&base.settings);
    }

    pub fn keyspace(&self) -> &Arc<Keyspace> {
        &self.keyspace
    }

    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    pub fn feature_level(&self) -> FeatureLevel {
        self.feature_level
    }

    pub fn applied(&self) -> EntryId {
        self.keyspace.applied()
    }

    /// The highest `ts` of a line, compacted ones included; 0: none.
    pub fn last_ts_ms(&self) -> u64 {
        self.last_ts_ms
    }

    /// The applied entries that were refused, rising, except those forgotten.
    pub fn refused(&self) -> &[EntryId] {
        &self.refused
    }

    /// Compaction has dropped the lines up to `horizon`.
    pub fn forget_refused_up_to(&mut self, horizon: EntryId) {
        let forgotten = self.refused.partition_point(|&id| id <= horizon);
        self.refused.drain(..forgotten);
    }

    /// Recovery is over: the totals of [`Sessions::counts`] count from here on.
    pub fn start_counting(&mut self) {
        self.finish_restoring();
        self.keyspace.finish_loading();
        self.sessions.start_counting();
    }
}

/// Putting the base back: history lines by rising ids, then live lines, then session records, then the
/// log above the horizon with [`StateMachine::apply`]. Versions and ids of the base are trusted.
impl StateMachine {
    /// A superseded version that is still within the history limit.
    pub fn restore_history(&mut self, entry: &Entry) {
        let Body::Set { key, version, .. } = &entry.body else { return };
        self.observe_time(entry.ts_ms);
        let locator = Locator { version: *version, id: entry.id };
        push_tight(self.restoring.entry_ref(key).or_default(), locator);
    }

    /// The SET that wrote a current value.
    pub fn restore_live(&mut self, entry: &Entry) {
        let Body::Set { key, value, version, .. } = &entry.body else { return };
        self.observe_time(entry.ts_ms);
        let earlier = self.restoring.remove(key);
        let at = self.applied();
        self.keyspace.restore(self.put(key, value, *version, entry.id), earlier, at);
    }

    pub fn restore_session(&mut self, record: SessionRecord) {
        self.observe_time(Some(record.ts_ms));
        self.sessions.restore(record);
    }

    /// The entries above the applied one up to `lost_until` are held by nobody any more: apply goes on behind them.
    /// Entries up to `known_from`, where the LOST entry stands (or will stand, above all that was found), were
    /// decided with what is lost: their versions are taken at their word, and their preconditions as met.
    /// To be called before apply at every recovery while the LOST entry is in the log, also when the
    /// horizon has passed the gap, so that every replay decides alike.
    pub fn pass_over_lost(&mut self, lost_until: EntryId, known_from: EntryId) {
        self.trusted_until = self.trusted_until.max(known_from);
        if lost_until > self.applied() {
            self.finish_restoring();
            self.keyspace.publish_applied(lost_until);
        }
    }

    fn finish_restoring(&mut self) {
        // History without a live line: its key was deleted since.
        if !self.restoring.is_empty() {
            self.restoring = HashMap::with_hasher(self.restoring.hasher().clone());
        }
    }
}

impl StateMachine {
    /// Decides and carries out the next entry.
    ///
    /// # Panics
    /// When `entry` is not the one after the applied one: a bug of the caller.
    pub fn apply(&mut self, entry: &Entry) -> Outcome {
        let Entry { id, epoch: _, ts_ms, body, line: _ } = entry;
        assert_eq!(*id, self.applied().next(), "apply takes the entries in order");
        self.finish_restoring();
        if let Some(ts_ms) = *ts_ms {
            self.observe_time(Some(ts_ms));
            self.sessions.sweep(ts_ms);
        }
        let (id, ts_ms) = (*id, ts_ms.unwrap_or(0));
        let outcome = match body {
            Body::Set { key, value, version, precondition, request } => {
                let (set, request) = (Some((value, *version)), request.as_ref());
                self.write(&Write { id, ts_ms, key, set, precondition, request })
            }
            Body::Delete { key, precondition, request } => {
                self.write(&Write { id, ts_ms, key, set: None, precondition, request: request.as_ref() })
            }
            Body::Control(control) => self.control(id, ts_ms, control),
        };
        if outcome.is_refusal() {
            self.refused.push(id);
        }
        self.keyspace.publish_applied(id);
        outcome
    }

    /// The one rule of preconditions. `current` is the key's entry and version: the applied one here, the
    /// leader's forecast there. `Err` holds the refusal.
    pub fn evaluate(
        &self,
        current: Option<(EntryId, u64)>,
        precondition: &Precondition,
        change: &Change,
    ) -> Result<(), Outcome> {
        let operation = match change {
            Change::Set(_) => OperationKind::Set,
            Change::Delete => OperationKind::Delete,
        };
        evaluate_write(current, precondition, operation)
    }

    fn write(&mut self, write: &Write<'_>) -> Outcome {
        let digest = write.request.map(|_| digest_write(write.key, write.value(), write.precondition));
        match self.decide(write, digest) {
            Err(refusal) => refusal,
            Ok(()) => Outcome::Written(self.carry_out(write, digest)),
        }
    }

    fn decide(&mut self, write: &Write<'_>, digest: Option<u64>) -> Result<(), Outcome> {
        if self.was_refused_before(write.id) {
            // The reason went with the state of that time. Nobody waits for it: it was answered before the restart.
            return Err(Outcome::PreconditionFailed);
        }
        if let Some(request) = write.request
            && let Some(first) = self.sessions.held(request, write.operation())
        {
            let is_copy = Some(first.digest) == digest;
            return Err(if is_copy { Outcome::Replay(first.written()) } else { Outcome::RequestReused });
        }
        if write.id <= self.trusted_until {
            return Ok(());
        }
        if mutant::on(Mutant::ApplyRefused) {
            return Ok(());
        }
        let current = self.keyspace.head(write.key.as_str());
        evaluate_write(current, write.precondition, write.operation())?;
        let version = current.map_or(0, |(_, version)| version);
        match write.set {
            // The version that the leader based its forecast on.
            Some((_, made)) if made != version + 1 => {
                Err(Outcome::VersionConflict { provided: made.saturating_sub(1), current: version })
            }
            _ => Ok(()),
        }
    }

    fn carry_out(&mut self, write: &Write<'_>, digest: Option<u64>) -> Written {
        let (key, version) = match write.set {
            Some((value, version)) => (self.keyspace.put(self.put(write.key, value, version, write.id)), version),
            None => (self.keyspace.remove(write.key, write.id).unwrap_or_else(|| write.key.clone()), 0),
        };
        let written = Written { id: write.id, operation: write.operation(), key, version };
        if let (Some(request), Some(digest)) = (write.request, digest) {
            self.sessions.remember(SessionRecord {
                request: request.clone(),
                operation: written.operation,
                id: write.id,
                ts_ms: write.ts_ms,
                key: written.key.clone(),
                version,
                digest,
            });
        }
        written
    }

    fn control(&mut self, id: EntryId, ts_ms: u64, control: &Control) -> Outcome {
        match control {
            Control::Settings(settings) => self.change_settings(id, ts_ms, settings),
            Control::Feature(level) => self.feature_level = self.feature_level.max(*level),
            // The log and the configuration are the replica's; a LOST entry only records what recovery passed over.
            Control::Epoch { .. } | Control::Config(_) | Control::Lost { .. } => {}
        }
        Outcome::Control
    }

    fn change_settings(&mut self, id: EntryId, ts_ms: u64, settings: &Settings) {
        let narrower = settings.history_limit < self.settings.history_limit;
        self.settings = *settings;
        if narrower {
            self.keyspace.trim(settings.history_limit as usize, id);
        }
        self.sessions.set_limits(settings);
        self.sessions.sweep(ts_ms);
        self.sessions.evict();
    }

    fn was_refused_before(&mut self, id: EntryId) -> bool {
        while let Some(&first) = self.refused_before.front() {
            if first >= id {
                return first == id;
            }
            self.refused_before.pop_front();
        }
        false
    }

    fn observe_time(&mut self, ts_ms: Option<u64>) {
        self.last_ts_ms = self.last_ts_ms.max(ts_ms.unwrap_or(0));
    }

    /// What a snapshot must never do with the state that it replaces.
    pub(crate) fn merge(&mut self, replaced: &Self) {
        replaced.keyspace.for_each(&mut |key, versions| {
            let key = Key::new(key).expect("a key that was applied is legal");
            let Current { id, version, value } = versions.current.clone();
            if self.keyspace.head(key.as_str()).is_none() {
                self.keyspace.put(Put { key: &key, value, version, id, history_limit: 0 });
            }
        });
    }

    fn put<'a>(&self, key: &'a Key, value: &'a Value, version: u64, id: EntryId) -> Put<'a> {
        Put { key, value: value.as_bytes().into(), version, id, history_limit: self.settings.history_limit as usize }
    }
}

impl Write<'_> {
    fn operation(&self) -> OperationKind {
        if self.set.is_some() { OperationKind::Set } else { OperationKind::Delete }
    }

    fn value(&self) -> Option<&[u8]> {
        self.set.map(|(value, _)| value.as_bytes())
    }
}

fn evaluate_write(
    current: Option<(EntryId, u64)>,
    precondition: &Precondition,
    operation: OperationKind,
) -> Result<(), Outcome> {
    if operation == OperationKind::Delete && current.is_none() {
        return Err(Outcome::NotFound);
    }
    let version = current.map_or(0, |(_, version)| version);
    if let Some(provided) = precondition.version
        && provided != version
    {
        return Err(Outcome::VersionConflict { provided, current: version });
    }
    let holds = match precondition.entity {
        Entity::Any => true,
        Entity::Is(id) => current.is_some_and(|(current, _)| current == id),
        Entity::Present => current.is_some(),
        Entity::Absent => current.is_none(),
    };
    if holds { Ok(()) } else { Err(Outcome::PreconditionFailed) }
}

impl fmt::Debug for StateMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMachine")
            .field("applied", &self.applied())
            .field("keys", &self.keyspace.len())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
