//! Compaction against replay: whatever is compacted, and whatever is applied meanwhile, recovery from
//! the result shows the state that replaying every line ever written shows.

use kv_core::command::{Entity, Precondition};
use kv_core::entry::{Body, Control};
use kv_core::group::{Configuration, ConfigurationAt, FEATURE_LEVEL, FeatureLevel, MemberId, Settings};
use kv_core::state_machine::StateMachine;
use proptest::prelude::*;

use super::*;
use crate::wal::Options;
use crate::wal::crash_tests::live::history;
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::tests::{found, member, new_volume, options, reopen};
use crate::wal::recovery::{Opened, open};
use crate::wal::test_log::{Applied, Log, delete, entries, plain, random_entries, set, settings, step};

fn locators(machine: &StateMachine, name: &str) -> Vec<(u64, u64)> {
    let found = machine.keyspace().versions(name).found.expect("key exists");
    found.earlier.iter().map(|l| (l.version, l.id.0)).chain([(found.current.version, found.current.id.0)]).collect()
}

#[test]
fn the_six_entry_example_compacts_to_the_lines_of_ids_5_and_6() {
    let all = plain(vec![
        set("user1", "\"initial-value\"", 1),
        set("user2", "\"hello\"", 1),
        set("user1", "\"updated-value\"", 2),
        delete("user2"),
        set("user3", "\"new-entry\"", 1),
        set("user1", "\"final-value\"", 3),
    ]);
    let original: Vec<_> = all.iter().map(|e| String::from_utf8(e.line.to_vec()).expect("UTF-8")).collect();
    let mut log = Log::new(all, &[6], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("one sealed segment");
    assert_eq!(compacted.outcome, CompactionOutcome { segments_compacted: 1, entries_removed: 4 });
    log.swap(&compacted);
    assert_eq!(log.text_of(FileKind::Live), [original[4].as_str(), &original[5]]);
    assert_eq!(log.text_of(FileKind::History), [original[0].as_str(), &original[2]]);
    assert_eq!(log.text_of(FileKind::Log), [""; 0]);
    let recovered = log.recovered(EntryId(6));
    assert_eq!(locators(&recovered, "user1"), [(1, 1), (2, 3), (3, 6)]);
    assert_eq!(recovered.digest(), log.replayed(Settings::default(), EntryId(6)).digest());
}

#[test]
fn with_nothing_sealed_or_below_the_limit_there_is_nothing_to_do() {
    let all = plain(vec![set("a", "1", 1), set("a", "2", 2), set("a", "3", 3)]);
    let log = Log::new(all.clone(), &[], Settings::default(), 0);
    assert!(log.compact().expect("readable").is_none());
    let log = Log::new(all.clone(), &[2], Settings::default(), 0);
    *log.state.limit.lock().expect("no panic") = EntryId(1);
    assert!(log.compact().expect("readable").is_none());
    let log = Log::new(all, &[2], Settings::default(), 2);
    assert!(log.compact().expect("readable").is_none(), "only applied entries may be compacted");
}

#[test]
fn a_key_deleted_and_created_again_above_the_horizon_keeps_its_value_at_the_horizon() {
    let bodies = vec![
        set("a", "1", 1),
        set("a", "2", 2),
        set("b", "1", 1),
        delete("a"),
        set("a", "3", 1),
        set("b", "2", 2),
        delete("b"),
    ];
    for meanwhile in 0..=4 {
        let mut log = Log::new(entries(bodies.clone()), &[3], Settings::default(), meanwhile);
        let compacted = log.compact().expect("readable").expect("one sealed segment");
        assert_eq!(compacted.applied, EntryId(7));
        log.swap(&compacted);
        assert_eq!(log.text_of(FileKind::Live).len(), 2, "a and b had a value at the horizon");
        let recovered = log.recovered(EntryId(7));
        assert_eq!(recovered.digest(), log.replayed(Settings::default(), EntryId(7)).digest());
        assert!(recovered.refused().is_empty());
    }
}

#[test]
fn the_history_limit_of_the_state_decides_what_the_history_file_holds() {
    for (limit, expected) in [(0, 0), (1, 1), (2, 2), (9, 3)] {
        let all = entries((1..=4).map(|version| set("a", "1", version)).collect());
        let mut log = Log::new(all, &[4], settings(limit, 100), 0);
        let compacted = log.compact().expect("readable").expect("sealed");
        log.swap(&compacted);
        assert_eq!(log.text_of(FileKind::History).len(), expected);
        assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(settings(limit, 100), EntryId(4)).digest());
    }
}

