//! Putting lines that learners gave back into the gaps of a damaged log, before anything is written to
//! it. The files that they belong into are written anew; one change of the manifest puts them in place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use kv_core::entry::{Entry, EntryId, LineView};

use super::manifest::{ActiveFile, FileKind, Gap, Manifest, SealedFile};
use super::recovery::{self, Recovered, RecoveryReport};
use super::segment::{LogFile, SegmentWriter};
use super::storage::{Storage, sync_dir};
use super::{Wal, WalError};

impl<S: Storage> Wal<S> {
    /// Durable when it returns, with the state that the log then makes; `before` is what recovery has said.
    /// Only ids of gaps above the horizon that no LOST entry declares are taken. `found` rises by id.
    pub fn refill(&mut self, found: &[Entry], before: &RecoveryReport) -> Result<Recovered, WalError> {
        self.alive()?;
        let horizon = self.manifest.base.horizon.id;
        let is_open = |id| self.manifest.gaps.iter().any(|g| !g.is_declared && g.first <= id && id <= g.last);
        let found: Vec<&Entry> = found.iter().filter(|e| e.id > horizon && is_open(e.id)).collect();
        let generation = self.shared.next_generation();
        let written = self.write_refilled(&found, generation);
        let refilled = self.check("a refilled segment", written)?;
        let next = self.with_refilled(refilled, &found, generation);
        self.swap(next)?;
        let (shared, manifest) = (Arc::clone(&self.shared), self.manifest.clone());
        let (wal, mut recovered) = recovery::load(shared, manifest, &self.options)
            .map_err(|e| self.fail(format!("a refilled log cannot be recovered: {e}")))?;
        *self = wal;
        recovered.report = recovered.report.told_with(before);
        Ok(recovered)
    }

    /// Stages the segments that lines were found for, by number.
    fn write_refilled(&self, found: &[&Entry], generation: u64) -> io::Result<BTreeMap<u64, SealedFile>> {
        let table = self.shared.table.load();
        let mut by_file: BTreeMap<usize, Vec<&Entry>> = BTreeMap::new();
        for &entry in found {
            // Of a segment that is gone, the lines go to the end of the one before, or to the beginning of the first.
            let at = table.log.partition_point(|file| file.first <= entry.id).saturating_sub(1);
            by_file.entry(at).or_default().push(entry);
        }
        let mut staged = BTreeMap::new();
        for (at, lines) in by_file {
            let file = &table.log[at];
            let mut writer = SegmentWriter::create(&*self.shared.storage, FileKind::Log, file.number, generation)?;
            merge(file, &lines, &mut writer)?;
            staged.insert(file.number, writer.finish()?);
        }
        sync_dir(&*self.shared.storage, "")?;
        Ok(staged)
    }

    fn with_refilled(&self, mut refilled: BTreeMap<u64, SealedFile>, found: &[&Entry], generation: u64) -> Manifest {
        let mut next = Manifest { generation, ..self.manifest.clone() };
        for file in next.files.iter_mut().filter(|file| file.kind == FileKind::Log) {
            if let Some(new) = refilled.remove(&file.number) {
                *file = SealedFile { index: Default::default(), ..new };
            }
        }
        if let Some(new) = refilled.remove(&next.active.number) {
            let first = next.active.first.min(new.first);
            next.active = ActiveFile { number: new.number, first, staged: new.staged };
        }
        let found: BTreeSet<EntryId> = found.iter().map(|entry| entry.id).collect();
        next.gaps = next.gaps.iter().flat_map(|gap| without(*gap, &found)).collect();
        next
    }
}

/// The lines of a file and those that were found, in the order of their ids.
fn merge<S: super::StorageFile>(
    file: &Arc<LogFile<S>>,
    found: &[&Entry],
    writer: &mut SegmentWriter<S>,
) -> io::Result<()> {
    let mut found = found.iter().peekable();
    for line in file.lines(0) {
        let (_, line) = line?;
        let id = LineView::parse(&line).map_err(|e| io::Error::other(e.to_string()))?.id;
        while let Some(entry) = found.next_if(|entry| entry.id < id) {
            writer.push(entry.id, &entry.line)?;
        }
        writer.push(id, &line)?;
    }
    found.try_for_each(|entry| writer.push(entry.id, &entry.line))
}

/// What is left of a gap.
fn without(gap: Gap, found: &BTreeSet<EntryId>) -> Vec<Gap> {
    let (mut left, mut first) = (Vec::new(), gap.first);
    for &id in found.range(gap.first..=gap.last) {
        if first < id {
            left.push(Gap { first, last: id.prev(), ..gap });
        }
        first = id.next();
    }
    if first <= gap.last {
        left.push(Gap { first, ..gap });
    }
    left
}

#[cfg(test)]
mod tests;
