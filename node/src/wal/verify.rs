//! `kv-node verify`: reads a data directory, writes nothing, and says what of it can be believed. A
//! node may be running on it: when files change under the reading, it begins anew. Used by one
//! command; recovery judges for itself.

mod file;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use kv_core::entry::EntryId;

use self::file::{Expected, read_file};
use super::hint::{HINT_FILE, Hint};
use super::manifest::{FileKind, MANIFEST_FILE, Manifest, ManifestError};
use super::storage::{FileStorage, Storage, StorageError};

/// Damaged places described one by one; more are only counted.
const DAMAGE_MAX: usize = 1000;
/// Readings, when a running node changes the files meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// One place that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedPlace {
    pub file: String,
    /// Line (from 1) and offset; None: the file as a whole.
    pub place: Option<(u64, u64)>,
    pub reason: String,
}

impl fmt::Display for DamagedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, reason } = self;
        match place {
            Some((line, offset)) => write!(f, "{file}, line {line}, offset {offset}: {reason}"),
            None => write!(f, "{file}: {reason}"),
        }
    }
}

/// A file that the manifest lists, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedFile {
    pub name: String,
    pub kind: FileKind,
    pub lines: u64,
    pub bytes: u64,
    /// Of its intact lines; 0: none.
    pub first: EntryId,
    pub last: EntryId,
}

/// The end of the active segment, when it was not written whole. Cut at the next start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornEnd {
    pub file: String,
    pub line: u64,
    pub offset: u64,
    pub bytes: u64,
}

/// What was found; its `Display` is what the command prints.
#[derive(Debug, Default)]
pub struct VerifyReport {
    pub name: String,
    pub member_id: String,
    /// None: uninitialised.
    pub cluster_id: Option<String>,
    /// The last id of the base.
    pub horizon: EntryId,
    pub last: EntryId,
    pub committed: EntryId,
    pub files: Vec<VerifiedFile>,
    pub damage: Vec<DamagedPlace>,
    pub damage_total: u64,
    pub torn_end: Option<TornEnd>,
    /// Files that the manifest does not list.
    pub orphans: Vec<String>,
    pub quarantine: Option<String>,
}

impl VerifyReport {
    /// True: the command exits with status 1.
    pub fn is_damaged(&self) -> bool {
        self.damage_total > 0
    }

    fn add(&mut self, file: &str, place: Option<(u64, u64)>, reason: impl fmt::Display) {
        self.damage_total += 1;
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(DamagedPlace { file: file.to_owned(), place, reason: reason.to_string() });
        }
    }
}

/// The directory could not be read at all; damage inside it is in the report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{} has no manifest.json: it is not a data directory of kvcluster", .0.display())]
    NotADataDirectory(PathBuf),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{} cannot be read: {error}", dir.display())]
    Read { dir: PathBuf, error: io::Error },
    #[error("{} changed under each of {ATTEMPTS_MAX} readings; try again when the node is less busy", .0.display())]
    Busy(PathBuf),
}

/// Checks a data directory without writing to it; a node may be running on it.
pub fn run(data_dir: &Path) -> Result<VerifyReport, VerifyError> {
    let storage = FileStorage::open_read_only(data_dir)?;
    for _ in 0..ATTEMPTS_MAX {
        let manifest = load(&storage, data_dir)?;
        let report =
            verify(&storage, &manifest).map_err(|error| VerifyError::Read { dir: data_dir.to_owned(), error })?;
        // Only the files matter: a running node stores its manifest for other reasons, too.
        let after = load(&storage, data_dir)?;
        let is_settled = (&manifest.files, &manifest.active) == (&after.files, &after.active);
        if is_settled || !(report.is_damaged() || report.torn_end.is_some()) {
            return Ok(report);
        }
    }
    Err(VerifyError::Busy(data_dir.to_owned()))
}

/// As [`run`], of files that nobody changes meanwhile.
#[cfg(test)]
pub(super) fn of_storage<S: Storage>(storage: &S) -> io::Result<VerifyReport> {
    let manifest = Manifest::load(storage).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
    verify(storage, &manifest)
}

fn load(storage: &FileStorage, data_dir: &Path) -> Result<Manifest, VerifyError> {
    Manifest::load(storage)?.ok_or_else(|| VerifyError::NotADataDirectory(data_dir.to_owned()))
}

fn verify<S: Storage>(storage: &S, manifest: &Manifest) -> io::Result<VerifyReport> {
    let hint = Hint::load(storage).filter(|hint| hint.lineage == manifest.lineage).unwrap_or_default();
    let mut report = VerifyReport {
        name: manifest.hard.name.to_string(),
        member_id: manifest.hard.member_id.to_string(),
        cluster_id: manifest.hard.cluster_id.as_ref().map(ToString::to_string),
        horizon: manifest.base.horizon.id,
        last: manifest.base.horizon.id,
        committed: manifest.hard.committed.max(hint.committed),
        quarantine: manifest.hard.quarantine.as_ref().map(|quarantine| quarantine.reason.clone()),
        ..VerifyReport::default()
    };
    // Before the files: a file that appears meanwhile is then not taken for an orphan.
    let names = storage.list("")?;
    for sealed in &manifest.files {
        read_file(storage, manifest, &Expected::sealed(sealed), &mut report)?;
    }
    let known_durable = manifest.hard.committed.max(hint.durable);
    read_file(storage, manifest, &Expected::active(&manifest.active, known_durable), &mut report)?;
    if report.last < known_durable && !report.is_damaged() {
        let reason = format!("the log ends at id {}, but {known_durable} was durable", report.last);
        report.add(&manifest.active.name(), None, reason);
    }
    let listed = manifest.listed();
    let is_orphan = |name: &String| name != MANIFEST_FILE && name != HINT_FILE && !listed.contains(name);
    report.orphans = names.into_iter().filter(is_orphan).collect();
    Ok(report)
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster_id = self.cluster_id.as_deref().unwrap_or("none, the member is uninitialised");
        writeln!(f, "member {} ({}), cluster {cluster_id}", self.name, self.member_id)?;
        writeln!(f, "base up to id {}, log up to id {}, committed {}", self.horizon, self.last, self.committed)?;
        for VerifiedFile { name, kind, lines, bytes, first, last } in &self.files {
            let holds = match kind {
                FileKind::History => "superseded versions",
                FileKind::Live => "current values",
                FileKind::Sessions => "requests",
                FileKind::Log => "entries",
            };
            writeln!(f, "  {name}: {lines} lines ({holds}), ids {first} to {last}, {bytes} bytes")?;
        }
        if let Some(reason) = &self.quarantine {
            writeln!(f, "quarantined: {reason}")?;
        }
        if let Some(TornEnd { file, line, offset, bytes }) = &self.torn_end {
            writeln!(f, "torn end: {file}, line {line}, offset {offset}: {bytes} bytes, cut at the next start")?;
        }
        for orphan in &self.orphans {
            writeln!(f, "not listed by the manifest: {orphan}")?;
        }
        for place in &self.damage {
            writeln!(f, "DAMAGED {place}")?;
        }
        if self.is_damaged() { write!(f, "{} damaged places", self.damage_total) } else { write!(f, "no damage found") }
    }
}

#[cfg(test)]
mod tests;
