//! Closing the gaps of a damaged group of one, before it serves: lines that learners still hold go
//! back to their places; what nobody holds is declared by LOST entries at the end of the log.

use std::io;
use std::sync::Arc;

use kv_core::contract::HardState;
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, LineView};
use kv_core::message::Promise;

use super::manifest::{FileKind, Gap, Manifest, SealedFile};
use super::recovery::{self, IdRange, Recovered};
use super::segment::{LogFile, SegmentWriter};
use super::storage::{Storage, sync_dir};
use super::{Wal, WalError};

impl<S: Storage> Wal<S> {
    /// Puts `found` (verified lines, any order) where they belong, writes a LOST entry for every range
    /// that is still missing, and recovers again from what the log is then. `recovered` is what
    /// opening this log returned. Its report stays, with what is lost for good as `missing`.
    pub fn close_gaps(&mut self, recovered: Recovered, mut found: Vec<Entry>) -> Result<Recovered, WalError> {
        self.alive()?;
        let Recovered { hard, mut report, state, .. } = recovered;
        let ts_ms = state.last_ts_ms();
        drop(state);
        let is_missing = |id: EntryId| self.manifest.gaps.iter().any(|gap| gap.first <= id && id <= gap.last);
        found.retain(|entry| is_missing(entry.id) && entry.id > self.manifest.base.horizon.id);
        found.sort_by_key(|entry| entry.id);
        found.dedup_by_key(|entry| entry.id);
        let mut latest = None;
        if !found.is_empty() {
            self.put_back(&found)?;
            latest = Some(self.recover_again()?);
        }
        report.missing = self.manifest.gaps.iter().filter(|gap| !gap.is_declared).map(range_of).collect();
        if latest.is_none() || !report.missing.is_empty() {
            self.declare_lost(hard, ts_ms, &report.missing)?;
            latest = Some(self.recover_again()?);
        }
        let recovered = latest.expect("one of the two was done");
        Ok(Recovered { report, ..recovered })
    }

    fn recover_again(&mut self) -> Result<Recovered, WalError> {
        let loaded = recovery::load(Arc::clone(&self.shared), self.manifest.clone(), &self.options);
        let (wal, recovered) = loaded.map_err(|e| self.fail(format!("a mended log cannot be recovered: {e}")))?;
        *self = wal;
        Ok(recovered)
    }

    /// One change of the manifest for all files that get lines back.
    fn put_back(&mut self, found: &[Entry]) -> Result<(), WalError> {
        let generation = self.shared.next_generation();
        let written = self.write_merged(found, generation);
        let merged = self.check("a mended segment", written)?;
        let mut next = Manifest { generation, ..self.manifest.clone() };
        let (mut obsolete, mut returned) = (Vec::new(), Vec::new());
        for (file, ids) in merged {
            obsolete.push(file.name());
            returned.extend(ids);
            if file.number == next.active.number {
                next.active.staged = Some(generation);
                next.active.first = next.active.first.min(file.first);
            } else {
                let place = next.files.iter_mut().find(|f| f.kind == FileKind::Log && f.number == file.number);
                *place.expect("a segment of the table is in the manifest") = file;
            }
        }
        next.obsolete = obsolete;
        next.gaps = next.gaps.iter().flat_map(|gap| without(gap, &returned)).collect();
        self.swap(next)
    }

    /// Stages a copy of each segment that lines belong into; with the ids that found a place.
    fn write_merged(&self, found: &[Entry], generation: u64) -> io::Result<Vec<(SealedFile, Vec<EntryId>)>> {
        let table = self.shared.table.load_full();
        let storage = &*self.shared.storage;
        let mut merged = Vec::new();
        let mut rest = found;
        for (at, file) in table.log.iter().enumerate() {
            let next_first = table.log.get(at + 1).map_or(EntryId(u64::MAX), |next| next.first);
            let (here, later) = rest.split_at(rest.partition_point(|entry| entry.id < next_first));
            rest = later;
            if !here.is_empty() {
                let mut writer = SegmentWriter::create(storage, FileKind::Log, file.number, generation)?;
                let ids = merge(file, here, &mut writer)?;
                let mut sealed = writer.finish()?;
                sealed.index = Default::default();
                merged.push((sealed, ids));
            }
        }
        sync_dir(storage, "")?;
        Ok(merged)
    }

