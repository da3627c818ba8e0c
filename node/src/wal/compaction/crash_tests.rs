//! The power fails at every call of two compactions and of the appends around them: recovery shows the
//! state that replaying every entry ever written shows, and nothing staged is left.

use kv_core::entry::{Entry, EntryId};
use kv_core::group::{Configuration, ConfigurationAt, Settings};
use kv_core::state_machine::StateMachine;

use super::compact;
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::Opened;
use crate::wal::recovery::tests::{found, member, reopen};
use crate::wal::storage::Storage;
use crate::wal::test_log::{Applied, Step, random_entries};
use crate::wal::verify;

const SURVIVALS: [Survives; 4] = [Survives::Nothing, Survives::Everything, Survives::Some(1), Survives::Some(2)];

/// Deletes, refusals, repeated requests and changed limits, all in thirty entries.
fn history() -> Vec<Entry> {
    let step = |n: u8| match n % 10 {
        0 => Step::Settings { history_limit: 1 + u32::from(n / 10), dedup_limit: 3 },
        3 | 6 => Step::Delete { key: n % 3, request: n.is_multiple_of(2).then_some(n % 4) },
        _ => Step::Set { key: n % 3, guess: n.is_multiple_of(7), request: n.is_multiple_of(2).then_some(n % 4) },
    };
    random_entries(&(0..30).map(step).collect::<Vec<_>>(), Settings::default())
}

fn replayed(all: &[Entry], up_to: EntryId) -> StateMachine {
    let mut machine = StateMachine::new(&kv_core::contract::Base::default(), 0);
    all.iter().take_while(|entry| entry.id <= up_to).for_each(|entry| drop(machine.apply(entry)));
    machine
}

/// Appends and compacts in turn until the power fails; returns the last acknowledged id.
fn live(storage: &MemoryStorage, voters: &[u64], all: &[Entry]) -> EntryId {
    let mut acknowledged = EntryId::ZERO;
    let Ok(Opened { mut wal, reader, recovered, .. }) = reopen(storage) else { return acknowledged };
    if found(&mut wal, &recovered.hard, voters).is_err() {
        return acknowledged;
    }
    let state = Applied::new(recovered.state);
    for part in all.chunks(10) {
        for batch in part.chunks(4) {
            let last = batch.last().expect("chunks are not empty").id;
            if wal.append(batch, acknowledged).is_err() {
                return acknowledged;
            }
            acknowledged = last;
            state.apply(batch);
        }
        let Ok(compacted) = compact(&reader, &state) else { return acknowledged };
        let Some(compacted) = compacted else { continue };
        if wal.swap_compacted(compacted).is_err() {
            return acknowledged;
        }
        state.forget(reader.table().horizon().id);
    }
    acknowledged
}

fn check(storage: &MemoryStorage, all: &[Entry], acknowledged: EntryId, is_alone: bool, what: &str) {
    let opened = reopen(storage).unwrap_or_else(|e| panic!("{what}: {e}"));
    let recovered = opened.recovered;
    assert!(!recovered.report.is_damaged(), "{what}: {:?}", recovered.report);
    let applied = recovered.state.applied();
    let last = recovered.tail.last().map_or(applied, |entry| entry.id);
    assert!(last >= acknowledged, "{what}: {last} of {acknowledged} survived");
    assert!(!is_alone || applied == last, "{what}: a group of one applies all it has");
    let expected = replayed(all, applied);
    assert_eq!(recovered.state.digest(), expected.digest(), "{what}: at {applied}");
    for (version, entry) in expected.keyspace().page("", None, 10).found.keys.iter().flat_map(|key| {
        let found = expected.keyspace().versions(key.as_str()).found.expect("listed");
        found.earlier.into_iter().map(|earlier| (earlier.version, earlier.id))
    }) {
        let read = opened.reader.read_entry(entry).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(read.is_some_and(|read| read.id == entry), "{what}: version {version} is gone");
    }
    let names = opened.reader.storage().list("").expect("readable");
    assert!(!names.iter().any(|name| name.contains(".gen")), "{what}: {names:?}");
    let report = verify::of_storage(&**opened.reader.storage()).expect("readable");
    assert!(!report.is_damaged() && report.torn_end.is_none() && report.orphans.is_empty(), "{what}: {report}");
}

#[test]
fn a_crash_anywhere_in_a_compaction_changes_no_state() {
    let all = history();
    for voters in [&[1][..], &[1, 2, 3]] {
        let dry = MemoryStorage::default();
        assert_eq!(live(&dry, voters, &all), EntryId(30), "without a crash all is done");
        assert!(reopen(&dry).expect("intact").reader.table().horizon().id > EntryId(20));
        for call in 0..dry.calls() {
            let storage = MemoryStorage::default();
            storage.power_fails_at(call);
            let acknowledged = live(&storage, voters, &all);
            for survives in SURVIVALS {
                let what = format!("call {call}, {survives:?}, {} voters", voters.len());
                let survives =
                    if let Survives::Some(seed) = survives { Survives::Some(seed + 2 * call) } else { survives };
                check(&storage.after_power_loss(survives), &all, acknowledged, voters.len() == 1, &what);
            }
        }
    }
}

#[test]
fn a_full_disk_fails_a_compaction_and_leaves_room_and_log_as_they_were() {
    let all = history();
    let storage = MemoryStorage::default();
    let Opened { mut wal, reader, recovered, .. } = reopen(&storage).expect("new volume");
    found(&mut wal, &recovered.hard, &[1]).expect("founded");
    wal.append(&all, EntryId(30)).expect("room");
    let state = Applied::new(recovered.state);
    state.apply(&all);
    let before = storage.list("").expect("readable");
    storage.set_capacity_bytes(Some(reader.disk_bytes() + 700));
    compact(&reader, &state).expect_err("no room for the new files");
    assert_eq!(storage.list("").expect("readable"), before);
    storage.set_capacity_bytes(None);
    let compacted = compact(&reader, &state).expect("room").expect("sealed segments");
    wal.swap_compacted(compacted).expect("swapped");
    check(&storage.after_power_loss(Survives::Nothing), &all, EntryId(30), true, "after the second try");
}

#[test]
fn a_configuration_recovered_by_hand_during_a_compaction_stays_in_force() {
    let all = history();
    let storage = MemoryStorage::default();
    let Opened { mut wal, reader, recovered, .. } = reopen(&storage).expect("new volume");
    found(&mut wal, &recovered.hard, &[1, 2, 3]).expect("founded");
    wal.append(&all, EntryId(30)).expect("room");
    let state = Applied::new(recovered.state);
    state.apply(&all);
    let compacted = compact(&reader, &state).expect("readable").expect("sealed segments");
    let alone = ConfigurationAt { id: EntryId(30), configuration: Configuration::new(vec![member(1)]) };
    wal.recover(recovered.hard.clone(), alone.clone()).expect("recovered");
    wal.swap_compacted(compacted).expect("swapped");
    let opened = reopen(&storage).expect("intact");
    assert_eq!(opened.recovered.base.configuration, alone);
    assert!(opened.recovered.base.horizon.id > EntryId(20));
}
