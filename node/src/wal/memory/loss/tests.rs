//! Which disks a loss of power may leave, and how many.

use std::collections::BTreeSet;

use super::*;
use crate::wal::memory::PAGE_BYTES;
use crate::wal::storage::{Storage, StorageFile};

fn contents(disks: &[MemoryStorage], name: &str) -> BTreeSet<Option<Vec<u8>>> {
    disks.iter().map(|disk| disk.contents(name)).collect()
}

/// A durable file of two pages of `a`.
fn durable() -> (MemoryStorage, crate::wal::memory::MemoryFile) {
    let storage = MemoryStorage::default();
    let file = storage.create("x").expect("created");
    file.write_at(&[b'a'; 2 * PAGE_BYTES], 0).expect("written");
    file.sync().expect("synced");
    storage.sync_dir("").expect("synced");
    (storage, file)
}

#[test]
fn what_is_synced_is_found_and_nothing_else_is_possible() {
    let (storage, _file) = durable();
    let survivors = storage.survivors(10, 0);
    assert!(survivors.is_complete && survivors.disks.len() == 1);
    assert_eq!(survivors.disks[0].contents("x"), Some(vec![b'a'; 2 * PAGE_BYTES]));
}

#[test]
fn each_page_and_each_length_survives_by_itself() {
    let (storage, file) = durable();
    file.write_at(&[b'b'; 2 * PAGE_BYTES], PAGE_BYTES as u64).expect("written");
    let Survivors { disks, is_complete } = storage.survivors(100, 0);
    // Two pages long with an old or a new second one; three pages long, and each of two pages old or new.
    assert!(is_complete && disks.len() == 2 + 4, "{}", disks.len());
    let found = contents(&disks, "x");
    assert_eq!(found.len(), 6);
    let torn = [[b'a'; PAGE_BYTES], [b'a'; PAGE_BYTES], [b'b'; PAGE_BYTES]].concat();
    assert!(found.contains(&Some(torn)));
    let hole = [[b'a'; PAGE_BYTES], [b'b'; PAGE_BYTES], [0; PAGE_BYTES]].concat();
    assert!(found.contains(&Some(hole)));
}

#[test]
fn a_page_written_again_and_again_is_found_as_it_was_last_too() {
    let (storage, file) = durable();
    for byte in b"bcd" {
        file.write_at(&[*byte; 10], 0).expect("written");
    }
    let found = contents(&storage.survivors(100, 0).disks, "x");
    let first_bytes: Vec<u8> = found.iter().map(|bytes| bytes.as_ref().expect("durable name")[0]).collect();
    assert_eq!(first_bytes, b"acd");
}

#[test]
fn both_names_of_a_rename_share_their_fate_and_other_names_do_not() {
    let (storage, _file) = durable();
    storage.create("y").expect("created");
    storage.rename("x", "z").expect("renamed");
    let disks = storage.survivors(100, 0).disks;
    assert_eq!(disks.len(), 4);
    for disk in &disks {
        assert!(disk.contents("x").is_some() != disk.contents("z").is_some(), "{:?}", disk.names());
    }
    storage.sync_dir("").expect("synced");
    let disks = storage.survivors(100, 0).disks;
    assert_eq!((disks.len(), disks[0].names()), (1, vec!["y".to_owned(), "z".to_owned()]));
}

#[test]
fn a_sync_of_one_directory_leaves_the_other_half_of_a_move_open() {
    let (storage, _file) = durable();
    storage.rename("x", "aside/x").expect("renamed");
    storage.sync_dir("aside").expect("synced");
    let disks = storage.survivors(100, 0).disks;
    let names: BTreeSet<Vec<String>> = disks.iter().map(MemoryStorage::names).collect();
    assert_eq!(names, BTreeSet::from([vec!["aside/x".to_owned()], vec!["aside/x".to_owned(), "x".to_owned()]]));
}

#[test]
fn too_many_possible_disks_are_sampled_with_both_extremes_and_each_single_piece() {
    let storage = MemoryStorage::default();
    for name in 'a'..='j' {
        storage.create(&name.to_string()).expect("created");
    }
    let Survivors { disks, is_complete } = storage.survivors(100, 7);
    assert!(!is_complete && disks.len() == 100);
    let counts: Vec<usize> = disks.iter().map(|disk| disk.names().len()).collect();
    assert_eq!(counts[..2], [0, 10]);
    assert_eq!((counts[2..12].to_vec(), counts[12..22].to_vec()), (vec![1; 10], vec![9; 10]));
}

#[test]
fn what_a_failed_sync_covered_is_read_until_the_power_fails_and_then_gone() {
    let (storage, file) = durable();
    file.write_at(&[b'b'; PAGE_BYTES], 0).expect("written");
    storage.sync_fails_at(0);
    file.sync().expect_err("fails");
    assert!(storage.failed_sync().is_some());
    file.write_at(&[b'c'; PAGE_BYTES], PAGE_BYTES as u64).expect("written");
    file.sync().expect("the kernel has forgotten");
    assert_eq!(storage.contents("x").expect("there")[0], b'b');
    let found = storage.after_power_loss(Survives::Everything).contents("x").expect("there");
    assert_eq!((found[0], found[PAGE_BYTES]), (b'a', b'c'));
    file.write_at(&[b'd'; PAGE_BYTES], 0).expect("written");
    file.sync().expect("synced");
    assert_eq!(storage.after_power_loss(Survives::Nothing).contents("x").expect("there")[0], b'd');
}
