//! The power fails at every single call of every operation, and again during the recovery from it:
//! what was acknowledged is there, nothing else than what was asked for is, and nothing is called
//! damaged.

use std::sync::Arc;

use kv_core::contract::HardState;
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, LogPosition};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt};

use super::memory::{MemoryStorage, Survives};
use super::recovery::tests::{found, member, new_volume, options, reopen, set, sets};
use super::recovery::{Opened, open};
use super::segment::SegmentWriter;
use super::storage::Storage;
use super::table::StagedSnapshot;
use super::{CompactedBase, FileKind, Wal, WalError};
use crate::compactor::CompactionOutcome;

const SURVIVALS: [Survives; 4] = [Survives::Nothing, Survives::Everything, Survives::Some(1), Survives::Some(2)];

enum Op {
    Append(Vec<Entry>, u64),
    Truncate(u64),
    State,
    Recover,
    /// Compact up to the end of the sealed segment that has this id.
    Compact(u64),
    /// A snapshot at this id of a log without a base.
    Install(u64),
}

fn in_epoch(epoch: u64, ids: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    ids.map(|id| Entry::encode(EntryId(id), Epoch(epoch), None, set(id).body)).collect()
}

fn config(id: u64, voters: &[u64]) -> Entry {
    let configuration = Configuration::new(voters.iter().map(|id| member(*id)).collect());
    Entry::encode(EntryId(id), Epoch(1), Some(1), Body::Control(Control::Config(configuration)))
}

type Log = Vec<Entry>;

/// The log that an operation makes of `before`.
fn after(op: &Op, before: &Log) -> Log {
    let mut log = before.clone();
    match op {
        Op::Append(entries, _) => log.extend(entries.iter().cloned()),
        Op::Truncate(keep) => log.retain(|e| e.id.0 <= *keep),
        Op::State | Op::Recover | Op::Compact(_) => {}
        Op::Install(id) => log = in_epoch(9, 1..=*id),
    }
    log
}

fn carry_out(wal: &mut Wal<MemoryStorage>, hard: &HardState, op: &Op) -> Result<(), WalError> {
    match op {
        Op::Append(entries, committed) => wal.append(entries, EntryId(*committed)),
        Op::Truncate(keep) => wal.truncate(EntryId(*keep)),
        Op::State => wal.save_state(hard.clone()),
        Op::Recover => {
            let configuration = ConfigurationAt { id: wal.last(), ..ConfigurationAt::default() };
            wal.recover(HardState { cluster_id: ClusterId::new("other").ok(), ..hard.clone() }, configuration)
        }
        Op::Compact(id) => {
            let compacted = compact(wal, *id)?;
            wal.swap_compacted(compacted)
        }
        Op::Install(id) => {
            stage(wal, *id)?;
            let position = LogPosition { epoch: Epoch(9), id: EntryId(*id) };
            wal.install(hard.clone(), position).map(drop)
        }
    }
}

fn in_test(error: std::io::Error) -> WalError {
    WalError::Io { file: "a test's file".to_owned(), error }
}

/// The latest line of each key to a live file, the others to a history file.
pub(super) fn compact(wal: &Wal<MemoryStorage>, up_to: u64) -> Result<CompactedBase, WalError> {
    let reader = wal.reader();
    let table = reader.table();
    let last = table.log.iter().find(|f| f.last().0 >= up_to).expect("a sealed segment").last();
    let number = table.log.iter().find(|f| f.last() == last).expect("found before").number;
    let entries: Vec<_> = sets(1..=last.0);
    let generation = reader.next_generation();
    let storage = &**reader.storage();
    let is_live = |e: &&Entry| !entries.iter().any(|later| later.id > e.id && later.key() == e.key());
    let write = |kind, keep: &dyn Fn(&&Entry) -> bool| {
        let mut writer = SegmentWriter::create(storage, kind, number, generation)?;
        for entry in entries.iter().filter(keep) {
            writer.push(entry.id, &entry.line)?;
        }
        writer.finish()
    };
    let live = write(FileKind::Live, &is_live).map_err(in_test)?;
    let history = write(FileKind::History, &|e| !is_live(e)).map_err(in_test)?;
    storage.sync_dir("").map_err(in_test)?;
    let mut base = table.meta.clone();
    base.horizon = LogPosition { epoch: Epoch(1), id: last };
    Ok(CompactedBase {
        files: vec![live, history],
        base,
        applied: last,
        generation,
        lineage: table.lineage,
        outcome: CompactionOutcome::default(),
    })
}

