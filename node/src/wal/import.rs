//! `kv-node import`: makes a data directory of the original Python implementation into a group of
//! one. Every line is verified against the CRC that Python computed; the state that the original
//! would have shown becomes the base of a new volume, under the ids that its entries had. The source
//! is only read. Used by one command; never by a running node.

mod line;
mod python;
mod replay;
mod source;

use std::path::{Path, PathBuf};
use std::{fmt, io};

use kv_core::command::Precondition;
use kv_core::contract::Base;
use kv_core::entry::{Body, Entry, EntryId, Epoch, LogPosition};
use kv_core::group::{FEATURE_LEVEL, Settings};

use super::manifest::{FileKind, MANIFEST_FILE, Manifest, SealedFile};
use super::new_volume::{FIRST_GENERATION, NewGroup, NewVolumeError, found, require_empty};
use super::segment::SegmentWriter;
use super::storage::{FileStorage, Storage};

pub use super::new_volume::NewMember;
pub use line::BadLine;
use replay::{Keys, Lines, Version};

/// What becomes of a line that cannot be imported: damaged, or beyond what this store can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    Stop,
    Skip,
}

#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// A data directory of the Python implementation; only read.
    pub source: PathBuf,
    /// New or empty.
    pub data_dir: PathBuf,
    pub member: NewMember,
    pub settings: Settings,
    pub on_damage: OnDamage,
}

/// A line that was not imported; its `Display` names file and line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedLine {
    pub path: PathBuf,
    /// From 1.
    pub line: u64,
    pub reason: BadLine,
}

/// What was imported; its `Display` is what the command prints.
#[derive(Debug, Default)]
pub struct ImportReport {
    pub files: u64,
    pub lines_verified: u64,
    pub lines_without_crc: u64,
    pub skipped: Vec<SkippedLine>,
    pub keys: u64,
    pub earlier_versions: u64,
    pub last_id: u64,
    pub cluster_id: String,
    pub member_id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} has neither wal.log nor wal.log.segment.N", .0.display())]
    NothingToImport(PathBuf),
    #[error("{} belongs to kvcluster already; import reads directories of the Python original", .0.display())]
    NotTheOriginals(PathBuf),
    #[error(transparent)]
    Target(#[from] NewVolumeError),
    #[error("{0}; nothing was written (--skip-corrupt leaves such lines out)")]
    BadLine(SkippedLine),
}

impl fmt::Display for SkippedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, reason } = self;
        write!(f, "{}:{line}: {reason}", path.display())
    }
}

/// Reads and replays all of the source.
fn collect(source: &Path, on_damage: OnDamage, report: &mut ImportReport) -> Result<(Keys, EntryId), ImportError> {
    if source.join(MANIFEST_FILE).exists() {
        return Err(ImportError::NotTheOriginals(source.to_owned()));
    }
    let mut lines = Lines::default();
    for path in source::log_files(source)? {
        source::read_file(&path, on_damage, &mut lines, report)?;
        report.files += 1;
    }
    let last_id = lines.last_id();
    Ok((lines.replay(), last_id))
}

/// Blocks until the new data directory is durable.
pub fn run(options: &ImportOptions) -> Result<ImportReport, ImportError> {
    require_empty(&options.data_dir)?;
    let mut report = ImportReport::default();
    let (keys, last_id) = collect(&options.source, options.on_damage, &mut report)?;
    let group = NewGroup::mint(&options.member)?;
    let storage = FileStorage::open(&options.data_dir).map_err(NewVolumeError::Storage)?;
    write_volume(&storage, keys, last_id, &group, options.settings, &mut report)
        .map_err(|error| NewVolumeError::Write { dir: options.data_dir.clone(), error })?;
    Ok(report)
}

/// As [`collect`], of text: what cannot be imported is skipped. For the fuzzer.
fn collect_text(log: &[u8]) -> (Keys, EntryId) {
    let mut lines = Lines::default();
    let parsed = log.split(|&byte| byte == b'\n').filter_map(|text| line::parse(text).ok());
    parsed.for_each(|line| drop(lines.add(line)));
    let last_id = lines.last_id();
    (lines.replay(), last_id)
}

