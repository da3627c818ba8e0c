//! Volumes that go and come back: lost, put back from an older copy, started twice. One goes where `sim::spare` allows
//! it; one is put back only while the others hold everything.

use kv_core::entry::EntryId;

use super::{BEHIND_US, HEARSAY_US, PUT_BACK_TRIES_MAX, SHORT_START_US};
use crate::sim::Profile;
use crate::sim::coverage::Reached;
use crate::sim::disk::{Crash, SimDisk};
use crate::sim::node::Volume;
use crate::sim::watch::Ledger;
use crate::sim::world::{Event, World};

impl World {
    /// One voter lacks what the others commit, and comes back about when another one's volume goes.
    pub(super) fn lose_volume_behind_somebody(&mut self) {
        let Some(leader) = self.leader() else { return };
        let voters = self.voters_of(leader).into_iter().filter_map(|voter| self.place_of(voter));
        let mut voters: Vec<usize> = voters.map(|place| place.node).collect();
        if voters.len() < 3 {
            return;
        }
        voters.retain(|node| *node != leader.node);
        let behind = voters.swap_remove(self.random.index(voters.len()));
        voters.push(leader.node);
        let lost = voters[self.random.index(voters.len())];
        self.heal_some();
        if self.random.percent(50) {
            self.cut_off(behind);
        } else {
            self.part(behind, Crash::Power);
        }
        let lost_us = self.now_us + self.random.between(BEHIND_US / 10, BEHIND_US);
        let back_us = (lost_us + self.random.below(BEHIND_US / 5)).saturating_sub(BEHIND_US / 10);
        self.faults.hold_until_us = lost_us.max(back_us);
        self.at(lost_us, Event::Lose(lost));
        self.at(back_us, Event::Rejoin(behind));
        self.at(back_us, Event::Start(behind));
    }

    pub(crate) fn lose_volume(&mut self, index: usize) {
        if self.faults.is_over || !self.may_be_lost(index) {
            return;
        }
        self.coverage.count(Reached::VolumeLost);
        if self.is_somebody_behind(index) {
            self.coverage.count(Reached::VolumeLostWhileBehind);
        }
        self.tell(index, format_args!("loses its volume"));
        self.part(index, Crash::Power);
        self.begin_empty(index);
    }

    pub(crate) fn begin_empty(&mut self, index: usize) {
        let seed = self.random.draw();
        self.bury(index, Volume { disk: SimDisk::new(seed), ledger: Ledger::default() });
        self.start_later(index);
    }

    /// Another volume takes the place of the node's own.
    pub(crate) fn bury(&mut self, index: usize, volume: Volume) {
        let old = std::mem::replace(&mut self.nodes[index].volume, volume);
        self.watch_put_back(index);
        self.watch.bury(old.ledger, self.now_us);
    }

    /// What its member has acknowledged was on this volume, whatever becomes of it now: others may need that until it is
    /// mended, and it may commit what nobody has applied yet.
    pub(crate) fn bury_a_copy(&mut self, index: usize) {
        self.watch.bury(self.nodes[index].volume.ledger.clone(), self.now_us);
    }

    /// Somebody may be about to give up its own.
    pub(crate) fn hold_volumes(&mut self) {
        self.faults.volumes_last_until_us = self.now_us + 2 * HEARSAY_US;
    }

    pub(crate) fn volumes_may_go(&self) -> bool {
        self.now_us >= self.faults.volumes_last_until_us
    }

    /// As a loss of power would leave the volume now.
    pub(crate) fn image_of(&self, index: usize) -> Option<Volume> {
        let volume = &self.nodes[index].volume;
        if self.running(index).is_none() || volume.ledger.member().is_none() || volume.ledger.is_damaged {
            return None;
        }
        let image = Volume { disk: volume.disk.image(Crash::PowerLosesAll), ledger: volume.ledger.clone() };
        image.disk.set_room(None);
        Some(image)
    }

    /// While it runs: after a crash nobody knows what the disk holds of what was under way.
    pub(crate) fn save_volume(&mut self, index: usize) {
        let Some(saved) = self.image_of(index) else { return };
        if self.faults.saved.len() < 4 {
            self.faults.saved.push((index, saved));
        } else {
            let at = self.random.index(4);
            self.faults.saved[at] = (index, saved);
        }
    }

