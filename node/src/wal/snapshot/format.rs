//! The lines of a snapshot that are not lines of the log: header, section marks, trailer. All are
//! sealed like the log's own lines. `snapshot.rs` describes the whole stream.

use kv_core::contract::Base;
use kv_core::entry::{LogPosition, seal_line, verify_line};
use kv_core::group::ClusterId;
use serde::{Deserialize, Serialize};

use super::SnapshotError;
use crate::wal::manifest::Gap;

/// The format written, and the newest one read.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The format's number; its name tells the file's kind.
    pub(super) kvcluster_snapshot: u32,
    pub cluster_id: ClusterId,
    /// The last entry that the snapshot covers: its state is the one applied up to there.
    pub position: LogPosition,
    /// What the lines at or below the base's horizon stand for.
    pub base: Base,
    /// Ids that the log lacks, and about which apply must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
}

impl Header {
    pub(crate) fn new(cluster_id: ClusterId, position: LogPosition, base: Base) -> Self {
        Self { kvcluster_snapshot: FORMAT, cluster_id, position, base, gaps: Vec::new() }
    }
}

/// The parts of a snapshot, in their order; each is there, if only to be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Section {
    /// Superseded versions at or below the horizon, ids rising.
    History,
    /// Current values at the horizon, ids rising.
    Live,
    /// Deduplication records at or below the horizon, ids rising.
    Sessions,
    /// Every entry above the horizon, without a gap.
    Log,
}

impl Section {
    pub(crate) const ALL: [Self; 4] = [Self::History, Self::Live, Self::Sessions, Self::Log];

    pub(super) fn index(self) -> usize {
        self as usize
    }

    pub(super) fn next(self) -> Option<Self> {
        Self::ALL.get(self.index() + 1).copied()
    }
}

/// Introduces a section.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SectionMark {
    pub(super) section: Section,
}

/// Lines in each section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    pub history: u64,
    pub live: u64,
    pub sessions: u64,
    pub log: u64,
}

impl Counts {
    pub(super) fn of(&mut self, section: Section) -> &mut u64 {
        match section {
            Section::History => &mut self.history,
            Section::Live => &mut self.live,
            Section::Sessions => &mut self.sessions,
            Section::Log => &mut self.log,
        }
    }
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trailer {
    pub(super) end: Counts,
    /// Length of everything before this line.
    pub(super) bytes: u64,
    /// CRC-32 of everything before this line.
    pub(super) checksum: u32,
}

/// One sealed line with its newline.
pub(super) fn encode<T: Serialize>(line: &T) -> Vec<u8> {
    let mut open_line = serde_json::to_vec(line).expect("plain structs with string keys are JSON");
    let brace = open_line.pop();
    assert_eq!(brace, Some(b'}'), "a struct is an object");
    let mut line = seal_line(open_line);
    line.push(b'\n');
    line
}

/// None: intact, but not a `T`.
fn decode<T: for<'de> Deserialize<'de>>(open_line: &[u8]) -> Option<T> {
    serde_json::from_slice(&[open_line, b"}"].concat()).ok()
}

/// The first line tells what the whole is; its errors are worded for someone who gave the wrong file.
pub(super) fn decode_header(line: &[u8]) -> Result<Header, SnapshotError> {
    #[derive(Deserialize)]
    struct AnyFormat {
        kvcluster_snapshot: u32,
    }
    if !line.starts_with(b"{\"kvcluster_snapshot\":") {
        return Err(SnapshotError::Foreign);
    }
    let open_line = verify_line(line).map_err(|error| SnapshotError::Line { number: 1, error })?;
    let AnyFormat { kvcluster_snapshot: found } = decode(open_line).ok_or(SnapshotError::Foreign)?;
    if found > FORMAT {
        return Err(SnapshotError::Newer { found });
    }
    decode(open_line)
        .ok_or(SnapshotError::Rule { number: 1, rule: "the header has other members than this release knows" })
}

/// What a line that is not one of the log's is.
pub(super) enum Mark {
    Section(Section),
    End(Trailer),
}

/// None: a line of the section itself.
pub(super) fn decode_mark(line: &[u8], number: u64) -> Result<Option<Mark>, SnapshotError> {
    let is_section = line.starts_with(b"{\"section\":");
    if !is_section && !line.starts_with(b"{\"end\":") {
        return Ok(None);
    }
    let open_line = verify_line(line).map_err(|error| SnapshotError::Line { number, error })?;
    let mark = if is_section {
        decode(open_line).map(|SectionMark { section }| Mark::Section(section))
    } else {
        decode(open_line).map(Mark::End)
    };
    mark.map(Some).ok_or(SnapshotError::Rule { number, rule: "a mark is not of this format" })
}
