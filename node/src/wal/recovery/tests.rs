//! Opening damaged and undamaged directories.

use std::sync::Arc;

use kv_core::command::{Key, Precondition, Value};
use kv_core::contract::{Base, HardState, Persist, Quarantine};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, seal_line};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt, MemberId, MemberInfo, NodeName, Settings};

use super::{NewVolume, Opened, Salvage, open};
use crate::wal::compaction::compact;
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::test_log::Applied;
use crate::wal::{Manifest, OnDamage, Options, Storage, StorageFile, Wal, WalError};

pub(crate) const ME: MemberId = MemberId(1);

pub(crate) fn options() -> Options {
    Options { segment_bytes_max: 300, reserve_bytes: 0, ..Options::default() }
}

pub(crate) fn new_volume() -> NewVolume {
    let name = NodeName::new("a").expect("test name");
    NewVolume { name, member_id: ME, settings: Settings::default() }
}

pub(crate) fn set(id: u64) -> Entry {
    let body = Body::Set {
        key: Key::new(&format!("key{}", id % 5)).expect("test key"),
        value: Value::from_json(format!("\"value {id}\"").as_bytes(), 1000).expect("test value"),
        version: id.div_ceil(5),
        precondition: Precondition::default(),
        request: None,
    };
    Entry::encode(EntryId(id), Epoch(1), None, body)
}

pub(crate) fn sets(ids: std::ops::RangeInclusive<u64>) -> Vec<Entry> {
    ids.map(set).collect()
}

pub(crate) fn member(id: u64) -> MemberInfo {
    let name = NodeName::new(&format!("n{id}")).expect("test name");
    MemberInfo { name, member_id: MemberId(id), peer_url: "localhost:1".to_owned() }
}

/// Makes the member one of `voters`.
pub(crate) fn found<S: Storage>(wal: &mut Wal<S>, hard: &HardState, voters: &[u64]) -> Result<(), WalError> {
    let configuration = Configuration::new(voters.iter().map(|id| member(*id)).collect());
    let base = Base { configuration: ConfigurationAt { id: EntryId(0), configuration }, ..Base::default() };
    let cluster_id = ClusterId::new("c").ok();
    wal.found(HardState { cluster_id, ..hard.clone() }, base)
}

pub(crate) fn reopen(storage: &MemoryStorage) -> Result<Opened<MemoryStorage>, WalError> {
    open(Arc::new(storage.clone()), &options(), &new_volume())
}

#[test]
fn what_was_appended_is_there_again() {
    let storage = MemoryStorage::default();
    let mut opened = reopen(&storage).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1]).expect("found");
    opened.wal.append(&sets(1..=7), EntryId(3)).expect("append");
    opened.wal.append(&sets(8..=20), EntryId(20)).expect("append");
    let after = storage.after_power_loss(Survives::Nothing);
    let opened = reopen(&after).expect("reopen");
    assert_eq!(opened.recovered.state.applied(), EntryId(20));
    assert_eq!(opened.recovered.hard.incarnation, 2);
    assert!(!opened.recovered.report.is_damaged());
    assert!(opened.reader.segments().len() > 3);
    assert_eq!(opened.reader.read_from(EntryId(2), 100_000).expect("read"), sets(2..=20));
    assert_eq!(opened.reader.read_entry(EntryId(9)).expect("read"), Some(set(9)));
}

/// A group with these voters and `last` entries, of which `committed` are.
pub(crate) fn volume(voters: &[u64], last: u64, committed: u64) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let mut opened = reopen(&storage).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, voters).expect("found");
    opened.wal.append(&sets(1..=last), EntryId(committed)).expect("append");
    storage
}

