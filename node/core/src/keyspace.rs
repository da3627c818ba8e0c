//! The applied keys: current values in memory, earlier versions as locators into the log, whose
//! values stay on disk. Only [`crate::state_machine`] writes, through one owner; anyone reads, at
//! any time, without queueing behind a write. Never does I/O.
//!
//! # The id that a read is true at
//!
//! Apply changes a shard under its lock, noting the entry's id as the shard's `last_change`, and
//! publishes `applied` only after that. A reader loads `applied` first (call it A), then locks the
//! shard and sees its `last_change` (L). Every change up to A is in the shard, since each was made
//! before A was published; none above L is. So the shard is what it was at *every* id from L up to
//! the one before its next change, and that range holds max(A, L): if L <= A, it is the state at A, and
//! if L > A, it is the state at L. Two reads with equal `at` therefore give equal answers, on every node.

mod index;

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use triomphe::Arc;

use crate::command::Key;
use crate::entry::EntryId;
use index::{Index, Presence};

/// Independent locks, so that readers and apply seldom meet. A power of two.
const SHARDS: usize = 64;
/// hashbrown takes the lowest bits of a hash for the bucket and the top seven for its tags.
const SHARD_BITS_SHIFT: u32 = 50;

/// What was found, and the applied id at which it is true: the `X-Kv-Id` of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read<T> {
    pub at: EntryId,
    pub found: T,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The entry that wrote the value.
    pub id: EntryId,
    pub version: u64,
    /// Minified JSON. A pointer without a weak count, for the sake of many short values.
    pub value: Arc<[u8]>,
}

/// Where the value of an earlier version is: in the line of this entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locator {
    pub version: u64,
    pub id: EntryId,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    pub current: Current,
    /// Rising versions, at most the history limit.
    pub earlier: Vec<Locator>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub keys: Vec<Key>,
    /// Further keys with the prefix follow the last one.
    pub more: bool,
}

pub struct Keyspace {
    hasher: FixedState,
    shards: Box<[RwLock<Shard>]>,
    index: Index,
    applied: AtomicU64,
    len: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    /// Boxed, so that the empty half of a table that has just grown costs 8 bytes a slot, not 64.
    records: HashTable<Box<Record>>,
    last_change: EntryId,
}

struct Record {
    /// Shared with the index and with session records.
    key: Key,
    value: Arc<[u8]>,
    id: EntryId,
    version: u64,
    /// None for the many keys without history.
    earlier: Option<Box<History>>,
}

/// Superseded versions of one key, rising.
pub(crate) type History = VecDeque<Locator>;

/// A SET that takes effect.
pub(crate) struct Put<'a> {
    pub key: &'a Key,
    /// Copied out of the line, which a slice would keep alive whole; and before a shard is locked.
    pub value: Arc<[u8]>,
    pub version: u64,
    pub id: EntryId,
    pub history_limit: usize,
}

impl Keyspace {
    pub(crate) fn new(applied: EntryId, hash_seed: u64) -> Self {
        Self {
            hasher: FixedState::with_seed(hash_seed),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            index: Index::default(),
            applied: AtomicU64::new(applied.0),
            len: AtomicUsize::new(0),
        }
    }

    /// The last entry whose effect every read shows.
    pub fn applied(&self) -> EntryId {
        EntryId(self.applied.load(Ordering::Acquire))
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: &str) -> Read<Option<Current>> {
        self.read(key, Record::current)
    }

    /// The current value with the locators of all earlier versions that are held.
    pub fn versions(&self, key: &str) -> Read<Option<Versions>> {
        self.read(key, |record| Versions { current: record.current(), earlier: record.locators().collect() })
    }

    /// The entry and version of the current value, for whoever decides a write.
    pub fn head(&self, key: &str) -> Option<(EntryId, u64)> {
        self.read(key, |record| (record.id, record.version)).found
    }

    /// Keys with `prefix` in order, those above `after`, at most `limit`; all at one id.
    pub fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Read<Page> {
        let applied_before = self.applied();
        let (last_change, found) = self.index.page(prefix, after, limit);
        Read { at: applied_before.max(last_change), found }
    }

    /// The entries up to `up_to` that hold current values (`live`) and earlier versions (`history`),
    /// in no order. Each shard is locked only while its ids are copied.
    pub fn collect_ids(&self, up_to: EntryId, live: &mut dyn FnMut(EntryId), history: &mut dyn FnMut(EntryId)) {
        let (mut live_ids, mut history_ids) = (Vec::new(), Vec::new());
        for shard in &self.shards {
            {
                let shard = read_lock(shard);
                live_ids.extend(shard.records.iter().map(|record| record.id));
                history_ids.extend(shard.records.iter().flat_map(|r| r.locators()).map(|locator| locator.id));
            }
            live_ids.drain(..).filter(|&id| id <= up_to).for_each(&mut *live);
            history_ids.drain(..).filter(|&id| id <= up_to).for_each(&mut *history);
        }
    }

    /// Visits every key in order; complete only while nothing is applied beside it.
    pub(crate) fn for_each(&self, visit: &mut dyn FnMut(&str, &Versions)) {
        for key in self.page("", None, usize::MAX).found.keys {
            if let Some(versions) = self.versions(key.as_str()).found {
                visit(key.as_str(), &versions);
            }
        }
    }