/// As [`run`], of text. Returns the last id. For the fuzzer.
pub(crate) fn import_bytes<S: Storage>(log: &[u8], storage: &S, member: &NewMember) -> io::Result<u64> {
    let (keys, last_id) = collect_text(log);
    let group = NewGroup::mint(member).map_err(io::Error::other)?;
    write_volume(storage, keys, last_id, &group, Settings::default(), &mut ImportReport::default())?;
    Ok(last_id.0)
}

/// Whether the files of a directory make the state that this text does. For the fuzzer.
pub(crate) fn reads_as(source: &Path, text: &[u8]) -> Result<bool, ImportError> {
    Ok(collect(source, OnDamage::Skip, &mut ImportReport::default())? == collect_text(text))
}

/// What Python writes after it has read this; None: it is no object to it. For the fuzzer.
pub(crate) fn python_text(text: &[u8]) -> Option<Vec<u8>> {
    python::parse_object(text).ok().map(|members| python::dump_without(&members, ""))
}

/// The epoch that imported entries get; the group's own begin above it.
const IMPORT_EPOCH: Epoch = Epoch(1);

/// Writes the state as the base of an empty log whose horizon is the source's last id.
fn write_volume<S: Storage>(
    storage: &S,
    keys: Keys,
    last_id: EntryId,
    group: &NewGroup,
    settings: Settings,
    report: &mut ImportReport,
) -> io::Result<()> {
    let (history, live) = base_lines(keys, settings.history_limit);
    let epoch = if last_id == EntryId::ZERO { Epoch(0) } else { IMPORT_EPOCH };
    let base = Base {
        horizon: LogPosition { epoch, id: last_id },
        configuration: group.configuration(),
        settings,
        feature_level: FEATURE_LEVEL,
        refused: Vec::new(),
        ts_ms: 0,
    };
    let mut manifest = Manifest::new(group.hard_state(epoch, last_id), base);
    for (kind, entries) in [(FileKind::History, &history), (FileKind::Live, &live)] {
        manifest.files.extend(write_base_file(storage, kind, entries)?);
    }
    found(storage, manifest)?;
    report.keys = live.len() as u64;
    report.earlier_versions = history.len() as u64;
    report.last_id = last_id.0;
    report.cluster_id = group.cluster_id.to_string();
    report.member_id = group.member.member_id.to_string();
    Ok(())
}

/// Superseded versions within the limit, and current values, each as lines in id order.
fn base_lines(keys: Keys, history_limit: u32) -> (Vec<Entry>, Vec<Entry>) {
    let history_limit = usize::try_from(history_limit).unwrap_or(usize::MAX);
    let (mut history, mut live) = (Vec::new(), Vec::new());
    for (key, versions) in keys {
        let current = versions.len() - 1;
        let oldest = current.saturating_sub(history_limit);
        for (index, version) in versions.into_iter().enumerate().skip(oldest) {
            let Version { id, version, value } = version;
            let (key, precondition) = (key.clone(), Precondition::default());
            let body = Body::Set { key, value, version, precondition, request: None };
            let lines = if index == current { &mut live } else { &mut history };
            lines.push(Entry::encode(id, IMPORT_EPOCH, None, body));
        }
    }
    history.sort_by_key(|entry| entry.id);
    live.sort_by_key(|entry| entry.id);
    (history, live)
}

fn write_base_file<S: Storage>(storage: &S, kind: FileKind, entries: &[Entry]) -> io::Result<Option<SealedFile>> {
    if entries.is_empty() {
        return Ok(None);
    }
    let mut file = SegmentWriter::create(storage, kind, 1, FIRST_GENERATION)?;
    for entry in entries {
        file.push(entry.id, &entry.line)?;
    }
    file.finish().map(Some)
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, lines_verified, lines_without_crc, skipped, .. } = self;
        writeln!(f, "read {files} files: {lines_verified} lines verified, {lines_without_crc} without a crc")?;
        for line in skipped {
            writeln!(f, "skipped {line}")?;
        }
        writeln!(
            f,
            "imported {} keys with {} earlier versions, up to id {}",
            self.keys, self.earlier_versions, self.last_id
        )?;
        write!(f, "cluster id {}, member id {}", self.cluster_id, self.member_id)
    }
}

#[cfg(test)]
mod tests;
