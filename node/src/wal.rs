//! The write-ahead log: lines of JSON in segments, a manifest that says which files exist, and the one
//! thread that writes them. It knows entries and ids, not keys. The driver submits to the
//! [`Committer`]; everybody else reads through a [`LogReader`].
//!
//! Reading order: the format below, [`storage`], [`manifest`], [`segment`], this file with `append`,
//! `truncate` and `change` (one function for each [`Persist`]), [`recovery`], `refill`, [`committer`], [`reader`], [`scrub`], [`repair`].
#![doc = include_str!("wal/format.md")]

pub mod ailing;
mod append;
mod change;
pub mod committer;
pub mod compaction;
#[cfg(test)]
pub(crate) mod crash_tests;
mod hint;
pub mod import;
pub mod manifest;
pub mod memory;
mod names;
pub mod new_volume;
pub mod reader;
pub mod recovery;
mod refill;
pub mod repair;
pub mod restore;
pub mod scrub;
pub mod segment;
pub mod snapshot;
mod staging;
pub mod storage;
pub mod table;
#[cfg(test)]
mod test_log;
mod truncate;
pub mod verify;
mod volume;

use std::io;
use std::sync::Arc;

use kv_core::contract::{Base, HardState, Persist};
use kv_core::entry::{EntryId, LineError};
use kv_core::group::ConfigurationAt;

pub use committer::{CommitEvent, Committer, CommitterHandle};
pub use manifest::{ActiveFile, FORMAT_VERSION, FileKind, Gap, Manifest, ManifestError, SealedFile};
pub use reader::{LogReader, ReadError, SegmentInfo};
pub use recovery::{
    Damage, IdRange, NewVolume, Opened, Recovered, RecoveryReport, Salvage, TornTail, open, open_undamaged,
};
pub use segment::{Lines, LogFile, SegmentWriter};
pub use storage::{FileStorage, Storage, StorageError, StorageFile};
pub use table::{FileTable, StagedSnapshot};

use crate::compactor::CompactionOutcome;
use hint::{HINT_FILE, Hint};
use storage::is_full;
use table::Shared;

/// Default of MAX_SEGMENT_SIZE: 1 MiB.
pub const SEGMENT_BYTES_MAX_DEFAULT: u64 = 1 << 20;
/// Room kept free, so that deletes and compaction still work on a disk that is full for writes.
pub const RESERVE_BYTES_DEFAULT: u64 = 32 << 20;

/// What to do about damage that is found at open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnDamage {
    /// Serve what the rules allow (see [`Salvage`]) and report.
    #[default]
    Serve,
    /// Open fails.
    Refuse,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub segment_bytes_max: u64,
    pub on_damage: OnDamage,
    /// 1: no thread besides the caller's.
    pub recovery_threads: usize,
    /// Seeds the hashing of the state's maps.
    pub hash_seed: u64,
    /// Below this much room the log reports itself full.
    pub reserve_bytes: u64,
    /// Over this much on disk the log reports itself full.
    pub storage_limit_bytes: Option<u64>,
    /// With more segments compaction does not wait for its turn: each is an open file.
    pub segments_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes_max: SEGMENT_BYTES_MAX_DEFAULT,
            on_damage: OnDamage::Serve,
            recovery_threads: 1,
            hash_seed: 0,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
            storage_limit_bytes: None,
            segments_max: usize::MAX,
        }
    }
}

/// Why the log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{file}: {error}")]
    Io { file: String, error: io::Error },
    /// Nothing was acknowledged; the same call may be made again.
    #[error("no room left on the volume")]
    Full,
    /// Nothing will be written any more.
    #[error("the log has failed: {0}")]
    Failed(String),
    #[error("{file}, offset {offset}: {error}: this release must not skip it, use a newer one")]
    NotUnderstood { file: String, offset: u64, error: LineError },
    #[error("the log is damaged and --on-corruption is refuse: {0}")]
    Damaged(String),
    #[error(
        "the directory holds {0} but no manifest: not a data directory of kvcluster (for one of the Python implementation: kv-node import)"
    )]
    Foreign(String),
    /// A bug of the caller: refused before anything was changed.
    #[error("refused: {0}")]
    Rule(String),
}

/// A compaction's result: complete, durable files under staged names of one generation.
#[derive(Debug, Clone)]
pub struct CompactedBase {
    pub files: Vec<SealedFile>,
    pub base: Base,
    /// The state that the files were chosen by was applied up to here: `committed` is raised to it.
    pub applied: EntryId,
    pub generation: u64,
    /// Of the [`FileTable`] that it was made from.
    pub lineage: u64,
    pub outcome: CompactionOutcome,
}

