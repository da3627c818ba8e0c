//! Puts right what a scan has found, durably and in one change of the manifest: the active segment is
//! copied (never trust the page cache of a process that is gone), a torn tail is cut, damage is cut off
//! or taken out. Whatever leaves the log is kept in `aside/` or `quarantine/` first.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use kv_core::contract::Quarantine;
use kv_core::entry::{EntryId, LineView, LogPosition};
use kv_core::mutant::{self, Mutant};
use kv_core::sessions::SessionRecord;

use super::blocks::Source;
use super::scan::{Breach, Scan};
use super::{Salvage, TornTail, in_directory};
use crate::wal::WalError;
use crate::wal::manifest::{ActiveFile, FileKind, Gap, Manifest, SealedFile};
use crate::wal::segment::{Extent, LogFile, SegmentWriter};
use crate::wal::storage::{Storage, sync_dir};
use crate::wal::table::Shared;
use crate::wal::volume::{Leftovers, QUARANTINE_DIR, quarantine_line, save_aside, settle};

/// The log as the stored manifest has it now.
pub(super) struct Mended {
    pub(super) manifest: Manifest,
    /// What the new active segment holds; it is not sealed, only described like one.
    pub(super) active: SealedFile,
    pub(super) torn_tail: Option<TornTail>,
}

struct Mender<'a, S: Storage> {
    storage: &'a S,
    generation: u64,
    manifest: &'a Manifest,
    sources: &'a [Source<S::File>],
    found: &'a Scan<'a>,
    next: Manifest,
}

pub(super) fn mend<S: Storage>(
    shared: &Shared<S>,
    manifest: &Manifest,
    sources: &[Source<S::File>],
    found: &Scan<'_>,
    salvage: Salvage,
) -> Result<Mended, WalError> {
    let generation = shared.next_generation();
    let next = Manifest { generation, ..manifest.clone() };
    let mender = Mender { storage: &*shared.storage, generation, manifest, sources, found, next };
    mender.run(salvage).map_err(in_directory)
}

