//! What a leader knows of one peer's log, and how much may be on the way to it. Decides how to send,
//! never what is committed.

use std::collections::VecDeque;

use crate::contract::Limits;
use crate::entry::EntryId;
use crate::message::Round;

/// An unanswered append or probe is sent again after this time: a frame was dropped by a full queue.
pub(crate) const RESEND_MS: u64 = 1000;
/// While less than this is on the way, what is new waits for the answer and goes out as one append: under load each
/// append wakes the peer, its disk and this member. More is pipelined, so that catching up fills the line.
const GATHER_BYTES: usize = 64 << 10;
/// A failed snapshot is tried again after this time.
const SNAPSHOT_RETRY_MS: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// One append at a time, to find where the logs meet.
    Probe { asked: bool },
    /// Pipelined appends within the window.
    Replicate,
    /// A snapshot is on its way; nothing else is sent.
    Snapshot,
    /// A snapshot failed; the next is started at this time.
    Waiting { until_ms: u64 },
}

#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) pace: Pace,
    /// The next entry to send.
    pub(crate) next: EntryId,
    /// Durable there and matched with this leader in this epoch: the only thing that counts.
    pub(crate) matched: EntryId,
    pub(crate) acked_round: Round,
    /// The commit id that the peer was told with entries or alone.
    pub(crate) told_committed: EntryId,
    /// Entries needed from disk were asked for.
    pub(crate) fetching: bool,
    /// What it holds counts in no quorum.
    pub(crate) unfit: bool,
    pub(crate) storage_full: bool,
    /// Compaction must not pass this while the peer takes a snapshot.
    pub(crate) floor: Option<EntryId>,
    in_flight: VecDeque<(EntryId, usize)>,
    in_flight_bytes: usize,
    in_flight_entries: u64,
    last_answer_ms: u64,
}

impl Progress {
    pub(crate) fn new(next: EntryId, now_ms: u64) -> Self {
        Self {
            pace: Pace::Probe { asked: false },
            next,
            matched: EntryId::ZERO,
            acked_round: Round::default(),
            told_committed: EntryId::ZERO,
            fetching: false,
            unfit: false,
            storage_full: false,
            floor: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            in_flight_entries: 0,
            last_answer_ms: now_ms,
        }
    }

    /// Starts again from what is known to match: after a reconnect, a loss or a mismatch.
    pub(crate) fn probe(&mut self, next: EntryId, now_ms: u64) {
        self.pace = Pace::Probe { asked: false };
        self.next = next.max(self.matched.next());
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.in_flight_entries = 0;
        self.fetching = false;
        self.told_committed = EntryId::ZERO;
        self.last_answer_ms = now_ms;
    }

    /// How many entries and bytes may still be sent now; None: nothing, not even a probe.
    pub(crate) fn room(&self, limits: &Limits) -> Option<(usize, usize)> {
        match self.pace {
            Pace::Probe { asked: true } | Pace::Snapshot | Pace::Waiting { .. } => None,
            Pace::Replicate if !self.in_flight.is_empty() && self.in_flight_bytes < GATHER_BYTES => None,
            Pace::Probe { asked: false } => Some((limits.window_entries_max, limits.window_bytes_max / 8)),
            Pace::Replicate => {
                let used = usize::try_from(self.in_flight_entries).unwrap_or(usize::MAX);
                let entries = limits.window_entries_max.saturating_sub(used);
                let bytes = limits.window_bytes_max.saturating_sub(self.in_flight_bytes);
                (entries > 0 && bytes > 0).then_some((entries, bytes))
            }
        }
    }

    pub(crate) fn sent(&mut self, last: EntryId, bytes: usize, committed: EntryId, now_ms: u64) {
        if self.in_flight.is_empty() {
            self.last_answer_ms = now_ms;
        }
        if last >= self.next {
            self.in_flight_entries += last.0 + 1 - self.next.0;
            self.in_flight_bytes += bytes;
            self.in_flight.push_back((last, bytes));
            self.next = last.next();
        }
        self.told_committed = committed;
        if let Pace::Probe { asked } = &mut self.pace {
            *asked = true;
        }
    }

    pub(crate) fn needs_snapshot(&self) -> bool {
        matches!(self.pace, Pace::Snapshot | Pace::Waiting { .. })
    }

    /// What it acknowledged while it counted in no quorum it may hold no more: a snapshot may have ended below. Its
    /// answers tell anew. True: it counts from now on.
    pub(crate) fn judge_fitness(&mut self, unfit: bool) -> bool {
        let counts_again = self.unfit && !unfit;
        if counts_again {
            self.matched = EntryId::ZERO;
        }
        self.unfit = unfit;
        counts_again
    }

    /// An append was accepted and is durable up to `durable`.
    pub(crate) fn accepted(&mut self, durable: EntryId, now_ms: u64) {
        self.last_answer_ms = now_ms;
        self.matched = self.matched.max(durable);
        self.next = self.next.max(durable.next());
        while let Some(&(last, bytes)) = self.in_flight.front() {
            if last > durable {
                break;
            }
            self.in_flight_bytes -= bytes;
            self.in_flight.pop_front();
        }
        let oldest = self.in_flight.front().map_or(self.next, |_| self.matched.next());
        self.in_flight_entries = self.next.0.saturating_sub(oldest.0);
        if !matches!(self.pace, Pace::Snapshot) {
            self.pace = Pace::Replicate;
            self.floor = None;
        }
    }

    pub(crate) fn snapshot_started(&mut self, floor: EntryId) {
        self.pace = Pace::Snapshot;
        self.floor = Some(floor);
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.in_flight_entries = 0;
    }

    pub(crate) fn snapshot_failed(&mut self, now_ms: u64) {
        self.pace = Pace::Waiting { until_ms: now_ms + SNAPSHOT_RETRY_MS };
        self.floor = None;
    }

    /// All entries that were sent are acknowledged.
    pub(crate) fn is_answered(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Something was sent, also over an earlier connection, and nothing was answered for too long.
    pub(crate) fn is_stalled(&self, now_ms: u64) -> bool {
        let waiting = match self.pace {
            Pace::Probe { asked } => asked,
            Pace::Replicate => self.matched.next() < self.next,
            Pace::Snapshot => false,
            Pace::Waiting { until_ms } => return now_ms >= until_ms,
        };
        waiting && !self.fetching && now_ms.saturating_sub(self.last_answer_ms) >= RESEND_MS
    }
}
