//! Files of lines: writing one that is to be sealed, and the open ones that readers share. Knows ids
//! and newlines, not keys. Used by the log itself, compaction, snapshots and import.

use std::io;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::entry::EntryId;

use super::manifest::{ActiveFile, FileKind, SealedFile, file_name, staged_name};
use super::storage::{Storage, StorageFile, read_up_to, sync};

/// Distance of the places that an index knows, in bytes: a lookup reads about this much.
pub(crate) const INDEX_STRIDE_BYTES: u64 = 4096;
/// Bytes gathered before a writer of sealed files writes.
const WRITE_BUFFER_BYTES: usize = 256 << 10;
/// Unsynced bytes of a file that is to be sealed: a few milliseconds of a slow disk, so that the log's
/// own sync never waits long behind it.
const SYNC_SLICE_BYTES: u64 = 1 << 20;
/// Longest pause between two slices.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Bytes read at once when a file is gone through.
const SCAN_BLOCK_BYTES: usize = 256 << 10;
/// Without a newline for so long, it is no line: no line comes near it.
const LINE_BYTES_MAX: usize = 32 << 20;

/// The place of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: EntryId,
    pub(crate) offset: u64,
}

/// Places of lines, about [`INDEX_STRIDE_BYTES`] apart, ids rising.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SparseIndex(Vec<Mark>);

impl SparseIndex {
    pub(crate) fn note(&mut self, id: EntryId, offset: u64) {
        if self.0.last().is_none_or(|mark| offset >= mark.offset + INDEX_STRIDE_BYTES && id > mark.id) {
            self.0.push(Mark { id, offset });
        }
    }

    pub(crate) fn into_marks(self) -> Vec<Mark> {
        self.0
    }

    pub(crate) fn extend(&mut self, marks: &[Mark]) {
        for mark in marks {
            self.note(mark.id, mark.offset);
        }
    }

    /// Forgets the places at or behind `offset`.
    pub(crate) fn cut(&mut self, offset: u64) {
        self.0.truncate(self.0.partition_point(|mark| mark.offset < offset));
    }

    /// Where to start looking for `id`.
    pub(crate) fn start_of(&self, id: EntryId) -> u64 {
        let after = self.0.partition_point(|mark| mark.id <= id);
        after.checked_sub(1).map_or(0, |at| self.0[at].offset)
    }
}

/// How far a file goes, for readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extent {
    /// Durable bytes: readers see no further.
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
    /// Of the last durable line; 0: none.
    pub(crate) last: EntryId,
    pub(crate) index: SparseIndex,
}

/// An open file of the log. Its handle outlives a removal, so a reader that holds it is never cut off.
#[derive(Debug)]
pub struct LogFile<F> {
    pub(crate) file: Arc<F>,
    pub kind: FileKind,
    pub number: u64,
    /// The first id that it has or, when active, will have.
    pub first: EntryId,
    extent: RwLock<Extent>,
    /// CRC-32 of all its bytes, from when it is sealed on.
    crc: OnceLock<u32>,
}

impl<F: StorageFile> LogFile<F> {
    pub(crate) fn new(file: Arc<F>, kind: FileKind, number: u64, first: EntryId, extent: Extent) -> Arc<Self> {
        Arc::new(Self { file, kind, number, first, extent: RwLock::new(extent), crc: OnceLock::new() })
    }

    pub(crate) fn sealed(file: Arc<F>, sealed: &SealedFile, index: SparseIndex) -> Arc<Self> {
        let extent = Extent { bytes: sealed.bytes, lines: sealed.lines, last: sealed.last, index };
        let sealed_file = Self::new(file, sealed.kind, sealed.number, sealed.first, extent);
        sealed_file.seal(sealed.crc);
        sealed_file
    }

    /// Nothing is written to it any more.
    pub(crate) fn seal(&self, crc: u32) {
        self.crc.set(crc).expect("a file is sealed once");
    }

    /// As the manifest lists it, but for names; None: it is active.
    pub fn listed(&self) -> Option<SealedFile> {
        let crc = *self.crc.get()?;
        let Self { kind, number, first, .. } = *self;
        let extent = self.extent();
        let (lines, bytes, last) = (extent.lines, extent.bytes, extent.last);
        Some(SealedFile { kind, number, lines, bytes, crc, first, last, staged: None, index: SparseIndex::default() })
    }

    /// `holds` describes what is in it so far.
    pub(crate) fn active(file: Arc<F>, active: &ActiveFile, holds: &SealedFile) -> Arc<Self> {
        let index = holds.index.clone();
        let extent = Extent { bytes: holds.bytes, lines: holds.lines, last: holds.last, index };
        Self::new(file, FileKind::Log, active.number, active.first, extent)
    }

    /// Of the file at rest, whatever name it is staged under.
    pub fn name(&self) -> String {
        file_name(self.kind, self.number)
    }

    /// Durable bytes.
    pub fn bytes(&self) -> u64 {
        self.extent().bytes
    }

    /// Of the last durable line; 0 when there is none.
    pub fn last(&self) -> EntryId {
        self.extent().last
    }

    /// Goes through the durable lines from `offset` (the start of a line) on.
    pub fn lines(self: &Arc<Self>, offset: u64) -> Lines<F> {
        self.lines_by(offset, SCAN_BLOCK_BYTES)
    }

