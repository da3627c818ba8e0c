//! Every kind of sealed file, damaged at every byte while the log is open, found and made again; and the
//! power failing while it is.

use std::sync::Arc;

use kv_core::entry::{Entry, EntryId};
use kv_core::group::Settings;
use kv_core::state_machine::StateMachine;

use super::*;
use crate::wal::compaction::compact;
use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::memory::MemoryStorage;
use crate::wal::recovery::tests::{found, reopen};
use crate::wal::scrub::{Scrub, Step, look_at};
use crate::wal::test_log::{Applied, random_entries};
use crate::wal::{Opened, test_log};

/// A member of a group of three with a base of all kinds and sealed segments above it.
struct Member {
    storage: MemoryStorage,
    opened: Opened<MemoryStorage>,
    state: Arc<Applied>,
    all: Vec<Entry>,
}

fn history() -> Vec<Entry> {
    let step = |n: u8| {
        let key = n % 4;
        test_log::Step::Set { key, guess: false, request: n.is_multiple_of(3).then_some(n) }
    };
    random_entries(&(0..40).map(step).collect::<Vec<_>>(), Settings::default())
}

impl Member {
    fn new() -> Self {
        let storage = MemoryStorage::default();
        let mut opened = reopen(&storage).expect("new volume");
        found(&mut opened.wal, &opened.recovered.hard, &[1, 2, 3]).expect("found");
        let machine = std::mem::replace(&mut opened.recovered.state, StateMachine::new(&opened.recovered.base, 0));
        let state = Applied::new(machine);
        let all = history();
        for (at, batch) in all.chunks(5).enumerate() {
            opened.wal.append(batch, batch[batch.len() - 1].id).expect("append");
            state.apply(batch);
            if at == 3 {
                let compacted = compact(&opened.reader, &state).expect("readable").expect("something is sealed");
                opened.wal.swap_compacted(compacted).expect("swapped");
            }
        }
        Self { storage, opened, state, all }
    }

    fn sealed(&self) -> Vec<Arc<LogFile<crate::wal::memory::MemoryFile>>> {
        let table = self.opened.reader.table();
        table.base.iter().chain(&table.log).filter(|file| file.listed().is_some()).cloned().collect()
    }

    fn scrub(&self) -> Vec<DamagedFile<crate::wal::memory::MemoryFile>> {
        let mut scrub = Scrub::new(&self.opened.reader);
        let mut damaged = Vec::new();
        loop {
            match scrub.step() {
                Step::Read(_) => {}
                Step::Found(found) => damaged.push(found),
                Step::Done => return damaged,
            }
        }
    }

    /// What the leader would lend, or this node remembers.
    fn lines(&self, kind: FileKind) -> Found {
        use crate::wal::compaction::AppliedState;
        if kind != FileKind::Sessions {
            return self.all.iter().map(|entry| (entry.id, entry.line.clone())).collect();
        }
        let mut found = Found::new();
        self.state.sessions().for_each_up_to(EntryId(u64::MAX), &mut |record| {
            found.insert(record.id, record.encode().into());
        });
        found
    }

    fn repair(&mut self, damaged: &DamagedFile<crate::wal::memory::MemoryFile>) -> bool {
        keep_bad_lines(&self.storage, damaged).expect("kept");
        let reader = self.opened.reader.clone();
        let salvaged = salvage(&reader, &damaged.listed);
        let lines = self.lines(damaged.listed.kind);
        match rebuild(&reader, &salvaged, &lines).expect("written") {
            Some(file) => {
                self.opened.wal.swap_repaired(file).expect("in its place");
                true
            }
            None => false,
        }
    }
}

