//! What deduplication promises: lookups, expiry by entry time, and the limit.

use super::*;
use crate::command::{Change, Entity, Key, Precondition, Value};

const HOUR_MS: u64 = 3_600_000;

fn request(client: &str, request: &str) -> RequestId {
    RequestId::new(client, request).unwrap()
}

fn record(id: u64, client: &str, request_id: &str, operation: OperationKind) -> SessionRecord {
    let key = Key::new("key").unwrap();
    SessionRecord {
        request: request(client, request_id),
        operation,
        id: EntryId(id),
        ts_ms: id,
        key,
        version: 1,
        digest: id,
    }
}

fn sessions(dedup_limit: u64) -> Sessions {
    let sessions = Sessions::new(&Settings { dedup_limit, ..Settings::default() }, 1);
    sessions.start_counting();
    sessions
}

fn ids(sessions: &Sessions, up_to: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    sessions.for_each_up_to(EntryId(up_to), &mut |record| ids.push(record.id.0));
    ids
}

#[test]
fn the_operations_of_one_pair_are_requests_of_their_own() {
    let sessions = sessions(10);
    sessions.remember(record(1, "c", "r", OperationKind::Set));
    assert!(sessions.lookup(&request("c", "r"), OperationKind::Delete, 1).is_none());
    assert!(sessions.knows_pair(&request("c", "r")));
    assert!(!sessions.knows_pair(&request("r", "c")));
    sessions.remember(record(2, "c", "r", OperationKind::Delete));
    assert_eq!(sessions.lookup(&request("c", "r"), OperationKind::Delete, 1).unwrap().id, EntryId(2));
    assert_eq!(sessions.lookup(&request("c", "r"), OperationKind::Set, 1).unwrap().id, EntryId(1));
    let SessionCounts { records, unique_request_ids, clients, stored_total, .. } = sessions.counts();
    assert_eq!((records, unique_request_ids, clients, stored_total), (2, 1, 1, 2));
}

#[test]
fn a_record_is_judged_by_the_time_that_the_asking_request_would_get() {
    let sessions = sessions(10);
    sessions.remember(record(5, "c", "r", OperationKind::Set));
    let known_at = |ts_ms| sessions.lookup(&request("c", "r"), OperationKind::Set, ts_ms).is_some();
    assert!(known_at(5 + HOUR_MS));
    assert!(!known_at(6 + HOUR_MS));
}

#[test]
fn a_sweep_drops_what_has_expired_and_counts_once() {
    let sessions = sessions(10);
    (1..=3).for_each(|id| sessions.remember(record(id, "c", &id.to_string(), OperationKind::Set)));
    sessions.sweep(HOUR_MS);
    assert_eq!(sessions.counts().cleanups_total, 0);
    sessions.sweep(HOUR_MS + 3);
    assert_eq!(ids(&sessions, 9), [3]);
    let SessionCounts { records, unique_request_ids, clients, cleanups_total, evicted_total, .. } = sessions.counts();
    assert_eq!((records, unique_request_ids, clients, cleanups_total, evicted_total), (1, 1, 1, 1, 0));
}

#[test]
fn over_the_limit_the_oldest_goes_first_in_entry_order() {
    let sessions = sessions(2);
    (1..=4).for_each(|id| sessions.remember(record(id, &format!("c{id}"), "r", OperationKind::Set)));
    assert_eq!(ids(&sessions, 9), [3, 4]);
    assert_eq!((sessions.counts().evicted_total, sessions.counts().clients), (2, 2));
    assert!(sessions.lookup(&request("c1", "r"), OperationKind::Set, 4).is_none());
}

#[test]
fn a_limit_of_zero_remembers_nothing() {
    let sessions = sessions(0);
    sessions.remember(record(1, "c", "r", OperationKind::Set));
    let SessionCounts { records, unique_request_ids, clients, .. } = sessions.counts();
    assert_eq!((records, unique_request_ids, clients), (0, 0, 0));
}

#[test]
fn visiting_goes_by_rising_ids_and_stops_at_the_horizon() {
    let sessions = sessions(10_000);
    (1..=3000).rev().for_each(|id| sessions.restore(record(id, "c", &id.to_string(), OperationKind::Set)));
    assert_eq!(ids(&sessions, 2500), (1..=2500).collect::<Vec<_>>());
}

#[test]
fn totals_leave_out_what_was_restored_and_go_on_from_the_table_before() {
    let sessions = Sessions::new(&Settings::default(), 1);
    sessions.restore(record(1, "c", "1", OperationKind::Set));
    sessions.remember(record(2, "c", "2", OperationKind::Set));
    assert_eq!(sessions.counts().stored_total, 0);
    sessions.start_counting();
    sessions.carry_totals(&SessionCounts { stored_total: 7, ..SessionCounts::default() });
    sessions.remember(record(3, "c", "3", OperationKind::Set));
    assert_eq!((sessions.counts().stored_total, sessions.counts().records), (8, 3));
}

#[test]
fn a_record_has_the_documented_line() {
    let record = SessionRecord { digest: 0xc0_ffee, ..record(14, "c\"", "r", OperationKind::Set) };
    let line = String::from_utf8(record.encode()).unwrap();
    let expected = r#"{"session":14,"ts":14,"operation":"SET","client_id":"c\"","request_id":"r","key":"key","version":1,"digest":"0000000000c0ffee","crc":"#;
    assert_eq!(line.split_at(expected.len()).0, expected);
    assert_eq!(SessionRecord::decode(line.as_bytes()), Ok(record));
}

/// Records on disk and other members compare with these numbers: they may never change.
#[test]
fn the_request_digest_is_pinned() {
    let key = Key::new("key6").unwrap();
    let set = Change::Set(Value::from_json(b"\"myvalue\"", 100).unwrap());
    let if_id = Precondition { version: Some(3), entity: Entity::Is(EntryId(9)) };
    let digests = [
        request_digest(&key, &set, &Precondition::default()),
        request_digest(&key, &set, &if_id),
        request_digest(&key, &Change::Delete, &Precondition::default()),
    ];
    assert_eq!(digests, [8_658_816_092_507_251_377, 15_384_093_444_341_121_367, 7_329_528_819_909_456_044]);
}