    /// As [`Self::lines`], reading `block_bytes` at once.
    pub(crate) fn lines_by(self: &Arc<Self>, offset: u64, block_bytes: usize) -> Lines<F> {
        Lines { file: Arc::clone(self), offset, end: self.bytes().max(offset), block: Bytes::new(), block_bytes }
    }

    pub(crate) fn extent(&self) -> RwLockReadGuard<'_, Extent> {
        self.extent.read().expect("no code panics while it holds this lock")
    }

    pub(crate) fn extent_mut(&self) -> RwLockWriteGuard<'_, Extent> {
        self.extent.write().expect("no code panics while it holds this lock")
    }
}

/// The lines of a file, unverified: `(offset, line without its newline)`. Slices of blocks, not copies.
#[derive(Debug)]
pub struct Lines<F> {
    file: Arc<LogFile<F>>,
    /// Of the next line.
    offset: u64,
    end: u64,
    /// Read and not yet given, from `offset` on.
    block: Bytes,
    block_bytes: usize,
}

impl<F: StorageFile> Iterator for Lines<F> {
    type Item = io::Result<(u64, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut want = self.block_bytes;
        loop {
            if let Some(len) = memchr::memchr(b'\n', &self.block) {
                let line = self.block.split_to(len + 1).slice(..len);
                let offset = self.offset;
                self.offset += len as u64 + 1;
                return Some(Ok((offset, line)));
            }
            let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
            if left == 0 {
                return None;
            }
            if self.block.len() >= left {
                self.offset = self.end;
                self.block = Bytes::new();
                return Some(Err(io::Error::new(io::ErrorKind::InvalidData, "the last line does not end")));
            }
            if self.block.len() >= LINE_BYTES_MAX {
                return Some(Err(self.stop("there is no end of the line")));
            }
            want = want.max(self.block.len() * 2);
            match read_up_to(&*self.file.file, self.offset, want.min(left)) {
                Ok(read) if read.len() > self.block.len() => self.block = read.into(),
                Ok(_) => return Some(Err(self.stop("the file is shorter than it was"))),
                Err(e) => {
                    self.offset = self.end;
                    return Some(Err(e));
                }
            }
        }
    }
}

impl<F> Lines<F> {
    fn stop(&mut self, why: &'static str) -> io::Error {
        self.offset = self.end;
        io::Error::new(io::ErrorKind::UnexpectedEof, why)
    }
}

/// Half of the disk's time belongs to the log's own writes: who used it pauses for as long.
pub(crate) fn leave_disk_to_others(used: Duration) {
    std::thread::sleep(used.min(PAUSE_MAX));
}

/// Writes a file that is to be sealed, under its staged name. Nothing lists it before the manifest
/// does, so giving up leaves only an orphan for the next start to remove.
#[derive(Debug)]
pub struct SegmentWriter<F> {
    file: F,
    sealed: SealedFile,
    crc: crc32fast::Hasher,
    buffer: Vec<u8>,
    synced_bytes: u64,
}

impl<F: StorageFile> SegmentWriter<F> {
    /// `generation` comes from [`super::LogReader::next_generation`].
    pub fn create<S: Storage<File = F>>(storage: &S, kind: FileKind, number: u64, generation: u64) -> io::Result<Self> {
        let file = storage.create(&staged_name(kind, number, generation))?;
        let sealed = SealedFile {
            kind,
            number,
            lines: 0,
            bytes: 0,
            crc: 0,
            first: EntryId::ZERO,
            last: EntryId::ZERO,
            staged: Some(generation),
            index: SparseIndex::default(),
        };
        let buffer = Vec::with_capacity(WRITE_BUFFER_BYTES);
        Ok(Self { file, sealed, crc: crc32fast::Hasher::new(), buffer, synced_bytes: 0 })
    }

    /// `line` without its newline, verified by the caller; `id` not below the last one.
    pub fn push(&mut self, id: EntryId, line: &[u8]) -> io::Result<()> {
        assert!(id >= self.sealed.last, "ids rise within a file");
        if self.sealed.lines == 0 {
            self.sealed.first = id;
        }
        self.sealed.index.note(id, self.bytes());
        self.sealed.last = id;
        self.sealed.lines += 1;
        self.buffer.extend_from_slice(line);
        self.buffer.push(b'\n');
        if self.buffer.len() >= WRITE_BUFFER_BYTES { self.write_out() } else { Ok(()) }
    }

    /// Bytes pushed so far.
    pub fn bytes(&self) -> u64 {
        self.sealed.bytes + self.buffer.len() as u64
    }

    pub fn lines(&self) -> u64 {
        self.sealed.lines
    }

    /// Makes the contents durable. The name is durable after the data directory's sync.
    pub fn finish(mut self) -> io::Result<SealedFile> {
        self.write_out()?;
        sync(&self.file)?;
        self.sealed.crc = self.crc.finalize();
        Ok(self.sealed)
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.file.write_at(&self.buffer, self.sealed.bytes)?;
        self.crc.update(&self.buffer);
        self.sealed.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        if self.sealed.bytes - self.synced_bytes >= SYNC_SLICE_BYTES {
            let begun = Instant::now();
            self.file.sync()?;
            self.synced_bytes = self.sealed.bytes;
            leave_disk_to_others(begun.elapsed());
        }
        Ok(())
    }
}
