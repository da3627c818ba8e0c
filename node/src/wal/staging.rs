//! Files under staged names that no manifest lists yet. Whoever gives up leaves none behind: they are
//! removed on drop unless they were kept. Used by compaction, the receiving of snapshots and restore.

use std::io;
use std::sync::Arc;

use kv_core::entry::EntryId;

use super::manifest::{FileKind, SealedFile, staged_name};
use super::segment::SegmentWriter;
use super::storage::Storage;

/// The staged files of one generation.
#[derive(Debug)]
pub(crate) struct Staging<S: Storage> {
    storage: Arc<S>,
    generation: u64,
    names: Vec<String>,
}

impl<S: Storage> Staging<S> {
    pub(crate) fn new(storage: Arc<S>, generation: u64) -> Self {
        Self { storage, generation, names: Vec::new() }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn create(&mut self, kind: FileKind, number: u64) -> io::Result<SegmentWriter<S::File>> {
        self.names.push(staged_name(kind, number, self.generation));
        SegmentWriter::create(&*self.storage, kind, number, self.generation)
    }

    /// Makes the names durable and leaves the files to whoever lists them.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.storage.sync_dir("")?;
        self.names.clear();
        Ok(())
    }
}

/// Staged files that were kept, and that no manifest will list.
pub(crate) fn discard<'f, S: Storage>(storage: &S, files: impl IntoIterator<Item = &'f SealedFile>) {
    for name in files.into_iter().filter_map(SealedFile::staged_name) {
        // What cannot be removed now is an orphan for the next start.
        let _ignored = storage.remove(&name);
    }
}

impl<S: Storage> Drop for Staging<S> {
    fn drop(&mut self) {
        for name in &self.names {
            // What cannot be removed now is an orphan for the next start.
            if let Err(error) = self.storage.remove(name)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%name, %error, "a staged file could not be removed");
            }
        }
    }
}

/// A staged file that exists only once it has a line.
#[derive(Debug)]
pub(crate) struct StagedFile<S: Storage> {
    kind: FileKind,
    number: u64,
    writer: Option<SegmentWriter<S::File>>,
}

impl<S: Storage> StagedFile<S> {
    pub(crate) fn new(kind: FileKind, number: u64) -> Self {
        Self { kind, number, writer: None }
    }

    pub(crate) fn push(&mut self, staging: &mut Staging<S>, id: EntryId, line: &[u8]) -> io::Result<()> {
        if self.writer.is_none() {
            self.writer = Some(staging.create(self.kind, self.number)?);
        }
        self.writer.as_mut().expect("just created").push(id, line)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.writer.as_ref().map_or(0, SegmentWriter::bytes)
    }

    pub(crate) fn lines(&self) -> u64 {
        self.writer.as_ref().map_or(0, SegmentWriter::lines)
    }

    /// Durable, unless it never had a line.
    pub(crate) fn finish(self) -> io::Result<Option<SealedFile>> {
        self.writer.map(SegmentWriter::finish).transpose()
    }
}
