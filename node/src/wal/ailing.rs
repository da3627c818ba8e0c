//! A member's sealed files that are damaged at a start, before the log is opened and anything is cut: what
//! others hold can make them what they were, and then nothing was lost. Looks, and puts back; never asks anybody.
//! Called by the driver at a start that has found damage.

use std::io;
use std::sync::Arc;

use kv_core::contract::HardState;
use kv_core::group::MemberInfo;

use super::manifest::{FileKind, Manifest, SealedFile};
use super::reader::LogReader;
use super::recovery::{Damage, IdRange, in_directory, is_group_of_one};
use super::repair::{Found, Salvaged, keep_bad_lines, rebuild, salvage};
use super::scrub::{DamagedFile, Verdict, examine};
use super::segment::{LogFile, SparseIndex};
use super::storage::{Storage, is_lack_of_means, sync_dir};
use super::table::{FileTable, Shared};
use super::volume::{highest_generation, settle_at_start};
use super::{Options, WalError};

/// Damaged files that lines of others may make whole.
#[derive(Debug)]
pub struct Ailing<S: Storage> {
    reader: LogReader<S>,
    manifest: Manifest,
    files: Vec<Patient<S::File>>,
    mended: Vec<Damage>,
}

#[derive(Debug)]
struct Patient<F> {
    damaged: DamagedFile<F>,
    salvaged: Salvaged<F>,
}

impl<S: Storage> Ailing<S> {
    /// None: nobody else can help. A group of one has nobody to ask, the lines of an active segment cannot be told from
    /// those of a tail, a file that is gone takes too many, and deduplication records are no lines of the log.
    pub fn look(storage: &Arc<S>, options: &Options) -> Result<Option<Self>, WalError> {
        let Some(mut manifest) = Manifest::load(&**storage)? else { return Ok(None) };
        if manifest.hard.cluster_id.is_none() || is_group_of_one(&manifest) {
            return Ok(None);
        }
        settle_at_start(&**storage, &mut manifest).map_err(in_directory)?;
        let generation = manifest.generation.max(highest_generation(&**storage).map_err(in_directory)?);
        let shared = Shared::new(Arc::clone(storage), FileTable::empty(&manifest), generation, options);
        let mut ailing = Self { reader: LogReader(Arc::new(shared)), manifest, files: Vec::new(), mended: Vec::new() };
        for sealed in ailing.manifest.files.clone() {
            let name = sealed.name();
            let Some(verdict) = judge(&**storage, &sealed).map_err(|error| WalError::Io { file: name, error })? else {
                return Ok(None);
            };
            if !verdict.damage.is_empty() {
                ailing.add(verdict);
            }
        }
        let is_hopeless = ailing.files.iter().any(|file| file.damaged.listed.kind == FileKind::Sessions);
        Ok(Some(ailing).filter(|ailing| !ailing.files.is_empty() && !is_hopeless))
    }

    fn add(&mut self, verdict: Verdict<S::File>) {
        let Verdict { listed, damage, bad_lines, holes: _ } = verdict;
        let salvaged = salvage(&self.reader, &listed);
        self.files.push(Patient { damaged: DamagedFile { listed, damage, bad_lines }, salvaged });
    }

    pub fn hard(&self) -> &HardState {
        &self.manifest.hard
    }

    /// The other voters, as far as is known without reading the log.
    pub fn others(&self) -> Vec<MemberInfo> {
        let voters = &self.manifest.configuration.configuration.voters;
        voters.iter().filter(|voter| voter.member_id != self.manifest.hard.member_id).cloned().collect()
    }

    /// The ids of all lines that may be missing, rising.
    pub fn missing(&self) -> Vec<IdRange> {
        let holes = self.files.iter().flat_map(|file| &file.salvaged.holes);
        let mut ids: Vec<_> = holes.map(|hole| hole.ids).filter(|ids| ids.first <= ids.last).collect();
        ids.sort_by_key(|ids| ids.first);
        ids
    }

    pub fn is_whole(&self) -> bool {
        self.files.is_empty()
    }

    /// What was damaged, and is not any more.
    pub fn into_mended(self) -> Vec<Damage> {
        self.mended
    }

    /// Gives each file its name again that `found` makes what it was, durably; its bad lines are kept first. After an
    /// error of the disk nothing may be made of the log: what could have been put back would be cut.
    pub fn put_back(mut self, found: &Found) -> Result<Self, WalError> {
        for patient in std::mem::take(&mut self.files) {
            if self.put_back_one(&patient, found).map_err(in_directory)? {
                self.mended.extend(patient.damaged.damage);
            } else {
                self.files.push(patient);
            }
        }
        Ok(self)
    }

    fn put_back_one(&self, patient: &Patient<S::File>, found: &Found) -> io::Result<bool> {
        let Some(whole) = rebuild(&self.reader, &patient.salvaged, found)? else { return Ok(false) };
        let storage = &**self.reader.storage();
        keep_bad_lines(storage, &patient.damaged)?;
        storage.rename(&whole.staged_name().expect("it was staged by `rebuild`"), &whole.name())?;
        sync_dir(storage, "")?;
        Ok(true)
    }
}

/// None: it cannot be looked at.
fn judge<S: Storage>(storage: &S, sealed: &SealedFile) -> io::Result<Option<Verdict<S::File>>> {
    let examined = storage.open(&sealed.name()).and_then(|file| {
        let file = Arc::new(file);
        examine(&LogFile::sealed(Arc::clone(&file), sealed, SparseIndex::default()), &file)
    });
    match examined {
        Err(error) if is_lack_of_means(&error) => Err(error),
        examined => Ok(examined.ok()),
    }
}

#[cfg(test)]
mod tests;
