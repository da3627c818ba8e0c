//! The checks of what clients are told. The log orders everything, so an answer is right when it is what
//! was decided at its id, and in time when that id lies where the clients' clocks allow it.

use kv_core::command::{Command, Key};
use kv_core::contract::{Reply, Written};
use kv_core::entry::EntryId;
use kv_core::state_machine::Outcome;

use super::Watch;
use crate::sim::clients::{Call, Consistency, Delivery, Shown, Wish};
use crate::sim::coverage::Reached;
use crate::sim::world::World;

impl World {
    pub(crate) fn watch_reply(&mut self, call: &Call, reply: &Reply) {
        let Wish::Write(command) = &call.wish else { return };
        match reply {
            Reply::Written { written, replay } => {
                self.count_replay(written, *replay);
                self.watch.check_written(call, written, *replay);
            }
            Reply::NotFound => self.watch.check_refusal(call, command, |version| version == 0),
            Reply::VersionConflict { provided, current } => {
                self.coverage.count(Reached::ConflictRefused);
                assert_ne!(provided, current, "a conflict with the version that was provided");
                self.watch.check_refusal(call, command, |version| version == *current);
            }
            Reply::PreconditionFailed | Reply::RequestReused => {}
            other => panic!("no answer to a write: {other:?}"),
        }
    }

    fn count_replay(&mut self, written: &Written, replay: bool) {
        if !replay {
            return;
        }
        self.coverage.count(Reached::Replayed);
        let epoch = self.watch.line(written.id).map(|line| line.epoch);
        if self.watch.leaders.last_key_value().map(|(epoch, _)| *epoch) > epoch {
            self.coverage.count(Reached::ReplayedAfterFailover);
        }
    }

    pub(crate) fn watch_read_at(&mut self, delivery: &Delivery, id: EntryId) {
        let Some(call) = self.clients.get(delivery.call) else { return };
        assert!(id >= call.floor, "a linearizable read at {id}, after {} was shown", call.floor);
    }

    pub(crate) fn watch_value(&mut self, call: &Call, found: Option<&Shown>, at: EntryId) {
        let Wish::Read(key, consistency) = &call.wish else { return };
        assert!(at.0 <= self.watch.committed(), "a read at {at}, which is not committed");
        let expected = self.watch.value_at(key, at);
        assert_eq!(found.map(|shown| (shown.id, shown.version)), expected, "a read of {key:?} at {at}");
        if *consistency == Consistency::Linearizable {
            assert!(at >= call.floor, "a linearizable read showed {at}, after {} was shown", call.floor);
            self.watch.show(at);
        }
    }
}

impl Watch {
    fn check_written(&mut self, call: &Call, written: &Written, replay: bool) {
        let decided = self.decided(written.id).map(|decided| &decided.outcome);
        assert_eq!(decided, Some(&Outcome::Written(written.clone())), "an answer that was not decided so");
        if !replay {
            assert!(written.id > call.floor, "entry {} is ordered before what was shown before", written.id);
        }
        self.show(written.id);
    }

    /// The refusal was true at some id since the call began.
    fn check_refusal(&self, call: &Call, command: &Command, is_so: impl Fn(u64) -> bool) {
        let version = |id| self.value_at(&command.key, id).map_or(0, |(_, version)| version);
        let was_so = (call.floor.0..=self.committed()).any(|id| is_so(version(EntryId(id))));
        assert!(was_so, "a refusal that was never true: {command:?}");
    }

    fn show(&mut self, id: EntryId) {
        self.floor = self.floor.max(id);
    }

    /// The id and version of the key's value in the state at `id`.
    fn value_at(&self, key: &Key, id: EntryId) -> Option<(EntryId, u64)> {
        let versions = self.keys.get(key)?;
        let after = versions.partition_point(|(changed, _)| *changed <= id);
        versions[after.checked_sub(1)?].1
    }
}
