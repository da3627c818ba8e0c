//! `kv-node import`: makes a data directory of the original Python implementation into a group of
//! one. Every line is verified against the CRC that Python computed; the state that the original
//! would have shown becomes the base of a new volume, under the ids that its entries had. The source
//! is only read. Used by one command; never by a running node.

mod line;
mod python;
mod replay;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

use kv_core::entry::EntryId;
use kv_core::group::{NodeName, Settings};

pub use line::BadLine;
use replay::{Keys, Lines};

/// What an offline command makes a new volume's only voter of.
#[derive(Debug, Clone)]
pub struct NewMember {
    pub name: NodeName,
    pub peer_url: String,
}

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
    #[error("writing the data directory is not yet built")]
    NotYet,
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
    let mut report = ImportReport::default();
    let (_keys, last_id) = collect(&options.source, options.on_damage, &mut report)?;
    report.last_id = last_id.0;
    Err(ImportError::NotYet)
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
#[path = "import/tests.rs"]
mod tests;
