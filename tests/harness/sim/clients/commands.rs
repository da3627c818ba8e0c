//! What clients want next: writes plain and conditional, deletes, reads, and the same once more.

use kv_core::command::{Change, Command, Entity, Key, Precondition, RequestId, Value};
use kv_core::contract::Reply;
use kv_core::entry::EntryId;

use super::{Call, Consistency, Wish};
use crate::sim::world::World;

/// Longest filler of a value.
const FILLER_BYTES_MAX: u64 = 160;

impl World {
    pub(super) fn draw_wish(&mut self, call: u64, client: usize) -> Wish {
        let number = self.random.below(self.shape.keys);
        let key = Key::new(&format!("key{number}")).expect("a short key");
        match self.random.below(100) {
            0..12 => Wish::Read(key, Consistency::Local),
            12..30 => Wish::Read(key, Consistency::Linearizable),
            30..42 => self.command(call, client, key, Change::Delete),
            _ => {
                let change = Change::Set(self.value(call));
                self.command(call, client, key, change)
            }
        }
    }

    fn command(&mut self, call: u64, client: usize, key: Key, change: Change) -> Wish {
        let precondition = self.precondition(&key);
        let request = self
            .random
            .percent(70)
            .then(|| RequestId::new(&format!("client{client}"), &format!("r{call}")).expect("a short id"));
        Wish::Write(Command { key, change, precondition, request })
    }

    fn precondition(&mut self, key: &Key) -> Precondition {
        let known = self.clients.versions.get(key).copied().unwrap_or(0);
        let version = match self.random.below(10) {
            0..3 => Some(known),
            3 => Some(known + self.random.below(3)),
            _ => None,
        };
        let id = self.clients.ids.get(key).copied().unwrap_or_default();
        let entity = match self.random.below(20) {
            0 => Entity::Present,
            1 => Entity::Absent,
            2 | 3 => Entity::Is(id),
            4 => Entity::Is(EntryId(id.0 + self.random.below(3))),
            _ => Entity::Any,
        };
        Precondition { version, entity }
    }

    /// What somebody has been shown, or a little more, that must be waited for: as long as others may write it.
    pub(super) fn draw_min_id(&mut self, wish: &Wish, floor: EntryId) -> Option<EntryId> {
        let wants = matches!(wish, Wish::Read(..)) && self.random.percent(30);
        let ahead = if self.faults_are_over() { [0; 4] } else { [0, 0, 1, 3] };
        wants.then(|| EntryId(floor.0 + self.random.pick(&ahead).expect("not empty")))
    }

    /// Each value tells whose it is: the checks look for it.
    fn value(&mut self, call: u64) -> Value {
        let filler = "x".repeat(usize::try_from(self.random.below(FILLER_BYTES_MAX)).expect("small"));
        Value::from_json(format!("[{call},\"{filler}\"]").as_bytes(), 1 << 20).expect("an array is JSON")
    }

    /// An operation that was answered, asked for again.
    pub(super) fn repeated(&mut self, client: usize) -> Option<Wish> {
        let finished = &self.clients.finished;
        let newest = finished.len().checked_sub(1)?;
        // The latest ones are more likely to be remembered.
        let back = usize::try_from(self.random.below(30)).expect("small").min(newest);
        let call = &finished[newest - back];
        (call.client == client).then(|| call.wish.clone())
    }

    /// Something else under the request id of an operation that was answered: a client's mistake.
    pub(super) fn reused(&mut self, number: u64, client: usize) -> Option<Wish> {
        let Wish::Write(Command { key, change, precondition, request }) = self.repeated(client)? else { return None };
        let change = match change {
            Change::Set(_) => Change::Set(self.value(number)),
            Change::Delete => Change::Delete,
        };
        let version = precondition.version.map_or(Some(0), |version| Some(version + 1));
        Some(Wish::Write(Command { key, change, precondition: Precondition { version, ..precondition }, request }))
    }

    pub(super) fn remember_version(&mut self, call: &Call, reply: &Reply) {
        let Wish::Write(command) = &call.wish else { return };
        let version = match reply {
            Reply::Written { written, .. } => {
                self.clients.ids.insert(command.key.clone(), written.id);
                written.version
            }
            Reply::NotFound => 0,
            Reply::VersionConflict { current, .. } => *current,
            _ => return,
        };
        self.clients.versions.insert(command.key.clone(), version);
    }
}