/// Everything that is shown was there before, at its place.
fn assert_believed(opened: &Opened<MemoryStorage>, last: u64, what: &str) {
    for id in 1..=last {
        let read = opened.reader.read_entry(EntryId(id)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(read.is_none() || read == Some(set(id)), "{what}: {read:?}");
    }
    let keyspace = opened.recovered.state.keyspace();
    for key in 0..5 {
        if let Some(current) = keyspace.get(&format!("key{key}")).found {
            let Body::Set { value, version, .. } = set(current.id.0).body else { unreachable!("a set") };
            assert_eq!((&*current.value, current.version), (value.as_bytes(), version), "{what}");
        }
    }
    for entry in &opened.recovered.tail {
        assert_eq!(*entry, set(entry.id.0), "{what}");
    }
}

/// Whatever happens to the bytes of one file, the log is refused, or whole, or says what it lacks.
fn tamper_everywhere(voters: &[u64], tamper: impl Fn(&mut Vec<u8>, usize)) {
    let (last, committed) = (9, 7);
    let intact = volume(voters, last, committed);
    let is_alone = voters.len() == 1;
    for name in intact.names() {
        let bytes = intact.contents(&name).expect("listed").len();
        for at in 0..bytes {
            let storage = intact.after_power_loss(Survives::Everything);
            storage.tamper(&name, |contents| tamper(contents, at));
            let is_changed = storage.contents(&name) != intact.contents(&name);
            let what = format!("{name}, byte {at}");
            match reopen(&storage) {
                Err(error) => assert_eq!(name, "manifest.json", "{what}: {error}"),
                Ok(opened) => {
                    assert_believed(&opened, last, &what);
                    let report = &opened.recovered.report;
                    let lost = last - opened.recovered.state.applied().0 - opened.recovered.tail.len() as u64;
                    let is_flagged = report.is_damaged() && (is_alone || opened.recovered.hard.quarantine.is_some());
                    assert!(is_flagged || lost == 0 || report.torn_tail.is_some(), "{what}: {report:?}");
                    assert!(is_flagged || !is_changed || !name.contains("segment"), "{what}: {report:?}");
                    assert_steady(&storage, &opened, &what);
                }
            }
        }
    }
}

/// What was put right stays so.
fn assert_steady(storage: &MemoryStorage, opened: &Opened<MemoryStorage>, what: &str) {
    let again = reopen(&storage.after_power_loss(Survives::Nothing)).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(!again.recovered.report.is_damaged(), "{what}: again: {:?}", again.recovered.report);
    assert_eq!(again.recovered.state.applied(), opened.recovered.state.applied(), "{what}");
    assert_eq!(again.recovered.tail, opened.recovered.tail, "{what}");
    assert_eq!(again.recovered.hard.quarantine, opened.recovered.hard.quarantine, "{what}");
    assert_eq!(again.recovered.state.digest(), opened.recovered.state.digest(), "{what}");
}

#[test]
fn a_flipped_byte_is_found_and_never_believed() {
    tamper_everywhere(&[1], |contents, at| contents[at] ^= 1 << (at % 8));
    tamper_everywhere(&[1, 2, 3], |contents, at| contents[at] ^= 1 << (at % 8));
}

#[test]
fn a_truncated_file_is_found_and_never_believed() {
    tamper_everywhere(&[1], |contents, at| contents.truncate(at));
    tamper_everywhere(&[1, 2, 3], |contents, at| contents.truncate(at));
}

#[test]
fn a_torn_tail_is_saved_aside_and_cut() {
    let storage = volume(&[1, 2, 3], 9, 7);
    let active = active_name(&storage);
    let before = storage.contents(&active).expect("active").len() as u64;
    let torn = [&set(10).line[..20], b"\n", &set(11).line, b"\n"].concat();
    storage.tamper(&active, |contents| contents.extend_from_slice(&torn));
    let opened = reopen(&storage).expect("reopen");
    let report = &opened.recovered.report;
    assert!(!report.is_damaged());
    let tail = report.torn_tail.as_ref().expect("torn");
    assert_eq!((tail.offset, tail.bytes), (before, torn.len() as u64));
    assert_eq!(storage.contents(&tail.saved_as).expect("saved"), torn);
    assert_eq!(opened.wal.last(), EntryId(9));
    assert_eq!(opened.recovered.hard.quarantine, None);
}

fn active_name(storage: &MemoryStorage) -> String {
    let manifest = Manifest::load(storage).expect("readable").expect("there");
    manifest.active.name()
}

#[test]
fn a_member_of_a_group_keeps_the_intact_prefix_and_is_quarantined() {
    let storage = volume(&[1, 2, 3], 20, 20);
    storage.tamper("wal.log.segment.3", |contents| contents[10] ^= 1);
    let opened = reopen(&storage).expect("reopen");
    let report = &opened.recovered.report;
    let first = report.missing[0].first;
    assert_eq!(report.salvage, Salvage::Prefix);
    assert_eq!(opened.recovered.state.applied(), first.prev());
    assert_eq!(report.damage[0].file, "wal.log.segment.3");
    assert_eq!(report.last_line.map(|p| p.id), Some(EntryId(20)));
    let quarantine = opened.recovered.hard.quarantine.as_ref().expect("quarantined");
    assert!(!quarantine.may_vote && quarantine.until.is_none());
    assert!(storage.names().iter().any(|name| name.starts_with("quarantine/wal.log.segment.3.offset.")));
    assert!(storage.names().iter().any(|name| name == "aside/wal.log.segment.4"));
    let mut wal = opened.wal;
    wal.append(&sets(first.0..=20), EntryId(20)).expect("refilled by lines");
    assert_eq!(reopen(&storage).expect("reopen").recovered.state.applied(), EntryId(20));
}

#[test]
fn a_group_of_one_keeps_all_that_is_valid_and_says_what_is_missing() {
    let storage = volume(&[1], 20, 20);
    storage.tamper("wal.log.segment.3", |contents| contents[10] ^= 1);
    let Opened { mut wal, reader, recovered } = reopen(&storage).expect("reopen");
    assert_eq!(recovered.report.salvage, Salvage::Everything);
    let [missing] = recovered.report.missing[..] else { panic!("one range: {:?}", recovered.report) };
    assert_eq!(missing.first, missing.last);
    assert_eq!(recovered.state.applied(), EntryId(20));
    assert_eq!(reader.read_entry(missing.first).expect("readable"), None);
    assert_eq!(reader.read_entry(missing.first.next()).expect("readable"), Some(set(missing.first.0 + 1)));
    let again = reopen(&storage).expect("reopen").recovered.report;
    assert_eq!((again.damage_total, again.missing), (0, vec![missing]), "until a LOST entry declares it");
    let lost = Control::Lost { first: missing.first, last: missing.last };
    let lost = Entry::encode(EntryId(21), Epoch(1), Some(1), Body::Control(lost));
    drop(wal);
    wal = reopen(&storage).expect("reopen").wal;
    wal.append(&[lost], EntryId(21)).expect("append");
    let after = reopen(&storage).expect("reopen").recovered;
    assert_eq!((after.report.missing, after.state.applied()), (Vec::new(), EntryId(21)));
}

#[test]
fn a_node_told_to_refuse_damage_does_not_open_and_changes_nothing() {
    let storage = volume(&[1], 9, 9);
    storage.tamper("wal.log.segment.1", |contents| contents[10] ^= 1);
    let refuse = Options { on_damage: OnDamage::Refuse, ..options() };
    let before: Vec<_> = storage.names().iter().map(|name| storage.contents(name)).collect();
    let error = open(Arc::new(storage.clone()), &refuse, &new_volume()).expect_err("refused");
    assert!(error.to_string().contains("wal.log.segment.1"), "{error}");
    assert_eq!(storage.names().iter().map(|name| storage.contents(name)).collect::<Vec<_>>(), before);
}

#[test]
fn swapped_duplicated_missing_and_foreign_segments_are_damage() {
    let swaps: [fn(&MemoryStorage); 4] = [
        |s| {
            let (two, three) = (s.contents("wal.log.segment.2"), s.contents("wal.log.segment.3"));
            s.tamper("wal.log.segment.2", |c| *c = three.expect("there"));
            s.tamper("wal.log.segment.3", |c| *c = two.expect("there"));
        },
        |s| {
            let three = s.contents("wal.log.segment.3").expect("there");
            s.tamper("wal.log.segment.2", |c| *c = three);
        },
        |s| s.remove("wal.log.segment.2").expect("there"),
        |s| {
            let foreign = |id: u64| Entry::encode(EntryId(id), Epoch(1), Some(7), set(id).body).line;
            let ids = Manifest::load(s).expect("readable").expect("there").files[1].clone();
            let lines: Vec<u8> = (ids.first.0..=ids.last.0).flat_map(|id| [&foreign(id)[..], b"\n"].concat()).collect();
            s.tamper("wal.log.segment.2", |c| *c = lines);
        },
    ];
    for (index, swap) in swaps.iter().enumerate() {
        for voters in [&[1][..], &[1, 2, 3]] {
            let storage = volume(voters, 20, 20);
            swap(&storage);
            let opened = reopen(&storage).expect("reopen");
            assert!(opened.recovered.report.is_damaged(), "case {index}");
            assert_eq!(opened.recovered.report.damage[0].file, "wal.log.segment.2", "case {index}");
            assert_believed(&opened, 20, &format!("case {index}"));
            assert_steady(&storage, &opened, &format!("case {index}"));
        }
    }
}

#[test]
fn a_line_of_a_newer_release_is_an_error_and_no_damage() {
    let storage = volume(&[1], 2, 2);
    let newer = seal_line(br#"{"id":3,"epoch":1,"operation":"MERGE","key":null,"value":{}"#.to_vec());
    storage.tamper(&active_name(&storage), |contents| contents.extend([&newer[..], b"\n"].concat()));
    let error = reopen(&storage).expect_err("refused");
    assert!(matches!(error, WalError::NotUnderstood { .. }), "{error}");
}

#[test]
fn a_directory_of_something_else_is_refused() {
    let storage = MemoryStorage::default();
    storage.create("wal.log").expect("create").write_at(b"{\"id\":1}\n", 0).expect("write");
    assert!(matches!(reopen(&storage), Err(WalError::Foreign(name)) if name == "wal.log"));
    let newer = volume(&[1], 1, 1);
    newer.tamper("manifest.json", |contents| {
        let text = String::from_utf8(contents.clone()).expect("JSON");
        let open_line = text.replace("\"format_version\":1", "\"format_version\":3");
        let open_line = open_line.split(",\"crc\":").next().expect("a crc");
        let sealed = [&text[..0], std::str::from_utf8(&seal_line(open_line.into())).expect("JSON"), "\n"].concat();
        *contents = sealed.into_bytes();
    });
    let error = reopen(&newer).expect_err("newer");
    assert!(error.to_string().contains("newer release"), "{error}");
}

#[test]
fn files_that_are_not_listed_go_aside_unread() {
    let storage = volume(&[1], 3, 3);
    storage.create("wal.log.segment.77").expect("create").write_at(&set(4).line, 0).expect("write");
    let opened = reopen(&storage).expect("reopen");
    assert_eq!(opened.recovered.report.orphans, ["aside/wal.log.segment.77"]);
    assert_eq!(opened.recovered.state.applied(), EntryId(3));
}

#[test]
fn many_threads_recover_what_one_does() {
    let storage = MemoryStorage::default();
    let one = Options { segment_bytes_max: 2000, ..options() };
    let mut opened = open(Arc::new(storage.clone()), &one, &new_volume()).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1]).expect("found");
    opened.wal.append(&sets(1..=2000), EntryId(2000)).expect("append");
    let digest = |threads| {
        let options = Options { recovery_threads: threads, ..one.clone() };
        let copy = storage.after_power_loss(Survives::Nothing);
        let opened = open(Arc::new(copy), &options, &new_volume()).expect("reopen");
        assert_eq!(opened.recovered.state.applied(), EntryId(2000));
        opened.recovered.state.digest()
    };
    assert_eq!(digest(1), digest(4));
}

