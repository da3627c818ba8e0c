//! Makes a damaged sealed file again, byte for byte: its own intact lines, those of the handle that is
//! still open, and lines that others hold. The manifest's length, line count and CRC of the file say
//! whether the result is the file; nothing else is ever put in its place, and who gave a line does not
//! matter. Blocks; never asks anybody: whoever calls gathers the lines.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::EntryId;
use kv_core::mutant::{self, Mutant};

use super::manifest::{FileKind, SealedFile, file_name, staged_name};
use super::reader::LogReader;
use super::scrub::{DamagedFile, Hole, Sieve, as_read, examine};
use super::segment::LogFile;
use super::staging::Staging;
use super::storage::{Storage, StorageFile, is_full, read_up_to, sync_dir};
use super::volume::{QUARANTINE_DIR, quarantine_line};
use super::{Wal, WalError};

/// What stands instead of a line was probably made of it when at most one byte of this many differs.
const RESEMBLANCE: usize = 4;

/// What is left of a damaged file.
#[derive(Debug)]
pub struct Salvaged<F> {
    listed: Arc<LogFile<F>>,
    /// None: nothing of it can be read.
    source: Option<Arc<F>>,
    /// To be filled with lines from elsewhere.
    pub holes: Vec<Hole>,
}

/// Lines by id, verified one by one.
pub type Found = BTreeMap<EntryId, Bytes>;

/// Keeps the bad lines for people, durably. Can be repeated.
pub fn keep_bad_lines<S: Storage>(storage: &S, damaged: &DamagedFile<S::File>) -> io::Result<()> {
    let name = damaged.listed.name();
    for bad in &damaged.bad_lines {
        quarantine_line(storage, &name, bad.offset, &bad.raw)?;
    }
    if damaged.bad_lines.is_empty() { Ok(()) } else { sync_dir(storage, QUARANTINE_DIR) }
}

/// Looks for what is intact: by the handle that readers use, which outlives a removal, or by name.
pub fn salvage<S: Storage>(reader: &LogReader<S>, listed: &Arc<LogFile<S::File>>) -> Salvaged<S::File> {
    let named = reader.storage().open(&listed.name()).ok().map(Arc::new);
    let candidates = std::iter::once(Arc::clone(&listed.file)).chain(named);
    let examined = candidates.filter_map(|file| Some((examine(listed, &file).ok()?.holes, file)));
    let best = examined.min_by_key(|(holes, _)| holes.iter().map(|hole| hole.bytes).sum::<u64>());
    match best {
        Some((holes, file)) => Salvaged { listed: Arc::clone(listed), source: Some(file), holes },
        None => {
            let ids = super::IdRange { first: listed.first, last: listed.last() };
            let holes = vec![Hole { ids, offset: 0, bytes: listed.bytes() }];
            Salvaged { listed: Arc::clone(listed), source: None, holes }
        }
    }
}

/// Stages the file as it was sealed, durably under its staged name. None: what was found does not make it.
pub fn rebuild<S: Storage>(
    reader: &LogReader<S>,
    salvaged: &Salvaged<S::File>,
    found: &Found,
) -> io::Result<Option<SealedFile>> {
    let Salvaged { listed, source, holes } = salvaged;
    let Some(sealed) = listed.listed() else { return Ok(None) };
    let mut fills = Vec::with_capacity(holes.len());
    for hole in holes {
        let Some(lines) = fill(hole, source.as_deref(), found) else { return Ok(None) };
        fills.push((hole.offset, lines));
    }
    let mut staging = Staging::new(Arc::clone(reader.storage()), reader.next_generation());
    let mut writer = staging.create(listed.kind, listed.number)?;
    let mut fills = fills.into_iter().peekable();
    let mut push_up_to = |offset: u64, writer: &mut super::SegmentWriter<S::File>| -> io::Result<()> {
        while let Some((_, lines)) = fills.next_if(|(at, _)| *at < offset) {
            lines.iter().try_for_each(|(id, line)| writer.push(*id, line))?;
        }
        Ok(())
    };
    if let Some(file) = source.as_ref().filter(|_| !is_one_hole(holes, &sealed)) {
        let mut sieve = Sieve::new(listed);
        let lines = as_read(listed, file, file.len()?).lines(0);
        for (offset, line) in lines.map_while(Result::ok) {
            if let Ok(id) = sieve.id_of(&line) {
                push_up_to(offset, &mut writer)?;
                writer.push(id, &line)?;
            }
        }
    }
    push_up_to(u64::MAX, &mut writer)?;
    let staged = writer.finish()?;
    if identity(&staged) != identity(&sealed) {
        return Ok(None); // dropped, and removed
    }
    staging.keep()?;
    Ok(Some(staged))
}