fn stage(wal: &Wal<MemoryStorage>, id: u64) -> Result<(), WalError> {
    let reader = wal.reader();
    let generation = reader.next_generation();
    let storage = &**reader.storage();
    let mut writer = SegmentWriter::create(storage, FileKind::Log, 1, generation).map_err(in_test)?;
    for entry in in_epoch(9, 1..=id) {
        writer.push(entry.id, &entry.line).map_err(in_test)?;
    }
    let files = vec![writer.finish().map_err(in_test)?];
    storage.sync_dir("").map_err(in_test)?;
    let base =
        kv_core::contract::Base { configuration: reader.table().meta.configuration.clone(), ..Default::default() };
    let position = LogPosition { epoch: Epoch(9), id: EntryId(id) };
    let cluster_id = ClusterId::new("c").expect("test name");
    reader.offer(StagedSnapshot { position, cluster_id, base, files, gaps: Vec::new(), generation });
    Ok(())
}

#[test]
fn a_snapshot_that_waits_outlives_a_compaction_and_goes_with_a_later_one() {
    let storage = MemoryStorage::default();
    let mut opened = reopen(&storage).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1, 2, 3]).expect("found");
    opened.wal.append(&sets(1..=20), EntryId(20)).expect("appended");
    let staged = || storage.names().into_iter().filter(|name| name.contains(".gen")).count();
    stage(&opened.wal, 25).expect("staged");
    stage(&opened.wal, 30).expect("staged");
    assert_eq!(staged(), 1, "an older one is removed");
    let compacted = compact(&opened.wal, 5).expect("compacted");
    opened.wal.swap_compacted(compacted).expect("swapped");
    let hard = HardState { cluster_id: ClusterId::new("c").ok(), ..opened.recovered.hard.clone() };
    let position = LogPosition { epoch: Epoch(9), id: EntryId(30) };
    let installed = opened.wal.install(hard, position).expect("installed");
    assert_eq!((installed.hard.committed, staged()), (EntryId(30), 0));
}

#[test]
fn a_snapshot_that_nobody_installs_leaves_nothing_behind() {
    let storage = MemoryStorage::default();
    let Opened { mut wal, reader, recovered } = reopen(&storage).expect("new volume");
    found(&mut wal, &recovered.hard, &[1]).expect("found");
    let before = storage.names();
    stage(&wal, 5).expect("staged");
    assert!(storage.names().len() > before.len());
    reader.withdraw();
    assert_eq!(storage.names(), before);
    let refused = wal.install(recovered.hard, LogPosition { epoch: Epoch(9), id: EntryId(5) });
    assert!(matches!(refused, Err(WalError::Rule(_))), "{refused:?}");
}

