//! Snapshots on their way out and in: tasks of their own, over connections of their own, so that
//! heartbeats and writes never wait for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use kv_core::entry::EntryId;

/// The positions of the snapshots under way: compaction must not pass them, their receivers go on
/// from there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Floors(Arc<Mutex<BTreeMap<EntryId, usize>>>);

/// Holds compaction back until dropped.
#[derive(Debug)]
pub(crate) struct Floor {
    floors: Floors,
    at: EntryId,
}

impl Floors {
    pub(crate) fn hold(&self, at: EntryId) -> Floor {
        *self.lock().entry(at).or_default() += 1;
        Floor { floors: self.clone(), at }
    }

    pub(crate) fn lowest(&self) -> Option<EntryId> {
        self.lock().first_key_value().map(|(at, _)| *at)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EntryId, usize>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let mut floors = self.floors.lock();
        if let Some(holders) = floors.get_mut(&self.at) {
            *holders -= 1;
            if *holders == 0 {
                floors.remove(&self.at);
            }
        }
    }
}
