//! The committer's queue: operations in the order of their numbers, appends gathered into one, and
//! beside them changes of the log's files.

use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kv_core::contract::Persist;
use kv_core::entry::Entry;

use crate::wal::{CompactedBase, SealedFile};

/// Operations queued at most; a replica's limits on proposals keep it far below.
pub(super) const OPS_MAX: usize = 65_536;
/// Bytes of lines gathered into one write at most.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Compactions run one at a time, and so do repairs.
const SWAPS_MAX: usize = 4;

/// What is to become of the log's files between two operations.
pub(super) enum Change {
    Compacted(Box<CompactedBase>),
    /// Staged.
    Repaired(SealedFile),
    /// What is missing of the log's own names is put back.
    Names,
    /// Refused unless this file is listed.
    Nothing {
        if_listed: SealedFile,
    },
    /// The storage limit is another: whether there is room is looked at again.
    Limit,
    /// The active segment is sealed, if there is too little room.
    SealedWhenShort,
}

pub(super) struct Swap {
    pub(super) change: Change,
    pub(super) answer: SyncSender<Result<(), String>>,
}

pub(super) enum Work {
    /// `seq` is the last number of what was gathered.
    Ops {
        seq: u64,
        op: Persist,
    },
    Swap(Box<Swap>),
    /// The time was up.
    Nothing,
    Closed,
}

#[derive(Default)]
struct State {
    ops: VecDeque<(u64, Persist)>,
    swaps: VecDeque<Swap>,
    is_closed: bool,
    /// The thread has ended: nothing is taken any more.
    is_abandoned: bool,
}

#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("ops", &self.lock().ops.len()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn push(&self, seq: u64, op: Persist) {
        let mut state = self.lock();
        while state.ops.len() >= OPS_MAX && !state.is_abandoned {
            state = self.wait(state);
        }
        if !state.is_abandoned {
            state.ops.push_back((seq, op));
            self.changed.notify_all();
        }
    }

    /// A swap that is not taken any more drops its answer, which tells whoever waits.
    pub(super) fn push_swap(&self, swap: Swap) {
        let mut state = self.lock();
        if state.swaps.len() < SWAPS_MAX && !state.is_closed && !state.is_abandoned {
            state.swaps.push_back(swap);
            self.changed.notify_all();
        }
    }

    /// What is queued is still carried out.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The next work; waits for `patience` (None: as long as it takes).
    pub(super) fn take(&self, patience: Option<Duration>) -> Work {
        self.take_if(patience, |state| {
            if let Some(swap) = state.swaps.pop_front() {
                return Some(Work::Swap(Box::new(swap)));
            }
            let gathered = gather(&mut state.ops).map(|(seq, op)| Work::Ops { seq, op });
            gathered.or_else(|| state.is_closed.then_some(Work::Closed))
        })
    }

    /// As [`Self::take`], leaving operations where they are.
    pub(super) fn take_swap(&self, patience: Duration) -> Work {
        self.take_if(Some(patience), |state| {
            let swap = state.swaps.pop_front().map(|swap| Work::Swap(Box::new(swap)));
            swap.or_else(|| state.is_closed.then_some(Work::Closed))
        })
    }

    fn take_if(&self, patience: Option<Duration>, mut pick: impl FnMut(&mut State) -> Option<Work>) -> Work {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        loop {
            if let Some(work) = pick(&mut state) {
                self.changed.notify_all();
                return work;
            }
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.wait(state),
                Some(Duration::ZERO) => return Work::Nothing,
                Some(left) => self.changed.wait_timeout(state, left).expect("see lock").0,
            };
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("see lock")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the queue")
    }
}

/// Takes the first operation, with all appends that follow an append. The number is that of the last one.
pub fn gather(ops: &mut VecDeque<(u64, Persist)>) -> Option<(u64, Persist)> {
    let (mut last_seq, first) = ops.pop_front()?;
    let Persist::Append { mut entries, mut committed } = first else {
        return Some((last_seq, first));
    };
    let mut bytes = bytes_of(&entries);
    while let Some((_, Persist::Append { entries: more, .. })) = ops.front() {
        bytes += bytes_of(more);
        if bytes > BATCH_BYTES_MAX {
            break;
        }
        let Some((seq, Persist::Append { entries: more, committed: newer })) = ops.pop_front() else {
            unreachable!("the front was just looked at");
        };
        last_seq = seq;
        entries.extend(more);
        committed = committed.max(newer);
    }
    Some((last_seq, Persist::Append { entries, committed }))
}

fn bytes_of(entries: &[Entry]) -> usize {
    entries.iter().map(|e| e.line.len() + 1).sum()
}

/// However the thread ends, nobody waits for it in vain.
pub(super) struct CloseOnDrop(pub(super) Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let Ok(mut state) = self.0.state.lock() else { return };
        (state.is_closed, state.is_abandoned) = (true, true);
        state.ops.clear();
        state.swaps.clear();
        drop(state);
        self.0.changed.notify_all();
    }
}
