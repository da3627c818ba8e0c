//! Damage at rest under a process that runs: a bit flips in a sealed file, a scrub or a read that goes wrong finds it, and
//! the file is made again, byte for byte, from its own lines and those that others lend. Looking, salvage and swap are those of
//! `kv_node::wal`, and a leader hands over by its replica; what stands here for the driver's task around them asks
//! everybody at once.

use kv_core::contract::{Input, Request};
use kv_core::entry::Entry;
use kv_core::group::MemberId;
use kv_core::message::Message;
use kv_core::status::Role;
use kv_node::wal::repair::{Found, keep_bad_lines, rebuild, salvage};
use kv_node::wal::scrub::{DamagedFile, Scrub, Step, look_at};
use kv_node::wal::{SealedFile, WalError};

use super::{Happening, Place, Process};
use crate::sim::admin::Order;
use crate::sim::coverage::Reached;
use crate::sim::disk::{SimDisk, SimFile};
use crate::sim::world::{Event, World};

/// After this it is looked again, and asked again.
const AGAIN_US: u64 = 500_000;

/// A sealed file with a bit that flipped.
pub(crate) struct Rot {
    pub(crate) name: String,
    /// Before, and since.
    pub(crate) sound: Vec<u8>,
    rotten: Vec<u8>,
    found: Option<DamagedFile<SimFile>>,
    lent: Found,
    /// The leader, or who was one, has lent what it has.
    leader_has_lent: bool,
    /// Made again, and to be put in its place by the log's thread.
    pub(crate) staged: Option<SealedFile>,
}

impl World {
    pub(crate) fn rot(&mut self, place: Place) {
        let names: Vec<String> = {
            let Some(process) = self.process(place).filter(|process| process.rot.is_none()) else { return };
            let sealed = process.reader.segments().into_iter().filter(|segment| !segment.is_active);
            let sealed: Vec<String> = sealed.map(|segment| segment.path).collect();
            sealed.into_iter().chain(self.base_files(place.node)).collect()
        };
        if names.is_empty() {
            return;
        }
        let name = names[self.random.index(names.len())].clone();
        let (at, bit) = (self.random.draw(), self.random.below(8));
        let volume = &mut self.nodes[place.node].volume;
        let sound = volume.disk.bytes(&name);
        if sound.is_empty() {
            return;
        }
        let at = usize::try_from(at % sound.len() as u64).expect("within the file");
        volume.disk.flip(&name, at, u32::try_from(bit).expect("small"));
        let rotten = volume.disk.bytes(&name);
        volume.ledger.is_damaged = true;
        self.bury_a_copy(place.node);
        self.coverage.count(Reached::Rotted);
        if self.base_files(place.node).contains(&name) {
            self.coverage.count(Reached::BaseRotted);
        }
        self.tell(place.node, format_args!("rots: byte {at} of {name}"));
        let rot = Rot { name, sound, rotten, found: None, lent: Found::new(), leader_has_lent: false, staged: None };
        if let Some(process) = self.process(place) {
            process.rot = Some(Box::new(rot));
            process.has_rotted = true;
        }
        let delay_us = self.random.below(AGAIN_US);
        self.at(self.now_us + delay_us, Event::Scrub(place));
    }

    /// All sealed files are gone through, those first that a read was surprised by.
    pub(crate) fn scrub(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref().filter(|process| process.place == place) else {
            return;
        };
        let Some(rot) = process.rot.as_ref() else { return };
        self.nodes[place.node].volume.disk.lets_read();
        let suspect = process.reader.take_suspect().and_then(|name| look_at(&process.reader, &name));
        let found = suspect.or_else(|| pass(Scrub::new(&process.reader)));
        let found = found.filter(|found| found.listed.listed().is_some_and(|listed| process.wal.lists(&listed)));
        let is_there = self.nodes[place.node].volume.disk.bytes(&rot.name) == rot.rotten;
        let is_listed = process.reader.segments().iter().any(|segment| segment.path == rot.name);
        match found {
            None => {
                assert!(!(is_there && is_listed), "a scrub finds {} sound, which is not", rot.name);
                self.is_sound_again(place);
            }
            Some(found) => self.found_rot(place, found),
        }
    }

