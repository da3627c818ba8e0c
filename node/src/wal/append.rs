//! Appending: lines to the end of the active segment, one write and one sync for a batch, and rolling
//! to the next segment when the active one is full.

use std::sync::Arc;

use kv_core::entry::{Body, Control, Entry, EntryId};
use kv_core::group::ConfigurationAt;
use kv_core::mutant::{self, Mutant};

use super::manifest::{ActiveFile, FileKind, Manifest, SealedFile, file_name};
use super::segment::{LogFile, SparseIndex};
use super::storage::{Storage, StorageFile, is_full, sync, sync_dir};
use super::table::FileTable;
use super::volume::Leftovers;
use super::{Wal, WalError};

/// A buffer that grew beyond this for one batch is given back.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

impl<S: Storage> Wal<S> {
    /// Durable when it returns. `committed` is information for the next start. After
    /// [`WalError::Full`] the same call may be made again; what is in already stays in.
    pub fn append(&mut self, entries: &[Entry], committed: EntryId) -> Result<(), WalError> {
        self.alive()?;
        let mut rest = self.not_yet_in(entries)?;
        self.interrupted = entries.first().map(|e| e.id);
        while let Some(next) = rest.first() {
            if self.active.bytes() > 0 && !self.has_room_for(self.active.bytes(), next) {
                self.roll()?;
            }
            let (now, later) = rest.split_at(self.count_that_fits(rest));
            self.write(now)?;
            rest = later;
        }
        if self.owes_manifest {
            self.store_manifest()?;
            self.owes_manifest = false;
        }
        self.interrupted = None;
        self.note_committed(committed)
    }

