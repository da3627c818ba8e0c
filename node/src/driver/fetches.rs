//! Reading older entries for peers that are behind: off the driver's task, one read per peer at a time.

use std::collections::BTreeMap;

use kv_core::contract::Input;
use kv_core::entry::{Entry, EntryId};
use kv_core::group::MemberId;
use tokio::sync::mpsc;

use super::rounds::Finished;
use crate::wal::{FileStorage, LogReader};

/// What one peer lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    pub peer: MemberId,
    pub from: EntryId,
    pub bytes_max: usize,
}

/// The reads under way, with the one that was asked for meanwhile: only the latest matters.
#[derive(Debug, Default)]
pub struct Fetches {
    under_way: BTreeMap<MemberId, Option<Fetch>>,
}

impl Fetches {
    /// The fetch to start now, if any.
    pub fn ask(&mut self, fetch: Fetch) -> Option<Fetch> {
        match self.under_way.get_mut(&fetch.peer) {
            Some(next) => {
                *next = Some(fetch);
                None
            }
            None => {
                self.under_way.insert(fetch.peer, None);
                Some(fetch)
            }
        }
    }

    /// A fetch for the peer has ended; the one to start next, if any.
    pub fn ended(&mut self, peer: MemberId) -> Option<Fetch> {
        let next = self.under_way.remove(&peer)??;
        self.ask(next)
    }
}

/// Reads off the driver's task. An unreadable log counts as "not held": the leader then sends a snapshot.
pub(crate) fn start(fetch: Fetch, reader: LogReader<FileStorage>, finished: mpsc::Sender<Finished>) {
    tokio::spawn(async move {
        let Fetch { peer, from, bytes_max } = fetch;
        let read = tokio::task::spawn_blocking(move || reader.read_from(from, bytes_max)).await;
        let entries = match read {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => unreadable(fetch, &error),
            Err(panic) => unreadable(fetch, &panic),
        };
        let _stopped = finished.send(Finished::Fetch { peer, input: Input::Fetched { peer, from, entries } }).await;
    });
}

fn unreadable(fetch: Fetch, error: &dyn std::fmt::Display) -> Vec<Entry> {
    tracing::info!(peer = %fetch.peer, from = %fetch.from, %error, "cannot read the log for a peer");
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(peer: u64, from: u64) -> Fetch {
        Fetch { peer: MemberId(peer), from: EntryId(from), bytes_max: 1 }
    }

    #[test]
    fn one_read_per_peer_is_under_way_and_the_latest_question_is_next() {
        let mut fetches = Fetches::default();
        assert_eq!(fetches.ask(fetch(1, 10)), Some(fetch(1, 10)));
        assert_eq!(fetches.ask(fetch(1, 20)), None);
        assert_eq!(fetches.ask(fetch(1, 30)), None);
        assert_eq!(fetches.ask(fetch(2, 5)), Some(fetch(2, 5)));
        assert_eq!(fetches.ended(MemberId(1)), Some(fetch(1, 30)));
        assert_eq!(fetches.ended(MemberId(1)), None);
        assert_eq!(fetches.ask(fetch(1, 40)), Some(fetch(1, 40)));
    }
}
