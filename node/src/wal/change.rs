//! Changes of the manifest besides appending and cutting: the member's own state, the group's
//! beginning and its recovery by hand, a compacted base, and a snapshot that replaces everything.

use std::sync::Arc;

use kv_core::contract::{Base, HardState};
use kv_core::entry::LogPosition;
use kv_core::group::ConfigurationAt;
use kv_core::mutant::{self, Mutant};

use super::manifest::{ActiveFile, FileKind, Manifest, SealedFile, staged_name};
use super::recovery::{self, Recovered};
use super::segment::LogFile;
use super::staging;
use super::storage::{Storage, sync_dir};
use super::table::{FileTable, StagedSnapshot};
use super::{CompactedBase, Wal, WalError};

impl<S: Storage> Wal<S> {
    pub fn save_state(&mut self, hard: HardState) -> Result<(), WalError> {
        self.alive()?;
        let next = Manifest { hard: self.with_committed(hard), ..self.manifest.clone() };
        self.replace(next)
    }

    /// An uninitialised node becomes a member of a group whose log is empty.
    pub fn found(&mut self, hard: HardState, base: Base) -> Result<(), WalError> {
        self.alive()?;
        if self.last != self.manifest.base.horizon.id || self.last.0 != 0 || base.horizon.id.0 != 0 {
            return Err(WalError::Rule(format!("a group begins with an empty log, this one ends at {}", self.last)));
        }
        let configuration = base.configuration.clone();
        let next = Manifest { hard: self.with_committed(hard), base, configuration, ..self.manifest.clone() };
        self.replace(next)
    }

    /// The state with its new cluster id, and the configuration that holds from the last id on.
    pub fn recover(&mut self, hard: HardState, configuration: ConfigurationAt) -> Result<(), WalError> {
        self.alive()?;
        let mut next = Manifest { hard: self.with_committed(hard), ..self.manifest.clone() };
        if !mutant::on(Mutant::RecoveryKeepsConfiguration) {
            next.base.configuration = configuration.clone();
        }
        next.configuration = configuration;
        self.replace(next)?;
        self.configurations.clear();
        Ok(())
    }

    /// The committed id never goes back and is never above what is durable here.
    fn with_committed(&self, hard: HardState) -> HardState {
        let committed = hard.committed.max(self.manifest.hard.committed).min(self.last);
        HardState { committed, ..hard }
    }

    /// Of changes that leave the files as they are.
    fn replace(&mut self, next: Manifest) -> Result<(), WalError> {
        let stored = next.store(&*self.shared.storage);
        self.check("manifest.json", stored)?;
        self.manifest = next;
        self.owes_manifest = false;
        self.shared.publish(self.table(), self.last);
        Ok(())
    }

    /// Replaces what a compaction covers by its files. Refused when the log was cut or replaced since.
    pub fn swap_compacted(&mut self, compacted: CompactedBase) -> Result<(), WalError> {
        self.alive()?;
        let CompactedBase { mut files, base, applied, generation, lineage, outcome: _ } = compacted;
        let horizon = base.horizon.id;
        let covers = |f: &SealedFile| f.kind != FileKind::Log || f.last <= horizon;
        let is_boundary = self.manifest.files.iter().any(|f| f.kind == FileKind::Log && f.last == horizon);
        if lineage != self.manifest.lineage || applied > self.last || !is_boundary {
            staging::discard(&*self.shared.storage, &files);
            return Err(WalError::Rule(format!("the log has changed since a compaction up to {horizon} began")));
        }
        let mut next = Manifest { base, generation: self.manifest.generation.max(generation), ..self.manifest.clone() };
        let is_newer = self.manifest.base.configuration.id >= next.base.configuration.id;
        if is_newer && !mutant::on(Mutant::CompactionUndoesRecovery) {
            // Unless it is the same one, the group was recovered by hand since the compaction began.
            next.base.configuration = self.manifest.base.configuration.clone();
        }
        let (covered, kept): (Vec<_>, Vec<_>) = self.manifest.files.iter().cloned().partition(covers);
        next.obsolete = covered.iter().map(SealedFile::name).collect();
        files.sort_by_key(|f| (f.kind, f.number));
        next.files = files.iter().chain(&kept).map(without_index).collect();
        if !mutant::on(Mutant::SwapWithoutCommitted) {
            next.hard.committed = next.hard.committed.max(applied);
        }
        next.gaps.retain(|gap| !gap.is_declared || gap.known_from > horizon);
        self.swap(next)?;
        self.configurations.retain(|c| c.id > self.manifest.base.configuration.id);
        self.publish_compacted(files)
    }

