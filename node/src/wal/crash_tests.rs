//! The power fails at every single call of every operation on an open log, and leaves every disk that is
//! possible; it fails again during the recovery from that; and every sync fails once. What was
//! acknowledged is there, nothing else than what was asked for is, and nothing is called damaged.
//! Refill, import, restore and `reset-identity` are tried by the same enumerator, beside their code.

pub(crate) mod enumerator;
pub(super) mod live;
pub(super) mod offline;

use std::collections::BTreeSet;

use kv_core::entry::Entry;

use super::memory::{MemoryStorage, Survives};
use super::recovery::tests::reopen;
use enumerator::{Operation, Tried, at_least};
use live::{Live, Snapshot, Step, Told, config, history, of_epoch};

/// Disks tried for one call of a recovery; there are many crashes to recover from.
const RECOVERY_DISKS_MAX: usize = 6;
/// More than there are.
const NEW_VOLUME_DISKS_MAX: usize = 1000;

/// An operation, and the log that it is carried out on.
struct Row {
    name: &'static str,
    given: Vec<Step>,
    then: Vec<Step>,
    at_least: Tried,
}

const ALONE: &[u64] = &[1];
const GROUP: &[u64] = &[1, 2, 3];

fn part(from: usize, to: usize) -> Vec<Entry> {
    history(30)[from - 1..to].to_vec()
}

/// Appends the entries with these ids of the common history, the last of them committed.
fn append(from: usize, to: usize) -> Step {
    Step::Append(part(from, to), to as u64)
}

/// A group whose last eleven entries are not committed.
fn uncommitted_tail() -> Vec<Step> {
    vec![Step::Found(GROUP), append(1, 4), Step::Append(part(5, 15), 4)]
}

fn appending() -> Vec<Row> {
    let given = || vec![Step::Found(GROUP), append(1, 3)];
    vec![
        Row {
            name: "append",
            given: given(),
            then: vec![Step::Append(part(4, 4), 3)],
            at_least: at_least(4, 4, 12, 1),
        },
        Row {
            name: "append and roll",
            given: given(),
            then: vec![Step::Append(part(4, 8), 4)],
            at_least: at_least(20, 16, 500, 8),
        },
        Row {
            name: "append of a configuration",
            given: given(),
            then: vec![
                Step::Append(vec![config(4, 2, GROUP), config(5, 2, ALONE)], 3),
                Step::Append(of_epoch(2, 6..=6), 5),
            ],
            at_least: at_least(25, 20, 800, 10),
        },
    ]
}

fn state() -> Vec<Row> {
    vec![
        Row { name: "found", given: vec![], then: vec![Step::Found(GROUP)], at_least: at_least(6, 4, 240, 2) },
        Row {
            name: "promise",
            given: uncommitted_tail(),
            then: vec![Step::Promise(7), Step::Promise(8)],
            at_least: at_least(11, 6, 480, 4),
        },
        Row {
            name: "recover by hand",
            given: uncommitted_tail(),
            then: vec![Step::RecoverByHand, Step::Append(of_epoch(9, 16..=16), 15)],
            at_least: at_least(9, 6, 250, 3),
        },
    ]
}

fn truncating() -> Vec<Row> {
    vec![
        Row {
            name: "truncate within the active segment",
            given: uncommitted_tail(),
            then: vec![Step::Truncate(14)],
            at_least: at_least(16, 14, 300, 6),
        },
        Row {
            name: "truncate across segments",
            given: uncommitted_tail(),
            then: vec![Step::Truncate(6), Step::Append(of_epoch(9, 7..=8), 4)],
            at_least: at_least(32, 24, 1250, 10),
        },
    ]
}

fn compacting() -> Vec<Row> {
    vec![
        Row {
            name: "compact",
            given: vec![Step::Found(ALONE), append(1, 12)],
            then: vec![Step::Compact],
            at_least: at_least(19, 17, 500, 5),
        },
        Row {
            name: "compact again",
            given: vec![Step::Found(GROUP), append(1, 12), Step::Compact, append(13, 24)],
            then: vec![Step::Compact, append(25, 26)],
            at_least: at_least(34, 26, 1350, 10),
        },
    ]
}

fn installing() -> Vec<Row> {
    let given = || vec![Step::Found(GROUP), append(1, 9), Step::Compact, Step::Append(part(10, 15), 9)];
    let received = || Step::Receive(Snapshot::of(history(24)));
    vec![
        Row { name: "receive a snapshot", given: given(), then: vec![received()], at_least: at_least(12, 10, 400, 4) },
        Row {
            name: "install a snapshot",
            given: [given(), vec![received()]].concat(),
            then: vec![Step::Install, Step::Append(of_epoch(9, 25..=25), 24)],
            at_least: at_least(32, 24, 1300, 9),
        },
    ]
}

impl Row {
    fn act(&self, mut live: Live) -> Told {
        let _stopped_at = self.then.iter().find(|step| live.take(step).is_err());
        live.told()
    }

    fn crash_everywhere(&self) -> Tried {
        let operation = Operation {
            name: self.name,
            begin: &|| Live::after(&self.given),
            act: &|live, _: &MemoryStorage| self.act(live),
            check: &|disk: &MemoryStorage, told: &Told, what: &str| told.check(disk, what),
        };
        operation.crash_everywhere()
    }