fn is_one_hole(holes: &[Hole], sealed: &SealedFile) -> bool {
    matches!(holes, [hole] if hole.bytes == sealed.bytes)
}

/// What makes a file the same one, whoever wrote it.
fn identity(file: &SealedFile) -> (FileKind, u64, u64, u64, u32) {
    (file.kind, file.number, file.bytes, file.lines, file.crc)
}

/// The lines that stood in a hole, as far as lengths and what is left of them tell: a guess, for the file's
/// checksum to prove. Others hold more lines of the same ids than a compacted file does.
fn fill<F: StorageFile>(hole: &Hole, source: Option<&F>, found: &Found) -> Option<Vec<(EntryId, Bytes)>> {
    if hole.ids.first > hole.ids.last {
        return None;
    }
    let held: Vec<_> = found.range(hole.ids.first..=hole.ids.last).map(|(id, line)| (*id, line.clone())).collect();
    if held.iter().map(|(_, line)| line.len() as u64 + 1).sum::<u64>() == hole.bytes {
        return Some(held);
    }
    let source = source?;
    let bytes = usize::try_from(hole.bytes).unwrap_or(usize::MAX);
    // Unreadable may be what it is damaged by.
    let Ok(left) = read_up_to(source, hole.offset, bytes) else { return None };
    let (mut at, mut chosen) = (0, Vec::new());
    for (id, line) in held {
        let Some(there) = left.get(at..at + line.len()) else { continue };
        let differing = there.iter().zip(&line[..]).filter(|(a, b)| a != b).count();
        if differing * RESEMBLANCE <= line.len() {
            at += line.len() + 1;
            chosen.push((id, line));
        }
    }
    (at == bytes).then_some(chosen)
}

impl<S: Storage> Wal<S> {
    /// Whether the manifest lists this very file.
    pub fn lists(&self, file: &SealedFile) -> bool {
        self.manifest.files.iter().any(|listed| identity(listed) == identity(file))
    }

    /// Gives a staged file the name of the damaged one that it equals; readers use it from now on. Refused
    /// when the log does not list that file any more. The manifest stays: it lists these bytes already.
    pub fn swap_repaired(&mut self, mut staged: SealedFile) -> Result<(), WalError> {
        self.alive()?;
        let name = file_name(staged.kind, staged.number);
        let generation = staged.staged.take().expect("it was staged by `rebuild`");
        let staged_name = staged_name(staged.kind, staged.number, generation);
        let storage = Arc::clone(&self.shared.storage);
        if !self.lists(&staged) {
            // What cannot be removed now is an orphan for the next start.
            let _ignored = storage.remove(&staged_name);
            return Err(WalError::Rule(format!("{name} is not of the log any more")));
        }
        if let Err(error) = storage.rename(&staged_name, &name) {
            let _ignored = storage.remove(&staged_name);
            let refused = WalError::Rule(format!("{name} cannot be replaced: {error}"));
            return Err(if is_full(&error) { WalError::Full } else { refused });
        }
        if !mutant::on(Mutant::RepairUnsynced) {
            let synced = sync_dir(&*storage, "");
            self.check("data directory", synced)?;
        }
        let opened = storage.open(&name).map(Arc::new);
        let handle = opened.map_err(|error| self.fail(format!("{name}: {error}")))?;
        let index = std::mem::take(&mut staged.index);
        let repaired = LogFile::sealed(handle, &staged, index);
        let mut table = self.table();
        for file in table.base.iter_mut().chain(&mut table.log) {
            let is_it = (file.kind, file.number) == (repaired.kind, repaired.number);
            if is_it && !mutant::on(Mutant::ReadersKeepDamagedFile) {
                *file = Arc::clone(&repaired);
            }
        }
        self.shared.publish(table, self.last);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