    /// In an epoch of its own: a learner may hold another entry of an earlier epoch with this id.
    fn declare_lost(&mut self, hard: HardState, ts_ms: u64, missing: &[IdRange]) -> Result<(), WalError> {
        let epoch = Epoch(hard.promise.epoch.max(self.last_epoch()?).0 + 1);
        let promise = Promise { epoch, candidate: Some(hard.member_id) };
        self.save_state(HardState { promise, ..hard })?;
        let lost = |(range, id): (&IdRange, u64)| {
            let control = Control::Lost { first: range.first, last: range.last };
            Entry::encode(EntryId(id), epoch, Some(ts_ms), Body::Control(control))
        };
        let entries: Vec<_> = missing.iter().zip(self.last.0 + 1..).map(lost).collect();
        self.append(&entries, self.last)
    }

    fn last_epoch(&mut self) -> Result<Epoch, WalError> {
        let table = self.shared.table.load_full();
        let Some(file) = table.log.iter().rev().find(|file| file.extent().lines > 0) else {
            return Ok(table.horizon().epoch);
        };
        let start = file.extent().index.start_of(file.last());
        let last = file.lines(start).last().transpose();
        let line = last.map_err(|e| self.fail(e.to_string()))?;
        let epoch = line.and_then(|(_, line)| LineView::parse(&line).ok().map(|view| view.epoch));
        epoch.ok_or_else(|| self.fail(format!("{}: the last line changed", file.name())))
    }
}

/// Writes the lines of `file` and those of `found` that fit between them; returns the ids of the latter.
fn merge<F: super::StorageFile>(
    file: &Arc<LogFile<F>>,
    found: &[Entry],
    writer: &mut SegmentWriter<F>,
) -> io::Result<Vec<EntryId>> {
    let (mut rest, mut epoch, mut placed) = (found, Epoch(0), Vec::new());
    let mut put = |until: EntryId, epoch: &mut Epoch, epoch_max: Epoch, writer: &mut SegmentWriter<F>| {
        let (here, later) = rest.split_at(rest.partition_point(|entry| entry.id < until));
        rest = later;
        for entry in here.iter().filter(|entry| entry.epoch <= epoch_max) {
            if entry.epoch >= *epoch {
                *epoch = entry.epoch;
                writer.push(entry.id, &entry.line)?;
                placed.push(entry.id);
            }
        }
        Ok::<_, io::Error>(())
    };
    for line in file.lines(0) {
        let (_, line) = line?;
        let view = LineView::parse(&line).map_err(|e| io::Error::other(e.to_string()))?;
        put(view.id, &mut epoch, view.epoch, writer)?;
        epoch = view.epoch;
        writer.push(view.id, &line)?;
    }
    put(EntryId(u64::MAX), &mut epoch, Epoch(u64::MAX), writer)?;
    Ok(placed)
}

fn range_of(gap: &Gap) -> IdRange {
    IdRange { first: gap.first, last: gap.last }
}

/// What is left of a gap when these ids (rising) are back.
fn without(gap: &Gap, returned: &[EntryId]) -> Vec<Gap> {
    let mut left = Vec::new();
    let mut first = gap.first;
    for &id in returned.iter().filter(|id| gap.first <= **id && **id <= gap.last) {
        if first < id {
            left.push(Gap { first, last: id.prev(), ..*gap });
        }
        first = id.next();
    }
    if first <= gap.last {
        left.push(Gap { first, ..*gap });
    }
    left
}
