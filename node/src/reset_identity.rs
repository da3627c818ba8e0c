//! `kv-node reset-identity`: makes a restored or copied data directory a new, empty member. What it
//! held is set aside in a directory of its own, never deleted. Offline, under the directory's lock.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kv_core::group::{MemberId, NodeName, Settings};

use crate::driver::random_u64;
use crate::wal::{self, FileStorage, Manifest, NewVolume, Options, Storage, StorageError, WalError};

const MANIFEST_FILE: &str = "manifest.json";

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
    let storage = FileStorage::open(data_dir)?;
    let files = storage.list("").map_err(|error| ResetError::Io { path: data_dir.to_owned(), error })?;
    if files.is_empty() {
        return Err(ResetError::Empty(data_dir.to_owned()));
    }
    let name = name.map_or_else(|| name_of(&storage), Ok)?;
    let set_aside = set_files_aside(data_dir, &files)?;
    let member_id = MemberId(random_u64());
    let new_volume = NewVolume { name: name.clone(), member_id, settings: Settings::default() };
    wal::open(Arc::new(storage), &Options::default(), &new_volume)?;
    Ok(ResetReport { name, member_id, set_aside, files: files.len() })
}

fn name_of(storage: &FileStorage) -> Result<NodeName, ResetError> {
    match Manifest::load(storage) {
        Ok(Some(manifest)) => Ok(manifest.hard.name),
        Ok(None) => Err(ResetError::NoName("it has no manifest".into())),
        Err(error) => Err(ResetError::NoName(error.to_string())),
    }
}

/// The manifest goes first: after a crash in between the directory is no data directory any more, no
/// node starts on it, and the command can be run again.
fn set_files_aside(data_dir: &Path, files: &[String]) -> Result<PathBuf, ResetError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| ResetError::Io { path, error }
    };
    let set_aside = unused_directory(data_dir);
    fs::create_dir(&set_aside).map_err(failed(&set_aside))?;
    let (manifest, others): (Vec<&String>, Vec<&String>) = files.iter().partition(|name| *name == MANIFEST_FILE);
    for group in [manifest, others] {
        for name in group {
            fs::rename(data_dir.join(name), set_aside.join(name)).map_err(failed(&data_dir.join(name)))?;
        }
        for dir in [&set_aside, data_dir] {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))?;
        }
    }
    Ok(set_aside)
}

fn unused_directory(data_dir: &Path) -> PathBuf {
    let mut candidates = (1_u64..).map(|n| data_dir.join(format!("former-identity.{n}")));
    candidates.find(|path| !path.exists()).expect("numbers do not run out")
}

impl std::fmt::Display for ResetReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, member_id, set_aside, files } = self;
        writeln!(f, "{name} is a new member, {member_id}: empty, and part of no cluster")?;
        write!(f, "the {files} files of the former one are in {}", set_aside.display())
    }
}
