//! The copying pass of a compaction: every line at or below the horizon once, in id order, verified,
//! to where the selection says. Any line that cannot be read or believed ends it.

use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::{Body, Entry, EntryId, LineView, LogPosition};
use kv_core::mutant::{self, Mutant};

use super::selection::{Place, absorb, observe_time, without_unknown};
use super::{CompactionError, Run, Settled};
use crate::compactor::CompactionOutcome;
use crate::wal::manifest::FileKind;
use crate::wal::reader::ReadError;
use crate::wal::segment::{Lines, LogFile};
use crate::wal::staging::StagedFile;
use crate::wal::storage::{Storage, StorageFile};
use crate::wal::{CompactedBase, SealedFile};

/// Goes through a file's lines, each verified.
pub(super) fn each_line<F: StorageFile>(
    file: &Arc<LogFile<F>>,
    visit: &mut dyn FnMut(&LineView<'_>, &Bytes) -> Result<(), CompactionError>,
) -> Result<(), CompactionError> {
    for item in file.lines(0) {
        let (offset, line) = item.map_err(|error| ReadError::Io { file: file.name(), error })?;
        let view = LineView::parse(&line).map_err(|error| ReadError::Line { file: file.name(), offset, error })?;
        visit(&view, &line)?;
    }
    Ok(())
}

/// A file of the base with its next line.
struct Source<F> {
    file: Arc<LogFile<F>>,
    lines: Lines<F>,
    next: Option<(EntryId, Bytes)>,
}

impl<F: StorageFile> Source<F> {
    fn open(file: &Arc<LogFile<F>>) -> Result<Self, ReadError> {
        let mut source = Self { file: Arc::clone(file), lines: file.lines(0), next: None };
        source.advance()?;
        Ok(source)
    }

    /// Gives the line that was next.
    fn advance(&mut self) -> Result<Option<(EntryId, Bytes)>, ReadError> {
        let name = || self.file.name();
        let following = match self.lines.next() {
            None => None,
            Some(item) => {
                let (offset, line) = item.map_err(|error| ReadError::Io { file: name(), error })?;
                let view = LineView::parse(&line);
                let id = view.map_err(|error| ReadError::Line { file: name(), offset, error })?.id;
                Some((id, line))
            }
        };
        Ok(std::mem::replace(&mut self.next, following))
    }
}

impl<S: Storage> Run<S> {
    /// The former base, its live and superseded lines merged by id.
    pub(super) fn copy_base(&mut self) -> Result<(), CompactionError> {
        let files = std::mem::take(&mut self.base_files);
        self.segments_read += files.iter().filter(|file| file.kind == FileKind::Live).count() as u64;
        let kept = files.iter().filter(|file| file.kind != FileKind::Sessions);
        let mut sources = kept.map(Source::open).collect::<Result<Vec<_>, _>>()?;
        loop {
            let unread = sources.iter_mut().filter(|source| source.next.is_some());
            let lowest = unread.min_by_key(|source| source.next.as_ref().map(|(id, _)| *id));
            let Some(source) = lowest else { return Ok(()) };
            if let Some((id, line)) = source.advance()? {
                self.segment_lines_read += u64::from(source.file.kind == FileKind::Live);
                self.put(id, &line)?;
            }
        }
    }

    pub(super) fn copy_segments(&mut self) -> Result<(), CompactionError> {
        for file in std::mem::take(&mut self.covered) {
            let mut last = self.base.horizon;
            each_line(&file, &mut |view, line| {
                last = LogPosition { epoch: view.epoch, id: view.id };
                observe_time(&mut self.base, view.ts_ms);
                self.segment_lines_read += 1;
                if view.key.is_none() { self.absorb(&file, line) } else { self.put(view.id, line) }
            })?;
            self.base.horizon = last;
            self.segments_read += 1;
        }
        Ok(())
    }

    fn put(&mut self, id: EntryId, line: &Bytes) -> Result<(), CompactionError> {
        let file = match self.selection.place(id) {
            Place::Live => &mut self.live,
            Place::History => &mut self.history,
            Place::Dropped => return Ok(()),
        };
        Ok(file.push(&mut self.staging, id, line)?)
    }

    fn absorb(&mut self, file: &Arc<LogFile<S::File>>, line: &Bytes) -> Result<(), CompactionError> {
        let entry = Entry::decode(line.clone());
        let entry = entry.map_err(|error| ReadError::Line { file: file.name(), offset: 0, error })?;
        if let Body::Control(control) = &entry.body {
            absorb(&mut self.base, entry.position(), control);
        }
        Ok(())
    }

    pub(super) fn finish(self, sessions: StagedFile<S>, settled: &Settled) -> Result<CompactedBase, CompactionError> {
        let Self { lineage, mut base, horizon, selection, staging, live, history, .. } = self;
        let found = live.lines() + history.lines();
        if base.horizon.id != horizon || found != selection.expected() {
            return Err(CompactionError::Missing(selection.expected().saturating_sub(found)));
        }
        if !mutant::on(Mutant::ForgetRefusedInBase) {
            base.refused =
                settled.refused.iter().copied().filter(|&id| id > horizon && id <= settled.applied).collect();
        }
        let outcome = CompactionOutcome {
            segments_compacted: self.segments_read,
            entries_removed: self.segment_lines_read - live.lines(),
        };
        // Rising by kind, as the manifest has them.
        let files = [history.finish()?, live.finish()?, sessions.finish()?];
        let files: Vec<SealedFile> = files.into_iter().flatten().collect();
        let generation = staging.generation();
        staging.keep()?;
        Ok(CompactedBase { files, base: without_unknown(base), applied: settled.applied, generation, lineage, outcome })
    }
}
