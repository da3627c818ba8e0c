//! Deduplication: which requests took effect, with what result. State of the group: written only by
//! apply, in entry order, expired by entry time, bounded by count. Anyone may read beside it. Knows
//! nothing of GET, whose results each node remembers for itself.

mod record;

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};

use crate::command::{OperationKind, RequestId};
use crate::entry::EntryId;
use crate::group::Settings;
use crate::keyspace::{read_lock, write_lock};
use crate::mutant::{self, Mutant};
pub(crate) use record::digest_write;
pub use record::{SessionRecord, request_digest};

/// Independent locks, so that readers and apply seldom meet. A power of two.
const SHARDS: usize = 64;
/// See [`crate::keyspace`].
const SHARD_BITS_SHIFT: u32 = 50;
/// Records copied out under one hold of the lock.
const CHUNK_RECORDS: usize = 1024;

type Shard = HashTable<Arc<SessionRecord>>;

pub struct Sessions {
    hasher: FixedState,
    /// By (client, request); the at most two operations of a pair share a hash, and so a shard.
    shards: Box<[RwLock<Shard>]>,
    /// The same records by rising entry id, which is the order of expiry and eviction.
    order: RwLock<VecDeque<Arc<SessionRecord>>>,
    /// How many records each client has; the one copy of its id that they share.
    clients: Mutex<HashMap<Arc<str>, usize, FixedState>>,
    pairs: AtomicUsize,
    expiry_ms: AtomicU64,
    limit: AtomicUsize,
    counting: AtomicBool,
    stored_total: AtomicU64,
    cleanups_total: AtomicU64,
    evicted_total: AtomicU64,
}

/// For `/deduplication_stats`. The totals leave out what recovery restored or replayed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionCounts {
    pub records: u64,
    /// Distinct (client, request) pairs among the records.
    pub unique_request_ids: u64,
    pub clients: u64,
    pub stored_total: u64,
    /// Sweeps that removed something.
    pub cleanups_total: u64,
    /// Records dropped before their time, for the size limit.
    pub evicted_total: u64,
}

impl Sessions {
    pub(crate) fn new(settings: &Settings, hash_seed: u64) -> Self {
        let sessions = Self {
            hasher: FixedState::with_seed(hash_seed),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            order: RwLock::default(),
            clients: Mutex::new(HashMap::with_hasher(FixedState::with_seed(hash_seed))),
            pairs: AtomicUsize::new(0),
            expiry_ms: AtomicU64::new(0),
            limit: AtomicUsize::new(0),
            counting: AtomicBool::new(false),
            stored_total: AtomicU64::new(0),
            cleanups_total: AtomicU64::new(0),
            evicted_total: AtomicU64::new(0),
        };
        sessions.set_limits(settings);
        sessions
    }

    /// The record of a request that would be ordered at `ts_ms`, unless it has expired by then.
    pub fn lookup(&self, request: &RequestId, operation: OperationKind, ts_ms: u64) -> Option<SessionRecord> {
        self.find(request, |record| record.operation == operation && !self.is_expired(record, ts_ms))
    }

    /// The record as apply goes by it: apply has swept already, and what the sweep left counts.
    pub fn held(&self, request: &RequestId, operation: OperationKind) -> Option<SessionRecord> {
        self.find(request, |record| record.operation == operation)
    }

    /// Whether any operation of this client and request is held.
    pub fn knows_pair(&self, request: &RequestId) -> bool {
        self.find(request, |_| true).is_some()
    }

    /// How long a record is remembered, in entry time.
    pub fn expiry(&self) -> Duration {
        Duration::from_millis(self.expiry_ms.load(Ordering::Relaxed))
    }

    /// Whether any request of this client is remembered.
    pub fn knows_client(&self, client_id: &str) -> bool {
        self.clients().contains_key(client_id)
    }

    /// Visits the records of entries up to `up_to`, by rising id; those that apply drops meanwhile may be left out.
    pub fn for_each_up_to(&self, up_to: EntryId, visit: &mut dyn FnMut(&SessionRecord)) {
        let mut next = EntryId::ZERO;
        loop {
            let chunk = self.chunk(next, up_to);
            let Some(last) = chunk.last() else { return };
            next = last.id.next();
            chunk.iter().for_each(|record| visit(record));
        }
    }

    pub fn counts(&self) -> SessionCounts {
        SessionCounts {
            records: read_lock(&self.order).len() as u64,
            unique_request_ids: self.pairs.load(Ordering::Relaxed) as u64,
            clients: self.clients().len() as u64,
            stored_total: self.stored_total.load(Ordering::Relaxed),
            cleanups_total: self.cleanups_total.load(Ordering::Relaxed),
            evicted_total: self.evicted_total.load(Ordering::Relaxed),
        }
    }

    /// Goes on from the totals of the table that this one replaces: they are the process's.
    pub fn carry_totals(&self, earlier: &SessionCounts) {
        self.stored_total.fetch_add(earlier.stored_total, Ordering::Relaxed);
        self.cleanups_total.fetch_add(earlier.cleanups_total, Ordering::Relaxed);
        self.evicted_total.fetch_add(earlier.evicted_total, Ordering::Relaxed);
    }

