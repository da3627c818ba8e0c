//! What is counted between two moments that the suite chooses: the longest time without a successful write,
//! over all workers and of the worst one, and what went wrong. Keeps no history.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// What a client may see of a planned move, since it would have tried again by then.
const HIDDEN_BY_RETRY: Duration = Duration::from_millis(500);

/// Longer pauses are told in the log, with the time, so that they can be found in those of nodes.
const TOLD_FROM: Duration = Duration::from_millis(90);

pub(crate) struct Window(Mutex<Counts>);

struct Counts {
    all: Gap,
    workers: Vec<Gap>,
    written: u64,
    failures: BTreeMap<String, u64>,
    /// Operations that were not answered within half a second of their first failure.
    unhidden: u64,
    longest_operation: Duration,
}

/// Between two successes.
#[derive(Clone, Copy)]
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn new(now: Instant) -> Self {
        Self { last: now, longest: Duration::ZERO }
    }

    /// The time since the last one.
    fn success(&mut self, now: Instant) -> Duration {
        let gap = now - self.last;
        self.longest = self.longest.max(gap);
        self.last = now;
        gap
    }

    /// The one that is still open counts, too.
    fn longest(&self, now: Instant) -> Duration {
        self.longest.max(now - self.last)
    }
}

/// What the suite is told.
#[derive(Serialize)]
pub(crate) struct Counted {
    written: u64,
    pause_ms: u64,
    worst_worker_ms: u64,
    failures: BTreeMap<String, u64>,
    unhidden: u64,
    longest_operation_ms: u64,
}

impl Counts {
    fn new(workers: usize) -> Self {
        let now = Instant::now();
        Self {
            all: Gap::new(now),
            workers: vec![Gap::new(now); workers],
            written: 0,
            failures: BTreeMap::new(),
            unhidden: 0,
            longest_operation: Duration::ZERO,
        }
    }
}

impl Window {
    pub(crate) fn new(workers: usize) -> Self {
        Self(Mutex::new(Counts::new(workers)))
    }

    /// Begins to count anew.
    pub(crate) fn open(&self) {
        let mut counts = self.lock();
        *counts = Counts::new(counts.workers.len());
    }

    pub(crate) fn written(&self, worker: usize) {
        let mut counts = self.lock();
        // Taken under the lock, so that it never goes back.
        let now = Instant::now();
        counts.written += 1;
        counts.workers[worker].success(now);
        let gap = counts.all.success(now);
        if gap > TOLD_FROM {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            println!("at {:.3}: no write for {gap:?}; failures so far: {:?}", now.as_secs_f64(), counts.failures);
        }
    }

    pub(crate) fn failed(&self, failure: &str) {
        *self.lock().failures.entry(failure.to_owned()).or_default() += 1;
    }

    /// An operation with all its attempts; `failing` since the first of them failed.
    pub(crate) fn answered(&self, took: Duration, failing: Option<Duration>) {
        let mut counts = self.lock();
        counts.longest_operation = counts.longest_operation.max(took);
        counts.unhidden += u64::from(failing.is_some_and(|failing| failing > HIDDEN_BY_RETRY));
    }

    pub(crate) fn counted(&self) -> Counted {
        let counts = self.lock();
        let now = Instant::now();
        let worst = counts.workers.iter().map(|worker| worker.longest(now)).max();
        Counted {
            written: counts.written,
            pause_ms: millis(counts.all.longest(now)),
            worst_worker_ms: millis(worst.unwrap_or_default()),
            failures: counts.failures.clone(),
            unhidden: counts.unhidden,
            longest_operation_ms: millis(counts.longest_operation),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