    fn read<T>(&self, key: &str, look: impl FnOnce(&Record) -> T) -> Read<Option<T>> {
        let applied_before = self.applied();
        let hash = self.hasher.hash_one(key);
        let shard = read_lock(self.shard(hash));
        let found = shard.records.find(hash, |record| record.key.as_str() == key);
        Read { at: applied_before.max(shard.last_change), found: found.map(|record| look(record)) }
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        &self.shards[(hash >> SHARD_BITS_SHIFT) as usize % SHARDS]
    }
}

/// The writer's side: one caller, in entry order.
impl Keyspace {
    /// Makes `put` the current value; the former one becomes history. Returns the key as it is held here.
    pub(crate) fn put(&self, put: Put<'_>) -> Key {
        let (key, id) = (put.key, put.id);
        let hash = self.hasher.hash_one(key.as_str());
        let mut shard = write_lock(self.shard(hash));
        shard.last_change = shard.last_change.max(id);
        if let Some(record) = shard.records.find_mut(hash, |record| record.key == *key) {
            record.supersede(put);
            return record.key.clone();
        }
        let record = Record::new(put, None);
        shard.records.insert_unique(hash, record, |record| self.hasher.hash_one(record.key.as_str()));
        drop(shard);
        self.key_created(key, id)
    }

    /// Puts a line of the base back: its version and history are trusted. `at` is the horizon.
    pub(crate) fn restore(&self, put: Put<'_>, earlier: Option<History>, at: EntryId) {
        let (key, history_limit) = (put.key, put.history_limit);
        let hash = self.hasher.hash_one(key.as_str());
        let mut shard = write_lock(self.shard(hash));
        shard.last_change = shard.last_change.max(at);
        let mut record = Record::new(put, earlier.map(Box::new));
        record.trim(history_limit);
        if let Some(present) = shard.records.find_mut(hash, |record| record.key == *key) {
            *present = record;
            return;
        }
        shard.records.insert_unique(hash, record, |record| self.hasher.hash_one(record.key.as_str()));
        drop(shard);
        self.key_created(key, at);
    }

    /// Drops the key with all its versions, and returns it.
    pub(crate) fn remove(&self, key: &Key, id: EntryId) -> Option<Key> {
        let hash = self.hasher.hash_one(key.as_str());
        let mut shard = write_lock(self.shard(hash));
        shard.last_change = shard.last_change.max(id);
        let found = shard.records.find_entry(hash, |record| record.key == *key).ok()?;
        let (record, _) = found.remove();
        drop(shard);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.index.note(id, record.key.clone(), Presence::Absent);
        Some(record.key)
    }

    /// Applies a changed history limit to every key.
    pub(crate) fn trim(&self, history_limit: usize, id: EntryId) {
        for shard in &self.shards {
            let mut shard = write_lock(shard);
            shard.last_change = shard.last_change.max(id);
            shard.records.iter_mut().for_each(|record| record.trim(history_limit));
        }
    }

    /// Shows readers that all changes up to `id` are made.
    pub(crate) fn publish_applied(&self, id: EntryId) {
        self.applied.store(id.0, Ordering::Release);
    }

    /// From now on keys are put in order one by one; until now in batches, which loads faster.
    pub(crate) fn finish_loading(&self) {
        self.index.finish_loading();
    }

    fn key_created(&self, key: &Key, id: EntryId) -> Key {
        self.len.fetch_add(1, Ordering::Relaxed);
        self.index.note(id, key.clone(), Presence::Present);
        key.clone()
    }
}

impl Record {
    fn new(put: Put<'_>, earlier: Option<Box<History>>) -> Box<Self> {
        let Put { key, value, version, id, history_limit: _ } = put;
        Box::new(Self { key: key.clone(), value, id, version, earlier })
    }

    fn current(&self) -> Current {
        Current { id: self.id, version: self.version, value: Arc::clone(&self.value) }
    }

    fn locators(&self) -> impl Iterator<Item = Locator> + '_ {
        self.earlier.iter().flat_map(|history| history.iter().copied())
    }

    fn supersede(&mut self, put: Put<'_>) {
        if put.version <= self.version || put.history_limit == 0 {
            // A version that does not rise: the DELETE in between was lost, and the key began anew.
            self.earlier = None;
        } else {
            let history = self.earlier.get_or_insert_default();
            drop_oldest(history, put.history_limit - 1);
            push_tight(history, Locator { version: self.version, id: self.id });
        }
        self.value = put.value;
        self.id = put.id;
        self.version = put.version;
    }

    fn trim(&mut self, history_limit: usize) {
        let Some(history) = &mut self.earlier else { return };
        drop_oldest(history, history_limit);
        history.shrink_to_fit();
        if history.is_empty() {
            self.earlier = None;
        }
    }
}

fn drop_oldest(history: &mut History, keep: usize) {
    let surplus = history.len().saturating_sub(keep);
    history.drain(..surplus);
}

/// Room doubles from 1 on; by itself it would begin at 4, and most histories are short.
pub(crate) fn push_tight(history: &mut History, locator: Locator) {
    if history.len() == history.capacity() {
        history.reserve_exact(history.len().max(1));
    }
    history.push_back(locator);
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("applied", &self.applied()).field("len", &self.len()).finish_non_exhaustive()
    }
}

// A poisoned lock means that apply panicked; the process is about to end, and what a reader still
// sees was complete when the lock was taken or is never answered.
pub(crate) fn read_lock<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write_lock<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
