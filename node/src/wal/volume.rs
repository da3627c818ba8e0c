//! Housekeeping of the data directory around a change of the manifest: staged files get their names,
//! what is not listed goes, what must be kept goes aside. Safe to repeat after a crash at any step.

use std::collections::{BTreeSet, HashSet};
use std::io;

use super::manifest::{MANIFEST_TEMPORARY, Manifest};
use super::storage::{Storage, StorageFile, read_up_to, sync, sync_dir};

/// Cut tails, replaced damaged files and files that the manifest does not list.
pub(crate) const ASIDE_DIR: &str = "aside";
/// Bad lines, one file each, named by file and offset.
pub(crate) const QUARANTINE_DIR: &str = "quarantine";
/// All files of the log begin like this; others in the directory are not ours.
const LOG_PREFIX: &str = "wal.log";
/// In the names of staged files.
const STAGED_MARK: &str = ".gen";
const COPY_BYTES: usize = 1 << 20;
/// What `aside/` and `quarantine/` keep, each: the oldest files go first.
const KEPT_FILES_MAX: usize = 1000;
const KEPT_BYTES_MAX: u64 = 256 << 20;

/// Staged files that nobody lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// At a start nothing is under way: they are of unfinished work.
    Remove,
    /// A compaction, a snapshot or a repair may be writing them.
    Keep,
}

/// At a start. The manifest that was just read may be one that a killed process had not synced yet: what goes by it must
/// not be what the one before lists, should the power bring that back.
pub(crate) fn settle_at_start<S: Storage>(storage: &S, manifest: &mut Manifest) -> io::Result<Vec<String>> {
    sync_dir(storage, "")?;
    settle(storage, manifest, Leftovers::Remove)
}

/// Gives staged files their final names and clears away what the manifest does not list: what a
/// swap replaced is removed, anything else is moved aside. Returns where the latter went. The next stored
/// manifest may forget staged names and obsolete ones.
pub(crate) fn settle<S: Storage>(
    storage: &S,
    manifest: &mut Manifest,
    leftovers: Leftovers,
) -> io::Result<Vec<String>> {
    let mut names = storage.list("")?;
    for (staged, name) in staged_names(manifest) {
        if let Ok(at) = names.binary_search(&staged) {
            storage.rename(&staged, &name)?;
            names.remove(at);
        }
    }
    // Sets, since a compaction may replace tens of thousands of segments.
    let listed: HashSet<String> = manifest.listed().into_iter().collect();
    let obsolete: HashSet<&String> = manifest.obsolete.iter().collect();
    let mut aside = Vec::new();
    for name in names.iter().filter(|name| !listed.contains(*name)) {
        let is_leftover = name.contains(STAGED_MARK) || name == MANIFEST_TEMPORARY;
        if obsolete.contains(name) || (is_leftover && is_ours(name) && leftovers == Leftovers::Remove) {
            storage.remove(name)?;
        } else if name.starts_with(LOG_PREFIX) && !is_leftover {
            aside.push(move_aside(storage, name)?);
        }
    }
    if !aside.is_empty() {
        sync_dir(storage, ASIDE_DIR)?;
    }
    sync_dir(storage, "")?;
    forget_staging(manifest);
    Ok(aside)
}

fn is_ours(name: &str) -> bool {
    name.starts_with(LOG_PREFIX) || name == MANIFEST_TEMPORARY
}

fn staged_names(manifest: &Manifest) -> Vec<(String, String)> {
    let sealed = manifest.files.iter().filter_map(|f| Some((f.staged_name()?, f.name())));
    let active = manifest.active.staged_name().map(|staged| (staged, manifest.active.name()));
    sealed.chain(active).collect()
}

fn forget_staging(manifest: &mut Manifest) {
    for file in &mut manifest.files {
        file.staged = None;
    }
    manifest.active.staged = None;
    manifest.obsolete.clear();
}

/// The highest generation in the names of staged files that are left.
pub(crate) fn highest_generation<S: Storage>(storage: &S) -> io::Result<u64> {
    let generation_of = |name: &String| name.rsplit_once(STAGED_MARK)?.1.parse().ok();
    Ok(storage.list("")?.iter().filter_map(generation_of).max().unwrap_or(0))
}

/// Whether a directory without a manifest holds a log all the same; names a file of it.
pub(crate) fn foreign_file<S: Storage>(storage: &S) -> io::Result<Option<String>> {
    for name in storage.list("")? {
        if name.starts_with(LOG_PREFIX) && !storage.open(&name)?.is_empty()? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn move_aside<S: Storage>(storage: &S, name: &str) -> io::Result<String> {
    let to = free_name(storage, name)?;
    storage.rename(name, &to)?;
    Ok(to)
}

/// A name in `aside/` that is not taken.
fn free_name<S: Storage>(storage: &S, name: &str) -> io::Result<String> {
    let taken = storage.list(ASIDE_DIR)?;
    let mut free = name.to_owned();
    let mut suffix = 0;
    while taken.contains(&free) {
        suffix += 1;
        free = format!("{name}.{suffix}");
    }
    Ok(format!("{ASIDE_DIR}/{free}"))
}

/// Saves the bytes of `pieces` in one file in `aside/`, durably; returns its name.
pub(crate) fn save_aside<'f, S: Storage>(
    storage: &S,
    name: &str,
    pieces: impl IntoIterator<Item = (&'f S::File, u64)>,
) -> io::Result<String> {
    let saved_as = free_name(storage, name)?;
    let to = storage.create(&saved_as)?;
    let mut end = 0;
    for (from, mut offset) in pieces {
        loop {
            let bytes = read_up_to(from, offset, COPY_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            to.write_at(&bytes, end)?;
            offset += bytes.len() as u64;
            end += bytes.len() as u64;
        }
    }
    sync(&to)?;
    sync_dir(storage, ASIDE_DIR)?;
    Ok(saved_as)
}

/// Makes room in `aside/` or `quarantine/` before more is put there; `but` stays.
pub(crate) fn drop_oldest<S: Storage>(storage: &S, dir: &str, but: &BTreeSet<String>) -> io::Result<()> {
    let kept = storage.list_by_age(dir)?;
    let (mut files, mut bytes) = (kept.len(), kept.iter().map(|(_, bytes)| bytes).sum::<u64>());
    let mut dropped = 0;
    for (name, size) in kept.iter().filter(|(name, _)| !but.contains(name)) {
        if files <= KEPT_FILES_MAX && bytes <= KEPT_BYTES_MAX {
            break;
        }
        storage.remove(&format!("{dir}/{name}"))?;
        (files, bytes, dropped) = (files - 1, bytes - size, dropped + 1);
    }
    if dropped > 0 {
        tracing::info!(dir, dropped, files, bytes, "dropped the oldest of what was kept for people to look at");
    }
    Ok(())
}

/// Keeps a bad line for people to look at. The name is the same each time, so repeating it is harmless.
pub(crate) fn quarantine_line<S: Storage>(storage: &S, file: &str, offset: u64, raw: &[u8]) -> io::Result<()> {
    let to = storage.create(&format!("{QUARANTINE_DIR}/{file}.offset.{offset}"))?;
    to.write_at(raw, 0)?;
    sync(&to)
}
