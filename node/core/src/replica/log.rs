//! What the replica knows of its log: positions, runs of epochs, and the entries it keeps in memory.
//! The bytes on disk are the WAL's; this only orders what goes there. Used by all roles.

use std::collections::VecDeque;

use crate::entry::{Entry, EntryId, Epoch, LogPosition};

#[derive(Debug)]
pub(crate) struct Log {
    /// Entries at or below are only held as compacted state.
    horizon: LogPosition,
    /// The first position of each run of one epoch above the horizon, rising.
    runs: Vec<LogPosition>,
    last: LogPosition,
    /// The last LOST entry. Logs cannot be compared across what it declares.
    lost_at: EntryId,
    /// The newest entries, without a gap, up to `last`: all that are not applied, and some more.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// How many entries at the end of the cache have not been handed to the WAL.
    unsubmitted: usize,
}

impl Log {
    pub(crate) fn new(horizon: LogPosition, runs: Vec<LogPosition>, applied: EntryId, tail: Vec<Entry>) -> Self {
        let mut log = Self {
            horizon,
            runs,
            last: horizon,
            lost_at: EntryId::ZERO,
            cache: VecDeque::new(),
            cache_bytes: 0,
            unsubmitted: 0,
        };
        if let Some(epoch) = log.run_of(applied) {
            log.last = LogPosition { epoch, id: applied };
        }
        // The tail brings its own runs: were they there already, those of several epochs would stand twice.
        log.runs.retain(|run| run.id <= log.last.id);
        for entry in tail {
            log.push(entry);
        }
        log.unsubmitted = 0;
        log
    }

    pub(crate) fn horizon(&self) -> LogPosition {
        self.horizon
    }

    pub(crate) fn last(&self) -> LogPosition {
        self.last
    }

    /// A LOST entry that recovery has found, or that a leader has ordered.
    pub(crate) fn lost_at(&mut self, id: EntryId) {
        self.lost_at = self.lost_at.max(id);
    }

    /// Whoever lacks anything up to here is given a snapshot: these entries are compacted, or it may hold
    /// entries among them that are lost here, and would match all the same.
    pub(crate) fn snapshot_up_to(&self) -> EntryId {
        self.horizon.id.max(self.lost_at)
    }

    fn run_of(&self, id: EntryId) -> Option<Epoch> {
        if id == self.horizon.id {
            return Some(self.horizon.epoch);
        }
        let at = self.runs.partition_point(|run| run.id <= id);
        (id > self.horizon.id && at > 0).then(|| self.runs[at - 1].epoch)
    }

    /// The epoch of the entry at `id`; None outside of [horizon, last].
    pub(crate) fn epoch_at(&self, id: EntryId) -> Option<Epoch> {
        if id > self.last.id { None } else { self.run_of(id) }
    }

    pub(crate) fn matches(&self, position: LogPosition) -> bool {
        self.epoch_at(position.id) == Some(position.epoch)
    }

    /// Where a leader should try next after `prev` did not match: our last position below it that is
    /// of no later epoch. Whole runs are skipped at once (the Raft paper, section 5.3, end).
    pub(crate) fn hint_below(&self, prev: LogPosition) -> LogPosition {
        let mut id = prev.id.prev().min(self.last.id);
        loop {
            match self.run_of(id) {
                Some(epoch) if epoch <= prev.epoch => return LogPosition { epoch, id },
                Some(_) => {
                    let at = self.runs.partition_point(|run| run.id <= id);
                    id = if at == 0 { self.horizon.id } else { self.runs[at - 1].id.prev() };
                }
                None => return self.horizon,
            }
            if id <= self.horizon.id {
                return self.horizon;
            }
        }
    }

