//! Looks for damage in sealed files at rest: what the next start would read, against what the manifest
//! lists. Reads by name, since a start does, a bounded piece at each step; no clock, no thread, and it
//! changes nothing. Driven by the node's own pace, by reads that went wrong, and by tests.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::{EntryId, LineView};
use kv_core::sessions::SessionRecord;

use super::manifest::FileKind;
use super::reader::LogReader;
use super::recovery::{DAMAGE_MAX, Damage, IdRange};
use super::segment::{Extent, Lines, LogFile};
use super::storage::{Storage, StorageFile, read_up_to};

/// Read by one step, and a line more.
pub const STEP_BYTES: u64 = 256 << 10;
/// Bad lines of one file that are kept for the quarantine directory.
const BAD_BYTES_MAX: usize = 16 << 20;
/// A file with more holes counts as one hole.
const HOLES_MAX: usize = 1000;

/// Ids and bytes between two intact lines of a file (or its ends) that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Whatever stood there was of these ids.
    pub ids: IdRange,
    pub offset: u64,
    pub bytes: u64,
}

/// What is there instead of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    pub offset: u64,
    pub raw: Bytes,
}

/// A sealed file that is not what was sealed.
#[derive(Debug)]
pub struct DamagedFile<F> {
    /// As the log has it open and as it is listed.
    pub listed: Arc<LogFile<F>>,
    /// At least one place; the first [`DAMAGE_MAX`].
    pub damage: Vec<Damage>,
    pub bad_lines: Vec<BadLine>,
}

/// What one step of a scrub came to.
#[derive(Debug)]
pub enum Step<F> {
    /// Nothing bad in this many bytes.
    Read(u64),
    Found(DamagedFile<F>),
    /// All files were gone through.
    Done,
}

/// One pass over sealed files.
#[derive(Debug)]
pub struct Scrub<S: Storage> {
    storage: Arc<S>,
    files: VecDeque<Arc<LogFile<S::File>>>,
    under_way: Option<Examination<S::File>>,
}

impl<S: Storage> Scrub<S> {
    /// Of all sealed files that the log has now.
    pub fn new(reader: &LogReader<S>) -> Self {
        let table = reader.table();
        let files = table.base.iter().chain(&table.log).filter(|file| file.listed().is_some()).cloned().collect();
        Self { storage: Arc::clone(reader.storage()), files, under_way: None }
    }

    /// Blocks for reading [`STEP_BYTES`]. A finding may be stale when the log has changed its files meanwhile:
    /// it counts only when [`super::Wal::lists`] the file afterwards.
    pub fn step(&mut self) -> Step<S::File> {
        let mut read = 0;
        while read < STEP_BYTES {
            let Some(mut examination) = self.under_way.take() else {
                let Some(file) = self.files.pop_front() else {
                    return if read > 0 { Step::Read(read) } else { Step::Done };
                };
                match self.storage.open(&file.name()).and_then(|opened| Examination::new(file.clone(), opened.into())) {
                    Ok(examination) => self.under_way = Some(examination),
                    Err(error) => return Step::Found(unopened(file, &error)),
                }
                continue;
            };
            let before = examination.read;
            let more = examination.go_on(STEP_BYTES - read);
            read += examination.read - before;
            if more {
                self.under_way = Some(examination);
            } else if let Verdict { damage, bad_lines, listed, .. } = examination.judge()
                && !damage.is_empty()
            {
                return Step::Found(DamagedFile { listed, damage, bad_lines });
            }
        }
        Step::Read(read)
    }
}

/// Looks at one sealed file, as readers have it open and as a start would find it. None: it is sound, or not
/// of the log. Blocks for all of it.
pub fn look_at<S: Storage>(reader: &LogReader<S>, name: &str) -> Option<DamagedFile<S::File>> {
    let table = reader.table();
    let mut files = table.base.iter().chain(&table.log).filter(|file| file.listed().is_some());
    let listed = files.find(|file| file.name() == name)?;
    let as_open = Ok(Arc::clone(&listed.file));
    [as_open, reader.storage().open(name).map(Arc::new)].into_iter().find_map(|opened| {
        match opened.and_then(|file| examine(listed, &file)) {
            Ok(Verdict { damage, .. }) if damage.is_empty() => None,
            Ok(Verdict { listed, damage, bad_lines, .. }) => Some(DamagedFile { listed, damage, bad_lines }),
            Err(error) => Some(unopened(Arc::clone(listed), &error)),
        }
    })
}

fn unopened<F: StorageFile>(listed: Arc<LogFile<F>>, error: &io::Error) -> DamagedFile<F> {
    let damage = vec![Damage { file: listed.name(), offset: None, reason: format!("cannot be opened: {error}") }];
    DamagedFile { listed, damage, bad_lines: Vec::new() }
}

/// What a file turned out to be.
#[derive(Debug)]
pub(super) struct Verdict<F> {
    pub(super) listed: Arc<LogFile<F>>,
    pub(super) damage: Vec<Damage>,
    pub(super) bad_lines: Vec<BadLine>,
    /// Rising; empty also when only something follows behind the last line.
    pub(super) holes: Vec<Hole>,
}

/// Tells intact lines in the order of their ids from all else.
#[derive(Debug)]
pub(super) struct Sieve {
    kind: FileKind,
    last: EntryId,
}

impl Sieve {
    pub(super) fn new<F: StorageFile>(file: &LogFile<F>) -> Self {
        Self { kind: file.kind, last: EntryId(file.first.0.saturating_sub(1)) }
    }

