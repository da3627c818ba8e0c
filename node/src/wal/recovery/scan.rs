//! Goes through everything that the manifest lists, once, and judges it: builds the state from what is
//! intact, notes what is not. Writes nothing. From the first new damage on nothing is applied any more;
//! the rest is only looked at, for the report and for what can be kept.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_core::contract::Base;
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch, LineError, LogPosition};
use kv_core::group::ConfigurationAt;
use kv_core::mutant::{self, Mutant};
use kv_core::state_machine::StateMachine;

use super::blocks::{Block, Content, DecodedLine, Seal, Source, for_each_block};
use super::{DAMAGE_MAX, Damage, IdRange};
use crate::wal::WalError;
use crate::wal::manifest::{ActiveFile, FileKind, Gap, Manifest, SealedFile, file_name};
use crate::wal::segment::SparseIndex;
use crate::wal::storage::StorageFile;

/// Bad lines kept in memory for the quarantine directory, in bytes.
const QUARANTINE_BYTES_MAX: usize = 64 << 20;

/// What the ids stand against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positions {
    /// A bad line at or below it is damage, above it a torn tail.
    pub(super) known_durable: EntryId,
    pub(super) committed: EntryId,
    /// Entries up to here are applied, the others are the tail.
    pub(super) apply_to: EntryId,
}

/// What was found in one file.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) is_damaged: bool,
    /// Nothing in it can be believed.
    pub(super) is_distrusted: bool,
    /// Offsets of lines that are not to be kept.
    pub(super) bad: BTreeSet<u64>,
    pub(super) lines: u64,
    pub(super) bytes: u64,
    pub(super) last: EntryId,
    pub(super) index: SparseIndex,
    crc: crc32fast::Hasher,
    epoch_before: Epoch,
}

/// A line that cannot be believed, for the quarantine directory.
#[derive(Debug)]
pub(super) struct BadLine {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) raw: Bytes,
}

/// Where the intact prefix of the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breach {
    Base,
    /// In this source, from this offset on.
    Log {
        source: usize,
        offset: u64,
    },
}

pub(super) struct Scan<'a> {
    manifest: &'a Manifest,
    positions: Positions,
    pub(super) state: StateMachine,
    pub(super) epoch_runs: Vec<LogPosition>,
    pub(super) configurations: Vec<ConfigurationAt>,
    /// A configuration in the log, though it was never acknowledged, names others than this member.
    pub(super) knows_others: bool,
    pub(super) tail: Vec<Entry>,
    /// The next id of the log.
    pub(super) expected: EntryId,
    last_epoch: Epoch,
    /// The last entry of the intact prefix.
    pub(super) prefix_last: LogPosition,
    /// The last intact line wherever; None: the log's end itself is damaged.
    pub(super) last_line: Option<LogPosition>,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) breach: Option<Breach>,
    /// Where the active segment is torn.
    pub(super) torn_at: Option<u64>,
    pub(super) damage: Vec<Damage>,
    pub(super) damage_total: u64,
    pub(super) bad_lines: Vec<BadLine>,
    bad_bytes: usize,
    pub(super) missing: Vec<IdRange>,
    pub(super) lines: u64,
    pub(super) bytes: u64,
}

/// What a source is, besides its bytes: sealed files in the manifest's order, then the active segment.
#[derive(Debug, Clone, Copy)]
enum Origin<'a> {
    Base(&'a SealedFile),
    Sealed(&'a SealedFile),
    Active,
}

pub(super) fn scan<'a, F: StorageFile>(
    manifest: &'a Manifest,
    sources: &[Source<F>],
    positions: Positions,
    (threads, hash_seed): (usize, u64),
) -> Result<Scan<'a>, WalError> {
    let mut scan = Scan::new(manifest, positions, sources.len(), hash_seed);
    for gap in manifest.gaps.iter().filter(|gap| gap.last <= manifest.base.horizon.id) {
        scan.state.pass_over_lost(gap.last, gap.known_from);
    }
    for_each_block(sources, threads, |block| scan.take(block))?;
    scan.finish();
    Ok(scan)
}

impl<'a> Scan<'a> {
    /// What was known to be committed before.
    pub(super) fn committed(&self) -> EntryId {
        self.positions.committed
    }

