//! Reads files block by block, decodes the blocks on several threads and hands them over in order.
//! Memory is bounded: at most [`WINDOW_BLOCKS`] blocks for each thread are in flight. Verifies every
//! line's CRC; judges nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use bytes::Bytes;
use kv_core::entry::{Entry, LineError};
use kv_core::mutant::{self, Mutant};
use kv_core::sessions::SessionRecord;

use crate::wal::manifest::FileKind;
use crate::wal::segment::{Mark, SparseIndex};
use crate::wal::storage::{StorageFile, read_up_to};

/// Bytes decoded at once, unless a line is longer or a sealed segment is taken whole.
const BLOCK_BYTES: usize = 512 << 10;
/// Sealed segments up to this size are judged as a whole before any line of theirs is believed.
const WHOLE_BYTES_MAX: u64 = 8 << 20;
/// A run of bytes without a newline is given up as one bad line at this length; no line comes near it.
const RUN_BYTES_MAX: usize = 32 << 20;
/// Blocks in flight for each thread.
const WINDOW_BLOCKS: u64 = 3;

/// A file to go through.
#[derive(Debug)]
pub(super) struct Source<F> {
    pub(super) file: io::Result<Arc<F>>,
    pub(super) kind: FileKind,
    /// How far to read: the file's length.
    pub(super) bytes: u64,
    /// Length and CRC as sealed; None: active.
    pub(super) seal: Option<(u64, u32)>,
}

/// Whether a file is what was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seal {
    /// Told by the last block of the file alone (base files, the active segment).
    Later,
    Intact,
    Broken,
}

#[derive(Debug)]
pub(super) enum Content {
    Entry(Entry),
    Session(SessionRecord),
}

#[derive(Debug)]
pub(super) struct DecodedLine {
    pub(super) offset: u64,
    pub(super) content: Result<Content, LineError>,
    /// The bytes, kept of a bad line alone.
    pub(super) raw: Bytes,
}

/// A decoded stretch of one file.
#[derive(Debug)]
pub(super) struct Block {
    /// Index of its [`Source`].
    pub(super) source: usize,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) crc: crc32fast::Hasher,
    pub(super) lines: Vec<DecodedLine>,
    pub(super) marks: Vec<Mark>,
    pub(super) seal: Seal,
    pub(super) ends_file: bool,
    /// Why nothing more of the file could be read.
    pub(super) error: Option<io::Error>,
}

struct RawBlock {
    source: usize,
    offset: u64,
    text: Bytes,
    seal: Seal,
    ends_file: bool,
    error: Option<io::Error>,
}

/// Cuts the sources into blocks, in order.
struct Splitter<'a, F> {
    sources: &'a [Source<F>],
    source: usize,
    offset: u64,
    seal: Seal,
}

impl<F: StorageFile> Splitter<'_, F> {
    fn next(&mut self) -> Option<RawBlock> {
        let source = self.sources.get(self.source)?;
        let block = match &source.file {
            Ok(file) => self.read(source, file).unwrap_or_else(|e| self.broken(e)),
            Err(e) => self.broken(io::Error::new(e.kind(), e.to_string())),
        };
        self.offset += block.text.len() as u64;
        if block.ends_file {
            (self.source, self.offset, self.seal) = (self.source + 1, 0, Seal::Later);
        }
        Some(block)
    }

    fn broken(&self, error: io::Error) -> RawBlock {
        RawBlock {
            source: self.source,
            offset: self.offset,
            text: Bytes::new(),
            seal: Seal::Broken,
            ends_file: true,
            error: Some(error),
        }
    }

    fn read(&mut self, source: &Source<F>, file: &F) -> io::Result<RawBlock> {
        let is_sealed_log = source.kind == FileKind::Log && source.seal.is_some();
        let is_whole = is_sealed_log && source.bytes <= WHOLE_BYTES_MAX;
        if is_sealed_log && !is_whole && self.offset == 0 {
            self.seal = check_seal(source, file)?;
        }
        let left = source.bytes - self.offset;
        let text = if is_whole { read_whole(file, left)? } else { read_lines(file, self.offset, left)? };
        let ends_file = text.len() as u64 >= left;
        let short = (text.is_empty() && left > 0).then(|| io::ErrorKind::UnexpectedEof.into());
        Ok(RawBlock {
            source: self.source,
            offset: self.offset,
            seal: self.seal,
            ends_file: ends_file || short.is_some(),
            error: short,
            text,
        })
    }
}

fn read_whole<F: StorageFile>(file: &F, bytes: u64) -> io::Result<Bytes> {
    let bytes = usize::try_from(bytes).expect("at most WHOLE_BYTES_MAX");
    Ok(read_up_to(file, 0, bytes)?.into())
}

/// At most about [`BLOCK_BYTES`], up to and including the last newline there; what is left, at the end.
fn read_lines<F: StorageFile>(file: &F, offset: u64, left: u64) -> io::Result<Bytes> {
    let left = usize::try_from(left).unwrap_or(usize::MAX);
    let mut want = BLOCK_BYTES;
    loop {
        let mut text = read_up_to(file, offset, want.min(left))?;
        if text.len() >= left || text.len() < want.min(left) || want >= RUN_BYTES_MAX {
            return Ok(text.into());
        }
        if let Some(newline) = memchr::memrchr(b'\n', &text) {
            text.truncate(newline + 1);
            return Ok(text.into());
        }
        want *= 2;
    }
}

