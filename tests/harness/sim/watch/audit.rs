//! Looking at disks as nobody does while all is well: what would be there after a loss of power, whether
//! compaction kept what must be kept, whether a backup is the state.

use std::sync::Arc;

use bytes::Bytes;
use kv_core::contract::Persist;
use kv_core::entry::{Entry, EntryId};
use kv_core::group::{MemberId, NodeName, Settings};
use kv_node::wal::snapshot::ReceiveError;
use kv_node::wal::{NewVolume, Opened, Options, Recovered, open};

use crate::sim::coverage::Reached;
use crate::sim::disk::{Crash, SimDisk};
use crate::sim::node::Place;
use crate::sim::world::World;

/// One operation of the log in so many is followed by an audit.
const AUDIT_EVERY: u64 = 40;
/// And one compaction.
const AUDIT_COMPACTED_EVERY: u64 = 5;

fn anybody() -> NewVolume {
    NewVolume { name: NodeName::new("x").expect("a name"), member_id: MemberId(1), settings: Settings::default() }
}

impl World {
    /// What the log has called durable is there when the power goes now. By a count, so that nothing goes another way for it.
    pub(super) fn audit_sometimes(&mut self, place: Place) {
        self.watch.operations += 1;
        if self.watch.operations.is_multiple_of(AUDIT_EVERY) && !self.nodes[place.node].volume.ledger.is_damaged {
            self.audit(place.node);
        }
    }

    pub(crate) fn audit(&mut self, index: usize) {
        let volume = &self.nodes[index].volume;
        let disk = volume.disk.image(Crash::PowerLosesAll);
        disk.set_room(None);
        disk.disarm();
        let opened = open(Arc::new(disk), &Options::default(), &anybody());
        let Opened { reader, recovered, .. } = opened.expect("the log opens after a loss of power");
        let lines = reader.read_from(reader.horizon().next(), usize::MAX).expect("just recovered");
        self.check_recovered_state(index, &recovered);
        volume.ledger.clone().recovered(&recovered, lines, |id| self.watch.line(id).cloned());
        self.coverage.count(Reached::AuditedDisk);
    }

    /// What a start would begin with is the state at that id. (A quarantined member may stand between a compaction's
    /// horizon and what that was made from; the only voter begins with what nobody has applied yet.)
    fn check_recovered_state(&self, index: usize, recovered: &Recovered) {
        let Recovered { hard, state, .. } = recovered;
        let applied = state.applied();
        if let Some(decided) = self.watch.decided(applied).filter(|_| hard.quarantine.is_none()) {
            let name = &self.nodes[index].name;
            assert_eq!(state.digest(), decided.digest, "{name}'s disk differs from a replay up to {applied}");
        }
    }

    /// What was cut is kept for people to look at.
    pub(crate) fn watch_cut(&self, place: Place, op: &Persist) {
        let Persist::Truncate { keep } = op else { return };
        let ending = format!(".cut.{}", keep.next());
        let names = self.nodes[place.node].volume.disk.names();
        let is_saved = names.iter().any(|name| name.starts_with("aside/") && name.contains(&ending));
        assert!(is_saved, "entries above {keep} were cut and not saved");
    }

    /// A file that was made again is what was sealed, by name and for everybody who reads the log.
    pub(crate) fn watch_mended(&self, place: Place) {
        let node = &self.nodes[place.node];
        let Some(process) = node.process.as_ref() else { return };
        let rot = process.rot.as_ref().expect("nothing else is made again");
        assert_eq!(node.volume.disk.bytes(&rot.name), rot.sound, "mended, and not what was sealed");
        let lines = rot.sound.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
        let entries = lines.filter_map(|line| Entry::decode(Bytes::copy_from_slice(line)).ok());
        let check = |entry: Entry| {
            let read = process.reader.read_entry(entry.id).map(|read| read.map(|read| read.line));
            assert!(read.as_ref().is_ok_and(|read| read.as_ref() == Some(&entry.line)), "mended, and reads: {read:?}");
        };
        node.volume.disk.unseen(|| entries.for_each(check));
    }

    /// What is read of the log, for whomever, is what was made durable.
    pub(crate) fn watch_read(&self, place: Place, entries: &[Entry]) {
        let durable = &self.nodes[place.node].volume.ledger.durable;
        for entry in entries {
            let is_it = durable.get(&entry.id).is_none_or(|line| line.bytes == entry.line);
            assert!(is_it, "entry {} is read as {entry:?}, and was written as {:?}", entry.id, durable.get(&entry.id));
        }
    }

    /// Every version that can be asked for is still there to be read, and is the line it was.
    pub(crate) fn watch_compacted(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        if self.nodes[place.node].volume.ledger.is_damaged {
            return;
        }
        let keyspace = process.replica.keyspace();
        let mut ids: Vec<EntryId> = Vec::new();
        let mut earlier: Vec<EntryId> = Vec::new();
        keyspace.collect_ids(process.applied(), &mut |id| ids.push(id), &mut |id| earlier.push(id));
        let check = |id: EntryId| {
            let entry = process.reader.read_entry(id).expect("the log can be read");
            let line = self.watch.line(id).map(|line| &line.bytes);
            assert_eq!(entry.as_ref().map(|entry| &entry.line), line, "version {id} after a compaction");
            self.coverage.count(Reached::HistoryRead);
        };
        self.nodes[place.node].volume.disk.unseen(|| ids.into_iter().chain(earlier).for_each(check));
        self.audit_compacted(place);
    }

    fn audit_compacted(&mut self, place: Place) {
        self.watch.compactions += 1;
        if self.watch.compactions.is_multiple_of(AUDIT_COMPACTED_EVERY) {
            self.audit(place.node);
        }
    }

    /// A backup, taken in elsewhere, is the state at its position.
    pub(crate) fn check_backup(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let applied = process.applied();
        if self.nodes[place.node].volume.ledger.is_damaged || !process.view.serves {
            return;
        }
        let Ok(source) = process.reader.snapshot(&|| applied) else { return };
        let position = source.position();
        let disk = SimDisk::new(0); // nothing goes wrong there
        let Opened { mut wal, reader, recovered } =
            open(Arc::new(disk), &Options::default(), &anybody()).expect("an empty disk opens");
        let mut receiver = reader.receive_snapshot();
        let fed: Result<(), ReceiveError> = source.map_while(Result::ok).try_for_each(|chunk| receiver.feed(&chunk));
        let received = fed.and_then(|()| receiver.finish());
        let Ok(received) = received else {
            return self.side_work_failed(place); // the machine stopped while it was read
        };
        reader.offer(received.staged);
        let installed = wal.install(recovered.hard, position).expect("a whole snapshot can be installed");
        let decided = self.watch.decided(position.id).map(|decided| decided.digest);
        if let Some(digest) = decided {
            assert_eq!(installed.state.digest(), digest, "a backup at {} is not the state", position.id);
            self.coverage.count(Reached::BackupChecked);
        }
    }
}