    fn found_rot(&mut self, place: Place, damaged: DamagedFile<SimFile>) {
        self.coverage.count(Reached::RotFound);
        self.at(self.now_us + AGAIN_US, Event::Scrub(place));
        let disk = self.nodes[place.node].volume.disk.clone();
        if keep_bad_lines(&disk, &damaged).is_err() {
            return self.side_work_failed(place);
        }
        let Some(rot) = self.process(place).and_then(|process| process.rot.as_mut()) else { return };
        rot.found = Some(damaged);
        if std::mem::take(&mut rot.leader_has_lent) {
            return self.give_up_repair(place);
        }
        self.mend(place);
        self.borrow_lines(place);
    }

    /// Only a leader knows what is right: one that lacks lines hands over first.
    fn borrow_lines(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let is_mended = process.rot.as_ref().is_some_and(|rot| rot.staged.is_some());
        if process.view.role != Role::Leader {
            self.ask_for_lines(place);
        } else if !is_mended {
            self.order_once(place.node, Order::StepDown, Request::StepDown);
        }
    }

    /// Or there is nobody who could take over: it goes on.
    pub(crate) fn stepped_down(&mut self, place: Place) {
        let now = self.clock_of(place);
        let Some(process) = self.process(place) else { return };
        if process.replica.view(now).role != Role::Leader {
            self.coverage.count(Reached::RotHandedOver);
        }
        self.ask_for_lines(place);
    }

    /// Only a snapshot helps.
    fn give_up_repair(&mut self, place: Place) {
        self.hold_volumes();
        let reason = "damaged: a sealed file that rots".to_owned();
        self.arrives(place, Happening::Step(Input::Damaged { reason }));
    }

    fn ask_for_lines(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let Some(found) = process.rot.as_ref().filter(|rot| rot.staged.is_none()).and_then(|rot| rot.found.as_ref())
        else {
            return;
        };
        let holes = salvage(&process.reader, &found.listed).holes;
        let peers: Vec<MemberId> = process.connections.keys().copied().collect();
        for peer in peers {
            for hole in &holes {
                self.send(place, peer, Message::LinesRequest { first: hole.ids.first, last: hole.ids.last });
            }
        }
    }

    pub(crate) fn lines_lent(&mut self, place: Place, from: MemberId, entries: Vec<Entry>) {
        let Some(process) = self.process(place) else { return };
        let is_leader = process.view.leader == Some(from);
        let Some(rot) = process.rot.as_mut() else { return };
        rot.leader_has_lent |= is_leader;
        rot.lent.extend(entries.into_iter().map(|entry| (entry.id, entry.line)));
        self.mend(place);
    }

    fn mend(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let rebuilt = process.rebuilt();
        let Some(rot) = process.rot.as_mut() else { return };
        match rebuilt {
            Ok(None) => {}
            Ok(staged) => {
                rot.staged = staged;
                self.kick_log(place);
            }
            Err(_) => self.side_work_failed(place),
        }
    }

    /// On the log's thread.
    pub(crate) fn swap_mended(&mut self, place: Place, staged: SealedFile) {
        let Some(process) = self.process(place) else { return };
        match process.wal.swap_repaired(staged) {
            Ok(()) => {
                self.watch_mended(place);
                self.coverage.count(Reached::RotMended);
                self.is_sound_again(place);
            }
            Err(WalError::Full | WalError::Rule(_)) => {} // it is looked again
            Err(error) => self.log_failed(place, &error),
        }
    }

    fn is_sound_again(&mut self, place: Place) {
        self.tell(place.node, format_args!("rots no more"));
        self.process(place).into_iter().for_each(|process| process.rot = None);
        self.nodes[place.node].volume.ledger.is_damaged = false;
    }
}

impl Process {
    /// From what is left of it, and what was lent.
    fn rebuilt(&self) -> std::io::Result<Option<SealedFile>> {
        let Some(Rot { found: Some(found), lent, staged: None, .. }) = self.rot.as_deref() else { return Ok(None) };
        let salvaged = salvage(&self.reader, &found.listed);
        rebuild(&self.reader, &salvaged, lent)
    }
}

fn pass(mut scrub: Scrub<SimDisk>) -> Option<DamagedFile<SimFile>> {
    loop {
        match scrub.step() {
            Step::Read(_) => {}
            Step::Found(damaged) => return Some(damaged),
            Step::Done => return None,
        }
    }
}