/// Nine entries, of which those of the first segments are compacted.
pub(crate) fn compacted(voters: &[u64]) -> MemoryStorage {
    let storage = volume(voters, 9, 9);
    let Opened { mut wal, reader, recovered } = reopen(&storage).expect("reopen");
    let state = Applied::new(recovered.state);
    *state.limit.lock().expect("no panic") = EntryId(6);
    let base = compact(&reader, &state).expect("readable").expect("sealed segments");
    wal.swap_compacted(base).expect("swapped");
    storage
}

#[test]
fn a_damaged_base_is_dropped_by_a_member_and_mended_by_a_group_of_one() {
    for name in ["wal.log.segment.2", "wal.log.history.2"] {
        for voters in [&[1][..], &[1, 2, 3]] {
            let intact = compacted(voters);
            for at in 0..intact.contents(name).expect("compacted").len() {
                let storage = intact.after_power_loss(Survives::Everything);
                storage.tamper(name, |contents| contents[at] ^= 4);
                let what = format!("{name}, byte {at}, voters {voters:?}");
                let opened = reopen(&storage).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(opened.recovered.report.is_damaged(), "{what}");
                assert_believed(&opened, 9, &what);
                assert_steady(&storage, &opened, &what);
                let (applied, missing) = (opened.recovered.state.applied(), &opened.recovered.report.missing);
                if voters.len() == 1 {
                    assert_eq!((applied, missing[0].first), (EntryId(9), EntryId(1)), "{what}");
                } else {
                    assert_eq!((applied, opened.recovered.base.horizon.id), (EntryId(0), EntryId(0)), "{what}");
                    assert!(opened.recovered.hard.quarantine.is_some(), "{what}");
                }
            }
        }
    }
}