impl<S: Storage> Mender<'_, S> {
    fn run(mut self, salvage: Salvage) -> io::Result<Mended> {
        let torn_tail = self.save_torn_tail()?;
        self.save_bad_lines()?;
        let active = match (salvage, self.found.breach) {
            (Salvage::Undamaged, _) | (_, None) => self.copy_active(&BTreeSet::new())?,
            (Salvage::Everything, Some(breach)) => self.keep_everything(breach)?,
            (Salvage::Prefix, Some(Breach::Base)) => self.drop_everything()?,
            (Salvage::Prefix, Some(Breach::Log { source, offset })) => self.keep_prefix(source, offset)?,
        };
        sync_dir(self.storage, "")?;
        self.next.hard.committed = self.committed(salvage);
        if let Some(newest) = self.found.configurations.last().filter(|c| c.id > self.next.configuration.id) {
            self.next.configuration = newest.clone();
        }
        self.next.store(self.storage)?;
        settle(self.storage, &mut self.next, Leftovers::Keep)?;
        Ok(Mended { manifest: self.next, active, torn_tail })
    }

    fn committed(&self, salvage: Salvage) -> EntryId {
        let last = match (salvage, self.found.breach) {
            (Salvage::Prefix, Some(Breach::Base)) => EntryId::ZERO,
            (Salvage::Everything, _) => self.found.expected.prev(),
            _ => self.found.prefix_last.id,
        };
        self.found.committed().min(last)
    }

    fn save_torn_tail(&self) -> io::Result<Option<TornTail>> {
        let (Some(offset), Some(Source { file: Ok(file), bytes, .. })) = (self.found.torn_at, self.sources.last())
        else {
            return Ok(None);
        };
        let name = self.manifest.active.name();
        let pieces = [(file.as_ref(), offset)];
        let saved_as = save_aside(self.storage, &format!("{name}.torn.{offset}"), pieces)?;
        Ok(Some(TornTail { file: name, offset, bytes: bytes - offset, saved_as }))
    }

    fn save_bad_lines(&self) -> io::Result<()> {
        for bad in &self.found.bad_lines {
            quarantine_line(self.storage, &bad.file, bad.offset, &bad.raw)?;
        }
        if self.found.bad_lines.is_empty() { Ok(()) } else { sync_dir(self.storage, QUARANTINE_DIR) }
    }

    /// Up to the tear, without the lines at `bad`.
    fn copy_active(&mut self, bad: &BTreeSet<u64>) -> io::Result<SealedFile> {
        let source = self.sources.len() - 1;
        if bad.is_empty() && self.found.torn_at.is_none() && mutant::on(Mutant::TrustPageCache) {
            return Ok(self.found.active_as_it_is());
        }
        let end = self.found.torn_at.unwrap_or(self.sources[source].bytes);
        self.next.active.staged = Some(self.generation);
        self.copy(source, FileKind::Log, self.next.active.number, end, bad)
    }

    /// Copies what is valid of a source to a staged file of the same number.
    fn copy(
        &self,
        source: usize,
        kind: FileKind,
        number: u64,
        end: u64,
        bad: &BTreeSet<u64>,
    ) -> io::Result<SealedFile> {
        let mut writer = SegmentWriter::create(self.storage, kind, number, self.generation)?;
        let Ok(file) = &self.sources[source].file else { return writer.finish() };
        let extent = Extent { bytes: end, ..Extent::default() };
        let from = LogFile::new(Arc::clone(file), kind, number, EntryId::ZERO, extent);
        for line in from.lines(0) {
            let (offset, line) = match line {
                Ok(line) => line,
                // What cannot be read was found missing by the scan.
                Err(_) if self.found.verdicts[source].is_damaged => break,
                Err(e) => return Err(e),
            };
            if !bad.contains(&offset) {
                writer.push(id_of(kind, &line)?, &line)?;
            }
        }
        writer.finish()
    }

    fn keep_everything(&mut self, breach: Breach) -> io::Result<SealedFile> {
        let mut files = Vec::with_capacity(self.manifest.files.len());
        for (source, file) in self.manifest.files.iter().enumerate() {
            let verdict = &self.found.verdicts[source];
            if !verdict.is_damaged {
                files.push(file.clone());
            } else if !verdict.is_distrusted && self.sources[source].file.is_ok() {
                let copy = self.copy(source, file.kind, file.number, self.sources[source].bytes, &verdict.bad)?;
                // A new empty file is not listed: the settling removes it.
                files.extend((copy.lines > 0).then_some(copy));
            }
        }
        self.next.files = files;
        self.add_gaps(breach);
        let bad = &self.found.verdicts[self.sources.len() - 1].bad;
        self.copy_active(bad)
    }

    fn add_gaps(&mut self, breach: Breach) {
        let known_from = self.found.expected;
        let gap = |first, last| Gap { first, last, known_from, is_declared: false };
        if breach == Breach::Base {
            self.next.gaps.push(gap(EntryId(1), self.manifest.base.horizon.id));
        }
        self.next.gaps.extend(self.found.missing.iter().map(|range| gap(range.first, range.last)));
        self.next.gaps.sort_by_key(|gap| gap.first);
    }

    fn keep_prefix(&mut self, source: usize, offset: u64) -> io::Result<SealedFile> {
        self.quarantine();
        let Some(file) = self.manifest.files.get(source) else {
            self.save_whole(source, &self.manifest.active.name())?;
            self.next.active.staged = Some(self.generation);
            return self.copy(source, FileKind::Log, self.next.active.number, offset, &BTreeSet::new());
        };
        self.save_whole(source, &file.name())?;
        self.next.files.truncate(source);
        self.next.active = ActiveFile { number: file.number, first: file.first, staged: Some(self.generation) };
        self.copy(source, FileKind::Log, file.number, offset, &BTreeSet::new())
    }

    /// The state at the horizon is gone, and with it all that builds upon it.
    fn drop_everything(&mut self) -> io::Result<SealedFile> {
        self.quarantine();
        let base = &mut self.next.base;
        (base.horizon, base.refused) = (LogPosition::default(), Vec::new());
        self.next.files.clear();
        self.next.gaps.clear();
        let number = self.manifest.active.number + 1;
        self.next.active = ActiveFile { number, first: EntryId(1), staged: Some(self.generation) };
        SegmentWriter::create(self.storage, FileKind::Log, number, self.generation)?.finish()
    }

    /// The same ids will come again, from a leader; until then this member counts in no quorum.
    fn quarantine(&mut self) {
        self.next.lineage += 1;
        let reason = format!("damaged: {}", super::describe(self.found));
        // Votes are judged by the last position that the replica knows, and that is now below what was acknowledged.
        if !mutant::on(Mutant::DamagedWithoutQuarantine) {
            self.next.hard.quarantine = Some(Quarantine { reason, until: None, may_vote: false });
        }
    }

    /// Of a file whose name the new active segment takes.
    fn save_whole(&self, source: usize, name: &str) -> io::Result<()> {
        let Ok(file) = &self.sources[source].file else { return Ok(()) };
        match save_aside(self.storage, &format!("{name}.damaged"), [(file.as_ref(), 0)]) {
            // Unreadable is what it is damaged by.
            Err(e) if !crate::wal::storage::is_full(&e) => {
                tracing::warn!(file = name, error = %e, "cannot keep a copy of a damaged file");
                Ok(())
            }
            saved => saved.map(drop),
        }
    }
}

fn id_of(kind: FileKind, line: &[u8]) -> io::Result<EntryId> {
    let id = match kind {
        FileKind::Sessions => SessionRecord::decode(line).map(|record| record.id),
        FileKind::History | FileKind::Live | FileKind::Log => LineView::parse(line).map(|view| view.id),
    };
    id.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("changed while it was copied: {e}")))
}