    /// Ids must follow the last one without a gap; a batch that was interrupted may begin below.
    fn not_yet_in<'e>(&self, entries: &'e [Entry]) -> Result<&'e [Entry], WalError> {
        let first = entries.first().map(|e| e.id);
        let is_repeated = first.is_some() && first == self.interrupted;
        let done = if is_repeated { entries.partition_point(|e| e.id <= self.last) } else { 0 };
        let rest = &entries[done..];
        let mut expected = self.last;
        for entry in rest {
            expected = expected.next();
            if entry.id != expected {
                return Err(WalError::Rule(format!("entry {} cannot follow entry {}", entry.id, expected.prev())));
            }
        }
        Ok(rest)
    }

    fn has_room_for(&self, bytes: u64, entry: &Entry) -> bool {
        let with_newline = entry.line.len() as u64 + 1;
        bytes + with_newline <= self.options.segment_bytes_max
    }

    /// At least one: a single line may exceed a segment.
    fn count_that_fits(&self, entries: &[Entry]) -> usize {
        let mut bytes = self.active.bytes();
        let fits = |entry: &&Entry| {
            let fits = self.has_room_for(bytes, entry);
            bytes += entry.line.len() as u64 + 1;
            fits
        };
        entries.iter().take_while(fits).count().max(1)
    }

    fn write(&mut self, entries: &[Entry]) -> Result<(), WalError> {
        self.cut_back()?;
        let start = self.active.bytes();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut marks = SparseIndex::default();
        for entry in entries {
            marks.note(entry.id, start + buffer.len() as u64);
            buffer.extend_from_slice(&entry.line);
            buffer.push(b'\n');
        }
        let written = self.write_bytes(&buffer, start);
        if written.is_ok() {
            self.active_crc.update(&buffer);
            let mut extent = self.active.extent_mut();
            extent.bytes += buffer.len() as u64;
            extent.lines += entries.len() as u64;
            extent.index.extend(&marks.into_marks());
            let last = entries.last().expect("at least one entry is written").id;
            extent.last = last;
            drop(extent);
            self.last = last;
            self.shared.set_durable(last);
            self.note_control_entries(entries);
        }
        if buffer.capacity() <= BUFFER_KEPT_BYTES {
            self.buffer = buffer;
        }
        written
    }

    /// All of it durable, or cut back to where it was, or failed for good.
    fn write_bytes(&mut self, bytes: &[u8], start: u64) -> Result<(), WalError> {
        let name = self.active.name();
        let file = Arc::clone(&self.active.file);
        match file.write_at(bytes, start) {
            Err(error) if is_full(&error) => {
                self.owes_cut = true;
                self.cut_back()?;
                Err(WalError::Full)
            }
            Err(error) => Err(self.fail(format!("{name}: {error}"))),
            Ok(()) if mutant::on(Mutant::SkipSync) => Ok(()),
            Ok(()) => sync(&*file)
                .or_else(|error| if mutant::on(Mutant::RetryFailedSync) { sync(&*file) } else { Err(error) })
                .map_err(|error| self.fail(format!("{name}: {error}"))),
        }
    }

    /// A write that found no room may be in by half: nothing follows behind it. A volume that has become read-only
    /// refuses this, too, for as long.
    fn cut_back(&mut self) -> Result<(), WalError> {
        if self.owes_cut {
            let cut = self.active.file.set_len(self.active.bytes());
            self.check("cutting back a write that found no room", cut)?;
            self.owes_cut = false;
        }
        Ok(())
    }

    /// What the next recovery must know before it reads the log, the manifest holds.
    fn note_control_entries(&mut self, entries: &[Entry]) {
        for entry in entries {
            match &entry.body {
                Body::Control(Control::Config(configuration)) => {
                    let at = ConfigurationAt { id: entry.id, configuration: configuration.clone() };
                    self.configurations.push(at.clone());
                    self.manifest.configuration = at;
                }
                Body::Control(Control::Lost { first, last }) => {
                    let covered = |gap: &&mut super::Gap| *first <= gap.first && gap.last <= *last;
                    for gap in self.manifest.gaps.iter_mut().filter(covered) {
                        (gap.known_from, gap.is_declared) = (entry.id, true);
                    }
                }
                Body::Control(Control::Epoch { .. } | Control::Settings(_) | Control::Feature(_))
                | Body::Set { .. }
                | Body::Delete { .. } => continue,
            }
            self.owes_manifest = true;
        }
    }

    fn note_committed(&mut self, committed: EntryId) -> Result<(), WalError> {
        self.manifest.hard.committed = self.manifest.hard.committed.max(committed.min(self.last));
        let written = self.hint().write(&self.hint);
        self.check("durable", written)
    }

    /// The manifest as it stands in memory, durably.
    pub(super) fn store_manifest(&mut self) -> Result<(), WalError> {
        let stored = self.manifest.store(&*self.shared.storage);
        self.check("manifest.json", stored)
    }

    /// When there is too little room: seals the active segment, so that a compaction may cover it, too.
    pub fn seal_when_short(&mut self) -> Result<(), WalError> {
        self.alive()?;
        if self.active.bytes() == 0 || !self.shared.is_full() {
            return Ok(());
        }
        self.roll()
    }

    /// Seals the active segment, all of which is durable, and begins the next.
    pub(super) fn roll(&mut self) -> Result<(), WalError> {
        self.cut_back()?;
        let number = self.manifest.active.number + 1;
        let name = file_name(FileKind::Log, number);
        let created = self.shared.storage.create(&name);
        let file = Arc::new(self.check(&name, created)?);
        let synced = sync_dir(&*self.shared.storage, "");
        self.check("data directory", synced)?;
        let mut next = self.manifest.clone();
        next.files.push(self.sealed());
        next.active = ActiveFile { number, first: self.last.next(), staged: None };
        let stored = next.store(&*self.shared.storage);
        self.check("manifest.json", stored)?;
        self.manifest = next;
        self.active.seal(std::mem::take(&mut self.active_crc).finalize());
        self.active = LogFile::new(file, FileKind::Log, number, self.last.next(), Default::default());
        let mut table = self.table();
        table.add(Arc::clone(&self.active));
        self.shared.publish(table, self.last);
        Ok(())
    }

    /// The active segment as the manifest will list it.
    fn sealed(&self) -> SealedFile {
        let extent = self.active.extent();
        SealedFile {
            kind: FileKind::Log,
            number: self.active.number,
            lines: extent.lines,
            bytes: extent.bytes,
            crc: self.active_crc.clone().finalize(),
            first: self.active.first,
            last: extent.last,
            staged: None,
            index: SparseIndex::default(),
        }
    }

    /// The present files, with what else the table tells taken from the manifest.
    pub(super) fn table(&self) -> FileTable<S::File> {
        let present = self.shared.table.load();
        let mut table = FileTable::empty(&self.manifest);
        for file in present.base.iter().chain(&present.log) {
            table.add(Arc::clone(file));
        }
        table
    }

    /// Replaces the manifest by `next`, in which names may be staged and obsolete.
    pub(super) fn swap(&mut self, next: Manifest) -> Result<(), WalError> {
        let stored = next.store(&*self.shared.storage);
        self.check("manifest.json", stored)?;
        self.manifest = next;
        let settled = super::volume::settle(&*self.shared.storage, &mut self.manifest, Leftovers::Keep);
        // The swap has happened, so no error is harmless any more.
        settled.map(drop).map_err(|e| self.fail(format!("data directory: {e}")))
    }
}
