//! Reading the log while it is written: entries for peers, old values by id, sizes for people. Sees
//! only what is durable, verifies every line it gives, and never blocks the writer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::{Entry, EntryId, LineError};

use super::manifest::FileKind;
use super::segment::LogFile;
use super::staging;
use super::storage::{Storage, StorageFile};
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
    /// `from` is at or below the horizon, above the last durable id, or among ids that are lost.
    pub fn read_from(&self, from: EntryId, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        self.noted(self.entries_from(from, bytes_max))
    }

    fn entries_from(&self, from: EntryId, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let table = self.table();
        let mut entries: Vec<Entry> = Vec::new();
        if from <= table.horizon().id {
            return Ok(entries);
        }
        let first_file = table.log.partition_point(|file| file.first <= from).saturating_sub(1);
        let (mut expected, mut bytes) = (from, 0);
        for file in &table.log[first_file..] {
            let start = file.extent().index.start_of(expected);
            for line in file.lines(start) {
                let entry = decode(file, line)?;
                if entry.id < expected {
                    continue;
                }
                bytes += entry.line.len() + 1;
                if entry.id > expected || (bytes > bytes_max && !entries.is_empty()) {
                    return Ok(entries);
                }
                expected = entry.id.next();
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The entries from `first` to `last` as far as they are held, in the log or the base, ids rising: at most
    /// `bytes_max` of lines but at least one. Whatever is left out for its size is above the last one given.
    pub fn read_held(&self, first: EntryId, last: EntryId, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        self.noted(self.held(first, last, bytes_max))
    }

    fn held(&self, first: EntryId, last: EntryId, bytes_max: usize) -> Result<Vec<Entry>, ReadError> {
        let table = self.table();
        let mut held: Vec<Entry> = Vec::new();
        let base = table.base.iter().filter(|file| matches!(file.kind, FileKind::Live | FileKind::History));
        for file in base {
            held.extend(read_range(file, first, last, bytes_max)?);
        }
        // Each file was cut off where it alone was too long: sorted, no cut-off can leave a hole below the bound.
        held.sort_by_key(|entry| entry.id);
        for file in &table.log {
            let bytes: usize = held.iter().map(|entry| entry.line.len() + 1).sum();
            if bytes > bytes_max {
                break;
            }
            held.extend(read_range(file, first, last, bytes_max)?);
        }
        Ok(up_to_bytes(held, bytes_max))
    }

    /// The horizon: lines at or below it are held only as far as the state needs them.
    pub fn horizon(&self) -> EntryId {
        self.table().horizon().id
    }

    /// The entry, wherever it is: in the log, or among the live and superseded lines of the base.
    pub fn read_entry(&self, id: EntryId) -> Result<Option<Entry>, ReadError> {
        self.noted(self.entry(id))
    }

    fn entry(&self, id: EntryId) -> Result<Option<Entry>, ReadError> {
        let table = self.table();
        if id > table.horizon().id {
            let at = table.log.partition_point(|file| file.first <= id);
            return at.checked_sub(1).map_or(Ok(None), |at| find(&table.log[at], id));
        }
        let may_have = |file: &&Arc<LogFile<S::File>>| {
            matches!(file.kind, FileKind::Live | FileKind::History) && file.first <= id && id <= file.last()
        };
        for file in table.base.iter().filter(may_have) {
            if let Some(entry) = find(file, id)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Segments by rising number: compacted, sealed, then the active one.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let table = self.table();
        let active = table.log.last().map(|file| file.number);
        let compacted = table.base.iter().filter(|file| file.kind == FileKind::Live);
        let mut files: Vec<_> = compacted.chain(&table.log).collect();
        files.sort_by_key(|file| file.number);
        let info = |file: &&Arc<LogFile<S::File>>| SegmentInfo {
            path: self.0.storage.path_of(&file.name()),
            size_bytes: file.bytes(),
            is_active: file.kind == FileKind::Log && Some(file.number) == active,
        };
        files.iter().map(info).collect()
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
    pub fn storage_limit_bytes(&self) -> Option<u64> {
        self.0.limits.storage_limit_bytes()
    }

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

    /// A failed read makes its file suspect; see [`Self::take_suspect`].
    pub(crate) fn noted<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::Io { file, .. } | ReadError::Line { file, .. }) = &read {
            self.0.suspects.add(file);
        }
        read
    }

    /// The name of a file that was not read as it should, for somebody to look at it.
    pub fn take_suspect(&self) -> Option<String> {
        self.0.suspects.take()
    }

    /// Completes when a file has become suspect since the last time. May be cancelled.
    pub async fn suspected(&self) {
        self.0.suspects.added.notified().await;
    }

    /// Keeps a staged snapshot for its `Install`; an older one that still waits is removed.
    pub fn offer(&self, snapshot: StagedSnapshot) {
        let older = self.0.staged().replace(snapshot);
        self.remove_staged(older);
    }

    /// A staged snapshot that nobody will install is removed.
    pub fn withdraw(&self) {
        let unwanted = self.0.staged().take();
        self.remove_staged(unwanted);
    }

    fn remove_staged(&self, snapshot: Option<StagedSnapshot>) {
        staging::discard(&**self.storage(), snapshot.iter().flat_map(|snapshot| &snapshot.files));
    }

    /// Whether there are so many segments that the open files may run out.
    pub fn has_many_segments(&self) -> bool {
        self.0.table.load().log.len() > self.0.segments_max
    }

    /// Whether there is too little room to write.
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }
}

/// Bytes read at once for one entry: a little more than the index leaves open.
const LOOKUP_BYTES: usize = 8 << 10;

/// Reads until the lines are more than `bytes_max` together, or the range ends.
fn read_range<F: StorageFile>(
    file: &Arc<LogFile<F>>,
    first: EntryId,
    last: EntryId,
    bytes_max: usize,
) -> Result<Vec<Entry>, ReadError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    if file.last() < first || file.first > last {
        return Ok(entries);
    }
    let start = file.extent().index.start_of(first);
    for line in file.lines(start) {
        let entry = decode(file, line)?;
        if entry.id > last || bytes > bytes_max {
            break;
        }
        if entry.id >= first {
            bytes += entry.line.len() + 1;
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The first ones, at least one.
fn up_to_bytes(mut entries: Vec<Entry>, bytes_max: usize) -> Vec<Entry> {
    let mut bytes = 0;
    let fits = |entry: &&Entry| {
        bytes += entry.line.len() + 1;
        bytes <= bytes_max
    };
    let count = entries.iter().take_while(fits).count().max(1);
    entries.truncate(count);
    entries
}

fn find<F: StorageFile>(file: &Arc<LogFile<F>>, id: EntryId) -> Result<Option<Entry>, ReadError> {
    let start = file.extent().index.start_of(id);
    for line in file.lines_by(start, LOOKUP_BYTES) {
        let entry = decode(file, line)?;
        if entry.id >= id {
            return Ok(Some(entry).filter(|entry| entry.id == id));
        }
    }
    Ok(None)
}

fn decode<F: StorageFile>(file: &LogFile<F>, line: io::Result<(u64, Bytes)>) -> Result<Entry, ReadError> {
    let (offset, line) = line.map_err(|error| ReadError::Io { file: file.name(), error })?;
    Entry::decode(line).map_err(|error| ReadError::Line { file: file.name(), offset, error })
}
