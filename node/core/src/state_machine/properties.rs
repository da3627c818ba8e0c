//! The state machine against a naive model of the same rules, and against itself after a compaction.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::entry::{Epoch, LogPosition};

/// What a script does next; few keys and requests, so that they collide.
#[derive(Debug, Clone)]
struct Step {
    what: What,
    key: u8,
    request: Option<u8>,
    precondition: Precondition,
    /// Added to the key's next version: a forecast that did not come true.
    version_error: u64,
    advance_ms: u64,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Set(u8),
    Delete,
    Settings(Settings),
    Epoch,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let settings = (0_u32..4, 0_u64..4, 0_u64..6).prop_map(|(history_limit, dedup_expiry_seconds, dedup_limit)| {
        What::Settings(Settings { history_limit, dedup_expiry_seconds, dedup_limit })
    });
    let what = prop_oneof![12 => (0_u8..3).prop_map(What::Set), 4 => Just(What::Delete), 1 => settings, 1 => Just(What::Epoch)];
    let entity = prop_oneof![
        12 => Just(Entity::Any),
        2 => (0_u64..60).prop_map(|id| Entity::Is(EntryId(id))),
        1 => Just(Entity::Present),
        1 => Just(Entity::Absent),
    ];
    let precondition =
        (prop::option::weighted(0.2, 0_u64..4), entity).prop_map(|(version, entity)| Precondition { version, entity });
    let version_error = prop_oneof![15 => Just(0_u64), 1 => 1_u64..3];
    let step = (what, 0_u8..4, prop::option::weighted(0.5, 0_u8..5), precondition, version_error, 0_u64..800).prop_map(
        |(what, key, request, precondition, version_error, advance_ms)| Step {
            what,
            key,
            request,
            precondition,
            version_error,
            advance_ms,
        },
    );
    prop::collection::vec(step, 1..120)
}

/// Every rule spelled out over plain collections, values and all versions included.
#[derive(Debug, Default)]
struct Model {
    settings: Settings,
    keys: BTreeMap<String, Vec<Version>>,
    sessions: Vec<SessionRecord>,
    refused: Vec<EntryId>,
}

#[derive(Debug, Clone, PartialEq)]
struct Version {
    id: EntryId,
    version: u64,
    value: Vec<u8>,
}

impl Model {
    fn current(&self, key: &Key) -> Option<&Version> {
        self.keys.get(key.as_str()).and_then(|versions| versions.last())
    }

    fn apply(&mut self, entry: &Entry) {
        let ts_ms = entry.ts_ms.unwrap();
        self.expire(ts_ms);
        match &entry.body {
            Body::Control(Control::Settings(settings)) => self.settings = *settings,
            Body::Control(_) => {}
            Body::Set { .. } | Body::Delete { .. } if !self.accepts(entry) => self.refused.push(entry.id),
            Body::Set { key, value, version, .. } => {
                let value = value.as_bytes().to_vec();
                let versions = self.keys.entry(key.as_str().to_owned()).or_default();
                versions.push(Version { id: entry.id, version: *version, value });
                self.remember(entry, *version);
            }
            Body::Delete { key, .. } => {
                self.keys.remove(key.as_str());
                self.remember(entry, 0);
            }
        }
        self.trim();
        self.expire(ts_ms);
    }

    fn accepts(&self, entry: &Entry) -> bool {
        let (Body::Set { key, precondition, .. } | Body::Delete { key, precondition, .. }) = &entry.body else {
            unreachable!()
        };
        let known = |r: &SessionRecord| entry.request().is_some_and(|(id, op)| r.request == *id && r.operation == op);
        if self.sessions.iter().any(known) {
            return false;
        }
        let current = self.current(key);
        let version = current.map_or(0, |c| c.version);
        let may_follow = match &entry.body {
            Body::Set { version: made, .. } => *made == version + 1,
            _ => current.is_some(),
        };
        may_follow
            && precondition.version.is_none_or(|wanted| wanted == version)
            && match precondition.entity {
                Entity::Any => true,
                Entity::Is(id) => current.is_some_and(|c| c.id == id),
                Entity::Present => current.is_some(),
                Entity::Absent => current.is_none(),
            }
    }

    fn remember(&mut self, entry: &Entry, version: u64) {
        let Some((request, operation)) = entry.request() else { return };
        let key = entry.key().unwrap().clone();
        let digest = digest_of(entry);
        let (id, ts_ms) = (entry.id, entry.ts_ms.unwrap());
        self.sessions.push(SessionRecord { request: request.clone(), operation, id, ts_ms, key, version, digest });
    }

    fn trim(&mut self) {
        for versions in self.keys.values_mut() {
            let surplus = versions.len().saturating_sub(self.settings.history_limit as usize + 1);
            versions.drain(..surplus);
        }
        let surplus = self.sessions.len().saturating_sub(self.settings.dedup_limit as usize);
        self.sessions.drain(..surplus);
    }

    fn expire(&mut self, ts_ms: u64) {
        let expiry_ms = self.settings.dedup_expiry_seconds * 1000;
        self.sessions.retain(|record| record.ts_ms + expiry_ms >= ts_ms);
    }

