//! The manifest: which files exist, where the log begins and who this member is. One sealed line of
//! JSON, replaced whole. Knows bytes and names, never what the files hold.

use std::io;

use kv_core::contract::{Base, HardState};
use kv_core::entry::{EntryId, seal_line, verify_line};
use kv_core::group::ConfigurationAt;
use kv_core::mutant::{self, Mutant};
use serde::{Deserialize, Serialize};

use super::segment::SparseIndex;
use super::storage::{Storage, StorageFile, read_up_to, sync, sync_dir};

pub(crate) const MANIFEST_FILE: &str = "manifest.json";
pub(crate) const MANIFEST_TEMPORARY: &str = "manifest.json.tmp";
/// The newest format read. Written is the oldest one that has room for what the manifest holds, see [`format_of`].
pub const FORMAT_VERSION: u32 = TIME_FORMAT;
/// What the first releases read.
const FIRST_FORMAT: u32 = 1;
/// Since this one, `base` may hold `ts_ms`.
const TIME_FORMAT: u32 = 2;
/// Far above what a manifest of a million segments needs.
const MANIFEST_BYTES_MAX: usize = 512 << 20;

/// What a file holds; part of its name, except that both kinds of segments are called `segment`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Base: superseded versions at or below the horizon, original lines, ids rising.
    History,
    /// Base: the latest SET of each key at the horizon (a compacted segment), original lines, ids rising.
    Live,
    /// Base: deduplication records at or below the horizon.
    Sessions,
    /// Above the horizon: every entry, ids without a gap.
    Log,
}

/// A file that will never be written again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    pub kind: FileKind,
    pub number: u64,
    pub lines: u64,
    pub bytes: u64,
    /// CRC-32 of all its bytes.
    pub crc: u32,
    /// Of its lines; both 0 when it has none.
    pub first: EntryId,
    pub last: EntryId,
    /// The generation it was written under, when it may still have its staged name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<u64>,
    /// Places of its lines, from its writer to whoever opens it; not in the manifest.
    #[serde(skip)]
    pub(crate) index: SparseIndex,
}

/// The segment that is appended to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveFile {
    pub number: u64,
    /// The id that its first line has, or will have.
    pub first: EntryId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<u64>,
}

/// Ids that the log of a group of one should hold and does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    pub first: EntryId,
    pub last: EntryId,
    /// The id of the LOST entry that declares it; before there is one, the id that it would get when found.
    pub known_from: EntryId,
    pub is_declared: bool,
}

/// The truth on which files exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Judged before the rest is read, and made up when it is written.
    #[serde(skip_serializing)]
    pub(crate) format_version: serde::de::IgnoredAny,
    /// The highest generation of a staged file that was ever listed.
    pub generation: u64,
    /// Raised when ids may be used again (truncate, install): positions noted under another lineage mean nothing.
    pub lineage: u64,
    pub hard: HardState,
    pub base: Base,
    /// The newest configuration in the log or the base; durable before its entry is acknowledged.
    pub configuration: ConfigurationAt,
    /// Rising by kind, then by number.
    pub files: Vec<SealedFile>,
    pub active: ActiveFile,
    /// Rising. Kept until the horizon passes the LOST entry, since apply must know of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<Gap>,
    /// Names that the last change replaced and that may be removed, unless they are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obsolete: Vec<String>,
}

/// Why there is no manifest to be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest.json cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error(
        "manifest.json is damaged: {0}; the member's promises are not known, so it must not run: empty the directory and let it join again"
    )]
    Damaged(String),
    /// Its checksum holds, so this is what was written.
    #[error(
        "manifest.json is intact, but this release does not know all of it ({0}): use the newer release that wrote it"
    )]
    NotUnderstood(String),
    #[error("manifest.json has format version {found}, this release reads up to {FORMAT_VERSION}: use a newer release")]
    Newer { found: u64 },
}

/// `wal.log.segment.3`, `wal.log.history.3`, `wal.log.sessions.3`.
pub fn file_name(kind: FileKind, number: u64) -> String {
    let word = match kind {
        FileKind::History => "history",
        FileKind::Live | FileKind::Log => "segment",
        FileKind::Sessions => "sessions",
    };
    format!("wal.log.{word}.{number}")
}

/// The name under which a file is written before the manifest lists it: never used twice.
pub fn staged_name(kind: FileKind, number: u64, generation: u64) -> String {
    format!("{}.gen{generation}", file_name(kind, number))
}

impl SealedFile {
    pub fn name(&self) -> String {
        file_name(self.kind, self.number)
    }

    pub fn staged_name(&self) -> Option<String> {
        self.staged.map(|generation| staged_name(self.kind, self.number, generation))
    }
}

impl ActiveFile {
    pub fn name(&self) -> String {
        file_name(FileKind::Log, self.number)
    }

    pub fn staged_name(&self) -> Option<String> {
        self.staged.map(|generation| staged_name(FileKind::Log, self.number, generation))
    }
}