#[test]
fn every_flipped_byte_of_every_sealed_file_is_found_and_repaired() {
    let mut member = Member::new();
    let mut kinds = std::collections::BTreeSet::new();
    for file in member.sealed() {
        kinds.insert(file.kind);
        let name = file.name();
        let intact = member.storage.contents(&name).expect("listed");
        for at in 0..intact.len() {
            member.storage.tamper(&name, |contents| contents[at] ^= if at % 2 == 0 { 0x20 } else { b'\n' });
            let damaged = look_at(&member.opened.reader, &name).unwrap_or_else(|| panic!("{name}, byte {at} unseen"));
            assert!(member.repair(&damaged), "{name}, byte {at}: {damaged:?}");
            assert_eq!(member.storage.contents(&name), Some(intact.clone()), "{name}, byte {at}");
        }
    }
    assert_eq!(kinds.len(), 4, "all kinds of files");
    assert!(member.scrub().is_empty());
    let names = member.storage.names();
    assert!(names.iter().any(|name| name.starts_with("quarantine/wal.log.segment.")), "{names:?}");
    assert!(names.iter().all(|name| !name.contains(".gen")), "nothing staged is left: {names:?}");
}

#[test]
fn a_removed_file_comes_back_from_the_open_handle() {
    let mut member = Member::new();
    for file in member.sealed() {
        let intact = member.storage.contents(&file.name());
        member.storage.remove(&file.name()).expect("there");
        let damaged = member.scrub();
        assert_eq!(damaged.len(), 1);
        let salvaged = salvage(&member.opened.reader, &file);
        assert!(salvaged.holes.is_empty(), "nobody is needed for it");
        assert!(member.repair(&damaged[0]));
        assert_eq!(member.storage.contents(&file.name()), intact);
    }
    assert!(member.scrub().is_empty());
}

#[test]
fn a_cut_overwritten_or_lengthened_segment_is_found_and_repaired() {
    let tampers: [fn(&mut Vec<u8>); 4] = [
        |contents| contents.truncate(contents.len() / 2),
        |contents| contents.extend_from_slice(b"more\n"),
        |contents| contents.fill(0),
        Vec::clear,
    ];
    for tamper in tampers {
        let mut member = Member::new();
        let file = member.sealed().into_iter().find(|file| file.kind == FileKind::Log).expect("a sealed segment");
        let intact = member.storage.contents(&file.name());
        member.storage.tamper(&file.name(), tamper);
        let damaged = member.scrub();
        assert_eq!(damaged.len(), 1);
        assert!(member.repair(&damaged[0]), "{damaged:?}");
        assert_eq!(member.storage.contents(&file.name()), intact);
    }
}

#[test]
fn another_segments_intact_lines_are_not_believed() {
    let member = Member::new();
    let files: Vec<_> = member.sealed().into_iter().filter(|file| file.kind == FileKind::Log).collect();
    let other = member.storage.contents(&files[1].name()).expect("listed");
    member.storage.tamper(&files[0].name(), |contents| *contents = other.clone());
    assert_eq!(member.scrub().len(), 1);
}

#[test]
fn lines_that_do_not_make_the_file_change_nothing() {
    let mut member = Member::new();
    let file = member.sealed().into_iter().find(|file| file.kind == FileKind::Log).expect("a sealed segment");
    member.storage.tamper(&file.name(), |contents| contents[30] ^= 1);
    let before = member.storage.names();
    // Of the same length and intact, but of another epoch.
    let forged = |entry: &Entry| Entry::encode(entry.id, kv_core::entry::Epoch(9), entry.ts_ms, entry.body.clone());
    member.all = member.all.iter().map(forged).collect();
    let damaged = look_at(&member.opened.reader, &file.name()).expect("damaged");
    let salvaged = salvage(&member.opened.reader, &file);
    for lines in [member.lines(FileKind::Log), Found::new()] {
        assert!(rebuild(&member.opened.reader, &salvaged, &lines).expect("written").is_none());
    }
    assert_eq!(damaged.damage.len(), 1);
    assert_eq!(member.storage.names(), before, "nothing staged is left");
}