    fn find(&self, request: &RequestId, fits: impl Fn(&SessionRecord) -> bool) -> Option<SessionRecord> {
        if mutant::on(Mutant::ForgetRequests) {
            return None;
        }
        let hash = self.hash(request);
        let shard = read_lock(self.shard(hash));
        shard.find(hash, |record| record.request == *request && fits(record)).map(|found| SessionRecord::clone(found))
    }

    fn chunk(&self, from: EntryId, up_to: EntryId) -> Vec<Arc<SessionRecord>> {
        let order = read_lock(&self.order);
        let start = order.partition_point(|record| record.id < from);
        order.range(start..).take_while(|record| record.id <= up_to).take(CHUNK_RECORDS).cloned().collect()
    }

    fn is_expired(&self, record: &SessionRecord, ts_ms: u64) -> bool {
        record.ts_ms.saturating_add(self.expiry_ms.load(Ordering::Relaxed)) < ts_ms
    }

    fn hash(&self, request: &RequestId) -> u64 {
        self.hasher.hash_one(request)
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        &self.shards[(hash >> SHARD_BITS_SHIFT) as usize % SHARDS]
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize, FixedState>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's side: one caller, in entry order.
impl Sessions {
    pub(crate) fn set_limits(&self, settings: &Settings) {
        self.expiry_ms.store(settings.dedup_expiry_seconds.saturating_mul(1000), Ordering::Relaxed);
        self.limit.store(usize::try_from(settings.dedup_limit).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// The totals count from here on.
    pub(crate) fn start_counting(&self) {
        self.counting.store(true, Ordering::Relaxed);
    }

    /// Remembers a request that took effect; the oldest go when there are too many.
    pub(crate) fn remember(&self, record: SessionRecord) {
        self.insert(record);
        self.count(&self.stored_total, 1);
        self.evict();
    }

    /// Puts a record of the base back.
    pub(crate) fn restore(&self, record: SessionRecord) {
        self.insert(record);
    }

    /// Drops what has expired at `ts_ms`. Records stand in the order of their time, so it stops at the first that has not.
    pub(crate) fn sweep(&self, ts_ms: u64) {
        let mut removed = 0;
        while let Some(record) = self.pop_oldest_if(|_, oldest| self.is_expired(oldest, ts_ms)) {
            self.forget(&record);
            removed += 1;
        }
        self.count(&self.cleanups_total, u64::from(removed > 0));
    }

    /// Drops the oldest records above the limit.
    pub(crate) fn evict(&self) {
        let limit = self.limit.load(Ordering::Relaxed);
        let mut evicted = 0;
        while let Some(record) = self.pop_oldest_if(|held, _| held > limit) {
            self.forget(&record);
            evicted += 1;
        }
        self.count(&self.evicted_total, evicted);
    }

    fn count(&self, total: &AtomicU64, n: u64) {
        if n > 0 && self.counting.load(Ordering::Relaxed) {
            total.fetch_add(n, Ordering::Relaxed);
        }
    }

    fn insert(&self, mut record: SessionRecord) {
        record.request.client_id = self.share_client(&record.request.client_id);
        let record = Arc::new(record);
        let hash = self.hash(&record.request);
        {
            let mut shard = write_lock(self.shard(hash));
            if shard.find(hash, |other| other.request == record.request).is_none() {
                self.pairs.fetch_add(1, Ordering::Relaxed);
            }
            shard.insert_unique(hash, Arc::clone(&record), |record| self.hash(&record.request));
        }
        let mut order = write_lock(&self.order);
        if order.back().is_none_or(|newest| newest.id < record.id) {
            return order.push_back(record);
        }
        let at = order.partition_point(|other| other.id < record.id);
        order.insert(at, record);
    }

    fn pop_oldest_if(&self, unwanted: impl FnOnce(usize, &SessionRecord) -> bool) -> Option<Arc<SessionRecord>> {
        // Looked at under a read lock: most often nothing is to be dropped, and readers need not wait to learn that.
        let drops = {
            let order = read_lock(&self.order);
            order.front().is_some_and(|oldest| unwanted(order.len(), oldest))
        };
        if drops { write_lock(&self.order).pop_front() } else { None }
    }

    fn forget(&self, record: &Arc<SessionRecord>) {
        let hash = self.hash(&record.request);
        let mut shard = write_lock(self.shard(hash));
        if let Ok(found) = shard.find_entry(hash, |other| Arc::ptr_eq(other, record)) {
            found.remove();
        }
        if shard.find(hash, |other| other.request == record.request).is_none() {
            self.pairs.fetch_sub(1, Ordering::Relaxed);
        }
        self.release_client(&record.request.client_id);
    }

    fn share_client(&self, client_id: &Arc<str>) -> Arc<str> {
        let mut clients = self.clients();
        if let Some((shared, records)) = clients.get_key_value_mut(client_id) {
            *records += 1;
            return Arc::clone(shared);
        }
        clients.insert(Arc::clone(client_id), 1);
        Arc::clone(client_id)
    }

    fn release_client(&self, client_id: &Arc<str>) {
        let mut clients = self.clients();
        let records = clients.get_mut(client_id).expect("each record has a share in its client");
        *records -= 1;
        if *records == 0 {
            clients.remove(client_id);
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