    fn assert_equals(&self, state: &StateMachine) {
        assert_eq!(state.refused(), self.refused);
        assert_eq!(state.settings(), self.settings);
        let keys = state.keyspace().page("", None, usize::MAX).found.keys;
        assert_eq!(keys.iter().map(Key::as_str).collect::<Vec<_>>(), self.keys.keys().collect::<Vec<_>>());
        for (key, versions) in &self.keys {
            let (current, earlier) = versions.split_last().unwrap();
            let held = state.keyspace().versions(key).found.unwrap();
            assert_eq!((held.current.id, held.current.version), (current.id, current.version));
            assert_eq!(&*held.current.value, &current.value[..]);
            let locators: Vec<_> = earlier.iter().map(|v| Locator { version: v.version, id: v.id }).collect();
            assert_eq!(held.earlier, locators);
        }
        let mut records = Vec::new();
        state.sessions().for_each_up_to(EntryId(u64::MAX), &mut |record| records.push(record.clone()));
        assert_eq!(records, self.sessions);
    }
}

fn digest_of(entry: &Entry) -> u64 {
    match &entry.body {
        Body::Set { key, value, precondition, .. } => digest_write(key, Some(value.as_bytes()), precondition),
        Body::Delete { key, precondition, .. } => digest_write(key, None, precondition),
        Body::Control(_) => unreachable!(),
    }
}

/// Orders the script as a leader would, with a forecast that is sometimes wrong.
fn log_of(steps: &[Step], start: Settings) -> (Vec<Entry>, Model) {
    let mut model = Model { settings: start, ..Model::default() };
    let (mut log, mut ts_ms) = (Vec::new(), 1_700_000_000_000);
    for (id, step) in (1..).map(EntryId).zip(steps) {
        ts_ms += step.advance_ms;
        let key = Key::new(&format!("k{}", step.key)).unwrap();
        let request = step.request.map(|n| RequestId::new(&format!("c{}", n % 2), &format!("r{n}")).unwrap());
        let precondition = step.precondition;
        let body = match step.what {
            What::Set(n) => {
                let version = model.current(&key).map_or(1, |c| c.version + 1) + step.version_error;
                let value = Value::from_json(n.to_string().as_bytes(), 10).unwrap();
                Body::Set { key, value, version, precondition, request }
            }
            What::Delete => Body::Delete { key, precondition, request },
            What::Settings(settings) => Body::Control(Control::Settings(settings)),
            What::Epoch => Body::Control(Control::Epoch { leader: crate::group::MemberId(1) }),
        };
        let entry = Entry::encode(id, Epoch(1), Some(ts_ms), body);
        model.apply(&entry);
        log.push(entry);
    }
    (log, model)
}

fn replayed(log: &[Entry], start: Settings) -> StateMachine {
    let mut state = StateMachine::new(&Base { settings: start, ..Base::default() }, 1);
    log.iter().for_each(|entry| drop(state.apply(entry)));
    state
}

/// What compaction up to `horizon` leaves of a log that is applied up to its end, by the rules of compaction:
/// ids from the live keyspace; for keys that the tail touched, their latest effective operation up to the horizon.
fn compacted(log: &[Entry], live: &StateMachine, horizon: usize, start: Settings) -> StateMachine {
    let (below, tail) = log.split_at(horizon);
    let (mut current, mut history) = (Vec::new(), Vec::new());
    let up_to = EntryId(horizon as u64);
    live.keyspace().collect_ids(up_to, &mut |id| current.push(id), &mut |id| history.push(id));
    let (mut current, mut history) = (BTreeSet::from_iter(current), BTreeSet::from_iter(history));
    let touched: BTreeSet<_> = tail.iter().filter_map(Entry::key).collect();
    let mut latest = BTreeMap::new();
    for entry in below.iter().filter(|entry| live.refused().binary_search(&entry.id).is_err()) {
        if let Some(key) = entry.key().filter(|key| touched.contains(key)) {
            latest.insert(key, entry);
        }
    }
    current.extend(latest.values().filter(|entry| matches!(entry.body, Body::Set { .. })).map(|entry| entry.id));
    let settings = below.iter().rev().find_map(|entry| match &entry.body {
        Body::Control(Control::Settings(settings)) => Some(*settings),
        _ => None,
    });
    let base = Base {
        horizon: LogPosition { epoch: Epoch(1), id: up_to },
        settings: settings.unwrap_or(start),
        refused: live.refused().iter().copied().filter(|&id| id > up_to).collect(),
        ts_ms: below.iter().filter_map(|entry| entry.ts_ms).max().unwrap_or(0),
        ..Base::default()
    };
    let mut state = StateMachine::new(&base, 2);
    let only = |ids: &BTreeSet<EntryId>| below.iter().filter(|e| ids.contains(&e.id)).cloned().collect::<Vec<_>>();
    history.retain(|id| !current.contains(id));
    only(&history).iter().for_each(|entry| state.restore_history(entry));
    only(&current).iter().for_each(|entry| state.restore_live(entry));
    live.sessions().for_each_up_to(up_to, &mut |record| state.restore_session(record.clone()));
    tail.iter().for_each(|entry| drop(state.apply(entry)));
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn apply_agrees_with_the_model(steps in steps(), limit in 0_u32..4) {
        let start = Settings { history_limit: limit, dedup_expiry_seconds: 2, dedup_limit: 4 };
        let (log, model) = log_of(&steps, start);
        model.assert_equals(&replayed(&log, start));
    }

    #[test]
    fn a_base_at_any_horizon_and_its_tail_give_what_the_whole_log_gives(
        steps in steps(),
        horizon: prop::sample::Index,
        limit in 0_u32..4,
    ) {
        let start = Settings { history_limit: limit, dedup_expiry_seconds: 2, dedup_limit: 4 };
        let (log, model) = log_of(&steps, start);
        let live = replayed(&log, start);
        let restored = compacted(&log, &live, horizon.index(log.len() + 1), start);
        prop_assert_eq!(restored.digest(), live.digest(), "{:?}", model);
    }
}
