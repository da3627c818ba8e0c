//! The thread, on a disk that runs out of room and on one that fails.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kv_core::contract::Persist;
use kv_core::entry::EntryId;

use super::{CommitEvent, Committer};
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::tests::{found, options, reopen, sets};
use crate::wal::{Opened, Options, Wal};

const DEADLINE: Duration = Duration::from_secs(20);

fn start(storage: &MemoryStorage) -> (Wal<MemoryStorage>, kv_core::HardState) {
    let Opened { mut wal, recovered, .. } = reopen(storage).expect("new volume");
    found(&mut wal, &recovered.hard, &[1]).expect("found");
    (wal, recovered.hard)
}

fn spawn(wal: Wal<MemoryStorage>) -> (Committer, Receiver<CommitEvent>) {
    let (sender, events) = channel();
    let committer = Committer::spawn(wal, move |event| drop(sender.send(event)));
    (committer, events)
}

fn append(ids: std::ops::RangeInclusive<u64>) -> Persist {
    Persist::Append { committed: EntryId(*ids.end()), entries: sets(ids) }
}

fn next(events: &Receiver<CommitEvent>) -> CommitEvent {
    events.recv_timeout(DEADLINE).expect("an event in time")
}

#[test]
fn everything_submitted_is_reported_durable_in_order() {
    let storage = MemoryStorage::default();
    let (committer, events) = spawn(start(&storage).0);
    for (seq, id) in (1..=50).enumerate() {
        committer.submit(seq as u64 + 1, append(id..=id));
    }
    let mut reported = 0;
    while reported < 50 {
        let CommitEvent::Persisted { seq, .. } = next(&events) else { panic!("something else than durable") };
        assert!(seq > reported);
        reported = seq;
        let durable = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
        assert!(durable.wal.last() >= EntryId(seq));
    }
}

#[test]
fn a_full_disk_is_reported_and_writes_come_back_by_themselves() {
    let storage = MemoryStorage::default();
    let (wal, _) = start(&storage);
    let used: usize = storage.names().iter().filter_map(|name| storage.contents(name)).map(|c| c.len()).sum();
    storage.set_capacity_bytes(Some(used as u64 + 700));
    let (committer, events) = spawn(wal);
    committer.submit(1, append(1..=30));
    assert!(matches!(next(&events), CommitEvent::StorageFull(true)));
    let held = reopen(&storage.after_power_loss(Survives::Nothing));
    assert!(held.is_err() || held.is_ok_and(|opened| !opened.recovered.report.is_damaged()));
    storage.set_capacity_bytes(None);
    assert!(matches!(next(&events), CommitEvent::Persisted { seq: 1, .. }));
    assert!(matches!(next(&events), CommitEvent::StorageFull(false)));
    let after = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!(after.recovered.state.applied(), EntryId(30));
}

#[test]
fn a_volume_that_becomes_read_only_is_full_until_it_can_be_written_again() {
    let storage = MemoryStorage::default();
    let (mut wal, _) = start(&storage);
    wal.append(&sets(1..=3), EntryId(3)).expect("append");
    let reader = wal.reader();
    // Of the second batch a part finds room, and cannot be cut back before the volume is writable again.
    let used: usize = storage.names().iter().filter_map(|name| storage.contents(name)).map(|c| c.len()).sum();
    for (seq, capacity) in [(1, None), (2, Some(used as u64 + 20))] {
        let next_id = 3 + seq;
        storage.set_capacity_bytes(capacity);
        let full = wal.append(&sets(next_id..=next_id), EntryId(next_id));
        assert_eq!(full.is_err(), capacity.is_some(), "{full:?}");
    }
    storage.set_read_only(true);
    storage.set_capacity_bytes(None);
    let (committer, events) = spawn(wal);
    committer.submit(1, append(5..=30));
    assert!(matches!(next(&events), CommitEvent::StorageFull(true)));
    assert_eq!(reader.read_from(EntryId(1), usize::MAX).expect("reads go on"), sets(1..=4));
    assert!(committer.handle().seal_when_short().is_err(), "refused, and nothing is broken by it");
    storage.set_read_only(false);
    assert!(matches!(next(&events), CommitEvent::Persisted { seq: 1, .. }));
    assert!(matches!(next(&events), CommitEvent::StorageFull(false)));
    let after = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!((after.recovered.state.applied(), after.recovered.report.damage_total), (EntryId(30), 0));
}

