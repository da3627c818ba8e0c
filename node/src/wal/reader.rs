//! Reading the log while it is written: entries for peers, old values by id, sizes for people. Sees
//! only what is durable, verifies every line it gives, and never blocks the writer.

use std::io;
use std::sync::Arc;

use kv_core::entry::{Entry, EntryId, LineError};

use super::storage::Storage;
use super::table::{FileTable, Shared, StagedSnapshot};

/// A handle that any thread may use; cheap to clone.
#[derive(Debug)]
pub struct LogReader<S: Storage>(pub(crate) Arc<Shared<S>>);

impl<S: Storage> Clone for LogReader<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{file}: {error}")]
    Io { file: String, error: io::Error },
    #[error("{file}, offset {offset}: {error}")]
    Line { file: String, offset: u64, error: LineError },
}

/// A segment as `/segments` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    pub path: String,
    pub size_bytes: u64,
    pub is_active: bool,
}

impl<S: Storage> LogReader<S> {
    /// Entries from `from` on without a gap, at most `bytes_max` of lines but at least one; empty when
    /// `from` is at or below the horizon, or above the last durable id.
    pub fn read_from(&self, _from: EntryId, _bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        Ok(Vec::new())
    }

    /// The entry, wherever it is: in the log, or among the live and superseded lines of the base.
    pub fn read_entry(&self, _id: EntryId) -> Result<Option<Entry>, ReadError> {
        Ok(None)
    }

    /// Segments by rising number: compacted, sealed, then the active one.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        Vec::new()
    }

    /// Of all files that the manifest lists.
    pub fn disk_bytes(&self) -> u64 {
        let table = self.table();
        table.base.iter().chain(&table.log).map(|f| f.bytes()).sum()
    }

    pub fn available_bytes(&self) -> io::Result<u64> {
        self.0.storage.available_bytes()
    }

    /// The last id that is durable here.
    pub fn durable(&self) -> EntryId {
        self.0.durable()
    }

    pub fn segment_bytes_max(&self) -> u64 {
        self.0.segment_bytes_max
    }

    /// Bytes of all files together above which the log reports itself full; None: no limit.
    pub fn set_storage_limit_bytes(&self, limit: Option<u64>) {
        self.0.limits.set_storage_limit_bytes(limit);
    }

    /// The open files at this moment: for compaction and snapshots.
    pub fn table(&self) -> Arc<FileTable<S::File>> {
        self.0.table.load_full()
    }

    pub fn storage(&self) -> &Arc<S> {
        &self.0.storage
    }

    /// A number for the names of staged files; never given twice, not even across restarts once listed.
    pub fn next_generation(&self) -> u64 {
        self.0.next_generation()
    }

    /// Keeps a staged snapshot for its `Install`; an older one that still waits is forgotten.
    pub fn offer(&self, snapshot: StagedSnapshot) {
        *self.0.staged() = Some(snapshot);
    }
}
