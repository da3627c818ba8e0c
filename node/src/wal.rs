//! The write-ahead log.

pub mod committer;
pub mod compaction;
mod hint;
pub mod import;
pub mod manifest;
pub mod new_volume;
pub mod reader;
pub mod recovery;
pub mod restore;
pub mod segment;
#[expect(dead_code, reason = "its writer lands with the reader of the log")]
pub mod snapshot;
mod staging;
pub mod storage;
pub mod table;
pub mod verify;

use std::io;
use std::sync::Arc;

use kv_core::contract::{Base, HardState, Persist};
use kv_core::entry::{Entry, EntryId, LineError, LogPosition};
use kv_core::group::ConfigurationAt;

pub use committer::{CommitEvent, Committer, CommitterHandle};
pub use manifest::{ActiveFile, FORMAT_VERSION, FileKind, Manifest, ManifestError, SealedFile};
pub use reader::{LogReader, ReadError, SegmentInfo};
pub use recovery::{Damage, IdRange, NewVolume, Opened, Recovered, RecoveryReport, Salvage, TornTail, open};
pub use segment::{Lines, LogFile, SegmentWriter};
pub use storage::{FileStorage, Storage, StorageError, StorageFile};
pub use table::{FileTable, StagedSnapshot};

use crate::compactor::CompactionOutcome;
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

/// The log, written by one owner at a time.
#[derive(Debug)]
pub struct Wal<S: Storage> {
    #[expect(dead_code, reason = "the writing lands next")]
    shared: Arc<Shared<S>>,
}

impl<S: Storage> Wal<S> {
    /// Durable when it returns. After [`WalError::Full`] the same call may be made again.
    pub fn append(&mut self, _entries: &[Entry], _committed: EntryId) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    /// Cuts all entries above `keep`, after saving them aside.
    pub fn truncate(&mut self, _keep: EntryId) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    pub fn save_state(&mut self, _hard: HardState) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    pub fn found(&mut self, _hard: HardState, _base: Base) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    pub fn recover(&mut self, _hard: HardState, _configuration: ConfigurationAt) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    /// Replaces everything by the snapshot that was offered for this position, and recovers from it.
    pub fn install(&mut self, _hard: HardState, _position: LogPosition) -> Result<Recovered, WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    /// Replaces what the base covers by a compaction's files.
    pub fn swap_compacted(&mut self, _compacted: CompactedBase) -> Result<(), WalError> {
        Err(WalError::Failed("not yet built".into()))
    }

    /// Carries one operation out. The recovered state is that of an install.
    pub fn persist(&mut self, op: Persist) -> Result<Option<Recovered>, WalError> {
        match op {
            Persist::Append { entries, committed } => self.append(&entries, committed)?,
            Persist::Truncate { keep } => self.truncate(keep)?,
            Persist::State(hard) => self.save_state(*hard)?,
            Persist::Found { state, base } => self.found(*state, *base)?,
            Persist::Recover { state, configuration } => self.recover(*state, configuration)?,
            Persist::Install { state, position } => return self.install(*state, position).map(Some),
        }
        Ok(None)
    }
}
