//! Cutting the end of the log: a new leader's log differs from there on. What is cut is saved aside
//! first. Readers that are under way keep what they had.

use std::sync::Arc;

use kv_core::entry::{EntryId, LineView};
use kv_core::mutant::{self, Mutant};

use super::manifest::{ActiveFile, FileKind, Manifest, SealedFile};
use super::segment::{Extent, LogFile};
use super::staging::Staging;
use super::storage::Storage;
use super::volume::{ASIDE_DIR, drop_oldest, save_aside};
use super::{Wal, WalError};

impl<S: Storage> Wal<S> {
    /// Cuts all entries above `keep`, after saving them aside. Refused at or below the horizon and
    /// below what is committed: that would be a bug of the caller.
    pub fn truncate(&mut self, keep: EntryId) -> Result<(), WalError> {
        self.alive()?;
        if keep >= self.last {
            return Ok(());
        }
        let floor = self.manifest.base.horizon.id.max(self.manifest.hard.committed);
        if keep < floor {
            return Err(WalError::Rule(format!("entries up to {floor} are committed, cannot cut above {keep}")));
        }
        let at = self.place_of(keep);
        let generation = self.shared.next_generation();
        let cut = self.write_cut(at, keep, generation);
        let active = self.check("the cut segment", cut)?;
        self.put_cut_in_place(at, keep, generation, active)
    }

    /// Index of the log file that ends with `keep` or goes on behind it.
    fn place_of(&self, keep: EntryId) -> usize {
        let table = self.shared.table.load();
        table.log.partition_point(|file| file.first <= keep).saturating_sub(1)
    }

    /// Saves the tail aside and writes what is kept of the file that becomes the active segment.
    fn write_cut(&self, at: usize, keep: EntryId, generation: u64) -> std::io::Result<SealedFile> {
        let table = self.shared.table.load();
        let storage = &*self.shared.storage;
        let file = &table.log[at];
        let mut staging = Staging::new(Arc::clone(&self.shared.storage), generation);
        let mut writer = staging.create(FileKind::Log, file.number)?;
        for line in file.lines(0) {
            let (_, line) = line?;
            let id = LineView::parse(&line).map_err(|e| std::io::Error::other(e.to_string()))?.id;
            if id > keep {
                break;
            }
            writer.push(id, &line)?;
        }
        let of_this_start = self.shared.put_aside().clone();
        drop_oldest(storage, ASIDE_DIR, &of_this_start)?;
        let pieces = std::iter::once((&*file.file, writer.bytes()));
        let later = table.log[at + 1..].iter().map(|file| (&*file.file, 0));
        if !mutant::on(Mutant::CutWithoutSaving) {
            save_aside(storage, &format!("{}.cut.{}", file.name(), keep.next()), pieces.chain(later))?;
        }
        let active = writer.finish()?;
        staging.keep()?;
        Ok(active)
    }

    fn put_cut_in_place(
        &mut self,
        at: usize,
        keep: EntryId,
        generation: u64,
        active: SealedFile,
    ) -> Result<(), WalError> {
        let (kept, cut): (Vec<_>, Vec<_>) = {
            let table = self.shared.table.load();
            (table.log[..at].to_vec(), table.log[at..].to_vec())
        };
        let configurations: Vec<_> = self.configurations.iter().filter(|c| c.id <= keep).cloned().collect();
        let mut next = Manifest { generation, lineage: self.manifest.lineage + 1, ..self.manifest.clone() };
        next.files.retain(|f| f.kind != FileKind::Log || kept.iter().any(|k| k.number == f.number));
        next.active = ActiveFile { number: active.number, first: cut[0].first, staged: Some(generation) };
        next.obsolete = cut.iter().map(|f| f.name()).collect();
        next.configuration = configurations.last().unwrap_or(&next.base.configuration).clone();
        next.gaps.retain(|gap| gap.last <= keep);
        for gap in next.gaps.iter_mut().filter(|gap| gap.known_from > keep) {
            (gap.known_from, gap.is_declared) = (keep.next(), false);
        }
        self.swap(next)?;
        let name = self.manifest.active.name();
        let opened = self.shared.storage.open(&name).map(Arc::new);
        let file = opened.map_err(|e| self.fail(format!("{name}: {e}")))?;
        let SealedFile { bytes, lines, crc, index, .. } = active;
        let extent = Extent { bytes, lines, last: active.last, index };
        self.active = LogFile::new(file, FileKind::Log, active.number, cut[0].first, extent);
        self.active_crc = crc32fast::Hasher::new_with_initial_len(crc, bytes);
        (self.last, self.configurations, self.interrupted) = (keep, configurations, None);
        let mut table = self.table();
        table.log = kept;
        table.add(Arc::clone(&self.active));
        self.shared.publish(table, keep);
        let written = self.hint().write(&self.hint);
        self.check("durable", written)
    }
}
