//! Whoever waits for an id to be applied here. Costs the driver one atomic load per batch while
//! nobody waits for what the batch applied.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use kv_core::entry::EntryId;
use tokio::sync::oneshot;

/// Waiters held at once; over it a wait fails as if it had timed out.
const WAITERS_MAX: usize = 16_384;
/// `lowest` while nobody waits.
const NOBODY: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct AppliedWaiters {
    /// The lowest id that anyone waits for.
    lowest: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    by_id: BTreeMap<(EntryId, u64), oneshot::Sender<()>>,
    /// Tells apart those that wait for the same id.
    next_ticket: u64,
}

impl Default for AppliedWaiters {
    fn default() -> Self {
        Self { lowest: AtomicU64::new(NOBODY), waiting: Mutex::default() }
    }
}

/// A place in the queue; leaves it when dropped.
pub(crate) struct Wait<'a> {
    waiters: &'a AppliedWaiters,
    place: (EntryId, u64),
    pub(crate) reached: oneshot::Receiver<()>,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if waiting.by_id.remove(&self.place).is_some() {
            self.waiters.publish_lowest(&waiting);
        }
    }
}

impl AppliedWaiters {
    /// Queues up for `id`. The caller checks the applied id once more afterwards: it may have been
    /// reached before the place was visible to [`Self::applied`].
    pub(crate) fn register(&self, id: EntryId) -> Option<Wait<'_>> {
        let (reach, reached) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.by_id.len() >= WAITERS_MAX {
            return None;
        }
        let place = (id, waiting.next_ticket);
        waiting.next_ticket += 1;
        waiting.by_id.insert(place, reach);
        self.publish_lowest(&waiting);
        drop(waiting);
        // Pairs with the fence in `applied`: either it sees this place, or the caller sees its id.
        fence(Ordering::SeqCst);
        Some(Wait { waiters: self, place, reached })
    }

    /// Wakes everyone that waits for `id` or less; called after the applied id is visible.
    pub(crate) fn applied(&self, id: EntryId) {
        fence(Ordering::SeqCst);
        if self.lowest.load(Ordering::Relaxed) > id.0 {
            return;
        }
        let mut waiting = self.lock();
        while let Some(first) = waiting.by_id.first_entry() {
            if first.key().0 > id {
                break;
            }
            let _gone = first.remove().send(());
        }
        self.publish_lowest(&waiting);
    }

    fn publish_lowest(&self, waiting: &Waiting) {
        let lowest = waiting.by_id.first_key_value().map_or(NOBODY, |((id, _), _)| id.0);
        self.lowest.store(lowest, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_wait_for_no_more_than_the_applied_id_are_woken() {
        let waiters = AppliedWaiters::default();
        let mut third = waiters.register(EntryId(3)).expect("room");
        let mut third_too = waiters.register(EntryId(3)).expect("room");
        let mut fifth = waiters.register(EntryId(5)).expect("room");
        waiters.applied(EntryId(2));
        assert!(third.reached.try_recv().is_err());
        waiters.applied(EntryId(4));
        assert!(third.reached.try_recv().is_ok());
        assert!(third_too.reached.try_recv().is_ok());
        assert!(fifth.reached.try_recv().is_err());
        assert_eq!(waiters.lowest.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn who_gives_up_leaves_no_place_behind() {
        let waiters = AppliedWaiters::default();
        drop(waiters.register(EntryId(3)));
        assert!(waiters.lock().by_id.is_empty());
        assert_eq!(waiters.lowest.load(Ordering::Relaxed), NOBODY);
    }

    #[test]
    fn one_waiter_too_many_is_turned_away() {
        let waiters = AppliedWaiters::default();
        let held: Vec<_> = (0..WAITERS_MAX).map(|_| waiters.register(EntryId(1)).expect("room")).collect();
        assert!(waiters.register(EntryId(1)).is_none());
        drop(held);
        assert!(waiters.register(EntryId(1)).is_some());
    }
}