/// A release that does not know a member must say that a newer one is needed.
fn format_of(base: &Base) -> u32 {
    if base.ts_ms == 0 { FIRST_FORMAT } else { TIME_FORMAT }
}

impl Manifest {
    /// Of an empty log; its first segment, number 1, must exist before this is stored.
    pub fn new(hard: HardState, base: Base) -> Self {
        let first = base.horizon.id.next();
        let configuration = base.configuration.clone();
        let active = ActiveFile { number: 1, first, staged: None };
        Self {
            format_version: serde::de::IgnoredAny,
            generation: 0,
            lineage: 0,
            hard,
            base,
            configuration,
            files: Vec::new(),
            active,
            gaps: Vec::new(),
            obsolete: Vec::new(),
        }
    }

    /// None: there is no manifest.
    pub fn load<S: Storage>(storage: &S) -> Result<Option<Self>, ManifestError> {
        let file = match storage.open(MANIFEST_FILE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
        if len > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Damaged(format!("it has {len} bytes")));
        }
        Self::decode(&read_up_to(&file, 0, len)?).map(Some)
    }

    /// Atomically replaces the manifest: after a crash, the old one or this one. The files it lists must be durable.
    pub fn store<S: Storage>(&self, storage: &S) -> io::Result<()> {
        let file = storage.create(MANIFEST_TEMPORARY)?;
        file.write_at(&self.encode(), 0)?;
        if !mutant::on(Mutant::StoreManifestUnsynced) {
            sync(&file)?;
        }
        storage.rename(MANIFEST_TEMPORARY, MANIFEST_FILE)?;
        sync_dir(storage, "")
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Versioned<'m> {
            format_version: u32,
            #[serde(flatten)]
            manifest: &'m Manifest,
        }
        let versioned = Versioned { format_version: format_of(&self.base), manifest: self };
        let mut open_line = serde_json::to_vec(&versioned).expect("plain structs with string keys are JSON");
        let brace = open_line.pop();
        assert_eq!(brace, Some(b'}'), "a struct is an object");
        let mut line = seal_line(open_line);
        line.push(b'\n');
        line
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct AnyFormat {
            format_version: u64,
        }
        let damaged = |e: &dyn std::fmt::Display| ManifestError::Damaged(e.to_string());
        let line = bytes.strip_suffix(b"\n").ok_or_else(|| damaged(&"it does not end"))?;
        let open_line = verify_line(line).map_err(|e| damaged(&e))?;
        let json = [open_line, b"}"].concat();
        let not_understood = |e: serde_json::Error| ManifestError::NotUnderstood(e.to_string());
        let AnyFormat { format_version } = serde_json::from_slice(&json).map_err(not_understood)?;
        if format_version > u64::from(FORMAT_VERSION) {
            return Err(ManifestError::Newer { found: format_version });
        }
        serde_json::from_slice(&json).map_err(not_understood)
    }

    /// Names of all listed files, final and staged.
    pub fn listed(&self) -> Vec<String> {
        let sealed = self.files.iter().flat_map(|f| std::iter::once(f.name()).chain(f.staged_name()));
        sealed.chain(std::iter::once(self.active.name())).chain(self.active.staged_name()).collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_core::entry::Epoch;
    use kv_core::group::{MemberId, NodeName};
    use kv_core::message::Promise;

    use super::*;

    fn manifest(ts_ms: u64) -> Manifest {
        let hard = HardState {
            member_id: MemberId(1),
            name: NodeName::new("a").unwrap(),
            cluster_id: None,
            promise: Promise { epoch: Epoch(0), candidate: None },
            incarnation: 1,
            quarantine: None,
            seen: std::collections::BTreeMap::new(),
            committed: EntryId::ZERO,
        };
        Manifest::new(hard, Base { ts_ms, ..Base::default() })
    }

    #[test]
    fn the_format_is_the_oldest_that_has_room_for_what_is_written() {
        for (ts_ms, begins) in [(0, "{\"format_version\":1,"), (7, "{\"format_version\":2,")] {
            let bytes = manifest(ts_ms).encode();
            assert!(bytes.starts_with(begins.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
            assert_eq!(Manifest::decode(&bytes).unwrap(), manifest(ts_ms));
        }
    }

    #[test]
    fn an_intact_manifest_with_an_unknown_member_was_written_by_a_newer_release() {
        let text = String::from_utf8(manifest(0).encode()).unwrap();
        let open_line = text.rsplit_once(",\"crc\":").unwrap().0.replace("\"base\":{", "\"base\":{\"shape\":1,");
        let sealed = [seal_line(open_line.into_bytes()), b"\n".to_vec()].concat();
        let error = Manifest::decode(&sealed).unwrap_err();
        assert!(matches!(error, ManifestError::NotUnderstood(_)), "{error}");
        assert!(error.to_string().contains("newer release") && !error.to_string().contains("empty"), "{error}");
        let torn = &sealed[..sealed.len() - 9];
        assert!(matches!(Manifest::decode(torn), Err(ManifestError::Damaged(_))));
    }
}