    pub(crate) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.id, self.last.id.next(), "entries are appended without a gap");
        assert!(entry.epoch >= self.last.epoch, "epochs never go back in a log");
        if self.runs.last().map_or(self.horizon.epoch, |run| run.epoch) != entry.epoch || self.runs.is_empty() {
            self.runs.push(entry.position());
        }
        self.last = entry.position();
        self.cache_bytes += entry.line.len();
        self.cache.push_back(entry);
        self.unsubmitted += 1;
    }

    /// The entries pushed since the last call, for the WAL.
    pub(crate) fn take_unsubmitted(&mut self) -> Vec<Entry> {
        let from = self.cache.len() - self.unsubmitted;
        self.unsubmitted = 0;
        self.cache.range(from..).cloned().collect()
    }

    /// Forgets everything above `keep`. What was not yet handed to the WAL must have been.
    pub(crate) fn truncate(&mut self, keep: EntryId) {
        assert_eq!(self.unsubmitted, 0, "the WAL gets what is cut before the cut");
        let epoch = self.epoch_at(keep).expect("a cut is within the log");
        while self.cache.back().is_some_and(|entry| entry.id > keep) {
            let entry = self.cache.pop_back().expect("just seen");
            self.cache_bytes -= entry.line.len();
        }
        while self.runs.last().is_some_and(|run| run.id > keep) {
            self.runs.pop();
        }
        self.last = LogPosition { epoch, id: keep };
        self.lost_at = self.lost_at.min(keep);
    }

    /// The entry at `id`, if it is in memory.
    pub(crate) fn get(&self, id: EntryId) -> Option<&Entry> {
        let first = self.cache.front()?.id;
        self.cache.get(usize::try_from(id.0.checked_sub(first.0)?).ok()?)
    }

    /// Cached entries from `from` on, at most `entries_max` and `bytes_max` but at least one. None:
    /// `from` is not in memory.
    pub(crate) fn slice(&self, from: EntryId, entries_max: usize, bytes_max: usize) -> Option<Vec<Entry>> {
        if from > self.last.id {
            return Some(Vec::new());
        }
        let start = usize::try_from(from.0.checked_sub(self.cache.front()?.id.0)?).ok()?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.line.len();
            bytes <= bytes_max || bytes == entry.line.len()
        };
        Some(self.cache.range(start..).take(entries_max).take_while(fits).cloned().collect())
    }

    /// Drops cached entries that are applied and handed over, the oldest first, down to the bound.
    pub(crate) fn trim_cache(&mut self, applied: EntryId, bytes_max: usize) {
        while self.cache_bytes > bytes_max && self.cache.len() > self.unsubmitted {
            match self.cache.front() {
                Some(entry) if entry.id <= applied => self.cache_bytes -= entry.line.len(),
                _ => return,
            }
            self.cache.pop_front();
        }
    }

    /// Compaction has covered everything up to `horizon`.
    pub(crate) fn compacted(&mut self, horizon: LogPosition) {
        if horizon.id <= self.horizon.id {
            return;
        }
        let epoch_above = self.epoch_at(horizon.id.next());
        self.runs.retain(|run| run.id > horizon.id);
        if let Some(epoch) = epoch_above
            && self.runs.first().is_none_or(|run| run.id > horizon.id.next())
        {
            self.runs.insert(0, LogPosition { epoch, id: horizon.id.next() });
        }
        self.horizon = horizon;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Body, Control};
    use crate::group::MemberId;

    fn entry(id: u64, epoch: u64) -> Entry {
        let body = Body::Control(Control::Epoch { leader: MemberId(1) });
        Entry::encode(EntryId(id), Epoch(epoch), None, body)
    }

    fn at(epoch: u64, id: u64) -> LogPosition {
        LogPosition { epoch: Epoch(epoch), id: EntryId(id) }
    }

    fn log(epochs: &[u64]) -> Log {
        let mut log = Log::new(LogPosition::default(), Vec::new(), EntryId::ZERO, Vec::new());
        for (i, &epoch) in epochs.iter().enumerate() {
            log.push(entry(i as u64 + 1, epoch));
        }
        log
    }

    #[test]
    fn epochs_are_known_for_every_id_in_the_log() {
        let log = log(&[1, 1, 3, 3, 4]);
        let epochs: Vec<_> = (0..=6).map(|id| log.epoch_at(EntryId(id)).map(|e| e.0)).collect();
        assert_eq!(epochs, [Some(0), Some(1), Some(1), Some(3), Some(3), Some(4), None]);
        assert!(log.matches(at(0, 0)));
        assert!(!log.matches(at(2, 3)));
    }

    #[test]
    fn a_hint_skips_whole_runs_of_later_epochs() {
        let log = log(&[1, 1, 3, 3, 4]);
        assert_eq!(log.hint_below(at(5, 9)), at(4, 5));
        assert_eq!(log.hint_below(at(2, 5)), at(1, 2));
        assert_eq!(log.hint_below(at(1, 1)), at(0, 0));
    }

    #[test]
    fn a_cut_and_a_compaction_keep_the_epochs_right() {
        let mut log = log(&[1, 1, 3, 3, 4]);
        assert_eq!(log.take_unsubmitted().len(), 5);
        log.truncate(EntryId(3));
        assert_eq!(log.last(), at(3, 3));
        log.push(entry(4, 5));
        log.compacted(at(1, 2));
        let epochs: Vec<_> = (1..=4).map(|id| log.epoch_at(EntryId(id)).map(|e| e.0)).collect();
        assert_eq!(epochs, [None, Some(1), Some(3), Some(5)]);
        assert_eq!(log.take_unsubmitted().len(), 1);
    }

    #[test]
    fn a_tail_of_several_epochs_keeps_its_epochs_after_a_start() {
        let runs = [(1, 1), (3, 2), (4, 5)].map(|(id, epoch)| LogPosition { epoch: Epoch(epoch), id: EntryId(id) });
        let tail = vec![entry(2, 1), entry(3, 2), entry(4, 5), entry(5, 5)];
        let log = Log::new(LogPosition::default(), runs.to_vec(), EntryId(1), tail);
        let epochs: Vec<_> = (1..=5).map(|id| log.epoch_at(EntryId(id)).unwrap().0).collect();
        assert_eq!(epochs, [1, 1, 2, 5, 5]);
        assert_eq!(log.runs, runs);
    }

    #[test]
    fn lines_begin_above_the_horizon_and_above_what_declares_a_loss() {
        let mut log = log(&[1, 1, 3, 3, 4]);
        assert_eq!(log.snapshot_up_to(), EntryId(0));
        log.lost_at(EntryId(3));
        assert_eq!(log.snapshot_up_to(), EntryId(3));
        log.compacted(at(3, 4));
        assert_eq!(log.snapshot_up_to(), EntryId(4));
    }

    #[test]
    fn a_slice_holds_at_least_one_entry_and_stays_within_its_bounds() {
        let log = log(&[1, 1, 1]);
        let one = log.get(EntryId(1)).map_or(0, |e| e.line.len());
        assert_eq!(log.slice(EntryId(1), 10, 1).map(|s| s.len()), Some(1));
        assert_eq!(log.slice(EntryId(1), 10, 2 * one).map(|s| s.len()), Some(2));
        assert_eq!(log.slice(EntryId(2), 1, 1000).map(|s| s[0].id), Some(EntryId(2)));
        assert_eq!(log.slice(EntryId(4), 1, 1000).map(|s| s.len()), Some(0));
    }
}