#[test]
fn long_lines_and_large_segments_are_recovered_on_many_threads() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = Options { segment_bytes_max: 12 << 20, recovery_threads: 3, ..options() };
    let open_files = || {
        let storage = crate::wal::FileStorage::open(dir.path()).expect("not in use");
        open(Arc::new(storage), &options, &new_volume())
    };
    let long = |id: u64| {
        let Body::Set { key, version, precondition, request, .. } = set(id).body else { unreachable!("a set") };
        let text = format!("\"{}\"", "x".repeat(usize::try_from(id % 7).expect("small") * 300_000));
        let value = Value::from_json(text.as_bytes(), 4 << 20).expect("test value");
        Entry::encode(EntryId(id), Epoch(1), None, Body::Set { key, value, version, precondition, request })
    };
    let entries: Vec<_> = (1..=40).map(long).collect();
    let mut opened = open_files().expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1]).expect("found");
    opened.wal.append(&entries, EntryId(40)).expect("append");
    assert!(opened.reader.segments().len() > 2);
    let in_use = crate::wal::FileStorage::open(dir.path()).expect_err("the lock is held");
    assert!(in_use.to_string().contains("already in use"), "{in_use}");
    drop(opened);
    let opened = open_files().expect("reopen");
    assert!(!opened.recovered.report.is_damaged());
    assert_eq!(opened.recovered.state.applied(), EntryId(40));
    assert_eq!(opened.reader.read_from(EntryId(1), usize::MAX).expect("readable"), entries);
    assert_eq!(opened.reader.read_entry(EntryId(27)).expect("readable").as_ref(), entries.get(26));
    drop(opened);
    let name = dir.path().join("wal.log.segment.1");
    let mut bytes = std::fs::read(&name).expect("readable");
    bytes[5_000_000] ^= 1;
    std::fs::write(&name, bytes).expect("writable");
    let damaged = open_files().expect("reopen").recovered.report;
    assert_eq!((damaged.salvage, damaged.damage_total), (Salvage::Everything, 1));
}