/// The log, written by one owner at a time. After an error other than [`WalError::Full`] and
/// [`WalError::Rule`] every call fails: what reached the disk is not known.
#[derive(Debug)]
pub struct Wal<S: Storage> {
    shared: Arc<Shared<S>>,
    options: Options,
    /// As stored, but for staged and obsolete names, which are settled.
    manifest: Manifest,
    active: Arc<LogFile<S::File>>,
    /// Over the durable bytes of the active segment.
    active_crc: crc32fast::Hasher,
    hint: S::File,
    /// The highest id, durable.
    last: EntryId,
    /// Of the log above the horizon, rising.
    configurations: Vec<ConfigurationAt>,
    /// The last call found no room: the batch that began with this id may be in by half.
    interrupted: Option<EntryId>,
    /// A durable entry changed what the manifest must know before it is acknowledged.
    owes_manifest: bool,
    /// Behind the active segment's durable end there may be a part of a write.
    owes_cut: bool,
    failed: Option<String>,
    /// Reused between batches.
    buffer: Vec<u8>,
}

/// Where writing goes on.
#[derive(Debug)]
pub(crate) struct Position<F> {
    pub(crate) active: Arc<LogFile<F>>,
    /// Of the active segment's bytes.
    pub(crate) crc: u32,
    pub(crate) last: EntryId,
}

impl<S: Storage> Wal<S> {
    pub(crate) fn start(
        shared: Arc<Shared<S>>,
        manifest: Manifest,
        table: FileTable<S::File>,
        position: Position<S::File>,
        options: &Options,
    ) -> Result<Self, WalError> {
        let storage = &*shared.storage;
        let hint = storage.open(HINT_FILE).or_else(|_| storage.create(HINT_FILE)).map_err(recovery::in_directory)?;
        let Position { active, crc, last } = position;
        let active_crc = crc32fast::Hasher::new_with_initial_len(crc, active.bytes());
        shared.publish(table, last);
        let wal = Self {
            shared,
            options: options.clone(),
            manifest,
            active,
            active_crc,
            hint,
            last,
            configurations: Vec::new(),
            interrupted: None,
            owes_manifest: false,
            owes_cut: false,
            failed: None,
            buffer: Vec::new(),
        };
        wal.hint().write(&wal.hint).map_err(recovery::in_directory)?;
        Ok(wal)
    }

    /// The highest id, durable.
    pub fn last(&self) -> EntryId {
        self.last
    }

    pub fn reader(&self) -> LogReader<S> {
        LogReader(Arc::clone(&self.shared))
    }

    /// Carries one operation out. The recovered state is that of an install.
    pub fn persist(&mut self, op: &Persist) -> Result<Option<Recovered>, WalError> {
        match op {
            Persist::Append { entries, committed } => self.append(entries, *committed)?,
            Persist::Truncate { keep } => self.truncate(*keep)?,
            Persist::State(hard) => self.save_state(HardState::clone(hard))?,
            Persist::Found { state, base } => self.found(HardState::clone(state), Base::clone(base))?,
            Persist::Recover { state, configuration } => {
                self.recover(HardState::clone(state), configuration.clone())?;
            }
            Persist::Install { state, position } => {
                return self.install(HardState::clone(state), *position).map(Some);
            }
        }
        Ok(None)
    }

    /// Whether space is running out: below the reserve, or over the storage limit.
    pub fn is_short_of_space(&self) -> io::Result<bool> {
        let over_limit = |limit| self.reader().disk_bytes() > limit;
        let is_over_limit = self.shared.limits.storage_limit_bytes().is_some_and(over_limit);
        Ok(is_over_limit || self.shared.storage.available_bytes()? < self.options.reserve_bytes)
    }

    /// For everybody else to know.
    pub(crate) fn note_full(&self, is_full: bool) {
        self.shared.set_full(is_full);
    }

    fn hint(&self) -> Hint {
        Hint { durable: self.last, committed: self.manifest.hard.committed, lineage: self.manifest.lineage }
    }

    fn alive(&self) -> Result<(), WalError> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(WalError::Failed(why.clone())))
    }

    /// No room is no failure: nothing was changed that the next try does not change again.
    fn check<T>(&mut self, file: &str, result: io::Result<T>) -> Result<T, WalError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) if is_full(&error) => Err(WalError::Full),
            Err(error) => Err(self.fail(format!("{file}: {error}"))),
        }
    }

    fn fail(&mut self, why: String) -> WalError {
        self.failed = Some(why.clone());
        WalError::Failed(why)
    }
}
