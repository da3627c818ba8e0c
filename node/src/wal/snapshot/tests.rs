//! Round trips: what is sent, received and recovered is the state that was asked for; and of what
//! cannot be used nothing is left.

use std::sync::Arc;

use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::{Configuration, Settings};
use proptest::prelude::*;

use super::*;
use crate::wal::recovery::open;
use crate::wal::recovery::tests::{member, new_volume};
use crate::wal::restore::{self, NewMember, RestoreError, RestoreOptions};
use crate::wal::storage::{FileStorage, Storage};
use crate::wal::test_log::{Log, delete, entries, random_entries, recover_staged, set, settings, step};
use crate::wal::{Manifest, StagedSnapshot};

fn stream(log: &Log) -> Vec<u8> {
    let applied = log.state.applied();
    let source = log.reader.snapshot(&|| applied).expect("initialised");
    source.map(|chunk| chunk.expect("readable")).collect::<Vec<_>>().concat()
}

fn receiver(dir: &std::path::Path) -> SnapshotReceiver<FileStorage> {
    let storage = FileStorage::open(dir).expect("storage");
    SnapshotReceiver::new(Arc::new(storage), 1, 300)
}

fn received(dir: &std::path::Path, bytes: &[u8], chunk_bytes: usize) -> Result<StagedSnapshot, ReceiveError> {
    let mut receiver = receiver(dir);
    bytes.chunks(chunk_bytes).try_for_each(|chunk| receiver.feed(chunk))?;
    Ok(receiver.finish()?.staged)
}

fn files_in(dir: &std::path::Path) -> Vec<String> {
    FileStorage::open_read_only(dir).map(|s| s.list("").expect("readable")).unwrap_or_default()
}

/// A compacted log with every section in it.
fn compacted_log() -> Log {
    let bodies = vec![set("a", "1", 1), set("b", "1", 1), set("a", "2", 2), delete("b"), set("c", "\"é\"", 1)];
    let mut log = Log::new(entries(bodies), &[3], Settings::default(), 0);
    let compacted = log.compact().expect("readable").expect("sealed");
    log.swap(&compacted);
    log
}

#[test]
fn an_empty_group_has_a_snapshot_too() {
    let log = Log::new(Vec::new(), &[], Settings::default(), 0);
    let dir = tempfile::tempdir().expect("temporary directory");
    let staged = received(dir.path(), &stream(&log), 10).expect("whole");
    assert_eq!((staged.position.id, staged.files.len()), (EntryId(0), 0));
}

#[test]
fn a_received_snapshot_recovers_to_the_state_it_was_taken_at() {
    let log = compacted_log();
    let dir = tempfile::tempdir().expect("temporary directory");
    let staged = received(dir.path(), &stream(&log), 7).expect("whole");
    assert_eq!(staged.position.id, EntryId(5));
    let storage = Arc::new(FileStorage::open_read_only(dir.path()).expect("there"));
    assert_eq!(recover_staged(&storage, &staged).digest(), log.replayed(Settings::default(), EntryId(5)).digest());
}

#[test]
fn of_a_snapshot_that_is_cut_or_damaged_nothing_is_left() {
    let good = stream(&compacted_log());
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut damaged = good.clone();
    let at = good.len() - 40;
    damaged[at] ^= 1;
    for bad in [&good[..good.len() - 1], &good[..good.len() / 2], b"garbage\n", &damaged] {
        assert!(received(dir.path(), bad, 64).is_err());
        assert_eq!(files_in(dir.path()), [""; 0]);
    }
    // A full disk or a peer that hangs up: the receiver is only dropped.
    let mut receiver = receiver(dir.path());
    receiver.feed(&good[..good.len() / 2]).expect("good so far");
    drop(receiver);
    assert_eq!(files_in(dir.path()), [""; 0]);
}

#[test]
fn a_damaged_line_is_not_sent_on() {
    let log = compacted_log();
    let file = &log.reader.table().log[0];
    file.damage(file.bytes() - 5);
    let source = log.reader.snapshot(&|| EntryId(4)).expect("the line of id 4 is intact");
    assert!(source.last().is_some_and(|chunk| chunk.is_ok()), "a snapshot up to 4 does not need line 5");
    assert!(matches!(log.reader.snapshot(&|| EntryId(5)), Err(SnapshotUnavailable::Read(_))));
}

fn restore_options(dir: &std::path::Path, bytes: &[u8]) -> RestoreOptions {
    let snapshot = dir.join("backup.kv");
    std::fs::write(&snapshot, bytes).expect("written");
    let member = NewMember {
        name: kv_core::group::NodeName::new("leader").expect("name"),
        peer_url: "http://127.0.0.1:9000".into(),
    };
    RestoreOptions { snapshot, data_dir: dir.join("to"), member }
}

