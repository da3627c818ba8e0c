//! Compaction in its steps, with anything between them: it looks at the state, is told what is applied,
//! writes its files, and is put in place by the log's thread.

use std::sync::Arc;

use kv_core::contract::Input;
use kv_core::entry::EntryId;
use kv_core::keyspace::Keyspace;
use kv_core::sessions::Sessions;
use kv_node::wal::CompactedBase;
use kv_node::wal::WalError;
use kv_node::wal::compaction::{AppliedState, Begun, Settled};

use super::{Happening, Place};
use crate::sim::coverage::Reached;
use crate::sim::disk::SimDisk;
use crate::sim::disk::Trouble;
use crate::sim::world::{Event, World};

/// How far the one compaction of a node is.
#[derive(Default)]
pub(crate) enum Compaction {
    #[default]
    None,
    Begun(Begun<SimDisk>),
    Settled(Begun<SimDisk>, Settled),
    Swap(CompactedBase),
}

impl Compaction {
    pub(crate) fn has_swap(&self) -> bool {
        matches!(self, Self::Swap(_))
    }

    pub(crate) fn is_under_way(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// The state as it is when compaction looks.
struct AtHand {
    keyspace: Arc<Keyspace>,
    sessions: Arc<Sessions>,
    limit: EntryId,
}

impl AppliedState for AtHand {
    fn keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(&self.keyspace)
    }

    fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.sessions)
    }

    fn limit(&self) -> EntryId {
        self.limit
    }

    fn settled(&self) -> Result<Settled, String> {
        unreachable!("the simulation settles between its steps")
    }
}

impl World {
    pub(crate) fn compact(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        if process.compaction.is_under_way() {
            return;
        }
        self.watch_compaction_limit(place);
        let Some(process) = self.process(place) else { return };
        let state = AtHand {
            keyspace: process.replica.keyspace(),
            sessions: process.replica.sessions(),
            limit: process.compaction_limit(),
        };
        match Begun::begin(&process.reader, &state) {
            Ok(Some(begun)) => {
                process.compaction = Compaction::Begun(begun);
                let delay_us = self.random.below(30_000);
                self.at(self.now_us + delay_us, Event::Inbox(place, Happening::Settle));
            }
            Ok(None) => {}
            Err(_) => self.side_work_failed(place),
        }
    }

    /// The driver's answer, between two entries.
    pub(crate) fn settle_compaction(&mut self, place: Place) {
        let delay_us = self.random.below(50_000);
        let Some(process) = self.process(place) else { return };
        let Compaction::Begun(begun) = std::mem::take(&mut process.compaction) else { return };
        let state = process.replica.state();
        let settled = Settled { applied: state.applied(), refused: state.refused().to_vec() };
        process.compaction = Compaction::Settled(begun, settled);
        self.at(self.now_us + delay_us, Event::FinishCompaction(place));
    }

    pub(crate) fn finish_compaction(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let Compaction::Settled(begun, settled) = std::mem::take(&mut process.compaction) else { return };
        match begun.finish(&process.reader, &settled) {
            Ok(compacted) => {
                process.compaction = Compaction::Swap(compacted);
                self.kick_log(place);
            }
            Err(_) => self.side_work_failed(place),
        }
    }

    /// On the log's thread.
    pub(crate) fn swap_compacted(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let Compaction::Swap(compacted) = std::mem::take(&mut process.compaction) else { return };
        let horizon = compacted.base.horizon;
        match process.wal.swap_compacted(compacted) {
            Ok(()) => {
                self.coverage.count(Reached::Compacted);
                self.tell(place.node, format_args!("compacted up to {}", horizon.id));
                self.watch_compacted(place);
                self.arrives(place, Happening::Step(Input::Compacted { horizon }));
            }
            Err(WalError::Full | WalError::Rule(_)) => self.coverage.count(Reached::CompactionRefused),
            Err(error) => self.log_failed(place, &error),
        }
    }

    /// Work beside the log gave up: the machine may have stopped in it. The log is as it was.
    pub(crate) fn side_work_failed(&mut self, place: Place) {
        let has_rotted = self.process(place).is_some_and(|process| process.has_rotted);
        let disk = &self.nodes[place.node].volume.disk;
        let was_full = disk.take_was_full();
        match disk.take_happened() {
            Some(what @ (Trouble::Stops | Trouble::Killed)) => self.ends_in_call(place.node, what),
            Some(Trouble::SyncFails) => self.nodes[place.node].volume.ledger.sync_failed = true,
            Some(Trouble::WriteFails) => {}
            Some(Trouble::ReadFails) => self.coverage.count(Reached::ReadFailed),
            Some(Trouble::ChangeFails) => self.coverage.count(Reached::ChangeFailed),
            None => assert!(
                was_full || has_rotted || self.nodes[place.node].volume.ledger.is_damaged,
                "{}: a compaction or a snapshot failed although nothing is wrong",
                self.nodes[place.node].name
            ),
        }
    }
}
