//! Events from the committer thread to the driver. The thread never waits for the driver: positions
//! that became durable merge into the highest, so the queue is bounded by what is asked of the log
//! besides appends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::wal::CommitEvent;

#[derive(Debug, Clone, Default)]
pub(crate) struct Commits(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    events: Mutex<VecDeque<CommitEvent>>,
    arrived: Notify,
}

impl Commits {
    /// Called on the committer thread.
    pub(crate) fn push(&self, event: CommitEvent) {
        let mut events = self.lock();
        match (events.back_mut(), &event) {
            (Some(CommitEvent::Persisted { seq: last, .. }), CommitEvent::Persisted { seq, .. }) => *last = *seq,
            _ => events.push_back(event),
        }
        drop(events);
        self.0.arrived.notify_one();
    }

    pub(crate) fn pop(&self) -> Option<CommitEvent> {
        self.lock().pop_front()
    }

    /// Completes when something was pushed since the last time. May be cancelled.
    pub(crate) async fn arrived(&self) {
        self.0.arrived.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<CommitEvent>> {
        self.0.events.lock().expect("no code panics while it holds this lock")
    }
}