    /// An older copy of the present volume is to take its place, when the others have heard of what is newer.
    pub(super) fn restore_volume(&mut self) {
        let fits = |index: &usize| self.older_copy(*index).is_some() && self.nodes[*index].process.is_some();
        let fitting: Vec<usize> = (0..self.nodes.len()).filter(fits).collect();
        if let Some(index) = self.random.pick(&fitting) {
            self.heal_some();
            self.faults.hold_until_us = self.now_us + 2 * HEARSAY_US;
            self.at(self.now_us + HEARSAY_US, Event::PutBack { index, tries: 1 });
        }
    }

    /// A copy is made, the node starts again, and the copy starts in its place: the second start
    /// of one incarnation.
    pub(super) fn start_twice(&mut self, index: usize) {
        if !self.is_spare(index) {
            return;
        }
        self.heal_some();
        self.faults.hold_until_us = self.now_us + 2 * SHORT_START_US;
        self.save_volume(index);
        self.part(index, Crash::Process);
        self.at(self.now_us, Event::Start(index));
        let until_us = self.now_us + self.random.between(SHORT_START_US / 4, SHORT_START_US);
        self.at(until_us, Event::PutBack { index, tries: 1 });
    }

    fn older_copy(&self, index: usize) -> Option<usize> {
        let ledger = &self.nodes[index].volume.ledger;
        let is_tight = self.profile == Profile::Tight;
        let is_older = |saved: &Ledger| saved.is_older_than(ledger) || (is_tight && saved.is_from_before(ledger));
        let is_same = |saved: &Ledger| saved.member() == ledger.member() && saved.cluster() == ledger.cluster();
        let fits = |(of, saved): &(usize, Volume)| {
            let is_older = is_same(&saved.ledger) && is_older(&saved.ledger);
            *of == index && is_older && !self.was_alone(&saved.ledger) && self.is_outdated(&saved.ledger)
        };
        let mut saved = self.faults.saved.iter();
        if is_tight { saved.rposition(fits) } else { saved.position(fits) }
    }

    /// A copy of this volume that each voter knows to be older, also than what runs now.
    pub(crate) fn take_outdated_copy(&mut self, index: usize) -> Option<Volume> {
        let ledger = &self.nodes[index].volume.ledger;
        let fits = |(of, saved): &(usize, Volume)| {
            let is_older = saved.ledger.member() == ledger.member() && saved.ledger.is_behind(ledger);
            *of == index && is_older && !self.was_alone(&saved.ledger) && self.is_outdated(&saved.ledger)
        };
        let at = self.faults.saved.iter().rposition(fits)?;
        Some(self.faults.saved.swap_remove(at).1)
    }

    /// A copy of the only voter has nobody to ask: `docs/correctness.md`, *What escapes*.
    fn was_alone(&self, ledger: &Ledger) -> bool {
        self.voters_of_volume(ledger).len() == 1
    }

    /// The voters of the copy's time that still have their volumes are there and hold everything, also those that the
    /// group has let go since: they are whom the copy shows itself to, and one that was not there has not seen more of
    /// it (`docs/correctness.md`, *What escapes*).
    fn is_outdated(&self, copy: &Ledger) -> bool {
        let newest = EntryId(self.watch.committed());
        let voters = self.voters_of_volume(copy);
        let nodes = &self.nodes[..self.shape.nodes];
        let others = nodes.iter().filter(|node| node.volume.ledger.member() != copy.member());
        let mut asked =
            others.filter(|node| node.volume.ledger.member().is_some_and(|member| voters.contains(&member)));
        asked.all(|node| node.process.as_ref().is_some_and(|process| process.applied() == newest))
    }

    /// At a moment at which nothing is on its way; there are many of them.
    pub(crate) fn put_back(&mut self, index: usize, tries: u64) {
        if self.faults.is_over {
            return;
        }
        let Some(at) = self.older_copy(index).filter(|_| self.is_spare(index)) else {
            if tries < PUT_BACK_TRIES_MAX {
                self.at(self.now_us + 10_000, Event::PutBack { index, tries: tries + 1 });
            }
            return;
        };
        let (_, mut saved) = self.faults.saved.swap_remove(at);
        saved.ledger.is_old_copy = true;
        self.coverage.count(Reached::VolumeRestored);
        if saved.ledger.is_from_before(&self.nodes[index].volume.ledger) {
            self.coverage.count(Reached::StartedTwice);
        }
        self.tell(index, format_args!("gets an older volume"));
        self.part(index, Crash::Power);
        self.slow_somebody();
        self.bury(index, saved);
        self.start_later(index);
    }
}
