//! `kv-node restore`: makes a snapshot into a group of one with ids of its own. Values, versions,
//! history, deduplication and settings are those of the snapshot; the members of the group that it was
//! taken from are strangers to the new one. The snapshot is verified whole before the data directory
//! is touched. Used by one command; never by a running node.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_core::contract::Base;
use kv_core::group::ConfigurationAt;

use super::SEGMENT_BYTES_MAX_DEFAULT;
use super::manifest::Manifest;
use super::new_volume::{FIRST_GENERATION, NewGroup, NewVolumeError, found, require_empty};
use super::snapshot::{Checker, ReceiveError, Received, SnapshotError, SnapshotReceiver};
use super::storage::{FileStorage, Storage};
use super::table::StagedSnapshot;

pub use super::new_volume::NewMember;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// What `GET /snapshot` streamed.
    pub snapshot: PathBuf,
    /// New or empty.
    pub data_dir: PathBuf,
    pub member: NewMember,
}

/// What was restored; its `Display` is what the command prints.
#[derive(Debug)]
pub struct RestoreReport {
    pub lines: u64,
    pub last_id: u64,
    pub from_cluster_id: String,
    pub cluster_id: String,
    pub member_id: String,
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, last_id, from_cluster_id, cluster_id, member_id } = self;
        writeln!(f, "restored {lines} lines of cluster {from_cluster_id}, up to id {last_id}")?;
        write!(f, "cluster id {cluster_id}, member id {member_id}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("{} cannot be read: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: {error}; nothing was restored", path.display())]
    Snapshot { path: PathBuf, error: SnapshotError },
    #[error(transparent)]
    Target(#[from] NewVolumeError),
}

/// Blocks until the new data directory is durable.
pub fn run(options: &RestoreOptions) -> Result<RestoreReport, RestoreError> {
    require_empty(&options.data_dir)?;
    check(&options.snapshot)?;
    let group = NewGroup::mint(&options.member)?;
    let storage = Arc::new(FileStorage::open(&options.data_dir).map_err(NewVolumeError::Storage)?);
    write_volume(options, &group, &storage)
}

/// Takes the snapshot in and makes it the base and log of the new group.
fn write_volume<S: Storage>(
    options: &RestoreOptions,
    group: &NewGroup,
    storage: &Arc<S>,
) -> Result<RestoreReport, RestoreError> {
    let Received { staged, counts } = take_in(&options.snapshot, storage, &options.data_dir)?;
    let (last_id, from_cluster_id) = (staged.position.id.0, staged.cluster_id.to_string());
    found_of_snapshot(&**storage, group, staged)
        .map_err(|error| NewVolumeError::Write { dir: options.data_dir.clone(), error })?;
    Ok(RestoreReport {
        lines: counts.history + counts.live + counts.sessions + counts.log,
        last_id,
        from_cluster_id,
        cluster_id: group.cluster_id.to_string(),
        member_id: group.member.member_id.to_string(),
    })
}

pub(crate) fn found_of_snapshot<S: Storage>(storage: &S, group: &NewGroup, staged: StagedSnapshot) -> io::Result<()> {
    let StagedSnapshot { position, cluster_id: _, base, files, gaps, generation: _ } = staged;
    // From the last id on: the CONFIG entries in the log are another group's.
    let configuration = ConfigurationAt { id: position.id, ..group.configuration() };
    let base = Base { configuration, ..base };
    let mut manifest = Manifest::new(group.hard_state(position.epoch, position.id), base);
    (manifest.files, manifest.gaps) = (files, gaps);
    found(storage, manifest)
}

/// Goes through the snapshot once, writing nothing.
fn check(path: &Path) -> Result<(), RestoreError> {
    let refused = |error| RestoreError::Snapshot { path: path.to_owned(), error };
    let mut checker = Checker::default();
    each_chunk(path, &mut |chunk| checker.feed(chunk, &mut |_| Ok(())).map_err(refused))?;
    checker.finish().map(drop).map_err(refused)
}

fn take_in<S: Storage>(path: &Path, storage: &Arc<S>, data_dir: &Path) -> Result<Received, RestoreError> {
    let failed = |error| match error {
        ReceiveError::Snapshot(error) => RestoreError::Snapshot { path: path.to_owned(), error },
        ReceiveError::Write(error) => NewVolumeError::Write { dir: data_dir.to_owned(), error }.into(),
    };
    let mut receiver = SnapshotReceiver::new(Arc::clone(storage), FIRST_GENERATION, SEGMENT_BYTES_MAX_DEFAULT);
    each_chunk(path, &mut |chunk| receiver.feed(chunk).map_err(failed))?;
    receiver.finish().map_err(failed)
}

fn each_chunk(path: &Path, visit: &mut dyn FnMut(&[u8]) -> Result<(), RestoreError>) -> Result<(), RestoreError> {
    let unreadable = |error| RestoreError::Read { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => visit(&chunk[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

#[cfg(test)]
mod tests;