    /// The power fails at each call of the recovery from each end of the operation: from a crash of which everything survived
    /// that can, so that most is left to put right; and from the process being killed, so that what the recovery reads is
    /// not on the disk.
    fn crash_while_recovering(&self) -> Tried {
        let (dry, live) = Live::after(&self.given);
        let first = dry.calls();
        let _told = self.act(live);
        let mut tried = Tried::default();
        for call in first..dry.calls() {
            let (storage, live) = Live::after(&self.given);
            storage.power_fails_at(call);
            let told = self.act(live);
            let name = |end: &str| format!("recovery from {}, {end} at call {}", self.name, call - first);
            let crashed = storage.after_power_loss(Survives::Everything);
            tried += crash_while_opening(&name("crashed"), &crashed, RECOVERY_DISKS_MAX, &told);
            tried += crash_while_opening(&name("killed"), &storage.after_kill(), RECOVERY_DISKS_MAX, &told);
        }
        tried
    }
}

fn crash_while_opening(name: &str, found: &MemoryStorage, disks_max: usize, told: &Told) -> Tried {
    let operation = Operation {
        name,
        begin: &|| (found.after_kill(), ()),
        act: &|(), storage: &MemoryStorage| drop(reopen(storage)),
        check: &|disk: &MemoryStorage, (): &(), what: &str| told.check(disk, what),
    };
    operation.crash_with(disks_max)
}

fn crash_everywhere(rows: &[Row]) {
    for row in rows {
        row.crash_everywhere().assert_at_least(row.at_least, row.name);
    }
}

#[test]
fn a_crash_anywhere_in_appending_and_rolling_loses_nothing() {
    crash_everywhere(&appending());
}

#[test]
fn a_crash_anywhere_in_changing_the_members_own_state_leaves_the_old_one_or_the_new_one() {
    crash_everywhere(&state());
}

#[test]
fn a_crash_anywhere_in_cutting_the_tail_leaves_all_or_cuts_all() {
    crash_everywhere(&truncating());
}

#[test]
fn a_crash_anywhere_in_a_compaction_changes_no_state() {
    crash_everywhere(&compacting());
}

#[test]
fn a_crash_anywhere_in_an_install_leaves_the_old_log_or_the_snapshot() {
    crash_everywhere(&installing());
}

#[test]
fn a_crash_anywhere_in_making_a_new_volume_leaves_a_new_volume_to_be_made() {
    let (_, live) = Live::after(&[]);
    let tried = crash_while_opening("new volume", &MemoryStorage::default(), NEW_VOLUME_DISKS_MAX, &live.told());
    tried.assert_at_least(at_least(20, 20, 1000, 8), "new volume");
}

#[test]
fn a_crash_anywhere_while_recovering_from_a_crash_changes_nothing_of_what_is_recovered() {
    let mut tried = Tried::default();
    for row in [appending(), state(), truncating(), compacting(), installing()].iter().flatten() {
        tried += row.crash_while_recovering();
    }
    tried.assert_at_least(at_least(7500, 5500, 21000, 3000), "recovery");
}

#[test]
fn a_snapshot_that_waits_outlives_a_compaction_and_goes_with_a_later_one() {
    let (storage, mut live) = Live::after(&[Step::Found(GROUP), append(1, 12)]);
    let generations = || {
        let names = storage.names().into_iter();
        names.filter_map(|name| Some(name.rsplit_once(".gen")?.1.to_owned())).collect::<BTreeSet<_>>()
    };
    live.take(&Step::Receive(Snapshot::of(history(24)))).expect("staged");
    live.take(&Step::Receive(Snapshot::of(history(30)))).expect("staged");
    assert_eq!(generations().len(), 1, "an older one is removed");
    live.take(&Step::Compact).expect("compacted");
    live.take(&Step::Install).expect("installed");
    assert_eq!(generations(), BTreeSet::new());
    live.told().check(&storage, "at the end");
}

#[test]
fn a_snapshot_that_nobody_installs_leaves_nothing_behind() {
    let (storage, mut live) = Live::after(&[Step::Found(ALONE)]);
    let before = storage.names();
    live.take(&Step::Receive(Snapshot::of(history(24)))).expect("staged");
    assert!(storage.names().len() > before.len());
    live.withdraw();
    assert_eq!(storage.names(), before);
    let refused = live.take(&Step::Install).expect_err("nothing waits");
    assert!(refused.contains("waits to be installed"), "{refused}");
}

#[test]
fn running_out_of_room_anywhere_changes_nothing_and_is_over_with_the_shortage() {
    let steps = [
        append(1, 12),
        Step::Promise(7),
        Step::Compact,
        Step::Append(part(13, 20), 14),
        Step::Append(vec![config(21, 3, ALONE)], 14),
        Step::Truncate(16),
        Step::Append(of_epoch(9, 17..=18), 14),
    ];
    for capacity in (0..12_000).step_by(199) {
        let (storage, mut live) = Live::after(&[Step::Found(GROUP)]);
        storage.set_capacity_bytes(Some(capacity));
        for (index, step) in steps.iter().enumerate() {
            if let Err(error) = live.take(step) {
                let what = format!("capacity {capacity}, operation {index}: {error}");
                storage.set_capacity_bytes(None);
                live.told().check(&storage.after_power_loss(Survives::Some(capacity)), &what);
                live.take(step).unwrap_or_else(|e| panic!("{what}, then {e}"));
                storage.set_capacity_bytes(Some(capacity));
            }
        }
        storage.set_capacity_bytes(None);
        live.told().check(&storage.after_power_loss(Survives::Nothing), "at the end");
    }
}
