//! One file of a data directory against what the manifest says of it, line by line.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::entry::{Body, Entry, EntryId, Epoch, LogPosition};
use kv_core::sessions::SessionRecord;

use super::{TornEnd, VerifiedFile, VerifyReport};
use crate::wal::manifest::{ActiveFile, FileKind, Manifest, SealedFile};
use crate::wal::segment::{Extent, LogFile};
use crate::wal::storage::{Storage, StorageFile};

/// What the manifest says.
pub(super) struct Expected<'m> {
    kind: FileKind,
    number: u64,
    name: String,
    staged_name: Option<String>,
    first: EntryId,
    end: End<'m>,
}

enum End<'m> {
    Sealed(&'m SealedFile),
    /// A bad line is damage up to this id, and a torn end above it.
    Active {
        known_durable: EntryId,
    },
}

impl<'m> Expected<'m> {
    pub(super) fn sealed(file: &'m SealedFile) -> Self {
        Self {
            kind: file.kind,
            number: file.number,
            name: file.name(),
            staged_name: file.staged_name(),
            first: file.first,
            end: End::Sealed(file),
        }
    }

    pub(super) fn active(file: &'m ActiveFile, known_durable: EntryId) -> Self {
        Self {
            kind: FileKind::Log,
            number: file.number,
            name: file.name(),
            staged_name: file.staged_name(),
            first: file.first,
            end: End::Active { known_durable },
        }
    }

    fn open<S: Storage>(&self, storage: &S) -> io::Result<S::File> {
        let staged = self.staged_name.as_ref().map(|name| storage.open(name));
        match staged {
            Some(Ok(file)) => Ok(file),
            _ => storage.open(&self.name),
        }
    }
}

/// Where the reading of one file is.
struct Reading<'m> {
    manifest: &'m Manifest,
    kind: FileKind,
    found: VerifiedFile,
    crc: crc32fast::Hasher,
    last: LogPosition,
    /// Line number and offset of bad lines, with the reasons.
    bad: Vec<(u64, u64, String)>,
    /// The last id before the first bad line.
    intact_up_to: EntryId,
}

/// Adds what is found to the report. An error is the disk's, not the file's.
pub(super) fn read_file<S: Storage>(
    storage: &S,
    manifest: &Manifest,
    expected: &Expected<'_>,
    report: &mut VerifyReport,
) -> io::Result<()> {
    let file = match expected.open(storage) {
        Ok(file) => file,
        Err(error) => {
            report.add(&expected.name, None, format!("cannot be opened: {error}"));
            return Ok(());
        }
    };
    let bytes = file.len()?;
    let file = LogFile::new(
        Arc::new(file),
        expected.kind,
        expected.number,
        expected.first,
        Extent { bytes, ..Extent::default() },
    );
    let mut reading = Reading::new(manifest, expected, report.last);
    for item in file.lines(0) {
        match item {
            Ok((offset, line)) => reading.line(offset, line),
            Err(error) => reading.unreadable(&error),
        }
    }
    let offset = reading.found.bytes;
    reading.found.bytes = bytes;
    match expected.end {
        End::Sealed(sealed) => reading.judge_sealed(sealed, report),
        End::Active { known_durable } => reading.judge_active(known_durable, offset, report),
    }
    if expected.kind == FileKind::Log {
        report.last = report.last.max(reading.last.id);
    }
    report.files.push(reading.found);
    Ok(())
}

impl<'m> Reading<'m> {
    fn new(manifest: &'m Manifest, expected: &Expected<'_>, log_last: EntryId) -> Self {
        let before = if expected.kind == FileKind::Log { log_last } else { EntryId::ZERO };
        Self {
            manifest,
            kind: expected.kind,
            found: VerifiedFile {
                name: expected.name.clone(),
                kind: expected.kind,
                lines: 0,
                bytes: 0,
                first: EntryId::ZERO,
                last: EntryId::ZERO,
            },
            crc: crc32fast::Hasher::new(),
            last: LogPosition { epoch: Epoch::default(), id: before },
            bad: Vec::new(),
            intact_up_to: before,
        }
    }