#[test]
fn restore_makes_a_group_of_one_with_ids_of_its_own() {
    let log = compacted_log();
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = restore_options(dir.path(), &stream(&log));
    let report = restore::run(&options).expect("restored");
    assert_eq!((report.lines, report.last_id, report.from_cluster_id.as_str()), (5, 5, "c"));
    let storage = FileStorage::open_read_only(&options.data_dir).expect("there");
    let manifest = Manifest::load(&storage).expect("readable").expect("there");
    assert_eq!(manifest.configuration.id, EntryId(5), "older CONFIG entries are another group's");
    assert_eq!(manifest.configuration, manifest.base.configuration);
    assert_eq!(manifest.hard.cluster_id.map(|id| id.to_string()), Some(report.cluster_id));
    assert_eq!(manifest.active.first, EntryId(6));
    let again = restore::run(&options).expect_err("not empty").to_string();
    assert!(again.contains("is not empty"), "{again}");
}

#[test]
fn a_node_goes_on_from_what_was_restored() {
    let log = compacted_log();
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = restore_options(dir.path(), &stream(&log));
    restore::run(&options).expect("restored");
    assert!(!crate::wal::verify::run(&options.data_dir).expect("readable").is_damaged());
    let storage = Arc::new(FileStorage::open(&options.data_dir).expect("storage"));
    let mut opened = open(storage, &crate::wal::Options::default(), &new_volume()).expect("opened");
    assert!(!opened.recovered.report.is_damaged(), "{:?}", opened.recovered.report);
    assert_eq!(opened.recovered.state.digest(), log.replayed(Settings::default(), EntryId(5)).digest());
    assert!(opened.recovered.configurations.is_empty() && opened.recovered.tail.is_empty());
    let next = Entry::encode(EntryId(6), Epoch(2), None, set("a", "3", 3));
    opened.wal.append(std::slice::from_ref(&next), EntryId(5)).expect("appended");
    drop(opened);
    assert_eq!(crate::wal::verify::run(&options.data_dir).expect("readable").last, EntryId(6));
}

#[test]
fn a_configuration_in_a_snapshots_log_is_not_that_of_the_restored_group() {
    let configuration = Configuration::new(vec![member(7), member(8), member(9)]);
    let control = Body::Control(Control::Config(configuration));
    let log = Log::new(entries(vec![set("a", "1", 1), control, set("a", "2", 2)]), &[1], Settings::default(), 0);
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = restore_options(dir.path(), &stream(&log));
    restore::run(&options).expect("restored");
    let storage = Arc::new(FileStorage::open(&options.data_dir).expect("storage"));
    let recovered = open(storage, &crate::wal::Options::default(), &new_volume()).expect("opened").recovered;
    assert!(recovered.configurations.is_empty());
    let voters = recovered.base.configuration.configuration.voters;
    assert_eq!(voters.iter().map(|voter| voter.member_id).collect::<Vec<_>>(), [recovered.hard.member_id]);
    assert_eq!(recovered.state.applied(), EntryId(3));
}

#[test]
fn restore_touches_nothing_when_the_snapshot_is_bad() {
    let good = stream(&compacted_log());
    let dir = tempfile::tempdir().expect("temporary directory");
    let newer = String::from_utf8(good.clone()).expect("UTF-8").replacen("_snapshot\":1", "_snapshot\":2", 1);
    let table: [(&[u8], &str); 5] = [
        (b"", "not a snapshot of kvcluster"),
        (b"{\"id\":1}\n", "not a snapshot of kvcluster"),
        (&good[..good.len() - 20], "it is incomplete"),
        (newer.as_bytes(), "crc is"),
        (&[&good[..], b"x"].concat(), "something follows"),
    ];
    for (bytes, expected) in table {
        let options = restore_options(dir.path(), bytes);
        let error = restore::run(&options).expect_err(expected);
        assert!(matches!(error, RestoreError::Snapshot { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!options.data_dir.exists());
    }
    let mut missing = restore_options(dir.path(), &good);
    missing.snapshot = dir.path().join("absent");
    assert!(matches!(restore::run(&missing), Err(RestoreError::Read { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_of_any_log_recovers_to_its_state(
        steps in proptest::collection::vec(step(), 1..50),
        segments in proptest::collection::vec(1..15_usize, 0..6),
        not_applied in 0..10_usize,
        chunk_bytes in 1..4000_usize,
    ) {
        let initial = settings(2, 3);
        let all = random_entries(&steps, initial);
        let not_applied = not_applied.min(all.len());
        let mut log = Log::new(all, &segments, initial, not_applied);
        log.state.hold();
        for _ in 0..2 {
            let applied = log.state.applied();
            let dir = tempfile::tempdir().expect("temporary directory");
            let staged = received(dir.path(), &stream(&log), chunk_bytes).expect("whole");
            prop_assert_eq!(staged.position.id, applied);
            let storage = Arc::new(FileStorage::open_read_only(dir.path()).expect("there"));
            prop_assert_eq!(recover_staged(&storage, &staged).digest(), log.replayed(initial, applied).digest());
            let Some(compacted) = log.compact().expect("readable") else { break };
            log.swap(&compacted);
        }
    }
}
