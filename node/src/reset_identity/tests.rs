//! The power failing while a directory becomes a new member.

use std::collections::BTreeSet;

use super::*;
use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::memory::MemoryStorage;
use crate::wal::recovery::tests::{new_volume, reopen, volume};
use crate::wal::{Recovered, WalError};

const NEW: MemberId = MemberId(99);
const LAST: u64 = 20;

/// Contents of all files that hold lines, wherever they are.
fn held(storage: &MemoryStorage) -> BTreeSet<Vec<u8>> {
    let names = storage.names().into_iter().filter(|name| name.contains("wal.log"));
    let all = names.filter_map(|name| storage.contents(&name));
    all.filter(|contents| !contents.is_empty()).collect()
}

/// The old member whole, a directory that is refused, or a new and empty one; never a part of the old
/// one under either name, and no line of the old one is gone.
fn check(disk: &MemoryStorage, before: &BTreeSet<Vec<u8>>, is_done: bool, what: &str) {
    assert!(held(disk).is_superset(before), "{what}: {:?}", disk.names());
    let started = disk.after_kill();
    match reopen(&started) {
        Err(WalError::Foreign(_)) if !is_done => {
            let name = new_volume().name;
            reset(Arc::new(disk.clone()), Some(name), NEW).unwrap_or_else(|e| panic!("{what}, once more: {e}"));
            check(disk, before, true, &format!("{what}, once more"));
        }
        Err(error) => panic!("{what}: {error}"),
        Ok(opened) => {
            let Recovered { hard, report, state, .. } = opened.recovered;
            assert!(!report.is_damaged() && hard.quarantine.is_none(), "{what}: {report:?}");
            let is_old = hard.cluster_id.is_some();
            assert!(!(is_old && is_done), "{what}: still the old one");
            assert_eq!(state.applied().0, if is_old { LAST } else { 0 }, "{what}");
            assert!(!is_done || hard.member_id == NEW, "{what}: {}", hard.member_id);
            assert!(held(&started).is_superset(before), "{what}: {:?}", started.names());
        }
    }
}

#[test]
fn a_crash_anywhere_in_a_reset_leaves_the_old_member_or_none_or_the_new_one() {
    let old = volume(&[1], LAST, LAST);
    let before = held(&old);
    let operation = Operation {
        name: "reset-identity",
        begin: &|| {
            let storage = old.after_kill();
            storage.write_back();
            (storage, ())
        },
        act: &|(), storage: &MemoryStorage| reset(Arc::new(storage.clone()), None, NEW).is_ok(),
        check: &|disk: &MemoryStorage, is_done: &bool, what: &str| check(disk, &before, *is_done, what),
    };
    let tried = operation.crash_everywhere();
    tried.assert_at_least(at_least(32, 28, 800, 12), "reset-identity");
}
