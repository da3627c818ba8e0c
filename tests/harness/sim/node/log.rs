//! The log's thread: one batch at a time, as the committer works, on a disk that takes its time and fails.

use kv_core::contract::{Input, Persist};
use kv_node::driver::boot;
use kv_node::wal::committer::gather;
use kv_node::wal::{Recovered, WalError};

use super::{Happening, Place};
use crate::sim::coverage::Reached;
use crate::sim::disk::Trouble;
use crate::sim::world::{Event, World};

/// Between two tries while there is no room.
const RETRY_US: u64 = 200_000;

impl World {
    pub(crate) fn kick_log(&mut self, place: Place) {
        let delay_us = self.random.between(20, 1_500) + self.nodes[place.node].disk_delay_us;
        let Some(process) = self.process(place) else { return };
        let has_mended = process.rot.as_ref().is_some_and(|rot| rot.staged.is_some());
        let has_ops = !process.ops.is_empty() || process.unfinished.is_some();
        if !process.log_is_busy && (has_ops || process.compaction.has_swap() || has_mended) {
            process.log_is_busy = true;
            self.at(self.now_us + delay_us, Event::Log(place));
        }
    }

    /// The next batch, whole: what is asked meanwhile waits for the next one.
    pub(crate) fn work_log(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        process.log_is_busy = false;
        if process.compaction.has_swap() {
            self.swap_compacted(place);
        } else if let Some(staged) = process.rot.as_mut().and_then(|rot| rot.staged.take()) {
            self.swap_mended(place, staged);
        } else if let Some((seq, op)) = process.unfinished.take().or_else(|| gather(&mut process.ops)) {
            self.persist(place, seq, op);
        }
        self.look_at_room(place);
        self.kick_log(place);
    }

    fn persist(&mut self, place: Place, seq: u64, op: Persist) {
        let node = &mut self.nodes[place.node];
        let process = node.process.as_mut().expect("it has just been looked at");
        node.volume.ledger.begins(&op, |id| self.watch.line(id));
        let is_cut = matches!(&op, Persist::Truncate { keep } if *keep < process.wal.last());
        if matches!(op, Persist::Install { .. }) {
            node.volume.disk.lets_read(); // it is recovered as at a start, where what cannot be read is damaged
        }
        let before = node.volume.disk.calls();
        let result = process.wal.persist(&op);
        self.disk_calls += node.volume.disk.calls() - before;
        match result {
            Ok(recovered) => {
                if is_cut {
                    self.watch_cut(place, &op);
                }
                self.persisted(place, seq, &op, recovered);
            }
            Err(WalError::Full) => {
                let process = node.process.as_mut().expect("as before");
                (process.unfinished, process.log_is_busy) = (Some((seq, op)), true);
                self.coverage.count(Reached::DiskFull);
                self.report_room(place, true);
                self.at(self.now_us + RETRY_US, Event::Log(place));
            }
            Err(error) => {
                if matches!(op, Persist::Install { .. }) && node.volume.disk.has_stopped() {
                    self.coverage.count(Reached::CrashInInstall);
                }
                self.log_failed(place, &error);
            }
        }
    }

    fn persisted(&mut self, place: Place, seq: u64, op: &Persist, recovered: Option<Recovered>) {
        self.watch_persisted(place, op);
        match recovered {
            None => self.tell_driver(place, Happening::Step(Input::Persisted { seq })),
            Some(recovered) => {
                self.coverage.count(Reached::SnapshotInstalled);
                let seed = self.random.draw();
                let Some(process) = self.process(place) else { return };
                let boot = Box::new(boot(recovered, &process.boot, seed));
                self.tell_driver(place, Happening::Installed(Input::Installed { boot }));
            }
        }
    }

    /// What a thread says reaches the driver a little later.
    fn tell_driver(&mut self, place: Place, happening: Happening) {
        let delay_us = self.random.between(5, 400);
        self.at(self.now_us + delay_us, Event::Inbox(place, happening));
    }

    /// The machine stopped, or the disk failed, within a call.
    pub(crate) fn log_failed(&mut self, place: Place, error: &WalError) {
        let volume = &mut self.nodes[place.node].volume;
        match volume.disk.take_happened() {
            Some(what @ (Trouble::Stops | Trouble::Killed)) => return self.ends_in_call(place.node, what),
            Some(Trouble::WriteFails) => self.coverage.count(Reached::WriteFailed),
            Some(Trouble::ReadFails) => self.coverage.count(Reached::ReadFailed),
            Some(Trouble::ChangeFails) => self.coverage.count(Reached::ChangeFailed),
            Some(Trouble::SyncFails) => {
                volume.ledger.sync_failed = true;
                self.coverage.count(Reached::SyncFailed);
            }
            // An installed snapshot is recovered as at a start, and a start needs room.
            None if volume.disk.take_was_full() => {}
            // A cut reads what it keeps.
            None if volume.ledger.is_damaged => {}
            None => panic!("{} cannot write although nothing is wrong: {error}", self.nodes[place.node].name),
        }
        if let Some(process) = self.process(place) {
            // The thread has ended; the driver hears of it.
            process.log_is_busy = true;
        }
        self.tell_driver(place, Happening::Failed(error.to_string()));
    }

    fn look_at_room(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        if process.unfinished.is_none()
            && let Ok(is_short) = process.wal.is_short_of_space()
        {
            self.report_room(place, is_short);
        }
    }

    pub(crate) fn report_room(&mut self, place: Place, is_full: bool) {
        let Some(process) = self.process(place) else { return };
        if process.is_full != is_full {
            process.is_full = is_full;
            if !is_full {
                self.coverage.count(Reached::RoomAgain);
            }
            self.tell_driver(place, Happening::Step(Input::Storage { full: is_full }));
        }
    }
}