/// The whole log as a reader sees it, or the state when the log has a base.
fn contents(opened: &Opened<MemoryStorage>) -> Log {
    let horizon = opened.reader.table().horizon().id;
    let mut log = sets(1..=horizon.0);
    for entry in &log {
        assert_eq!(opened.reader.read_entry(entry.id).expect("readable").as_ref(), Some(entry), "in the base");
    }
    log.extend(opened.reader.read_from(horizon.next(), usize::MAX).expect("readable"));
    let keyspace = opened.recovered.state.keyspace();
    let applied = &log[..usize::try_from(keyspace.applied().0).expect("small")];
    for (key, entry) in applied.iter().filter_map(|e| Some((e.key()?, e))) {
        let current = keyspace.get(key.as_str()).found.expect("every key has a value");
        assert!(current.id >= entry.id, "an older value than entry {}", entry.id);
    }
    let tail_last = opened.recovered.tail.last().map_or(keyspace.applied(), |e| e.id);
    assert_eq!(Some(tail_last), log.last().map(|e| e.id).or(Some(EntryId(0))), "applied and tail make up the log");
    log
}

fn is_allowed(got: &Log, before: &Log, op: Option<&Op>) -> bool {
    let wanted = op.map_or_else(|| before.clone(), |op| after(op, before));
    let is_append = matches!(op, Some(Op::Append(..)));
    *got == *before || *got == wanted || (is_append && got.starts_with(before) && wanted.starts_with(got))
}

/// Runs the operations until the power fails; returns the log before the one that failed, and its index.
fn run(storage: &MemoryStorage, voters: &[u64], ops: &[Op]) -> (Log, Option<usize>) {
    let Ok(Opened { mut wal, recovered, .. }) = reopen(storage) else { return (Log::new(), Some(0)) };
    if found(&mut wal, &recovered.hard, voters).is_err() {
        return (Log::new(), Some(0));
    }
    let mut log = Log::new();
    let hard = HardState { cluster_id: ClusterId::new("c").ok(), ..recovered.hard };
    for (index, op) in ops.iter().enumerate() {
        if carry_out(&mut wal, &hard, op).is_err() {
            return (log, Some(index));
        }
        log = after(op, &log);
    }
    (log, None)
}

/// An append's prefix is allowed before the volume was even founded.
fn check(found_on_disk: &MemoryStorage, before: &Log, op: Option<&Op>, what: &str) -> Opened<MemoryStorage> {
    let opened = reopen(found_on_disk).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(!opened.recovered.report.is_damaged(), "{what}: {:?}", opened.recovered.report);
    let got = contents(&opened);
    assert!(is_allowed(&got, before, op), "{what}: before {before:?}, got {got:?}");
    opened
}

fn crash_everywhere(voters: &[u64], ops: &[Op]) {
    let dry = MemoryStorage::default();
    let (_, stopped_at) = run(&dry, voters, ops);
    assert_eq!(stopped_at, None, "without a crash all operations succeed");
    for call in 0..dry.calls() {
        let storage = MemoryStorage::default();
        storage.power_fails_at(call);
        let (before, stopped_at) = run(&storage, voters, ops);
        let op = stopped_at.map(|index| &ops[index]);
        for survives in SURVIVALS {
            let what = format!("call {call}, operation {stopped_at:?}, {survives:?}");
            let survives = if let Survives::Some(seed) = survives { Survives::Some(seed + 2 * call) } else { survives };
            let found_on_disk = storage.after_power_loss(survives);
            if survives == Survives::Everything {
                recover_again_and_again(&found_on_disk, &before, op, &what);
            }
            let mut opened = check(&found_on_disk, &before, op, &what);
            go_on(&mut opened, &what);
        }
    }
}

/// The power fails during recovery, too, at each of its calls.
fn recover_again_and_again(found_on_disk: &MemoryStorage, before: &Log, op: Option<&Op>, what: &str) {
    for call in 0.. {
        let storage = found_on_disk.after_power_loss(Survives::Everything);
        storage.power_fails_at(call);
        if open(Arc::new(storage.clone()), &options(), &new_volume()).is_ok() {
            return;
        }
        for survives in [Survives::Nothing, Survives::Some(call)] {
            let what = format!("{what}, then call {call} of recovery, {survives:?}");
            check(&storage.after_power_loss(survives), before, op, &what);
        }
    }
}

