//! The power failing while a snapshot becomes a volume.

use super::*;
use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::crash_tests::live::{Snapshot, history, replayed};
use crate::wal::crash_tests::offline::NewVolumeJudge;
use crate::wal::memory::MemoryStorage;

#[test]
fn a_crash_anywhere_in_a_restore_leaves_no_data_directory_or_the_whole_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = RestoreOptions {
        snapshot: dir.path().join("backup.kv"),
        data_dir: dir.path().join("to"),
        member: NewMember {
            name: kv_core::group::NodeName::new("leader").expect("name"),
            peer_url: "http://127.0.0.1:9000".into(),
        },
    };
    std::fs::write(&options.snapshot, Snapshot::of(history(24)).bytes()).expect("written");
    let group = NewGroup::mint(&options.member).expect("random numbers");
    let judge = NewVolumeJudge::new(&group, replayed(&history(24)).digest());
    let operation = Operation {
        name: "restore",
        begin: &|| Default::default(),
        act: &|(), storage: &MemoryStorage| write_volume(&options, &group, &Arc::new(storage.clone())).is_ok(),
        check: &|disk: &MemoryStorage, is_done: &bool, what: &str| judge.check(disk, *is_done, what),
    };
    operation.crash_everywhere().assert_at_least(at_least(23, 19, 700, 8), "restore");
}
