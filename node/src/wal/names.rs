//! What a start begins with, looked after while the log is open: manifest, hint and active segment under
//! their names. Somebody may have removed them, or a bit may have flipped in the manifest; open handles and
//! memory outlive that, the next start would not. Called before each pass of the scrub, which sees to the rest.

use std::io;
use std::sync::Arc;

use super::hint::HINT_FILE;
use super::manifest::{FileKind, MANIFEST_FILE, Manifest};
use super::segment::LogFile;
use super::storage::{Storage, sync_dir};
use super::{Wal, WalError};

impl<S: Storage> Wal<S> {
    /// Puts back what is gone; returns the names.
    pub fn reassert_names(&mut self) -> Result<Vec<String>, WalError> {
        self.alive()?;
        let storage = Arc::clone(&self.shared.storage);
        let is_gone = |name: &str| matches!(storage.open(name), Err(e) if e.kind() == io::ErrorKind::NotFound);
        let mut gone = Vec::new();
        if !self.manifest_is_stored() {
            gone.push(MANIFEST_FILE.to_owned());
            self.store_manifest()?;
        }
        let active = self.active.name();
        if is_gone(&active) {
            self.renew_active()?;
            gone.push(active);
        }
        if is_gone(HINT_FILE) {
            let created = storage.create(HINT_FILE);
            self.hint = self.check(HINT_FILE, created)?;
            let written = self.hint().write(&self.hint);
            self.check(HINT_FILE, written)?;
            gone.push(HINT_FILE.to_owned());
        }
        Ok(gone)
    }

    fn manifest_is_stored(&self) -> bool {
        let present = |manifest: &Manifest| (manifest.generation, manifest.lineage, manifest.active.number);
        matches!(Manifest::load(&*self.shared.storage), Ok(Some(stored)) if present(&stored) == present(&self.manifest))
    }

    /// The next segment, and the old one is sealed: the scrub finds it missing and takes it from its open handle. One
    /// without lines has nothing to keep.
    fn renew_active(&mut self) -> Result<(), WalError> {
        if self.active.bytes() > 0 {
            return self.roll();
        }
        let (name, number, first) = (self.active.name(), self.active.number, self.active.first);
        let created =
            self.shared.storage.create(&name).and_then(|file| sync_dir(&*self.shared.storage, "").map(|()| file));
        let file = self.check(&name, created)?;
        self.active = LogFile::new(Arc::new(file), FileKind::Log, number, first, Default::default());
        let mut table = self.table();
        table.log.pop();
        table.add(Arc::clone(&self.active));
        self.shared.publish(table, self.last);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::memory::MemoryStorage;
    use crate::wal::memory::Survives;
    use crate::wal::recovery::tests::{found, reopen, set, sets, volume};
    use crate::wal::repair::{Found, rebuild, salvage};
    use crate::wal::scrub::{Scrub, Step};
    use crate::wal::{EntryId, Opened};

    fn scrub_and_repair(opened: &mut Opened<MemoryStorage>) {
        let mut scrub = Scrub::new(&opened.reader);
        loop {
            match scrub.step() {
                Step::Read(_) => {}
                Step::Done => return,
                Step::Found(damaged) => {
                    let salvaged = salvage(&opened.reader, &damaged.listed);
                    let file = rebuild(&opened.reader, &salvaged, &Found::new()).expect("written");
                    opened.wal.swap_repaired(file.expect("the open handle has it all")).expect("in its place");
                }
            }
        }
    }

    #[test]
    fn an_emptied_directory_is_filled_again_by_the_log_that_is_open_on_it() {
        for last in [0, 3, 20] {
            let storage = volume(&[1, 2, 3], last, last);
            let mut opened = reopen(&storage).expect("reopen");
            for name in storage.names() {
                storage.remove(&name).expect("there");
            }
            let gone = opened.wal.reassert_names().expect("put back");
            assert_eq!(gone.len(), 3, "{gone:?}");
            scrub_and_repair(&mut opened);
            assert!(opened.wal.reassert_names().expect("nothing to do").is_empty());
            opened.wal.append(&[set(last + 1)], EntryId(last + 1)).expect("goes on");
            let again = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
            assert_eq!(again.recovered.report.damage_total, 0, "{:?}", again.recovered.report);
            assert_eq!(again.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=last + 1));
        }
    }

    #[test]
    fn a_manifest_that_rots_is_stored_again_before_a_start_reads_it() {
        let storage = MemoryStorage::default();
        let mut opened = reopen(&storage).expect("new volume");
        found(&mut opened.wal, &opened.recovered.hard, &[1, 2, 3]).expect("found");
        opened.wal.append(&sets(1..=20), EntryId(20)).expect("appended");
        storage.tamper(MANIFEST_FILE, |contents| contents[40] ^= 1);
        assert!(reopen(&storage).is_err());
        assert_eq!(opened.wal.reassert_names().expect("put back"), [MANIFEST_FILE]);
        let again = reopen(&storage.after_power_loss(Survives::Nothing)).expect("reopen");
        assert_eq!(again.reader.read_from(EntryId(1), usize::MAX).expect("readable"), sets(1..=20));
    }
}
