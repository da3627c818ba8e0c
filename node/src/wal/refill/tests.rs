//! Logs with holes, and the power failing while they are filled.

use kv_core::entry::{Entry, EntryId};

use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::tests::{compacted, reopen, set, sets, volume};
use crate::wal::{IdRange, Opened, Recovered, Salvage, Storage, WalError};

const LAST: u64 = 20;

/// A line in the middle is bad, whole segments and the last line are gone, the log was opened once since.
fn holed() -> (MemoryStorage, Vec<IdRange>) {
    let storage = volume(&[1], LAST, LAST);
    storage.tamper("wal.log.segment.3", |contents| contents[10] ^= 1);
    storage.remove("wal.log.segment.1").expect("there");
    storage.remove("wal.log.segment.5").expect("there");
    let missing = reopen(&storage).expect("reopen").recovered.undeclared();
    assert!(missing.len() >= 3, "{missing:?}");
    (storage, missing)
}

fn lines_of(missing: &[IdRange]) -> Vec<Entry> {
    missing.iter().flat_map(|range| sets(range.first.0..=range.last.0)).collect()
}

fn assert_whole(opened: &Opened<MemoryStorage>, what: &str) {
    let intact = reopen(&volume(&[1], LAST, LAST)).expect("reopen");
    assert_eq!(opened.recovered.gaps, [], "{what}");
    assert_eq!(opened.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=LAST), "{what}");
    assert_eq!(opened.recovered.state.digest(), intact.recovered.state.digest(), "{what}");
    assert_eq!(opened.wal.last(), EntryId(LAST), "{what}");
}

fn refill(opened: &mut Opened<MemoryStorage>, found: &[Entry]) -> Result<(), WalError> {
    let report = opened.recovered.report.clone();
    opened.recovered = opened.wal.refill(found, &report)?;
    Ok(())
}

#[test]
fn a_log_whose_holes_are_filled_is_the_one_it_was() {
    let (storage, missing) = holed();
    let mut opened = reopen(&storage).expect("reopen");
    refill(&mut opened, &lines_of(&missing)).expect("refilled");
    assert!(opened.recovered.report.missing.is_empty());
    assert_whole(&opened, "at once");
    let incarnation = opened.recovered.hard.incarnation;
    opened.wal.append(&[set(LAST + 1)], EntryId(LAST + 1)).expect("goes on");
    let again = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!((again.recovered.report.damage_total, again.recovered.hard.incarnation), (0, incarnation + 1));
    assert_eq!(again.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=LAST + 1));
}

#[test]
fn damage_and_refill_in_one_start_are_told_together() {
    let storage = volume(&[1], LAST, LAST);
    storage.tamper("wal.log.segment.2", |contents| contents[10] ^= 1);
    let mut opened = reopen(&storage).expect("reopen");
    let missing = opened.recovered.undeclared();
    refill(&mut opened, &lines_of(&missing)).expect("refilled");
    let report = &opened.recovered.report;
    assert_eq!((report.salvage, report.damage_total, report.missing.len()), (Salvage::Everything, 1, 0));
    assert_whole(&opened, "one line");
}

#[test]
fn lines_are_lent_from_the_base_and_the_log_in_the_order_of_their_ids() {
    let opened = reopen(&compacted(&[1])).expect("reopen");
    let held = |first, last, bytes_max| {
        let entries = opened.reader.read_held(EntryId(first), EntryId(last), bytes_max).expect("readable");
        entries.iter().map(|entry| entry.id.0).collect::<Vec<_>>()
    };
    assert!(opened.reader.horizon() > EntryId(3));
    assert_eq!(held(1, 9, usize::MAX), (1..=9).collect::<Vec<_>>());
    assert_eq!(held(3, 8, usize::MAX), (3..=8).collect::<Vec<_>>());
    assert_eq!(held(2, 9, 1), [2]);
    let two_lines = set(2).line.len() + set(3).line.len() + 2;
    assert_eq!(held(2, 9, two_lines), [2, 3]);
    assert_eq!(held(10, 20, 1), [0; 0]);
}

