//! Takes a snapshot in, from a peer or a file: believes nothing, holds one line at a time, and writes
//! what it verified to staged files. Only a snapshot that is whole is handed on; of any other nothing
//! is left behind.

use std::io;
use std::sync::Arc;

use super::SnapshotError;
use super::check::{Checker, Item};
use super::format::{Counts, Header, Section};
use crate::wal::manifest::{FileKind, SealedFile};
use crate::wal::reader::LogReader;
use crate::wal::staging::{StagedFile, Staging};
use crate::wal::storage::Storage;
use crate::wal::table::StagedSnapshot;

/// Number of the base's files; the log's follow.
const BASE_NUMBER: u64 = 1;

/// Why a snapshot was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the snapshot cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Receives one snapshot. Dropped before [`Self::finish`], it removes what it wrote.
#[derive(Debug)]
pub struct SnapshotReceiver<S: Storage> {
    checker: Checker,
    files: Files<S>,
}

#[derive(Debug)]
struct Files<S: Storage> {
    staging: Staging<S>,
    segment_bytes_max: u64,
    writing: Option<StagedFile<S>>,
    /// Of the file being written, when it is a segment of the log.
    number: u64,
    sealed: Vec<SealedFile>,
    counts: Counts,
}

impl<S: Storage> LogReader<S> {
    /// Starts to receive a snapshot into this data directory.
    pub fn receive_snapshot(&self) -> SnapshotReceiver<S> {
        SnapshotReceiver::new(Arc::clone(self.storage()), self.next_generation(), self.segment_bytes_max())
    }
}

impl<S: Storage> SnapshotReceiver<S> {
    pub(crate) fn new(storage: Arc<S>, generation: u64, segment_bytes_max: u64) -> Self {
        let files = Files {
            staging: Staging::new(storage, generation),
            segment_bytes_max,
            writing: None,
            number: BASE_NUMBER,
            sealed: Vec::new(),
            counts: Counts::default(),
        };
        Self { checker: Checker::default(), files }
    }

    /// Takes the next bytes of the stream. After an error the receiver is of no more use.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), ReceiveError> {
        let files = &mut self.files;
        self.checker.feed(chunk, &mut |item| files.take(item))
    }

    /// The stream has ended. The files are durable when this returns.
    pub fn finish(self) -> Result<Received, ReceiveError> {
        let header = self.checker.finish()?;
        let Header { kvcluster_snapshot: _, cluster_id, position, base, mut gaps } = header.clone();
        // Those above it are of entries that it does not cover: others may follow it.
        gaps.retain(|gap| gap.last <= position.id);
        let Files { staging, sealed, counts, .. } = self.files;
        let generation = staging.generation();
        staging.keep()?;
        let staged = StagedSnapshot { position, cluster_id, base, files: sealed, gaps, generation };
        Ok(Received { staged, counts })
    }
}

/// A snapshot that is whole, and how many lines it has.
#[derive(Debug)]
pub struct Received {
    pub staged: StagedSnapshot,
    pub counts: Counts,
}

impl<S: Storage> Files<S> {
    fn take(&mut self, item: Item) -> Result<(), ReceiveError> {
        match item {
            Item::Header => {}
            Item::Begins(section) => {
                self.seal()?;
                self.begin(section);
            }
            Item::Line { section, id, line } => {
                if section == Section::Log && self.is_full() {
                    self.seal()?;
                    self.number += 1;
                    self.begin(Section::Log);
                }
                let file = self.writing.as_mut().expect("a line follows the mark of its section");
                file.push(&mut self.staging, id, &line)?;
            }
            Item::End(counts) => {
                self.seal()?;
                self.counts = counts;
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.writing.as_ref().is_some_and(|file| file.bytes() >= self.segment_bytes_max)
    }

    fn begin(&mut self, section: Section) {
        let kind = match section {
            Section::History => FileKind::History,
            Section::Live => FileKind::Live,
            Section::Sessions => FileKind::Sessions,
            Section::Log => FileKind::Log,
        };
        if kind == FileKind::Log && self.number == BASE_NUMBER {
            self.number += 1;
        }
        let number = if kind == FileKind::Log { self.number } else { BASE_NUMBER };
        self.writing = Some(StagedFile::new(kind, number));
    }

    fn seal(&mut self) -> Result<(), ReceiveError> {
        if let Some(file) = self.writing.take() {
            self.sealed.extend(file.finish()?);
        }
        Ok(())
    }
}