#[test]
fn settings_in_the_base_are_those_at_the_horizon() {
    let bodies = vec![
        Body::Control(Control::Settings(settings(1, 5))),
        set("a", "1", 1),
        set("a", "2", 2),
        Body::Control(Control::Settings(settings(0, 5))),
    ];
    let mut log = Log::new(entries(bodies), &[3], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    assert_eq!(compacted.base.settings, settings(1, 5));
    log.swap(&compacted);
    assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(Settings::default(), EntryId(4)).digest());
}

#[test]
fn time_goes_on_from_a_line_that_is_covered_and_gone() {
    let start = Body::Control(Control::Epoch { leader: MemberId(1) });
    let mut log = Log::new(entries(vec![set("a", "1", 1), start]), &[2], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    log.swap(&compacted);
    assert_eq!(log.recovered(EntryId(2)).last_ts_ms(), 2000);
}

#[test]
fn the_base_says_nothing_that_a_member_of_the_release_before_could_not_read() {
    let earlier = Base { feature_level: FeatureLevel(1), ts_ms: 2000, ..Base::default() };
    assert_eq!(selection::without_unknown(earlier.clone()).ts_ms, 0);
    let raised = Base { feature_level: FEATURE_LEVEL, ..earlier };
    assert_eq!(selection::without_unknown(raised).ts_ms, 2000);
}

#[test]
fn a_refused_set_is_not_taken_for_its_keys_latest() {
    let Body::Set { key, value, precondition: _, .. } = set("a", "9", 7) else { unreachable!() };
    let precondition = Precondition { version: Some(6), entity: Entity::Any };
    let refused = Body::Set { key, value, version: 7, precondition, request: None };
    let bodies = vec![set("a", "1", 1), refused.clone(), refused, set("a", "2", 2)];
    let mut log = Log::new(entries(bodies), &[2], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    assert_eq!(compacted.base.refused, [EntryId(3)]);
    log.swap(&compacted);
    assert_eq!(log.recovered(EntryId(4)).digest(), log.replayed(Settings::default(), EntryId(4)).digest());
}

#[test]
fn a_damaged_line_ends_compaction_and_leaves_nothing_behind() {
    let all = entries(vec![set("a", "1", 1), set("a", "2", 2), set("b", "1", 1), set("b", "2", 2)]);
    let log = Log::new(all, &[3], Settings::default(), 0);
    let table = log.reader.table();
    table.log[0].damage(table.log[0].bytes() - 5);
    assert!(matches!(log.compact(), Err(CompactionError::Read(_))));
    assert_eq!(log.staged_files(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn recovery_after_compactions_equals_full_replay(
        steps in proptest::collection::vec(step(), 1..60),
        segments in proptest::collection::vec(1..15_usize, 0..8),
        meanwhile in 0..30_usize,
        first_limit in 0..60_u64,
    ) {
        let initial = settings(2, 3);
        let all = random_entries(&steps, initial);
        let last = all.last().expect("at least one step").id;
        let meanwhile = meanwhile.min(all.len());
        let mut log = Log::new(all, &segments, initial, meanwhile);
        for limit in [first_limit, u64::MAX] {
            *log.state.limit.lock().expect("no panic") = EntryId(limit);
            let Some(compacted) = log.compact().expect("readable") else { continue };
            log.swap(&compacted);
            for id in compacted.applied.0..=last.0 {
                let (recovered, replayed) = (log.recovered(EntryId(id)), log.replayed(initial, EntryId(id)));
                prop_assert_eq!(recovered.digest(), replayed.digest(), "at {} of {}", id, last);
                let horizon = compacted.base.horizon.id;
                let refused: Vec<_> = replayed.refused().iter().filter(|&&id| id > horizon).copied().collect();
                prop_assert_eq!(recovered.refused(), &refused[..]);
            }
        }
    }
}

/// A founded log of thirty entries in memory, all applied.
fn founded(storage: &MemoryStorage, voters: &[u64]) -> (Opened<MemoryStorage>, Arc<Applied>) {
    let mut opened = reopen(storage).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, voters).expect("founded");
    opened.wal.append(&history(30), EntryId(30)).expect("room");
    let state = Applied::new(StateMachine::new(&Base::default(), 0));
    state.apply(&history(30));
    (opened, state)
}

#[test]
fn a_full_disk_fails_a_compaction_and_leaves_room_and_log_as_they_were() {
    let storage = MemoryStorage::default();
    let (mut opened, state) = founded(&storage, &[1]);
    let before = storage.list("").expect("readable");
    storage.set_capacity_bytes(Some(opened.reader.disk_bytes() + 700));
    compact(&opened.reader, &state).expect_err("no room for the new files");
    assert_eq!(storage.list("").expect("readable"), before);
    storage.set_capacity_bytes(None);
    let compacted = compact(&opened.reader, &state).expect("room").expect("sealed segments");
    opened.wal.swap_compacted(compacted).expect("swapped");
    let after = reopen(&storage.after_power_loss(Survives::Nothing)).expect("intact").recovered;
    let digest = state.machine.lock().expect("no panic").digest();
    assert_eq!((after.state.applied(), after.state.digest()), (EntryId(30), digest));
}

#[test]
fn more_segments_than_may_be_open_press_for_a_compaction() {
    let storage = MemoryStorage::default();
    let (Opened { wal, .. }, state) = founded(&storage, &[1]);
    drop(wal);
    let few = Options { segments_max: 3, ..options() };
    let mut opened = open(Arc::new(storage), &few, &new_volume()).expect("intact");
    assert!(opened.reader.has_many_segments(), "{} segments", opened.reader.segments().len());
    let compacted = compact(&opened.reader, &state).expect("readable").expect("sealed segments");
    opened.wal.swap_compacted(compacted).expect("swapped");
    assert!(!opened.reader.has_many_segments(), "{} segments", opened.reader.segments().len());
}

#[test]
fn a_compaction_that_comes_too_late_is_refused_and_leaves_nothing_behind() {
    let storage = MemoryStorage::default();
    let (Opened { mut wal, reader, .. }, state) = founded(&storage, &[1]);
    storage.create("wal.log.live.1.gen999").expect("room"); // of a snapshot that is being received
    let names = || storage.names().into_iter().filter(|name| name.contains(".gen")).collect::<Vec<_>>();
    let compacted = compact(&reader, &state).expect("readable").expect("sealed segments");
    assert!(names().len() > 1);
    wal.append(&history(31)[30..], EntryId(30)).expect("room");
    wal.truncate(EntryId(30)).expect("not committed");
    assert!(matches!(wal.swap_compacted(compacted), Err(crate::wal::WalError::Rule(_))));
    assert_eq!(names(), ["wal.log.live.1.gen999"]);
}

#[test]
fn a_configuration_recovered_by_hand_during_a_compaction_stays_in_force() {
    let storage = MemoryStorage::default();
    let (Opened { mut wal, reader, recovered }, state) = founded(&storage, &[1, 2, 3]);
    let compacted = compact(&reader, &state).expect("readable").expect("sealed segments");
    let alone = ConfigurationAt { id: EntryId(30), configuration: Configuration::new(vec![member(1)]) };
    wal.recover(recovered.hard, alone.clone()).expect("recovered");
    wal.swap_compacted(compacted).expect("swapped");
    let opened = reopen(&storage).expect("intact");
    assert_eq!(opened.recovered.base.configuration, alone);
    assert!(opened.recovered.base.horizon.id > EntryId(20));
}