    fn line(&mut self, offset: u64, line: Bytes) {
        self.found.lines += 1;
        self.found.bytes = offset + line.len() as u64 + 1;
        self.crc.update(&line);
        self.crc.update(b"\n");
        match self.check(line) {
            Ok(position) => {
                self.last = position;
                self.found.last = position.id;
                if self.bad.is_empty() {
                    self.intact_up_to = position.id;
                }
                if self.found.first == EntryId::ZERO {
                    self.found.first = position.id;
                }
            }
            Err(reason) => self.bad.push((self.found.lines, offset, reason)),
        }
    }

    fn unreadable(&mut self, error: &io::Error) {
        self.bad.push((self.found.lines + 1, self.found.bytes, error.to_string()));
    }

    fn check(&self, line: Bytes) -> Result<LogPosition, String> {
        let position = if self.kind == FileKind::Sessions {
            let record = SessionRecord::decode(&line).map_err(|error| error.to_string())?;
            LogPosition { epoch: self.last.epoch, id: record.id }
        } else {
            let entry = Entry::decode(line).map_err(|error| error.to_string())?;
            if self.kind != FileKind::Log && !matches!(entry.body, Body::Set { .. }) {
                return Err("the base holds more than SET".to_owned());
            }
            entry.position()
        };
        self.check_order(position).map(|()| position)
    }

    fn check_order(&self, at: LogPosition) -> Result<(), String> {
        if at.id <= self.last.id {
            return Err(format!("id {} follows id {}", at.id, self.last.id));
        }
        if self.kind != FileKind::Log {
            let horizon = self.manifest.base.horizon.id;
            return if at.id > horizon { Err(format!("id {} is above the horizon, {horizon}", at.id)) } else { Ok(()) };
        }
        if at.epoch < self.last.epoch {
            return Err(format!("epoch {} follows epoch {}", at.epoch, self.last.epoch));
        }
        let expected = self.last.id.next();
        let is_known = self.manifest.gaps.iter().any(|gap| gap.first <= expected && at.id <= gap.last.next());
        // After a bad line the next good one cannot follow on.
        if at.id == expected || is_known || !self.bad.is_empty() {
            Ok(())
        } else {
            Err(format!("ids {expected} to {} are missing", at.id.prev()))
        }
    }

    fn judge_sealed(&self, sealed: &SealedFile, report: &mut VerifyReport) {
        let name = &self.found.name;
        for (line, offset, reason) in &self.bad {
            report.add(name, Some((*line, *offset)), reason);
        }
        let is_whole = self.bad.is_empty();
        if self.found.bytes != sealed.bytes {
            let reason = format!("it has {} bytes, the manifest says {}", self.found.bytes, sealed.bytes);
            report.add(name, None, reason);
        } else if is_whole && (self.crc.clone().finalize(), self.found.lines) != (sealed.crc, sealed.lines) {
            report.add(name, None, "its lines are valid, but not those that the manifest lists");
        }
    }

    /// From the first bad line on the end is torn, unless what stood there was durable.
    fn judge_active(&mut self, known_durable: EntryId, end_of_lines: u64, report: &mut VerifyReport) {
        let Some((line, offset, _)) = self.bad.first().cloned() else { return };
        if self.intact_up_to < known_durable {
            for (line, offset, reason) in &self.bad {
                report.add(&self.found.name, Some((*line, *offset)), reason);
            }
            return;
        }
        let bytes = self.found.bytes.max(end_of_lines) - offset;
        report.torn_end = Some(TornEnd { file: self.found.name.clone(), line, offset, bytes });
        // A tear may leave valid lines behind a bad one: they go with it.
        self.last.id = self.intact_up_to;
        self.found.last = if offset == 0 { EntryId::ZERO } else { self.intact_up_to };
    }
}
