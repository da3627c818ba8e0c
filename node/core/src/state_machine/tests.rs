//! What applying an entry decides, case by case.

use super::*;
use crate::entry::{Epoch, LogPosition};
use crate::group::MemberId;

/// A state machine and the log that it was fed.
struct Fixture {
    state: StateMachine,
    ts_ms: u64,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let base = Base { settings, ..Base::default() };
        Self { state: StateMachine::new(&base, 1), ts_ms: 1000 }
    }

    fn apply(&mut self, body: Body) -> Outcome {
        let id = self.state.applied().next();
        self.state.apply(&Entry::encode(id, Epoch(1), Some(self.ts_ms), body))
    }

    fn set(&mut self, key: &str, version: u64) -> Outcome {
        self.apply(set(key, version, Precondition::default(), None))
    }

    fn delete(&mut self, key: &str) -> Outcome {
        self.apply(delete(key, None))
    }

    fn settings(&mut self, settings: Settings) {
        assert_eq!(self.apply(Body::Control(Control::Settings(settings))), Outcome::Control);
    }

    fn head(&self, key: &str) -> Option<(u64, u64)> {
        self.state.keyspace().head(key).map(|(id, version)| (id.0, version))
    }

    fn earlier(&self, key: &str) -> Vec<u64> {
        self.state.keyspace().versions(key).found.unwrap().earlier.iter().map(|locator| locator.version).collect()
    }

    fn refused(&self) -> Vec<u64> {
        self.state.refused().iter().map(|id| id.0).collect()
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn request(id: &str) -> Option<RequestId> {
    RequestId::new("client", id).ok()
}

fn set(key: &str, version: u64, precondition: Precondition, request: Option<RequestId>) -> Body {
    let value = Value::from_json(format!("\"{key}\"").as_bytes(), 100).unwrap();
    Body::Set { key: self::key(key), value, version, precondition, request }
}

fn delete(key: &str, request: Option<RequestId>) -> Body {
    Body::Delete { key: self::key(key), precondition: Precondition::default(), request }
}

fn written(id: u64, operation: OperationKind, key: &str, version: u64) -> Written {
    Written { id: EntryId(id), operation, key: self::key(key), version }
}

#[test]
fn a_created_again_key_starts_at_version_one() {
    let mut f = Fixture::new();
    assert_eq!(f.set("a", 1), Outcome::Written(written(1, OperationKind::Set, "a", 1)));
    f.set("a", 2);
    assert_eq!(f.delete("a"), Outcome::Written(written(3, OperationKind::Delete, "a", 0)));
    f.set("a", 1);
    assert_eq!((f.head("a"), f.earlier("a")), (Some((4, 1)), vec![]));
}

#[test]
fn a_line_that_does_not_make_the_next_version_is_refused() {
    let mut f = Fixture::new();
    f.set("a", 1);
    assert_eq!(f.set("a", 3), Outcome::VersionConflict { provided: 2, current: 1 });
    assert_eq!(f.set("a", 1), Outcome::VersionConflict { provided: 0, current: 1 });
    assert_eq!((f.head("a"), f.refused(), f.state.applied()), (Some((1, 1)), vec![2, 3], EntryId(3)));
    f.state.forget_refused_up_to(EntryId(2));
    assert_eq!(f.refused(), [3]);
}

#[test]
fn preconditions_hold_or_the_entry_is_refused() {
    let f = Fixture::new();
    let change = set("a", 1, Precondition::default(), None);
    let Body::Set { value, .. } = change else { unreachable!() };
    let judge = |current, version, entity, change: &Change| {
        f.state.evaluate(current, &Precondition { version, entity }, change)
    };
    let (set, held, absent) = (Change::Set(value), Some((EntryId(7), 3)), None);
    for (current, version, entity) in [
        (held, None, Entity::Any),
        (held, Some(3), Entity::Is(EntryId(7))),
        (held, None, Entity::Present),
        (absent, Some(0), Entity::Absent),
    ] {
        assert_eq!(judge(current, version, entity, &set), Ok(()));
    }
    for (current, entity) in [
        (held, Entity::Is(EntryId(6))),
        (held, Entity::Absent),
        (absent, Entity::Present),
        (absent, Entity::Is(EntryId(0))),
    ] {
        assert_eq!(judge(current, None, entity, &set), Err(Outcome::PreconditionFailed));
    }
    let conflict = |provided, current| Err(Outcome::VersionConflict { provided, current });
    assert_eq!(judge(held, Some(0), Entity::Any, &set), conflict(0, 3));
    assert_eq!(judge(held, Some(9), Entity::Any, &set), conflict(9, 3));
    assert_eq!(judge(absent, Some(1), Entity::Any, &set), conflict(1, 0));
    assert_eq!(judge(absent, None, Entity::Present, &Change::Delete), Err(Outcome::NotFound));
    assert_eq!(judge(held, None, Entity::Is(EntryId(6)), &Change::Delete), Err(Outcome::PreconditionFailed));
}

#[test]
fn a_copy_of_a_request_has_no_second_effect() {
    let mut f = Fixture::new();
    let first = set("a", 1, Precondition::default(), request("r"));
    assert!(matches!(f.apply(first), Outcome::Written(_)));
    f.set("a", 2);
    let copy = set("a", 3, Precondition::default(), request("r"));
    assert_eq!(f.apply(copy), Outcome::Replay(written(1, OperationKind::Set, "a", 1)));
    let other = set("b", 1, Precondition::default(), request("r"));
    assert_eq!(f.apply(other), Outcome::RequestReused);
    assert!(matches!(f.apply(delete("a", request("r"))), Outcome::Written(_)));
    assert_eq!(f.refused(), [3, 4]);
    assert_eq!((f.head("a"), f.head("b")), (None, None));
}

#[test]
fn a_refused_request_is_evaluated_afresh() {
    let mut f = Fixture::new();
    assert_eq!(f.apply(delete("a", request("r"))), Outcome::NotFound);
    f.set("a", 1);
    assert!(matches!(f.apply(delete("a", request("r"))), Outcome::Written(_)));
}

#[test]
fn a_request_takes_effect_again_after_its_record_has_expired() {
    let mut f = Fixture::with(Settings { dedup_expiry_seconds: 10, ..Settings::default() });
    f.apply(set("a", 1, Precondition::default(), request("r")));
    f.ts_ms += 10_001;
    assert!(matches!(f.apply(set("a", 2, Precondition::default(), request("r"))), Outcome::Written(_)));
    assert_eq!(f.state.sessions().counts().records, 1);
}

#[test]
fn changed_settings_trim_everything_at_once() {
    let mut f = Fixture::new();
    (1..=5).for_each(|version| drop(f.set("a", version)));
    (1..=3).for_each(|n| drop(f.apply(set("b", n, Precondition::default(), request(&n.to_string())))));
    let narrow = Settings { history_limit: 2, dedup_limit: 1, dedup_expiry_seconds: 3600 };
    f.settings(narrow);
    assert_eq!((f.earlier("a"), f.earlier("b")), (vec![3, 4], vec![1, 2]));
    assert_eq!(f.state.sessions().counts().records, 1);
    f.settings(Settings { history_limit: 0, dedup_expiry_seconds: 0, ..narrow });
    f.set("a", 6);
    assert!(f.earlier("a").is_empty());
    f.ts_ms += 1;
    f.set("a", 7);
    assert_eq!(f.state.sessions().counts().records, 0);
}

#[test]
fn control_entries_only_advance_applied() {
    let mut f = Fixture::new();
    f.set("a", 1);
    f.apply(Body::Control(Control::Epoch { leader: MemberId(1) }));
    f.apply(Body::Control(Control::Feature(FeatureLevel(3))));
    f.apply(Body::Control(Control::Feature(FeatureLevel(2))));
    f.apply(Body::Control(Control::Lost { first: EntryId(1), last: EntryId(1) }));
    assert_eq!((f.state.applied(), f.state.feature_level(), f.head("a")), (EntryId(5), FeatureLevel(3), Some((1, 1))));
    assert_eq!(f.state.last_ts_ms(), f.ts_ms);
}

#[test]
fn what_the_base_says_was_refused_is_refused_again() {
    let base = Base {
        horizon: LogPosition { epoch: Epoch(1), id: EntryId(5) },
        refused: vec![EntryId(7), EntryId(3)],
        ..Base::default()
    };
    let mut f = Fixture { state: StateMachine::new(&base, 1), ts_ms: 1 };
    f.set("a", 1);
    assert_eq!(f.set("a", 2), Outcome::PreconditionFailed);
    f.set("a", 2);
    assert_eq!((f.head("a"), f.refused()), (Some((8, 2)), vec![7]));
}

#[test]
fn what_was_decided_with_lost_entries_is_taken_at_its_word() {
    let mut f = Fixture::new();
    f.set("a", 1);
    f.set("b", 1);
    f.set("b", 2);
    // Lost: SET a 2, DELETE b, SET c 1. Then, still decided with them: SET a 3, SET b 1, DELETE c.
    f.state.pass_over_lost(EntryId(6), EntryId(10));
    f.set("a", 3);
    f.set("b", 1);
    assert!(matches!(f.delete("c"), Outcome::Written(_)));
    assert_eq!((f.head("a"), f.earlier("a")), (Some((7, 3)), vec![1]));
    assert_eq!((f.head("b"), f.earlier("b")), (Some((8, 1)), vec![]));
    f.apply(Body::Control(Control::Lost { first: EntryId(4), last: EntryId(6) }));
    assert_eq!(f.set("a", 7), Outcome::VersionConflict { provided: 6, current: 3 });
}

#[test]
#[should_panic(expected = "in order")]
fn a_gap_in_the_entries_is_a_bug() {
    let mut f = Fixture::new();
    f.state.apply(&Entry::encode(EntryId(2), Epoch(1), None, delete("a", None)));
}

#[test]
fn the_digest_does_not_depend_on_the_hash_seed() {
    let digests = [1, 2].map(|seed| {
        let mut f = Fixture { state: StateMachine::new(&Base::default(), seed), ts_ms: 1 };
        for n in 0..100 {
            f.apply(set(&format!("key {n}"), 1, Precondition::default(), request(&n.to_string())));
        }
        let before = f.state.digest();
        f.set("key 0", 2);
        assert_ne!(f.state.digest(), before);
        f.state.digest()
    });
    assert_eq!(digests[0], digests[1]);
}
