//! Compaction: rewrites the log from its first segment up to a horizon into the base. What stays are
//! original lines, byte for byte: the latest SET of each key in a compacted segment, superseded
//! versions within the history limit in a history file, and the deduplication records. DELETE and
//! control lines go: no older line of their key remains, and the base holds what they set.
//!
//! Reads through open handles and writes staged files, so neither writers nor readers wait for it. The
//! result becomes the log when the committer swaps the manifest; until then, and after any error, the
//! log is what it was. Called by the compactor on a blocking thread, one at a time.
//!
//! Why the base is right although writers go on (A: the id applied when the driver answers
//! [`AppliedState::settled`], after all was collected; H: the horizon):
//!
//! - Recovery never shows a state between H and A, for `committed` is raised to A with the swap. So the
//!   base need only become, with the lines in (H, A] applied to it, the state at A.
//! - Keys not written in (H, A] are now what they were at H. Keys that were are traced through the old
//!   lines for their value at H; of their history the part still held is enough, since what is missing
//!   would be trimmed again, oldest first.
//! - Deduplication records that expired or were evicted since are missing from the base, so an entry in
//!   (H, A] might be decided anew: those that were refused are named in the base.

mod copy;
mod selection;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use kv_core::contract::Base;
use kv_core::entry::{EntryId, LineView};
use kv_core::keyspace::Keyspace;
use kv_core::mutant::{self, Mutant};
use kv_core::sessions::Sessions;

use self::selection::Selection;
use super::manifest::FileKind;
use super::reader::{LogReader, ReadError};
use super::segment::{LogFile, leave_disk_to_others};
use super::staging::{StagedFile, Staging};
use super::storage::Storage;
use super::table::FileTable;
use super::{CommitterHandle, CompactedBase};
use crate::compactor::{CompactionJob, CompactionOutcome};

/// What compaction asks of the node.
pub trait AppliedState: Send + Sync + 'static {
    fn keyspace(&self) -> Arc<Keyspace>;
    fn sessions(&self) -> Arc<Sessions>;
    /// Entries above it must stay in the log, whoever still needs them.
    fn limit(&self) -> EntryId;
    /// Blocks until the driver answers between two entries, so that all that was seen of the keyspace
    /// before is covered.
    fn settled(&self) -> Result<Settled, String>;
}

/// The applied state at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub applied: EntryId,
    /// [`kv_core::state_machine::StateMachine::refused`].
    pub refused: Vec<EntryId>,
}

/// Why nothing was compacted. The log is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactionError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a compacted file cannot be written: {0}")]
    Write(#[from] io::Error),
    #[error("{0} lines that are still needed were not found")]
    Missing(u64),
    #[error("{0}")]
    Node(String),
}

/// Compaction as the compactor runs it.
pub struct WalCompaction<S: Storage, A> {
    pub reader: LogReader<S>,
    pub committer: CommitterHandle,
    pub state: A,
}

impl<S: Storage, A: AppliedState> CompactionJob for WalCompaction<S, A> {
    fn run(&self) -> Result<CompactionOutcome, String> {
        if self.reader.is_full() {
            self.committer.seal_when_short()?;
        }
        let compacted = compact(&self.reader, &self.state).map_err(|error| error.to_string())?;
        let Some(compacted) = compacted else { return Ok(CompactionOutcome::default()) };
        let outcome = compacted.outcome;
        let replaced = self.reader.table();
        let swapped = self.committer.swap_compacted(compacted);
        close_one_by_one(replaced);
        swapped.map(|()| outcome)
    }

    fn pressed_at(&self) -> Option<u64> {
        (self.reader.is_full() || self.reader.has_many_segments()).then(|| self.state.keyspace().applied().0)
    }
}

/// Closing the last handle of a removed file frees its blocks, which takes a disk about a millisecond
/// for each megabyte: time that the committer must not spend. So the former table is held over the
/// swap, and its files are let go of here.
fn close_one_by_one<F>(table: Arc<FileTable<F>>) {
    let files: Vec<_> = table.base.iter().chain(&table.log).cloned().collect();
    drop(table);
    for file in files {
        let begun = Instant::now();
        drop(file);
        leave_disk_to_others(begun.elapsed());
    }
}

/// Writes the files of a new base; None when no sealed segment may be compacted.
pub fn compact<S: Storage>(
    reader: &LogReader<S>,
    state: &dyn AppliedState,
) -> Result<Option<CompactedBase>, CompactionError> {
    match try_to_compact(reader, state) {
        Err(CompactionError::Read(error)) => Ok(reader.noted(Err(error))?),
        compacted => compacted,
    }
}

fn try_to_compact<S: Storage>(
    reader: &LogReader<S>,
    state: &dyn AppliedState,
) -> Result<Option<CompactedBase>, CompactionError> {
    let Some(begun) = Begun::begin(reader, state)? else { return Ok(None) };
    let settled = state.settled().map_err(CompactionError::Node)?;
    begun.finish(reader, &settled).map(Some)
}

/// A compaction that has looked at the state while writers went on, and must now be told one moment
/// that covers all it saw. Dropping it removes what it wrote.
pub struct Begun<S: Storage> {
    run: Run<S>,
    sessions: StagedFile<S>,
}

