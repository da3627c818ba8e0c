//! Makes a snapshot of an open log: a blocking iterator of chunks, read through handles that are held
//! open, so it blocks nobody and nobody's rolls or compactions disturb it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::{EntryId, LineView, LogPosition, verify_line};
use kv_core::mutant::{self, Mutant};

use super::format::{Counts, Header, Section, SectionMark, Trailer, encode};
use crate::wal::manifest::FileKind;
use crate::wal::reader::{LogReader, ReadError};
use crate::wal::segment::{Lines, LogFile};
use crate::wal::storage::Storage;
use crate::wal::table::FileTable;

/// Bytes gathered for one chunk; a longer line is a chunk of its own.
const CHUNK_BYTES: usize = 128 << 10;

/// Why no snapshot can be made now.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotUnavailable {
    #[error("the node belongs to no group yet")]
    Uninitialised,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("entry {0} is applied, but the log does not hold it")]
    Missing(EntryId),
}

/// A snapshot on its way. After an error it ends, without a trailer: whoever reads it knows it incomplete.
pub struct SnapshotSource<S: Storage> {
    reader: LogReader<S>,
    position: LogPosition,
    files: VecDeque<(Section, Arc<LogFile<S::File>>)>,
    /// The file being read.
    reading: Option<Reading<S::File>>,
    section: Option<Section>,
    out: Vec<u8>,
    counts: Counts,
    bytes: u64,
    checksum: crc32fast::Hasher,
    done: bool,
}

struct Reading<F> {
    section: Section,
    name: String,
    lines: Lines<F>,
}

impl<S: Storage> LogReader<S> {
    /// The state at an id that `applied` gives. It must be asked here and not before: a base is only
    /// right together with everything that was applied when it was made.
    pub fn snapshot(&self, applied: &dyn Fn() -> EntryId) -> Result<SnapshotSource<S>, SnapshotUnavailable> {
        loop {
            let before = self.table();
            let up_to = if mutant::on(Mutant::SnapshotPastApplied) { self.durable() } else { applied() };
            let table = self.table();
            // Between the same bases lies no compaction, and `table` holds all that was applied.
            if before.horizon() == table.horizon() && before.lineage == table.lineage {
                return SnapshotSource::new(self.clone(), &table, up_to.max(table.horizon().id));
            }
        }
    }
}

impl<S: Storage> SnapshotSource<S> {
    fn new(reader: LogReader<S>, table: &FileTable<S::File>, up_to: EntryId) -> Result<Self, SnapshotUnavailable> {
        let cluster_id = table.cluster_id.clone().ok_or(SnapshotUnavailable::Uninitialised)?;
        let position = match position_of(table, up_to) {
            Err(SnapshotUnavailable::Read(error)) => reader.noted(Err(error))?,
            position => position?,
        };
        let mut base = table.meta.clone();
        base.refused.retain(|&id| id <= up_to);
        let mut source = Self {
            reader,
            position,
            files: files_by_section(table, up_to),
            reading: None,
            section: None,
            out: Vec::with_capacity(CHUNK_BYTES),
            counts: Counts::default(),
            bytes: 0,
            checksum: crc32fast::Hasher::new(),
            done: false,
        };
        let header = Header { gaps: table.gaps.clone(), ..Header::new(cluster_id, position, base) };
        source.out.extend(encode(&header));
        Ok(source)
    }