    fn publish_compacted(&mut self, files: Vec<SealedFile>) -> Result<(), WalError> {
        let horizon = self.manifest.base.horizon.id;
        let mut table = FileTable::empty(&self.manifest);
        for mut file in files {
            let name = file.name();
            let opened = self.shared.storage.open(&name).map(Arc::new);
            let handle = opened.map_err(|e| self.fail(format!("{name}: {e}")))?;
            let index = std::mem::take(&mut file.index);
            table.add(LogFile::sealed(handle, &file, index));
        }
        let present = self.shared.table.load_full();
        for file in present.log.iter().filter(|f| f.first > horizon) {
            table.add(Arc::clone(file));
        }
        self.shared.publish(table, self.last);
        let written = self.hint().write(&self.hint);
        self.check("durable", written)
    }

    /// Replaces everything by the snapshot that was offered for this position, and recovers from it.
    pub fn install(&mut self, hard: HardState, position: LogPosition) -> Result<Recovered, WalError> {
        self.alive()?;
        // Taken out, so that a later offer does not remove its files.
        let Some(offered) = self.shared.staged().take_if(|staged| staged.position == position) else {
            return Err(WalError::Rule(format!("no snapshot at {} waits to be installed", position.id)));
        };
        let put_in_place = self.replace_by(hard, offered.clone());
        if let Err(WalError::Full) = put_in_place {
            self.shared.staged().get_or_insert(offered); // the same install is tried again
        }
        put_in_place?;
        self.reload(position)
    }

    fn replace_by(&mut self, hard: HardState, offered: StagedSnapshot) -> Result<(), WalError> {
        let StagedSnapshot { position, cluster_id: _, base, mut files, gaps, generation } = offered;
        files.sort_by_key(|f| (f.kind, f.number));
        let number = files.iter().map(|f| f.number).max().unwrap_or(0) + 1;
        let name = staged_name(FileKind::Log, number, generation);
        let created = self.shared.storage.create(&name).and_then(|_| sync_dir(&*self.shared.storage, ""));
        self.check(&name, created)?;
        let obsolete = self.manifest.listed();
        let configuration = base.configuration.clone();
        let next = Manifest {
            generation: self.manifest.generation.max(generation),
            lineage: self.manifest.lineage + 1,
            hard: HardState { committed: position.id, ..hard },
            configuration,
            base,
            files: files.iter().map(without_index).collect(),
            active: ActiveFile { number, first: position.id.next(), staged: Some(generation) },
            gaps,
            obsolete,
            ..self.manifest.clone()
        };
        self.swap(next)
    }

    /// Recovers from disk, as at a start, and goes on with what was recovered.
    fn reload(&mut self, position: LogPosition) -> Result<Recovered, WalError> {
        let (wal, recovered) = recovery::load(Arc::clone(&self.shared), self.manifest.clone(), &self.options)
            .map_err(|e| self.fail(format!("an installed snapshot cannot be recovered: {e}")))?;
        *self = wal;
        if self.last != position.id || recovered.report.is_damaged() {
            return Err(self.fail(format!("an installed snapshot up to {} ends at {}", position.id, self.last)));
        }
        Ok(recovered)
    }
}

fn without_index(file: &SealedFile) -> SealedFile {
    SealedFile { index: Default::default(), ..file.clone() }
}