impl<S: Storage> Begun<S> {
    /// None when no sealed segment may be compacted.
    pub fn begin(reader: &LogReader<S>, state: &dyn AppliedState) -> Result<Option<Self>, CompactionError> {
        // Before the state: one that an install replaces meanwhile is refused by the table's lineage.
        let table = reader.table();
        let (keyspace, sessions) = (state.keyspace(), state.sessions());
        let Some(mut run) = Run::choose(reader, &table, state.limit().min(keyspace.applied())) else {
            return Ok(None);
        };
        run.collect(&keyspace);
        let sessions = run.write_sessions(&sessions)?;
        Ok(Some(Self { run, sessions }))
    }

    /// `settled` must be true of a moment since it began.
    pub fn finish(self, reader: &LogReader<S>, settled: &Settled) -> Result<CompactedBase, CompactionError> {
        let Self { mut run, sessions } = self;
        run.select_touched(&reader.table(), settled)?;
        run.copy_base()?;
        run.copy_segments()?;
        run.finish(sessions, settled)
    }
}

/// One compaction under way. Dropping it removes what it wrote.
struct Run<S: Storage> {
    lineage: u64,
    /// Sealed segments that the new horizon covers, ids rising; never empty.
    covered: Vec<Arc<LogFile<S::File>>>,
    base_files: Vec<Arc<LogFile<S::File>>>,
    /// Becomes the new base, once the covered control lines are absorbed.
    base: Base,
    /// The last id covered, also while `base.horizon` is still the old one.
    horizon: EntryId,
    selection: Selection,
    staging: Staging<S>,
    live: StagedFile<S>,
    history: StagedFile<S>,
    segment_lines_read: u64,
    segments_read: u64,
}

impl<S: Storage> Run<S> {
    fn choose(reader: &LogReader<S>, table: &FileTable<S::File>, limit: EntryId) -> Option<Self> {
        let (_active, sealed) = table.log.split_last()?;
        let may_go = |file: &LogFile<_>| file.last() <= limit || mutant::on(Mutant::CompactAboveApplied);
        let mut covered: Vec<_> = sealed.iter().take_while(|file| may_go(file)).cloned().collect();
        // A segment without lines has no last id to be the horizon.
        covered.truncate(covered.iter().rposition(|file| file.last() > EntryId::ZERO)? + 1);
        let newest = covered.last()?;
        let (horizon, number) = (newest.last(), newest.number);
        Some(Self {
            lineage: table.lineage,
            covered,
            base_files: table.base.clone(),
            base: table.meta.clone(),
            horizon,
            selection: Selection::default(),
            staging: Staging::new(Arc::clone(reader.storage()), reader.next_generation()),
            live: StagedFile::new(FileKind::Live, number),
            history: StagedFile::new(FileKind::History, number),
            segment_lines_read: 0,
            segments_read: 0,
        })
    }

    fn collect(&mut self, keyspace: &Keyspace) {
        let (mut live, mut history) = (Vec::new(), Vec::new());
        keyspace.collect_ids(self.horizon, &mut |id| live.push(id), &mut |id| history.push(id));
        live.into_iter().for_each(|id| self.selection.add_live(id));
        history.into_iter().for_each(|id| self.selection.add_history(id));
    }

    /// Before the driver is asked to settle: of a record that is dropped later, the refusals that it
    /// caused are then known.
    fn write_sessions(&mut self, sessions: &Sessions) -> Result<StagedFile<S>, CompactionError> {
        let number = self.number();
        let mut file = StagedFile::new(FileKind::Sessions, number);
        let mut result = Ok(());
        sessions.for_each_up_to(self.horizon, &mut |record| {
            if result.is_ok() && !mutant::on(Mutant::CompactionForgetsSessions) {
                result = file.push(&mut self.staging, record.id, &record.encode());
            }
        });
        result?;
        Ok(file)
    }

    /// Finds what was current at the horizon of the keys that were written above it.
    fn select_touched(&mut self, table: &FileTable<S::File>, settled: &Settled) -> Result<(), CompactionError> {
        let above = table.log.iter().filter(|file| file.last() > self.horizon && file.first <= settled.applied);
        for file in above {
            copy::each_line(file, &mut |view, _| {
                if view.id > self.horizon && view.id <= settled.applied {
                    view.key.iter().for_each(|key| self.selection.touch(key));
                }
                Ok(())
            })?;
        }
        if self.selection.needs_trace() && !mutant::on(Mutant::CompactionForgetsWrittenKeys) {
            let refused: HashSet<EntryId> = settled.refused.iter().copied().collect();
            let base = self.base_files.iter().filter(|file| file.kind != FileKind::Sessions);
            for file in base.chain(&self.covered) {
                copy::each_line(file, &mut |view: &LineView<'_>, _| {
                    if !refused.contains(&view.id) || mutant::on(Mutant::RefusedEntryWinsCompaction) {
                        self.selection.trace(view);
                    }
                    Ok(())
                })?;
            }
        }
        self.selection.settle();
        Ok(())
    }

    fn number(&self) -> u64 {
        self.covered.last().expect("at least one segment is covered").number
    }
}

#[cfg(test)]
mod tests;