    /// The last entry that it covers.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    fn chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.out.len() < CHUNK_BYTES && !self.done {
            if !self.push_line()? && !self.next_file() {
                self.end();
            }
        }
        if self.out.is_empty() {
            return Ok(None);
        }
        if !self.done {
            self.count_out();
        }
        let chunk = std::mem::replace(&mut self.out, Vec::with_capacity(CHUNK_BYTES));
        Ok(Some(chunk.into()))
    }

    /// False: the file has no more lines for this snapshot.
    fn push_line(&mut self) -> Result<bool, ReadError> {
        let Some(Reading { section, name, lines }) = &mut self.reading else { return Ok(false) };
        let Some(item) = lines.next() else { return Ok(false) };
        let (offset, line) = item.map_err(|error| ReadError::Io { file: name.clone(), error })?;
        let damaged = |error| ReadError::Line { file: name.clone(), offset, error };
        let is_last = if *section == Section::Log {
            LineView::parse(&line).map_err(damaged)?.id == self.position.id
        } else {
            verify_line(&line).map_err(damaged)?;
            false
        };
        *self.counts.of(*section) += 1;
        self.out.extend_from_slice(&line);
        self.out.push(b'\n');
        if is_last {
            self.reading = None;
        }
        Ok(true)
    }

    fn next_file(&mut self) -> bool {
        let Some((section, file)) = self.files.pop_front() else { return false };
        self.begin_sections_up_to(section);
        self.reading = Some(Reading { section, name: file.name(), lines: file.lines(0) });
        true
    }

    fn begin_sections_up_to(&mut self, section: Section) {
        for begun in Section::ALL {
            if self.section < Some(begun) && begun <= section {
                self.out.extend(encode(&SectionMark { section: begun }));
                self.section = Some(begun);
            }
        }
    }

    fn end(&mut self) {
        self.begin_sections_up_to(Section::Log);
        self.count_out();
        let checksum = self.checksum.clone().finalize();
        self.out.extend(encode(&Trailer { end: self.counts, bytes: self.bytes, checksum }));
        self.done = true;
    }

    fn count_out(&mut self) {
        self.checksum.update(&self.out);
        self.bytes += self.out.len() as u64;
    }
}

impl<S: Storage> Iterator for SnapshotSource<S> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let chunk = self.chunk().transpose()?;
        let chunk = self.reader.noted(chunk);
        if chunk.is_err() {
            (self.done, self.out) = (true, Vec::new());
        }
        Some(chunk.map_err(io::Error::other))
    }
}

/// The epoch comes from the line itself, since the header goes out before the lines are read.
fn position_of<F: crate::wal::StorageFile>(
    table: &FileTable<F>,
    up_to: EntryId,
) -> Result<LogPosition, SnapshotUnavailable> {
    if up_to == table.horizon().id {
        return Ok(table.horizon());
    }
    let holder = table.log.iter().rfind(|file| file.first <= up_to).ok_or(SnapshotUnavailable::Missing(up_to))?;
    let start = holder.extent().index.start_of(up_to);
    for item in holder.lines(start) {
        let (offset, line) = item.map_err(|error| ReadError::Io { file: holder.name(), error })?;
        let view = LineView::parse(&line).map_err(|error| ReadError::Line { file: holder.name(), offset, error })?;
        if view.id == up_to {
            return Ok(LogPosition { epoch: view.epoch, id: view.id });
        }
    }
    Err(SnapshotUnavailable::Missing(up_to))
}

fn files_by_section<F>(table: &FileTable<F>, up_to: EntryId) -> VecDeque<(Section, Arc<LogFile<F>>)> {
    let section = |kind| match kind {
        FileKind::History => Section::History,
        FileKind::Live => Section::Live,
        FileKind::Sessions => Section::Sessions,
        FileKind::Log => Section::Log,
    };
    let log = table.log.iter().filter(|file| file.first <= up_to);
    let is_forgotten = |section| match section {
        Section::History => mutant::on(Mutant::ForgetHistoryInSnapshot),
        Section::Sessions => mutant::on(Mutant::ForgetSessionsInSnapshot),
        Section::Live | Section::Log => false,
    };
    let mut files: Vec<_> = table.base.iter().chain(log).map(|file| (section(file.kind), Arc::clone(file))).collect();
    files.retain(|(section, _)| !is_forgotten(*section));
    files.sort_by_key(|(section, file)| (*section, file.number));
    files.into()
}