#[test]
fn with_too_little_room_the_active_segment_can_be_sealed_for_a_compaction() {
    let storage = MemoryStorage::default();
    let (mut wal, _) = start(&storage);
    wal.append(&sets(1..=2), EntryId(2)).expect("append");
    let reader = wal.reader();
    let (committer, events) = spawn(wal);
    let segments = |reader: &crate::wal::LogReader<MemoryStorage>| reader.segments().len();
    committer.handle().seal_when_short().expect("nothing to do");
    assert_eq!(segments(&reader), 1, "there is room");
    reader.set_storage_limit_bytes(Some(1));
    assert!(matches!(next(&events), CommitEvent::StorageFull(true)));
    committer.handle().seal_when_short().expect("sealed");
    committer.handle().seal_when_short().expect("nothing to do");
    assert_eq!(segments(&reader), 2);
    committer.submit(1, append(3..=3));
    assert!(matches!(next(&events), CommitEvent::Persisted { seq: 1, .. }));
    let after = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!(after.recovered.state.applied(), EntryId(3));
}

#[test]
fn a_failed_sync_ends_all_writing() {
    let storage = MemoryStorage::default();
    let (mut wal, hard) = start(&storage);
    wal.append(&sets(1..=3), EntryId(3)).expect("append");
    storage.sync_fails_at(storage.calls());
    assert!(wal.append(&sets(4..=4), EntryId(4)).is_err());
    assert!(wal.append(&sets(4..=4), EntryId(4)).is_err(), "never tried again");
    assert!(wal.save_state(hard).is_err());
    let (committer, events) = spawn(wal);
    committer.submit(1, append(4..=4));
    assert!(matches!(next(&events), CommitEvent::Failed(_)));
    let after = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
    assert_eq!(after.recovered.state.applied(), EntryId(3));
}

#[test]
fn room_below_the_reserve_is_full_for_clients_and_not_for_the_log() {
    let storage = MemoryStorage::default();
    let options = Options { storage_limit_bytes: Some(900), ..options() };
    let new = crate::wal::recovery::tests::new_volume();
    let opened = crate::wal::open(std::sync::Arc::new(storage), &options, &new).expect("new volume");
    let Opened { mut wal, reader, recovered } = opened;
    found(&mut wal, &recovered.hard, &[1]).expect("found");
    wal.append(&sets(1..=20), EntryId(20)).expect("append");
    let (committer, events) = spawn(wal);
    assert!(matches!(next(&events), CommitEvent::StorageFull(true)));
    committer.submit(1, append(21..=21));
    assert!(matches!(next(&events), CommitEvent::Persisted { seq: 1, .. }));
    reader.set_storage_limit_bytes(Some(1 << 20));
    assert!(matches!(next(&events), CommitEvent::StorageFull(false)));
}

#[tokio::test]
async fn closing_finishes_what_is_queued() {
    let storage = MemoryStorage::default();
    let (committer, events) = spawn(start(&storage).0);
    committer.submit(1, append(1..=20));
    let handle = committer.handle();
    committer.close().await;
    assert!(matches!(next(&events), CommitEvent::Persisted { seq: 1, .. }));
    let nothing = crate::wal::CompactedBase {
        files: Vec::new(),
        base: kv_core::contract::Base::default(),
        applied: EntryId(0),
        generation: 0,
        lineage: 0,
        outcome: crate::compactor::CompactionOutcome::default(),
    };
    assert!(handle.swap_compacted(nothing).is_err(), "nobody waits for a closed log");
}