/// What was recovered can be written on, and that survives, too.
fn go_on(opened: &mut Opened<MemoryStorage>, what: &str) {
    let log = contents(opened);
    let next = opened.wal.last().0 + 1;
    let more = in_epoch(10, next..=next + 3);
    opened.wal.append(&more, EntryId(0)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let storage = opened.reader.storage().after_power_loss(Survives::Nothing);
    check(&storage, &[log, more].concat(), None, what);
}

#[test]
fn a_crash_anywhere_in_appending_and_rolling_loses_nothing() {
    let ops = [
        Op::Append(sets(1..=2), 0),
        Op::Append(sets(3..=9), 2),
        Op::State,
        Op::Append([sets(10..=10), vec![config(11, &[1, 2, 3])]].concat(), 9),
    ];
    crash_everywhere(&[1, 2, 3], &ops);
    let ops = [Op::Append(sets(1..=5), 0), Op::Append(sets(6..=6), 5), Op::Recover, Op::Append(sets(7..=8), 5)];
    crash_everywhere(&[1], &ops);
}

#[test]
fn a_crash_anywhere_in_cutting_the_tail_leaves_all_or_cuts_all() {
    let ops = [
        Op::Append(sets(1..=9), 2),
        Op::Truncate(4),
        Op::Append(in_epoch(2, 5..=8), 4),
        Op::Truncate(7),
        Op::Append(in_epoch(3, 8..=8), 4),
        Op::Truncate(4),
    ];
    crash_everywhere(&[1, 2, 3], &ops);
}

#[test]
fn a_crash_anywhere_in_a_compaction_leaves_the_old_files_or_the_new_ones() {
    let ops = [
        Op::Append(sets(1..=9), 9),
        Op::Compact(4),
        Op::Append(sets(10..=14), 14),
        Op::Compact(9),
        Op::Append(sets(15..=15), 15),
    ];
    crash_everywhere(&[1], &ops);
    crash_everywhere(&[1, 2, 3], &ops);
}

#[test]
fn a_crash_anywhere_in_an_install_leaves_the_old_log_or_the_snapshot() {
    let ops = [Op::Append(sets(1..=9), 2), Op::Install(6), Op::Append(in_epoch(9, 7..=9), 6)];
    crash_everywhere(&[1, 2, 3], &ops);
}

#[test]
fn running_out_of_room_anywhere_changes_nothing_and_is_over_with_the_shortage() {
    let ops = [
        Op::Append(sets(1..=9), 9),
        Op::State,
        Op::Compact(4),
        Op::Append(sets(10..=14), 14),
        Op::Append(vec![config(15, &[1, 2])], 14),
        Op::Truncate(14),
        Op::Append(in_epoch(2, 15..=16), 14),
    ];
    for capacity in (0..9_000).step_by(149) {
        let storage = MemoryStorage::default();
        let Opened { mut wal, recovered, .. } = reopen(&storage).expect("new volume");
        found(&mut wal, &recovered.hard, &[1]).expect("found");
        let hard = HardState { cluster_id: ClusterId::new("c").ok(), ..recovered.hard };
        let mut log = Log::new();
        storage.set_capacity_bytes(Some(capacity));
        for (index, op) in ops.iter().enumerate() {
            if let Err(error) = carry_out(&mut wal, &hard, op) {
                let what = format!("capacity {capacity}, operation {index}: {error}");
                assert!(matches!(error, WalError::Full | WalError::Io { .. }), "{what}");
                storage.set_capacity_bytes(None);
                check(&storage.after_power_loss(Survives::Some(capacity)), &log, Some(op), &what);
                carry_out(&mut wal, &hard, op).unwrap_or_else(|e| panic!("{what}, then {e}"));
                storage.set_capacity_bytes(Some(capacity));
            }
            log = after(op, &log);
        }
        storage.set_capacity_bytes(None);
        check(&storage.after_power_loss(Survives::Nothing), &log, None, "at the end");
    }
}