#[test]
fn a_lack_of_file_descriptors_is_no_damage() {
    let storage = volume(&[1, 2, 3], 20, 20);
    storage.set_out_of_handles(true);
    assert!(reopen(&storage).is_err());
    storage.set_out_of_handles(false);
    let opened = reopen(&storage).expect("reopen");
    assert!(!opened.recovered.report.is_damaged() && opened.recovered.hard.quarantine.is_none());
}

/// The power fails between the sync of a CONFIG entry and the manifest that names it.
#[test]
fn what_follows_an_unacknowledged_configuration_of_two_is_not_taken_for_committed() {
    let config = |id: u64| {
        let configuration = Configuration::new(vec![member(1), member(2)]);
        Entry::encode(EntryId(id), Epoch(1), Some(1), Body::Control(Control::Config(configuration)))
    };
    let roomy = Options { segment_bytes_max: 2000, ..options() };
    let reopen = |storage: &MemoryStorage| open(Arc::new(storage.clone()), &roomy, &new_volume());
    let before = volume(&[1], 4, 4);
    let all: Vec<_> = [config(5), set(6), set(7)].into();
    let cut_off = |calls: u64| {
        let storage = before.after_kill();
        let mut wal = reopen(&storage).expect("reopen").wal;
        storage.power_fails_at(storage.calls() + calls);
        let appended = wal.append(&all, EntryId(4));
        (storage.after_power_loss(Survives::Nothing), appended.is_ok())
    };
    let mut in_between = None;
    for calls in 0.. {
        let (storage, is_acknowledged) = cut_off(calls);
        let names_two = |storage: &MemoryStorage| {
            let manifest = Manifest::load(storage).expect("readable").expect("there");
            manifest.configuration.configuration.voters.len() == 2
        };
        let named_before = names_two(&storage);
        let Opened { recovered, .. } = reopen(&storage).expect("reopen");
        assert_eq!(recovered.state.applied(), EntryId(4), "power lost at call {calls}");
        let tail: Vec<_> = recovered.tail.iter().map(|entry| entry.id.0).collect();
        if !tail.is_empty() && !named_before {
            assert_eq!(tail, [5, 6, 7]);
            assert!(!recovered.is_alone() && names_two(&storage));
            in_between = Some(calls);
        }
        if is_acknowledged {
            break;
        }
    }
    // With damage, too: what another member may hold is not for this one to declare lost.
    let (storage, _) = cut_off(in_between.expect("such a moment"));
    storage.tamper("wal.log.segment.1", |contents| contents[10] ^= 1);
    let Opened { recovered, .. } = reopen(&storage).expect("reopen");
    assert_eq!(recovered.report.salvage, Salvage::Prefix);
    assert!(recovered.hard.quarantine.is_some() && recovered.gaps.is_empty());
}

