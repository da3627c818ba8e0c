//! The checks of what clients are told. The log orders everything, so an answer is right when it is what
//! was decided at its id, and in time when that id lies where the clients' clocks allow it.

use kv_core::command::{Change, Command, Entity, Key, OperationKind, Precondition};
use kv_core::contract::{Reply, Written};
use kv_core::entry::{Body, Entry, EntryId};
use kv_core::state_machine::Outcome;

use super::Watch;
use crate::sim::clients::{Call, Consistency, Delivery, Shown, Wish};
use crate::sim::coverage::Reached;
use crate::sim::node::Place;
use crate::sim::world::World;

impl World {
    pub(crate) fn watch_reply(&mut self, call: &Call, reply: &Reply) {
        let Wish::Write(command) = &call.wish else { return };
        match reply {
            Reply::Written { written, replay } => {
                self.count_replay(written, *replay);
                self.watch.check_written(call, command, written, *replay);
            }
            Reply::NotFound | Reply::VersionConflict { .. } | Reply::PreconditionFailed => {
                match reply {
                    Reply::VersionConflict { .. } => self.coverage.count(Reached::ConflictRefused),
                    Reply::PreconditionFailed => self.coverage.count(Reached::EntityRefused),
                    _ => {}
                }
                self.watch.check_refusal(call, command, reply);
            }
            Reply::RequestReused => {
                self.coverage.count(Reached::RequestReused);
                self.watch.check_reused(command);
            }
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
        assert!(call.min_id.is_none_or(|min_id| at >= min_id), "a read at {at} of a state with {:?}", call.min_id);
        let expected = self.watch.value_at(key, at);
        assert_eq!(found.map(|shown| (shown.id, shown.version)), expected, "a read of {key:?} at {at}");
        if let Some(Shown { id, text, .. }) = found {
            let value = self.watch.command_at(*id).and_then(|command| value_of(&command));
            assert_eq!(value.as_ref(), Some(text), "a read of {key:?} at {at}, which entry {id} has set");
        }
        if *consistency == Consistency::Linearizable {
            assert!(at >= call.floor, "a linearizable read showed {at}, after {} was shown", call.floor);
            self.watch.show(at);
        }
    }

    /// Each earlier version of a key that a client reads is the line that was decided, or the file is being repaired.
    pub(crate) fn read_history(&mut self, place: Place, key: &Key) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let Some(versions) = process.replica.keyspace().versions(key.as_str()).found else { return };
        let mut are_sound = true;
        for locator in &versions.earlier {
            match process.reader.read_entry(locator.id) {
                Ok(entry) => {
                    let line = self.watch.line(locator.id).map(|line| &line.bytes);
                    let name = &self.nodes[place.node].name;
                    assert_eq!(entry.as_ref().map(|entry| &entry.line), line, "{name}: {key:?} as of {}", locator.id);
                    let version = self.watch.value_at(key, locator.id);
                    assert_eq!(version, Some((locator.id, locator.version)), "{name}: the history of {key:?}");
                }
                Err(_) => are_sound = false,
            }
        }
        let volume = &self.nodes[place.node].volume;
        let has_failed = volume.disk.take_failed_read();
        assert!(are_sound || has_failed || volume.ledger.is_damaged, "{key:?}: its history cannot be read");
        self.coverage.count(if has_failed { Reached::ReadFailed } else { Reached::HistoryAsked });
    }
}

impl Watch {
    /// The entry that an answer names is what was asked for, and its precondition held where it stands.
    fn check_written(&mut self, call: &Call, command: &Command, written: &Written, replay: bool) {
        let decided = self.decided(written.id).map(|decided| &decided.outcome);
        assert_eq!(decided, Some(&Outcome::Written(written.clone())), "an answer that was not decided so");
        let ordered = self.command_at(written.id);
        assert_eq!(ordered.as_ref(), Some(command), "entry {} is answered to what was not asked for so", written.id);
        assert!(!replay || command.request.is_some(), "a replay of what has no request id: {command:?}");
        let before = EntryId(written.id.0 - 1);
        let refusal = refusal_of(command, self.value_at(&command.key, before));
        assert_eq!(refusal, None, "entry {} took effect, and should have been refused", written.id);
        if !replay {
            assert!(written.id > call.floor, "entry {} is ordered before what was shown before", written.id);
        }
        self.show(written.id);
    }

    /// The refusal was right at some id since the call began.
    fn check_refusal(&self, call: &Call, command: &Command, reply: &Reply) {
        let refusal = |id| refusal_of(command, self.value_at(&command.key, EntryId(id)));
        let was_so = (call.floor.0..=self.committed()).any(|id| refusal(id).as_ref() == Some(reply));
        assert!(was_so, "a refusal that was never right: {reply:?} to {command:?}");
    }

    /// The request id is that of a write of something else, which took effect.
    fn check_reused(&self, command: &Command) {
        let request = command.request.clone().expect("only a request id is used again");
        let effects = self.effects.get(&(request, command.operation())).map_or(&[][..], Vec::as_slice);
        let is_another = |id: EntryId| self.command_at(id).is_some_and(|first| first != *command);
        let was_used = effects.iter().any(|effect| is_another(effect.id));
        assert!(was_used, "said to be of a request id that was used before: {command:?}");
    }

    /// What was asked for, as the entry has it that was committed.
    fn command_at(&self, id: EntryId) -> Option<Command> {
        let entry = Entry::decode(self.line(id)?.bytes.clone()).expect("what was applied is a line");
        match entry.body {
            Body::Set { key, value, precondition, request, .. } => {
                Some(Command { key, change: Change::Set(value), precondition, request })
            }
            Body::Delete { key, precondition, request } => {
                Some(Command { key, change: Change::Delete, precondition, request })
            }
            Body::Control(_) => None,
        }
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

/// What a write is refused by, where the key has this value (its id and version). Said here once more: nothing of what
/// is tried decides it.
fn refusal_of(command: &Command, current: Option<(EntryId, u64)>) -> Option<Reply> {
    let Precondition { version, entity } = command.precondition;
    let current_version = current.map_or(0, |(_, version)| version);
    let provided = version.filter(|provided| *provided != current_version);
    let fits = match entity {
        Entity::Any => true,
        Entity::Is(id) => current.map(|(id, _)| id) == Some(id),
        Entity::Present => current.is_some(),
        Entity::Absent => current.is_none(),
    };
    if command.operation() == OperationKind::Delete && current.is_none() {
        return Some(Reply::NotFound);
    }
    let conflict = provided.map(|provided| Reply::VersionConflict { provided, current: current_version });
    conflict.or_else(|| (!fits).then_some(Reply::PreconditionFailed))
}

fn value_of(command: &Command) -> Option<String> {
    match &command.change {
        Change::Set(value) => Some(String::from_utf8_lossy(value.as_bytes()).into_owned()),
        Change::Delete => None,
    }
}