#[test]
fn a_file_that_was_replaced_meanwhile_stays_as_it_is() {
    let mut member = Member::new();
    let file = member.sealed().into_iter().find(|file| file.kind == FileKind::Live).expect("a base");
    member.storage.tamper(&file.name(), |contents| contents[30] ^= 1);
    let salvaged = salvage(&member.opened.reader, &file);
    let repaired = rebuild(&member.opened.reader, &salvaged, &member.lines(FileKind::Live)).expect("written");
    let repaired = repaired.expect("it is that file");
    member.storage.tamper(&file.name(), |contents| contents[30] ^= 1);
    let compacted = compact(&member.opened.reader, &member.state).expect("readable").expect("something is sealed");
    member.opened.wal.swap_compacted(compacted).expect("swapped");
    let before = member.storage.contents(&file.name());
    assert!(!member.opened.wal.lists(&repaired));
    assert!(matches!(member.opened.wal.swap_repaired(repaired), Err(WalError::Rule(_))));
    assert_eq!(member.storage.contents(&file.name()), before);
    assert!(member.scrub().is_empty());
}

/// A member with a sealed segment that a byte of was flipped, and the segment as it was.
fn damaged_member() -> (Member, DamagedFile<crate::wal::memory::MemoryFile>, Vec<u8>) {
    let member = Member::new();
    member.storage.write_back();
    let file = member.sealed().into_iter().find(|file| file.kind == FileKind::Log).expect("a sealed segment");
    let intact = member.storage.contents(&file.name()).expect("listed");
    member.storage.tamper(&file.name(), |contents| contents[30] ^= 1);
    let damaged = look_at(&member.opened.reader, &file.name()).expect("damaged");
    (member, damaged, intact)
}

#[test]
fn a_crash_anywhere_in_a_repair_leaves_the_damage_or_the_file() {
    let (member, damaged, intact) = damaged_member();
    let name = damaged.listed.name();
    let bad = member.storage.contents(&name).expect("listed");
    let operation = Operation {
        name: "repair",
        begin: &|| {
            let (member, damaged, _) = damaged_member();
            (member.storage.clone(), (member, damaged))
        },
        act: &|(mut member, damaged): (Member, DamagedFile<_>), storage: &MemoryStorage| {
            let salvaged = salvage(&member.opened.reader, &damaged.listed);
            let lines = member.lines(FileKind::Log);
            let _kept = keep_bad_lines(storage, &damaged);
            let rebuilt = rebuild(&member.opened.reader, &salvaged, &lines);
            rebuilt.is_ok_and(|file| member.opened.wal.swap_repaired(file.expect("it is that file")).is_ok())
        },
        check: &|disk: &MemoryStorage, is_done: &bool, what: &str| {
            let again = reopen(&disk.after_kill()).unwrap_or_else(|e| panic!("{what}: {e}"));
            let settled = again.reader.storage();
            let is_bad = again.recovered.report.is_damaged();
            assert!(!(is_bad && *is_done), "{what}: {:?}", again.recovered.report);
            // Of a damaged file recovery keeps the intact prefix, and the whole of it aside.
            let found = if is_bad { disk.contents(&name) } else { settled.contents(&name) };
            assert!(found.as_ref() == Some(if is_bad { &bad } else { &intact }), "{what}");
            assert!(settled.names().iter().all(|name| !name.contains(".gen")), "{what}: {:?}", settled.names());
        },
    };
    operation.crash_everywhere().assert_at_least(at_least(10, 10, 45, 4), "repair");
}

#[test]
fn a_read_of_a_damaged_line_makes_its_file_suspect() {
    let member = Member::new();
    let file = member.sealed().into_iter().find(|file| file.kind == FileKind::Log).expect("a sealed segment");
    assert_eq!(member.opened.reader.take_suspect(), None);
    member.storage.tamper(&file.name(), |contents| contents[30] ^= 1);
    assert!(member.opened.reader.read_entry(file.first).is_err());
    assert_eq!(member.opened.reader.take_suspect(), Some(file.name()));
    assert!(member.opened.reader.read_from(file.first, usize::MAX).is_err());
    assert_eq!(member.opened.reader.take_suspect(), Some(file.name()));
}