    pub(super) fn id_of(&mut self, line: &[u8]) -> Result<EntryId, String> {
        let id = match self.kind {
            FileKind::Sessions => SessionRecord::decode(line).map(|record| record.id),
            FileKind::History | FileKind::Live | FileKind::Log => LineView::parse(line).map(|view| view.id),
        };
        let id = id.map_err(|error| error.to_string())?;
        if id <= self.last {
            return Err(format!("id {id} follows id {}", self.last));
        }
        self.last = id;
        Ok(id)
    }
}

/// One file on its way through.
#[derive(Debug)]
struct Examination<F> {
    listed: Arc<LogFile<F>>,
    file: Arc<F>,
    len: u64,
    lines: Lines<F>,
    sieve: Sieve,
    crc: crc32fast::Hasher,
    count: u64,
    /// Bytes gone through.
    read: u64,
    /// Behind the last intact line.
    intact_to: u64,
    verdict: Verdict<F>,
    bad_bytes: usize,
}

impl<F: StorageFile> Examination<F> {
    fn new(listed: Arc<LogFile<F>>, file: Arc<F>) -> io::Result<Self> {
        let len = file.len()?;
        let verdict =
            Verdict { listed: Arc::clone(&listed), damage: Vec::new(), bad_lines: Vec::new(), holes: Vec::new() };
        Ok(Self {
            len,
            lines: as_read(&listed, &file, len).lines(0),
            file,
            sieve: Sieve::new(&listed),
            crc: crc32fast::Hasher::new(),
            count: 0,
            read: 0,
            intact_to: 0,
            verdict,
            bad_bytes: 0,
            listed,
        })
    }

    /// False: the file is at its end.
    fn go_on(&mut self, bytes: u64) -> bool {
        let until = self.read.saturating_add(bytes);
        while self.read < until {
            match self.lines.next() {
                None => return false,
                Some(Ok((offset, line))) => self.line(offset, line),
                Some(Err(error)) => self.unreadable(&error),
            }
        }
        true
    }

    fn line(&mut self, offset: u64, line: Bytes) {
        self.count += 1;
        self.crc.update(&line);
        self.crc.update(b"\n");
        self.read = offset + line.len() as u64 + 1;
        let before = self.sieve.last;
        match self.sieve.id_of(&line) {
            Ok(id) => {
                if self.intact_to < offset {
                    self.hole(IdRange { first: before.next(), last: id.prev() }, offset);
                }
                self.intact_to = self.read;
            }
            Err(reason) => self.bad(offset, line, reason),
        }
    }

    fn bad(&mut self, offset: u64, raw: Bytes, reason: String) {
        self.damaged(Some(offset), reason);
        if self.bad_bytes + raw.len() <= BAD_BYTES_MAX {
            self.bad_bytes += raw.len();
            self.verdict.bad_lines.push(BadLine { offset, raw });
        }
    }

    /// Nothing comes after this; what is left may be a line that does not end.
    fn unreadable(&mut self, error: &io::Error) {
        let left = usize::try_from(self.len.saturating_sub(self.read)).unwrap_or(usize::MAX).min(BAD_BYTES_MAX);
        match read_up_to(&*self.file, self.read, left) {
            Ok(raw) if !raw.is_empty() => self.bad(self.read, raw.into(), error.to_string()),
            _ => self.damaged(None, format!("cannot be read: {error}")),
        }
    }

    fn damaged(&mut self, offset: Option<u64>, reason: String) {
        if self.verdict.damage.len() < DAMAGE_MAX {
            self.verdict.damage.push(Damage { file: self.listed.name(), offset, reason });
        }
    }

    /// From the last intact line to `end`.
    fn hole(&mut self, ids: IdRange, end: u64) {
        self.verdict.holes.push(Hole { ids, offset: self.intact_to, bytes: end - self.intact_to });
    }

    fn judge(mut self) -> Verdict<F> {
        let sealed = self.listed.listed().expect("only sealed files are examined");
        if self.len != sealed.bytes {
            self.damaged(None, format!("it has {} bytes, the manifest says {}", self.len, sealed.bytes));
        }
        if self.intact_to < sealed.bytes {
            self.hole(IdRange { first: self.sieve.last.next(), last: sealed.last }, sealed.bytes);
        }
        let is_other = (self.crc.clone().finalize(), self.count) != (sealed.crc, sealed.lines);
        if is_other && self.verdict.holes.is_empty() {
            self.damaged(None, "its lines are intact, but not those that were sealed".to_owned());
        }
        if is_other && (self.verdict.holes.is_empty() || self.verdict.holes.len() > HOLES_MAX) {
            let ids = IdRange { first: self.listed.first, last: sealed.last };
            self.verdict.holes = vec![Hole { ids, offset: 0, bytes: sealed.bytes }];
        }
        self.verdict
    }
}

/// The file as it is read: up to where the manifest says that it ends.
pub(super) fn as_read<F: StorageFile>(listed: &LogFile<F>, file: &Arc<F>, len: u64) -> Arc<LogFile<F>> {
    let extent = Extent { bytes: len.min(listed.bytes()), ..Extent::default() };
    LogFile::new(Arc::clone(file), listed.kind, listed.number, listed.first, extent)
}

/// All of one file at once, by an open handle.
pub(super) fn examine<F: StorageFile>(listed: &Arc<LogFile<F>>, file: &Arc<F>) -> io::Result<Verdict<F>> {
    let mut examination = Examination::new(Arc::clone(listed), Arc::clone(file))?;
    examination.go_on(u64::MAX);
    Ok(examination.judge())
}