    fn new(manifest: &'a Manifest, positions: Positions, sources: usize, hash_seed: u64) -> Self {
        let Base { horizon, .. } = manifest.base;
        Self {
            manifest,
            positions,
            state: StateMachine::new(&manifest.base, hash_seed),
            epoch_runs: Vec::new(),
            configurations: Vec::new(),
            knows_others: false,
            tail: Vec::new(),
            expected: horizon.id.next(),
            last_epoch: horizon.epoch,
            prefix_last: horizon,
            last_line: Some(horizon),
            verdicts: std::iter::repeat_with(Verdict::default).take(sources).collect(),
            breach: None,
            torn_at: None,
            damage: Vec::new(),
            damage_total: 0,
            bad_lines: Vec::new(),
            bad_bytes: 0,
            missing: Vec::new(),
            lines: 0,
            bytes: 0,
        }
    }

    fn origin(&self, source: usize) -> Origin<'a> {
        match self.manifest.files.get(source) {
            None => Origin::Active,
            Some(file) if file.kind == FileKind::Log => Origin::Sealed(file),
            Some(file) => Origin::Base(file),
        }
    }

    fn name_of(&self, source: usize) -> String {
        match self.origin(source) {
            Origin::Base(file) | Origin::Sealed(file) => file.name(),
            Origin::Active => file_name(FileKind::Log, self.manifest.active.number),
        }
    }

    fn take(&mut self, block: Block) -> Result<(), WalError> {
        let Block { source, offset, bytes, crc, lines, marks, seal, ends_file, error } = block;
        let origin = self.origin(source);
        if offset == 0 && seal == Seal::Broken && matches!(origin, Origin::Sealed(_)) {
            self.breach_at(source, 0);
            self.verdicts[source].is_damaged = true;
        }
        let verdict = &mut self.verdicts[source];
        if offset == 0 {
            verdict.epoch_before = self.last_epoch;
        }
        verdict.crc.combine(&crc);
        verdict.bytes += bytes;
        verdict.lines += lines.len() as u64;
        verdict.index.extend(&marks);
        self.bytes += bytes;
        self.lines += lines.len() as u64;
        for line in lines {
            self.line(source, origin, line)?;
        }
        if let Some(error) = error {
            self.breach_at(source, offset);
            self.damaged(source, None, format!("cannot be read: {error}"));
        }
        if ends_file {
            self.end_of_file(source, origin);
        }
        Ok(())
    }

    fn line(&mut self, source: usize, origin: Origin<'_>, line: DecodedLine) -> Result<(), WalError> {
        let DecodedLine { offset, content, raw } = line;
        if matches!(origin, Origin::Active) && self.torn_at.is_some() {
            return Ok(()); // behind a tear nothing was acknowledged
        }
        match content {
            Ok(content) => self.content(source, origin, offset, content),
            Err(error) if error.is_damage() => self.bad(source, origin, offset, raw, &error.to_string()),
            Err(error) => return Err(self.not_understood(source, offset, error)),
        }
        Ok(())
    }

    fn not_understood(&self, source: usize, offset: u64, error: LineError) -> WalError {
        WalError::NotUnderstood { file: self.name_of(source), offset, error }
    }

    fn content(&mut self, source: usize, origin: Origin<'_>, offset: u64, content: Content) {
        match (origin, content) {
            (Origin::Base(file), Content::Entry(entry)) => self.base_entry(source, file, offset, &entry),
            (Origin::Base(_), Content::Session(record)) => {
                if self.breach.is_none() {
                    self.state.restore_session(record);
                }
            }
            (Origin::Sealed(file), Content::Entry(entry)) => self.sealed_entry(source, file, offset, entry),
            (Origin::Active, Content::Entry(entry)) => self.active_entry(source, offset, entry),
            (Origin::Sealed(_) | Origin::Active, Content::Session(_)) => {
                unreachable!("the lines of a segment are decoded as entries")
            }
        }
    }

    fn base_entry(&mut self, source: usize, file: &SealedFile, offset: u64, entry: &Entry) {
        let verdict = &mut self.verdicts[source];
        if entry.id <= verdict.last || entry.id > self.manifest.base.horizon.id {
            let raw = entry.line.clone();
            return self.bad(source, Origin::Base(file), offset, raw, "the line is out of place");
        }
        verdict.last = entry.id;
        if self.breach.is_some() {
            return;
        }
        match file.kind {
            FileKind::History => self.state.restore_history(entry),
            FileKind::Live => self.state.restore_live(entry),
            FileKind::Sessions | FileKind::Log => unreachable!("a base file of entries"),
        }
    }

    fn sealed_entry(&mut self, source: usize, file: &SealedFile, offset: u64, entry: Entry) {
        self.pass_over_gaps();
        let fits = entry.id >= self.expected && entry.id <= file.last && entry.epoch >= self.last_epoch;
        if !fits {
            return self.bad(source, Origin::Sealed(file), offset, entry.line, "the line is out of place");
        }
        if entry.id > self.expected {
            self.gap(source, offset, entry.id);
        }
        self.accept(source, entry);
    }

    fn active_entry(&mut self, source: usize, offset: u64, entry: Entry) {
        self.pass_over_gaps();
        let fits = entry.id >= self.expected && entry.epoch >= self.last_epoch;
        let is_next = fits && entry.id == self.expected;
        if !is_next && self.expected > self.positions.known_durable {
            self.torn_at = Some(offset);
        } else if !fits {
            self.bad(source, Origin::Active, offset, entry.line, "the line is out of place");
        } else {
            if !is_next {
                self.gap(source, offset, entry.id);
            }
            self.accept(source, entry);
        }
    }

    /// Ids that an earlier recovery has found missing are no new damage.
    fn pass_over_gaps(&mut self) {
        while let Some(gap) = self.manifest.gaps.iter().find(|gap| gap.first == self.expected).copied() {
            let Gap { first: _, last, known_from, is_declared: _ } = gap;
            if self.breach.is_none() {
                self.state.pass_over_lost(last, known_from);
                self.prefix_last.id = last;
            }
            self.expected = last.next();
        }
    }

    fn gap(&mut self, source: usize, offset: u64, found: EntryId) {
        self.breach_at(source, offset);
        if !self.verdicts[source].is_damaged {
            self.damaged(source, Some(offset), format!("ids {} to {} are not there", self.expected, found.prev()));
        }
        self.verdicts[source].is_damaged = true;
        self.miss(found.prev());
    }

    fn miss(&mut self, last: EntryId) {
        let first = self.expected;
        match self.missing.last_mut() {
            Some(range) if range.last.next() == first => range.last = last,
            _ => self.missing.push(IdRange { first, last }),
        }
        self.expected = last.next();
    }

    fn accept(&mut self, source: usize, entry: Entry) {
        let position = entry.position();
        self.verdicts[source].last = entry.id;
        self.expected = entry.id.next();
        self.last_epoch = entry.epoch;
        self.last_line = Some(position);
        self.note_others(&entry);
        if self.breach.is_some() {
            return;
        }
        self.prefix_last = position;
        if self.epoch_runs.last().is_none_or(|run| run.epoch != entry.epoch) {
            self.epoch_runs.push(position);
        }
        if let Body::Control(Control::Config(configuration)) = &entry.body
            && entry.id > self.manifest.base.configuration.id
        {
            self.configurations.push(ConfigurationAt { id: entry.id, configuration: configuration.clone() });
        }
        if entry.id <= self.positions.apply_to {
            self.state.apply(&entry);
        } else {
            self.tail.push(entry);
        }
    }

    /// From a configuration on that names others, what stands in this log is not committed by standing there.
    fn note_others(&mut self, entry: &Entry) {
        if let Body::Control(Control::Config(configuration)) = &entry.body
            && entry.id > self.manifest.configuration.id
            && !super::names_only(configuration, self.manifest)
        {
            self.knows_others = true;
            let Positions { apply_to, committed, .. } = &mut self.positions;
            *apply_to = (*apply_to).min(entry.id.prev().max(*committed));
        }
    }

    fn bad(&mut self, source: usize, origin: Origin<'_>, offset: u64, raw: Bytes, reason: &str) {
        if matches!(origin, Origin::Active) {
            self.pass_over_gaps();
            if self.expected > self.positions.known_durable {
                self.torn_at = Some(offset);
                return;
            }
        }
        self.breach_at(source, offset);
        self.last_line = None;
        self.verdicts[source].bad.insert(offset);
        self.damaged(source, Some(offset), reason.to_owned());
        if self.bad_bytes + raw.len() <= QUARANTINE_BYTES_MAX {
            self.bad_bytes += raw.len();
            self.bad_lines.push(BadLine { file: self.name_of(source), offset, raw });
        }
    }

    fn damaged(&mut self, source: usize, offset: Option<u64>, reason: String) {
        self.verdicts[source].is_damaged = true;
        self.damage_total += 1;
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage { file: self.name_of(source), offset, reason });
        }
    }

    /// The first one counts. Damage of the base is damage of the base as a whole.
    fn breach_at(&mut self, source: usize, offset: u64) {
        if self.breach.is_none() {
            let is_base = matches!(self.origin(source), Origin::Base(_));
            self.breach = Some(if is_base { Breach::Base } else { Breach::Log { source, offset } });
        }
    }

    fn end_of_file(&mut self, source: usize, origin: Origin<'_>) {
        match origin {
            Origin::Base(file) => self.end_of_base(source, file),
            Origin::Sealed(file) => self.end_of_sealed(source, file),
            Origin::Active => self.end_of_log(source),
        }
    }

    fn end_of_base(&mut self, source: usize, file: &SealedFile) {
        let verdict = &self.verdicts[source];
        let as_sealed =
            (verdict.bytes, verdict.lines, verdict.crc.clone().finalize()) == (file.bytes, file.lines, file.crc);
        if !as_sealed && !mutant::on(Mutant::BelieveBadChecksum) {
            self.breach_at(source, 0);
            if self.verdicts[source].bad.is_empty() {
                self.damaged(source, None, "length or checksum is not that of the sealed file".to_owned());
            }
        }
    }

    fn end_of_sealed(&mut self, source: usize, file: &SealedFile) {
        self.pass_over_gaps();
        if self.expected <= file.last {
            let end = self.verdicts[source].bytes;
            self.breach_at(source, end);
            self.last_line = None;
            self.damaged(source, None, format!("ids {} to {} are not there", self.expected, file.last));
            self.miss(file.last);
        }
        let verdict = &self.verdicts[source];
        if verdict.is_damaged && verdict.bad.is_empty() {
            // Every line is intact by itself, yet they are not the ones that were sealed: of another log, perhaps.
            self.forget_missing_from(file.first);
            self.verdicts[source].is_distrusted = true;
            self.damaged(source, None, "the checksum is not that of the sealed segment".to_owned());
            self.last_epoch = self.verdicts[source].epoch_before;
            self.last_line = None;
            self.expected = file.first;
            self.miss(file.last);
        }
    }

    /// What was found missing from `first` on is about to be part of a larger range.
    fn forget_missing_from(&mut self, first: EntryId) {
        self.missing.retain(|range| range.first < first);
        if let Some(range) = self.missing.last_mut() {
            range.last = range.last.min(first.prev());
        }
    }

    fn end_of_log(&mut self, source: usize) {
        self.pass_over_gaps();
        let known = self.positions.known_durable;
        if self.expected <= known {
            let end = self.verdicts[source].bytes;
            self.breach_at(source, end);
            self.last_line = None;
            self.damaged(source, None, format!("ids {} to {known} were durable and are not there", self.expected));
            self.miss(known);
        }
    }

    /// The active segment, described as it lies there.
    pub(super) fn active_as_it_is(&self) -> SealedFile {
        let Verdict { lines, bytes, last, ref index, ref crc, .. } = self.verdicts[self.verdicts.len() - 1];
        let ActiveFile { number, first, staged: _ } = self.manifest.active;
        let (crc, index) = (crc.clone().finalize(), index.clone());
        SealedFile { kind: FileKind::Log, number, lines, bytes, crc, first, last, staged: None, index }
    }

    fn finish(&mut self) {
        if let Some(torn_at) = self.torn_at {
            let active = self.verdicts.last_mut().expect("the active segment is the last source");
            active.index.cut(torn_at);
            active.bytes = torn_at;
        }
        self.state.start_counting();
    }
}
