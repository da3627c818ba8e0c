//! A start that finds three damaged files: one that its own lines make whole, one that lines of others do,
//! and one that nobody can help. The power fails anywhere in it.

use std::collections::BTreeSet;

use kv_core::entry::EntryId;

use super::*;
use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::crash_tests::live::replayed;
use crate::wal::memory::{MemoryStorage, Survives};
use crate::wal::recovery::tests::{new_volume, options, reopen, sets, volume};
use crate::wal::{Opened, Salvage, open, open_undamaged};

const LAST: u64 = 20;
/// Something follows behind its last line.
const LENGTHENED: &str = "wal.log.segment.2";
/// Somebody lends its first line.
const LENT: &str = "wal.log.segment.3";
/// Nobody lends its first line, until the start after the crash.
const HOPELESS: &str = "wal.log.segment.5";
const BAD_LINE_OF_LENT: &str = "quarantine/wal.log.segment.3.offset.0";

/// What a start has told, as far as it came.
#[derive(Debug, Default)]
struct Told {
    mended: BTreeSet<String>,
    is_opening: bool,
    is_open: bool,
}

fn intact() -> MemoryStorage {
    let storage = volume(&[1, 2, 3], LAST, LAST);
    storage.write_back();
    storage
}

fn damaged() -> MemoryStorage {
    let storage = intact();
    storage.tamper(LENGTHENED, |contents| contents.extend_from_slice(b"more\n"));
    for name in [LENT, HOPELESS] {
        storage.tamper(name, |contents| contents[10] ^= 1);
    }
    storage
}

fn ids_of(name: &str) -> std::ops::RangeInclusive<u64> {
    let manifest = Manifest::load(&intact()).expect("readable").expect("there");
    let file = manifest.files.iter().find(|file| file.name() == name).expect("sealed");
    file.first.0..=file.last.0
}

fn lines(ids: std::ops::RangeInclusive<u64>) -> Found {
    sets(ids).into_iter().map(|entry| (entry.id, entry.line)).collect()
}

/// As the node starts: with its own lines, and then with what the others lend.
fn start(storage: &MemoryStorage, lent: &Found, told: &mut Told) -> Result<Opened<MemoryStorage>, WalError> {
    let shared = Arc::new(storage.clone());
    match open_undamaged(Arc::clone(&shared), &options(), &new_volume()) {
        Err(WalError::Damaged(_)) => {}
        opened => return opened,
    }
    if let Some(mut ailing) = Ailing::look(&shared, &options())? {
        for found in [&Found::new(), lent] {
            ailing = ailing.put_back(found)?;
        }
        told.mended = ailing.into_mended().into_iter().map(|damage| damage.file).collect();
    }
    told.is_opening = true;
    let opened = open(shared, &options(), &new_volume())?;
    told.is_open = true;
    Ok(opened)
}

/// The file is what it was, with its bad line kept, or as damaged as it was found; and the former if that was told.
fn check_file(disk: &MemoryStorage, name: &str, told: &Told, what: &str) {
    let (bad, whole) = (damaged().contents(name), intact().contents(name));
    let contents = disk.contents(name);
    assert!(contents == whole || (contents == bad && !told.mended.contains(name)), "{what}: {name}, {told:?}");
    if name == LENT && contents == whole {
        let line = bad.expect("damaged, not gone").split(|&byte| byte == b'\n').next().map(<[u8]>::to_vec);
        assert_eq!(disk.contents(BAD_LINE_OF_LENT), line, "{what}: the bad line is kept");
    }
}

/// All entries, or those before the hopeless file and a quarantine. Returns the last id.
fn check_log(opened: &Opened<MemoryStorage>, what: &str) -> u64 {
    let last = opened.wal.last().0;
    let is_whole = opened.recovered.hard.quarantine.is_none();
    assert_eq!(last, if is_whole { LAST } else { ids_of(HOPELESS).start() - 1 }, "{what}");
    assert_eq!(opened.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=last), "{what}");
    assert_eq!(opened.recovered.state.digest(), replayed(&sets(1..=last)).digest(), "{what}");
    let names = opened.reader.storage().names();
    assert!(names.iter().all(|name| !name.contains(".gen")), "{what}: {names:?}");
    last
}

/// The next start has all lines: nothing that the one before had not cut is lost.
fn check(disk: &MemoryStorage, told: &Told, what: &str) {
    for name in [LENGTHENED, LENT] {
        check_file(disk, name, told, what);
    }
    let opened = start(disk, &lines(1..=LAST), &mut Told::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let last = check_log(&opened, what);
    assert!(last == LAST || told.is_opening, "{what}: cut before all that could be was put back");
    assert!(last < LAST || !told.is_open, "{what}: it was told that the log is cut");
    assert_eq!(opened.recovered.report.salvage, Salvage::Undamaged, "{what}: {:?}", opened.recovered.report);
    drop(opened);
    let again = reopen(&disk.after_power_loss(Survives::Nothing)).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    assert!(!again.recovered.report.is_damaged(), "{what}, again: {:?}", again.recovered.report);
    assert_eq!(check_log(&again, &format!("{what}, again")), last, "{what}");
}

#[test]
fn a_start_puts_back_what_can_be_and_cuts_where_nobody_can_help() {
    let (storage, mut told) = (damaged(), Told::default());
    let opened = start(&storage, &lines(ids_of(LENT)), &mut told).expect("opened");
    assert_eq!(told.mended, BTreeSet::from([LENGTHENED.to_owned(), LENT.to_owned()]));
    assert_eq!(opened.recovered.report.salvage, Salvage::Prefix);
    assert!(check_log(&opened, "at once") < LAST);
    check(&storage.after_power_loss(Survives::Nothing), &told, "after it");
}

#[test]
fn a_crash_anywhere_in_putting_damaged_files_back_at_a_start_leaves_each_damaged_or_whole() {
    let (damaged, lent) = (damaged(), lines(ids_of(LENT)));
    let operation = Operation {
        name: "putting back at a start",
        begin: &|| (damaged.after_kill(), ()),
        act: &|(), storage: &MemoryStorage| {
            let mut told = Told::default();
            drop(start(storage, &lent, &mut told));
            told
        },
        check: &check,
    };
    let tried = operation.crash_everywhere();
    tried.assert_at_least(at_least(40, 38, 450, 20), operation.name);
}