#[test]
fn what_was_not_found_stays_missing_and_what_is_held_stays_as_it_is() {
    let (storage, missing) = holed();
    let mut opened = reopen(&storage).expect("reopen");
    let all = lines_of(&missing);
    let other_lines_of_held_ids = (1..=LAST).filter(|id| all.iter().all(|e| e.id.0 != *id)).map(set);
    let mut found: Vec<_> = all.iter().step_by(2).cloned().chain(other_lines_of_held_ids).collect();
    found.sort_by_key(|entry| entry.id);
    refill(&mut opened, &found).expect("refilled");
    let left = lines_of(&opened.recovered.undeclared());
    assert_eq!(left, all.iter().skip(1).step_by(2).cloned().collect::<Vec<_>>());
    assert_eq!(opened.recovered.undeclared(), reopen(&storage).expect("reopen").recovered.report.missing);
    refill(&mut opened, &left).expect("refilled");
    assert_whole(&opened, "in two goes");
}

#[test]
fn a_crash_anywhere_in_a_refill_leaves_the_holes_or_fills_them() {
    let (holed, missing) = holed();
    let found = lines_of(&missing);
    let operation = Operation {
        name: "refill",
        begin: &|| {
            let storage = holed.after_kill();
            let opened = reopen(&storage).expect("reopen");
            storage.write_back();
            (storage, opened)
        },
        act: &|mut opened: Opened<MemoryStorage>, _: &MemoryStorage| refill(&mut opened, &found).is_ok(),
        check: &|disk: &MemoryStorage, is_done: &bool, what: &str| {
            let mut after = reopen(disk).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(!after.recovered.report.is_damaged(), "{what}: {:?}", after.recovered.report);
            let still_missing = after.recovered.undeclared();
            assert!(still_missing.is_empty() || (still_missing == missing && !is_done), "{what}: {still_missing:?}");
            refill(&mut after, &lines_of(&still_missing)).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_whole(&after, what);
        },
    };
    let tried = operation.crash_everywhere();
    tried.assert_at_least(at_least(25, 20, 850, 10), "refill");
}

/// What a start says that had to put damage right.
fn mended(opened: &Opened<MemoryStorage>) -> impl PartialEq + std::fmt::Debug + use<> {
    let Recovered { hard, state, tail, gaps, .. } = &opened.recovered;
    let log = opened.reader.read_from(opened.reader.horizon().next(), usize::MAX).expect("readable");
    let quarantine = hard.quarantine.as_ref().map(|quarantine| (quarantine.until, quarantine.may_vote));
    (state.applied(), state.digest(), tail.clone(), gaps.clone(), log, quarantine)
}

#[test]
fn a_crash_anywhere_in_putting_damage_right_keeps_the_same_and_misses_the_same() {
    for voters in [&[1][..], &[1, 2, 3]] {
        for file in ["wal.log.segment.1", "wal.log.segment.7"] {
            let storage = volume(voters, LAST, LAST);
            storage.write_back();
            storage.tamper(file, |contents| contents[10] ^= 1);
            let expected = mended(&reopen(&storage.after_kill()).expect("reopen"));
            let operation = Operation {
                name: &format!("mending {file} of {} voters", voters.len()),
                begin: &|| (storage.after_kill(), ()),
                act: &|(), storage: &MemoryStorage| drop(reopen(storage)),
                check: &|disk: &MemoryStorage, (): &(), what: &str| {
                    let after = reopen(disk).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert!(mended(&after) == expected, "{what}: {:?}, not {expected:?}", mended(&after));
                    let again =
                        reopen(&disk.after_power_loss(Survives::Nothing)).unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert!(!again.recovered.report.is_damaged(), "{what}, again: {:?}", again.recovered.report);
                    assert!(mended(&again) == expected, "{what}, again: {:?}", mended(&again));
                    assert!(
                        disk.names().iter().any(|name| name.starts_with("quarantine/")),
                        "{what}: {:?}",
                        disk.names()
                    );
                },
            };
            let tried = operation.crash_everywhere();
            tried.assert_at_least(at_least(20, 18, 300, 9), operation.name);
        }
    }
}

#[test]
fn without_room_the_holes_stay_and_the_log_goes_on() {
    let (storage, missing) = holed();
    let mut opened = reopen(&storage).expect("reopen");
    storage.set_capacity_bytes(Some(10));
    let error = refill(&mut opened, &lines_of(&missing)).expect_err("no room");
    assert!(matches!(error, WalError::Full), "{error}");
    storage.set_capacity_bytes(None);
    opened.wal.append(&[set(LAST + 1)], EntryId(0)).expect("goes on");
    let mut again = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!(again.recovered.undeclared(), missing);
    refill(&mut again, &lines_of(&missing)).expect("refilled");
    assert_eq!(again.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=LAST + 1));
}