fn check_seal<F: StorageFile>(source: &Source<F>, file: &F) -> io::Result<Seal> {
    let mut crc = crc32fast::Hasher::new();
    let mut offset = 0;
    while offset < source.bytes {
        let text = read_up_to(file, offset, BLOCK_BYTES)?;
        if text.is_empty() {
            break;
        }
        crc.update(&text);
        offset += text.len() as u64;
    }
    Ok(seal_of(source, offset, crc))
}

fn seal_of<F>(source: &Source<F>, bytes: u64, crc: crc32fast::Hasher) -> Seal {
    let as_sealed = source.seal == Some((bytes, crc.finalize())) || mutant::on(Mutant::BelieveBadChecksum);
    if as_sealed { Seal::Intact } else { Seal::Broken }
}

fn decode<F>(raw: RawBlock, sources: &[Source<F>]) -> Block {
    let RawBlock { source, offset, text, mut seal, ends_file, error } = raw;
    let origin = &sources[source];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&text);
    let is_whole_segment = offset == 0 && ends_file && origin.kind == FileKind::Log && origin.seal.is_some();
    if seal == Seal::Later && is_whole_segment {
        seal = seal_of(origin, text.len() as u64, crc.clone());
    }
    let mut lines = Vec::with_capacity(text.len() / 128);
    let mut index = SparseIndex::default();
    let mut start = 0;
    for newline in memchr::memchr_iter(b'\n', &text) {
        let at = offset + start as u64;
        let line = decode_line(origin.kind, at, text.slice(start..newline));
        if let Ok(Content::Entry(entry)) = &line.content {
            index.note(entry.id, at);
        }
        lines.push(line);
        start = newline + 1;
    }
    if start < text.len() {
        let content = Err(LineError::Malformed("the line does not end"));
        lines.push(DecodedLine { offset: offset + start as u64, content, raw: text.slice(start..) });
    }
    let bytes = text.len() as u64;
    Block { source, offset, bytes, crc, lines, marks: index.into_marks(), seal, ends_file, error }
}

fn decode_line(kind: FileKind, offset: u64, line: Bytes) -> DecodedLine {
    let content = match kind {
        FileKind::Sessions => SessionRecord::decode(&line).map(Content::Session),
        FileKind::History | FileKind::Live | FileKind::Log => Entry::decode(line.clone()).map(Content::Entry),
    };
    let raw = if content.is_err() { line } else { Bytes::new() };
    DecodedLine { offset, content, raw }
}

/// Goes through all `sources` and gives every block to `take`, in order, on this thread. The first
/// error of `take` ends it. One thread: no other than this one.
pub(super) fn for_each_block<F: StorageFile, E>(
    sources: &[Source<F>],
    threads: usize,
    mut take: impl FnMut(Block) -> Result<(), E>,
) -> Result<(), E> {
    let mut splitter = Splitter { sources, source: 0, offset: 0, seal: Seal::Later };
    if threads <= 1 {
        while let Some(raw) = splitter.next() {
            take(decode(raw, sources))?;
        }
        return Ok(());
    }
    let window = WINDOW_BLOCKS * threads as u64;
    let shared =
        Shared { turn: Mutex::new(Turn { splitter, handed_out: 0, taken: 0, is_over: false }), moved: Condvar::new() };
    thread::scope(|scope| {
        let (decoded, blocks) = sync_channel(threads);
        for _ in 0..threads {
            let (decoded, shared) = (decoded.clone(), &shared);
            scope.spawn(move || work(shared, sources, window, &decoded));
        }
        drop(decoded);
        let result = deliver(&shared, blocks, &mut take);
        shared.lock().is_over = true;
        shared.moved.notify_all();
        result
    })
}

struct Turn<'a, F> {
    splitter: Splitter<'a, F>,
    handed_out: u64,
    taken: u64,
    is_over: bool,
}

struct Shared<'a, F> {
    turn: Mutex<Turn<'a, F>>,
    moved: Condvar,
}

impl<'a, F: StorageFile> Shared<'a, F> {
    fn lock(&self) -> MutexGuard<'_, Turn<'a, F>> {
        self.turn.lock().expect("reading a block does not panic")
    }

    /// The next block to decode and its place in the order; None: no more.
    fn next(&self, window: u64) -> Option<(u64, RawBlock)> {
        let mut turn = self.lock();
        while !turn.is_over && turn.handed_out >= turn.taken + window {
            turn = self.moved.wait(turn).expect("reading a block does not panic");
        }
        if turn.is_over {
            return None;
        }
        let raw = turn.splitter.next()?;
        let place = turn.handed_out;
        turn.handed_out += 1;
        Some((place, raw))
    }
}

fn work<F: StorageFile>(
    shared: &Shared<'_, F>,
    sources: &[Source<F>],
    window: u64,
    decoded: &SyncSender<(u64, Block)>,
) {
    while let Some((place, raw)) = shared.next(window) {
        if decoded.send((place, decode(raw, sources))).is_err() {
            return; // the taker has given up
        }
    }
}

fn deliver<F: StorageFile, E>(
    shared: &Shared<'_, F>,
    blocks: Receiver<(u64, Block)>,
    take: &mut impl FnMut(Block) -> Result<(), E>,
) -> Result<(), E> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (place, block) in blocks {
        early.insert(place, block);
        while let Some(block) = early.remove(&next) {
            take(block)?;
            next += 1;
            shared.lock().taken = next;
            shared.moved.notify_all();
        }
    }
    Ok(())
}
