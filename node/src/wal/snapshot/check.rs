//! Follows a snapshot line by line and believes none of it: order of sections, every CRC, rising
//! ids, no gap above the horizon, counts and the checksum of the whole. Holds at most one line; does
//! no I/O. Its caller gets each line with the section it belongs to and stores it somewhere.

use bytes::{Bytes, BytesMut};
use kv_core::entry::{Body, Entry, EntryId, LogPosition};
use kv_core::mutant::{self, Mutant};
use kv_core::sessions::SessionRecord;

use super::format::{Counts, Header, Mark, Section, Trailer, decode_header, decode_mark};
use super::{LINE_BYTES_MAX, SnapshotError};

/// What one line of the stream is.
#[derive(Debug)]
pub(crate) enum Item {
    Header,
    Begins(Section),
    /// A line without its newline.
    Line {
        section: Section,
        id: EntryId,
        line: Bytes,
    },
    End(Counts),
}

const GAP: &str = "ids above the horizon have a gap, or not the one that the header names";

/// Cuts chunks into lines and checks them.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// The beginning of a line whose end has not come yet.
    pending: BytesMut,
    lines: u64,
    bytes: u64,
    checksum: crc32fast::Hasher,
    header: Option<Header>,
    section: Option<Section>,
    counts: Counts,
    /// The last line seen in the present section.
    last: LogPosition,
    done: bool,
}

impl Checker {
    /// Takes the next bytes; `each` gets every item that is complete with them.
    pub(crate) fn feed<E: From<SnapshotError>>(
        &mut self,
        mut chunk: &[u8],
        each: &mut dyn FnMut(Item) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(newline) = memchr::memchr(b'\n', chunk) {
            let line = self.complete(&chunk[..newline])?;
            chunk = &chunk[newline + 1..];
            let item = self.check(line)?;
            each(item)?;
        }
        self.keep(chunk)?;
        Ok(())
    }

    /// The stream has ended: it must have ended with the trailer.
    pub(crate) fn finish(&self) -> Result<&Header, SnapshotError> {
        match &self.header {
            Some(header) if self.done && self.pending.is_empty() => Ok(header),
            Some(header) if mutant::on(Mutant::TakePartialSnapshot) => Ok(header),
            Some(_) if self.done => Err(SnapshotError::AfterTheEnd),
            Some(_) => Err(SnapshotError::Truncated { lines: self.lines }),
            None => Err(SnapshotError::Foreign),
        }
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        if self.pending.len() + part.len() > LINE_BYTES_MAX {
            // A first line that never ends is some other kind of file.
            let number = self.lines + 1;
            return Err(if number == 1 { SnapshotError::Foreign } else { SnapshotError::LineTooLong { number } });
        }
        self.pending.extend_from_slice(part);
        Ok(())
    }

    fn complete(&mut self, end: &[u8]) -> Result<Bytes, SnapshotError> {
        self.keep(end)?;
        self.lines += 1;
        Ok(self.pending.split().freeze())
    }

    fn check(&mut self, line: Bytes) -> Result<Item, SnapshotError> {
        if self.done {
            return Err(SnapshotError::AfterTheEnd);
        }
        if self.header.is_none() {
            let header = decode_header(&line)?;
            if header.gaps.iter().any(|gap| gap.first > gap.last) {
                return Err(self.rule("a gap ends before it begins"));
            }
            self.count_bytes(&line);
            self.header = Some(header);
            return Ok(Item::Header);
        }
        let item = match decode_mark(&line, self.lines)? {
            Some(Mark::End(trailer)) => return self.end(&trailer),
            Some(Mark::Section(section)) => self.begin(section)?,
            None => self.body(line.clone())?,
        };
        self.count_bytes(&line);
        Ok(item)
    }

    fn count_bytes(&mut self, line: &[u8]) {
        self.checksum.update(line);
        self.checksum.update(b"\n");
        self.bytes += line.len() as u64 + 1;
    }

    fn rule(&self, rule: &'static str) -> SnapshotError {
        SnapshotError::Rule { number: self.lines, rule }
    }

    fn header(&self) -> &Header {
        self.header.as_ref().expect("the first line was the header")
    }

    fn begin(&mut self, section: Section) -> Result<Item, SnapshotError> {
        let expected = self.section.map_or(Some(Section::History), Section::next);
        if expected != Some(section) {
            return Err(self.rule("a section is out of order"));
        }
        self.section = Some(section);
        self.last = if section == Section::Log { self.header().base.horizon } else { LogPosition::default() };
        Ok(Item::Begins(section))
    }

    fn body(&mut self, line: Bytes) -> Result<Item, SnapshotError> {
        let section = self.section.ok_or(self.rule("a line stands before the first section"))?;
        let position = match section {
            Section::Sessions => self.session(&line)?,
            Section::History | Section::Live => self.base_line(line.clone())?,
            Section::Log => self.log_line(line.clone())?,
        };
        self.last = position;
        *self.counts.of(section) += 1;
        Ok(Item::Line { section, id: position.id, line })
    }

    fn decode(&self, line: Bytes) -> Result<Entry, SnapshotError> {
        Entry::decode(line).map_err(|error| SnapshotError::Line { number: self.lines, error })
    }

    /// One write each, so ids rise strictly and stay at or below the horizon.
    fn below_horizon(&self, id: EntryId) -> Result<(), SnapshotError> {
        if id <= self.last.id {
            return Err(self.rule("ids do not rise"));
        }
        if id > self.header().base.horizon.id {
            Err(self.rule("a line of the base is above the horizon"))
        } else {
            Ok(())
        }
    }

    fn base_line(&self, line: Bytes) -> Result<LogPosition, SnapshotError> {
        let entry = self.decode(line)?;
        self.below_horizon(entry.id)?;
        if matches!(entry.body, Body::Set { .. }) {
            Ok(entry.position())
        } else {
            Err(self.rule("the base holds more than SET"))
        }
    }

    fn session(&self, line: &[u8]) -> Result<LogPosition, SnapshotError> {
        let record = SessionRecord::decode(line);
        let record = record.map_err(|error| SnapshotError::Line { number: self.lines, error })?;
        self.below_horizon(record.id)?;
        Ok(LogPosition { epoch: self.last.epoch, id: record.id })
    }

    fn log_line(&self, line: Bytes) -> Result<LogPosition, SnapshotError> {
        let entry = self.decode(line)?;
        if entry.id <= self.last.id {
            return Err(self.rule("ids do not rise"));
        }
        if entry.epoch < self.last.epoch {
            return Err(self.rule("epochs fall"));
        }
        // Ids may be missing only where the log that the snapshot was made from lacks them, too; as a recovery passes over them.
        let gap_at = |id| self.header().gaps.iter().find(|gap| gap.first == id);
        let mut expected = self.last.id.next();
        while let Some(gap) = gap_at(expected) {
            expected = gap.last.next();
        }
        if entry.id == expected { Ok(entry.position()) } else { Err(self.rule(GAP)) }
    }

    fn end(&mut self, trailer: &Trailer) -> Result<Item, SnapshotError> {
        let Trailer { end, bytes, checksum } = trailer;
        if self.section != Some(Section::Log) {
            return Err(self.rule("a section is missing"));
        }
        if (*end, *bytes, *checksum) != (self.counts, self.bytes, self.checksum.clone().finalize()) {
            return Err(self.rule("counts or checksum of the trailer do not match what came before"));
        }
        if self.last != self.header().position {
            return Err(self.rule("the log does not end at the header's position"));
        }
        self.done = true;
        Ok(Item::End(self.counts))
    }
}

#[cfg(test)]
mod tests;