#[test]
fn what_is_kept_for_people_is_bounded_and_the_oldest_goes_first() {
    let storage = volume(&[1, 2, 3], 20, 20);
    for n in 0..1200 {
        storage.create(&format!("aside/old.{}", 1200 - n)).expect("created");
        storage.create(&format!("quarantine/old.{}", 1200 - n)).expect("created");
    }
    storage.tamper("wal.log.segment.2", |contents| contents[10] ^= 1);
    let opened = reopen(&storage).expect("reopen");
    assert!(opened.recovered.report.is_damaged());
    let aside = storage.list("aside").expect("listed");
    assert!(aside.contains(&"old.1".to_owned()) && !aside.contains(&"old.1200".to_owned()), "by age, not by name");
    let of_this_start = aside.iter().filter(|name| !name.starts_with("old.")).count();
    assert_eq!(aside.len(), 1000 + of_this_start);
    assert!(of_this_start > 0, "the damaged segment is there");
    let quarantined = storage.list("quarantine").expect("listed");
    assert_eq!(quarantined.iter().filter(|name| name.starts_with("old.")).count(), 1000);
    assert!(quarantined.len() > 1000, "and the bad line");
}

#[test]
fn one_that_is_being_refilled_is_no_group_of_one_whatever_its_log_goes_through() {
    let storage = volume(&[1], 9, 7);
    let Opened { mut wal, recovered, .. } = reopen(&storage).expect("reopen");
    let quarantine = Quarantine { reason: "a copied or restored volume".into(), until: None, may_vote: false };
    let hard = HardState { quarantine: Some(quarantine), ..recovered.hard };
    wal.persist(&Persist::State(Box::new(hard))).expect("save");
    drop(wal);
    let storage = storage.after_power_loss(Survives::Nothing);
    storage.tamper("wal.log.segment.1", |contents| contents[10] ^= 1);
    let Opened { recovered, .. } = reopen(&storage).expect("reopen");
    assert_eq!(recovered.report.salvage, Salvage::Prefix);
    assert!(recovered.hard.quarantine.is_some() && recovered.gaps.is_empty());
}
