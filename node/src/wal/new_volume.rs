//! A data directory made by an offline command: new or empty, its member the only voter of a group
//! that did not exist before. Mints the ids; the manifest is stored last, so that a directory half
//! written is no data directory. Used by import and restore.

use std::io;
use std::path::{Path, PathBuf};

use kv_core::contract::HardState;
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, Configuration, ConfigurationAt, MemberId, MemberInfo, NodeName};
use kv_core::message::Promise;

use super::manifest::Manifest;
use super::storage::{Storage, StorageError, StorageFile};

/// Whom an offline command makes a new volume's only voter.
#[derive(Debug, Clone)]
pub struct NewMember {
    pub name: NodeName,
    pub peer_url: String,
}

/// The ids of a group that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGroup {
    pub cluster_id: ClusterId,
    pub member: MemberInfo,
}

/// Why a directory cannot become a new volume.
#[derive(Debug, thiserror::Error)]
pub enum NewVolumeError {
    #[error("{} is not empty (it holds {found:?}): name a directory that is new or empty", dir.display())]
    NotEmpty { dir: PathBuf, found: String },
    #[error("{} cannot be read: {error}", dir.display())]
    Read { dir: PathBuf, error: io::Error },
    #[error("no random numbers from the system: {0}")]
    NoRandomness(getrandom::Error),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{} cannot be written: {error}", dir.display())]
    Write { dir: PathBuf, error: io::Error },
}

/// What may stand in a directory that counts as empty: a file system's own, and a lock left behind.
const NO_CONTENT: [&str; 2] = ["lost+found", "lock"];

/// Refuses a directory with anything in it; an absent one is empty.
pub(super) fn require_empty(dir: &Path) -> Result<(), NewVolumeError> {
    let unreadable = |error| NewVolumeError::Read { dir: dir.to_owned(), error };
    let items = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        items => items.map_err(unreadable)?,
    };
    for item in items {
        let name = item.map_err(unreadable)?.file_name();
        if !NO_CONTENT.iter().any(|known| name == *known) {
            return Err(NewVolumeError::NotEmpty { dir: dir.to_owned(), found: name.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

/// Under which a new volume's files are staged.
pub(super) const FIRST_GENERATION: u64 = 1;

/// Gives the staged files their final names, adds an empty segment above them, and stores the
/// manifest: only with that is the directory a data directory.
pub(super) fn found<S: Storage>(storage: &S, mut manifest: Manifest) -> io::Result<()> {
    for file in &mut manifest.files {
        if let Some(staged) = file.staged_name() {
            storage.rename(&staged, &file.name())?;
            file.staged = None;
        }
    }
    manifest.generation = FIRST_GENERATION;
    manifest.active.number = manifest.files.iter().map(|file| file.number).max().unwrap_or(0) + 1;
    let last = manifest.files.iter().map(|file| file.last).max().unwrap_or(EntryId::ZERO);
    manifest.active.first = last.max(manifest.base.horizon.id).next();
    storage.create(&manifest.active.name())?.sync()?;
    storage.sync_dir("")?;
    manifest.store(storage)
}

impl NewGroup {
    /// Draws a cluster id and a member id.
    pub(crate) fn mint(member: &NewMember) -> Result<Self, NewVolumeError> {
        let mut drawn = [0_u8; 24];
        getrandom::fill(&mut drawn).map_err(NewVolumeError::NoRandomness)?;
        let (member_id, cluster_id) = drawn.split_at(8);
        let member_id = u64::from_le_bytes(member_id.try_into().expect("eight bytes"));
        let cluster_id = u128::from_le_bytes(cluster_id.try_into().expect("sixteen bytes"));
        let member_id = MemberId(member_id.max(1));
        Ok(Self {
            cluster_id: ClusterId::new(&format!("{cluster_id:032x}")).expect("hexadecimal digits are a name"),
            member: MemberInfo { name: member.name.clone(), member_id, peer_url: member.peer_url.clone() },
        })
    }

    pub(super) fn configuration(&self) -> ConfigurationAt {
        ConfigurationAt { id: EntryId::ZERO, configuration: Configuration::new(vec![self.member.clone()]) }
    }

    /// The member's own state when all up to `committed` is its history. It has promised `epoch` to
    /// itself, so that the entries it adds are above those it begins with.
    pub(super) fn hard_state(&self, epoch: Epoch, committed: EntryId) -> HardState {
        HardState {
            name: self.member.name.clone(),
            member_id: self.member.member_id,
            cluster_id: Some(self.cluster_id.clone()),
            promise: Promise { epoch, candidate: Some(self.member.member_id) },
            incarnation: 0,
            quarantine: None,
            seen: std::collections::BTreeMap::new(),
            committed,
        }
    }
}
