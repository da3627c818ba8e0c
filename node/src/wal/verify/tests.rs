//! A data directory is called damaged exactly when it is, and never changed.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::wal::Wal;
use crate::wal::recovery::open;
use crate::wal::recovery::tests::{found, new_volume, options, sets};

/// Twenty entries in several segments.
fn volume() -> (tempfile::TempDir, Wal<FileStorage>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let storage = Arc::new(FileStorage::open(dir.path()).expect("storage"));
    let mut opened = open(storage, &options(), &new_volume()).expect("new volume");
    found(&mut opened.wal, &opened.recovered.hard, &[1]).expect("founded");
    for first in (1..=20).step_by(2) {
        opened.wal.append(&sets(first..=first + 1), EntryId(first)).expect("appended");
    }
    (dir, opened.wal)
}

fn active_segment(dir: &Path) -> std::path::PathBuf {
    let manifest = Manifest::load(&FileStorage::open_read_only(dir).expect("there")).expect("readable").expect("there");
    dir.join(manifest.active.name())
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("there");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

fn contents(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let files = std::fs::read_dir(dir).expect("there").map(|item| item.expect("readable"));
    let files = files.filter(|item| item.path().is_file());
    files.map(|item| (item.file_name(), std::fs::read(item.path()).expect("readable"))).collect()
}

#[test]
fn an_intact_directory_is_reported_whole_while_its_node_runs() {
    let (dir, _wal) = volume();
    let before = contents(dir.path());
    let report = run(dir.path()).expect("readable");
    assert!(!report.is_damaged(), "{report}");
    assert_eq!((report.last, report.horizon, report.torn_end.clone()), (EntryId(20), EntryId(0), None));
    assert_eq!(report.files.iter().map(|file| file.lines).sum::<u64>(), 20);
    assert!(report.files.len() > 3);
    assert!(report.orphans.is_empty(), "{report}");
    assert!(report.to_string().ends_with("no damage found"), "{report}");
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_flipped_byte_is_named_with_file_line_and_offset() {
    let (dir, wal) = volume();
    drop(wal);
    let path = dir.path().join("wal.log.segment.2");
    let second_line = std::fs::read(&path).expect("there").iter().position(|&b| b == b'\n').expect("two lines") + 1;
    change(&path, |bytes| bytes[second_line + 20] ^= 1);
    let report = run(dir.path()).expect("readable");
    assert!(report.is_damaged());
    let place = &report.damage[0];
    assert_eq!((place.file.as_str(), place.place), ("wal.log.segment.2", Some((2, second_line as u64))));
    assert!(report.to_string().contains(&format!("wal.log.segment.2, line 2, offset {second_line}: ")), "{report}");
}

#[test]
fn any_flipped_byte_of_any_file_is_found() {
    let (dir, wal) = volume();
    drop(wal);
    let names = run(dir.path()).expect("readable").files;
    for VerifiedFile { name, bytes, .. } in names {
        let path = dir.path().join(&name);
        for at in (0..usize::try_from(bytes).expect("small")).step_by(7) {
            change(&path, |bytes| bytes[at] ^= 0x10);
            let report = run(dir.path()).expect("readable");
            assert!(report.is_damaged(), "{name} at {at}: {report}");
            change(&path, |bytes| bytes[at] ^= 0x10);
        }
    }
    assert!(!run(dir.path()).expect("readable").is_damaged());
}

#[test]
fn a_torn_end_is_no_damage_but_a_cut_of_what_was_durable_is() {
    let (dir, wal) = volume();
    drop(wal);
    let active = active_segment(dir.path());
    let whole = std::fs::read(&active).expect("there");
    std::fs::write(&active, [&whole[..], b"{\"id\":21,\"ep"].concat()).expect("written");
    let report = run(dir.path()).expect("readable");
    assert!(!report.is_damaged(), "{report}");
    assert_eq!(report.torn_end.as_ref().map(|torn| (torn.offset, torn.bytes)), Some((whole.len() as u64, 12)));
    assert!(report.to_string().contains("torn end: "), "{report}");
    std::fs::write(&active, &whole[..whole.len() - 1]).expect("written");
    assert!(run(dir.path()).expect("readable").is_damaged());
    std::fs::write(&active, b"").expect("written");
    assert!(run(dir.path()).expect("readable").is_damaged());
}

#[test]
fn a_missing_a_swapped_and_a_foreign_segment_are_damage() {
    let (dir, wal) = volume();
    drop(wal);
    let (second, third) = (dir.path().join("wal.log.segment.2"), dir.path().join("wal.log.segment.3"));
    let kept = std::fs::read(&second).expect("there");
    std::fs::remove_file(&second).expect("removed");
    let report = run(dir.path()).expect("readable");
    assert!(report.to_string().contains("wal.log.segment.2: cannot be opened"), "{report}");
    std::fs::copy(&third, &second).expect("copied");
    assert!(run(dir.path()).expect("readable").is_damaged());
    std::fs::write(&second, &kept[..kept.len() - 100]).expect("written");
    assert!(run(dir.path()).expect("readable").is_damaged());
    std::fs::write(&second, kept).expect("written");
    std::fs::write(dir.path().join("wal.log.segment.99"), b"x\n").expect("written");
    let report = run(dir.path()).expect("readable");
    assert_eq!((report.is_damaged(), report.orphans.as_slice()), (false, &["wal.log.segment.99".to_owned()][..]));
}

#[test]
fn what_is_no_data_directory_is_said_to_be_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert!(matches!(run(dir.path()), Err(VerifyError::NotADataDirectory(_))));
    assert!(matches!(run(&dir.path().join("absent")), Err(VerifyError::Storage(_))));
    std::fs::write(dir.path().join(MANIFEST_FILE), b"{}\n").expect("written");
    assert!(matches!(run(dir.path()), Err(VerifyError::Manifest(ManifestError::Damaged(_)))));
}
