//! `kv-node reset-identity`: makes a restored or copied data directory a new, empty member. What it
//! held is set aside in a directory of its own, never deleted. Offline, under the directory's lock.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_core::group::{MemberId, NodeName, Settings};

use crate::driver::random_u64;
use crate::wal::manifest::MANIFEST_FILE;
use crate::wal::{self, FileStorage, Manifest, NewVolume, Options, Storage, StorageError, WalError};

/// What was done; its `Display` is what the command prints.
#[derive(Debug)]
pub struct ResetReport {
    name: NodeName,
    member_id: MemberId,
    set_aside: PathBuf,
    files: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("{0} does not exist")]
    Absent(PathBuf),
    #[error("{0} is empty: a node that is started on it is a new member anyway")]
    Empty(PathBuf),
    #[error("the node's name cannot be read from the directory ({0}): give it with --id")]
    NoName(String),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Log(#[from] WalError),
}

/// Blocks until the new identity is durable.
pub fn run(data_dir: &Path, name: Option<NodeName>) -> Result<ResetReport, ResetError> {
    if !data_dir.is_dir() {
        return Err(ResetError::Absent(data_dir.to_owned()));
    }
    reset(Arc::new(FileStorage::open(data_dir)?), name, MemberId(random_u64()))
}

fn reset<S: Storage>(storage: Arc<S>, name: Option<NodeName>, member_id: MemberId) -> Result<ResetReport, ResetError> {
    let files = storage.list("").map_err(failed(&*storage, ""))?;
    if files.is_empty() {
        return Err(ResetError::Empty(storage.path_of("").into()));
    }
    let name = name.map_or_else(|| name_of(&*storage), Ok)?;
    let set_aside = set_files_aside(&*storage, &files)?;
    let set_aside = storage.path_of(&set_aside).into();
    let new_volume = NewVolume { name: name.clone(), member_id, settings: Settings::default() };
    wal::open(storage, &Options::default(), &new_volume)?;
    Ok(ResetReport { name, member_id, set_aside, files: files.len() })
}

fn failed<S: Storage>(storage: &S, name: &str) -> impl Fn(io::Error) -> ResetError + use<S> {
    let path = PathBuf::from(storage.path_of(name));
    move |error| ResetError::Io { path: path.clone(), error }
}

fn name_of<S: Storage>(storage: &S) -> Result<NodeName, ResetError> {
    match Manifest::load(storage) {
        Ok(Some(manifest)) => Ok(manifest.hard.name),
        Ok(None) => Err(ResetError::NoName("it has no manifest".into())),
        Err(error) => Err(ResetError::NoName(error.to_string())),
    }
}

/// The manifest goes first: after a crash in between the directory is no data directory any more, no
/// node starts on it, and the command can be run again.
fn set_files_aside<S: Storage>(storage: &S, files: &[String]) -> Result<String, ResetError> {
    let set_aside = unused_directory(storage)?;
    let (manifest, others): (Vec<&String>, Vec<&String>) = files.iter().partition(|name| *name == MANIFEST_FILE);
    for group in [manifest, others] {
        for name in group {
            storage.rename(name, &format!("{set_aside}/{name}")).map_err(failed(storage, name))?;
        }
        for dir in [&*set_aside, ""] {
            storage.sync_dir(dir).map_err(failed(storage, dir))?;
        }
    }
    Ok(set_aside)
}

fn unused_directory<S: Storage>(storage: &S) -> Result<String, ResetError> {
    for number in 1_u64.. {
        let directory = format!("former-identity.{number}");
        if storage.list(&directory).map_err(failed(storage, &directory))?.is_empty() {
            return Ok(directory);
        }
    }
    unreachable!("numbers do not run out")
}

impl std::fmt::Display for ResetReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, member_id, set_aside, files } = self;
        writeln!(f, "{name} is a new member, {member_id}: empty, and part of no cluster")?;
        write!(f, "the {files} files of the former one are in {}", set_aside.display())
    }
}

#[cfg(test)]
mod tests;
