//! Trouble: what goes wrong, when, and to whom. Each fault is counted where it takes effect. Volumes are
//! lost, damaged or put back only while the others hold everything. The promises ask for more: `docs/correctness.md`,
//! *What is not proved*.

use kv_core::contract::Input;
use kv_core::entry::EntryId;
use kv_core::group::MemberId;

use super::Profile;
use super::admin::Order;
use super::coverage::Reached;
use super::disk::{Crash, Trouble};
use super::network::Weather;
use super::node::{Happening, Place, Volume};
use super::shape::Emphasis;
use super::watch::Ledger;
use super::world::{Event, Waiter, World};

/// Between two faults.
const PAUSE_US: (u64, u64) = (5_000, 250_000);
/// A machine stops within so many calls.
const CALLS_MAX: u64 = 40;

/// What a slow disk takes longer, and how long it is slow.
const SLOW_DISK_US: u64 = 150_000;
const SLOW_US: u64 = 2_000_000;
/// Of the trouble in a world of copies.
const PLANS_COPY_PERCENT: u64 = 40;
/// About as much as one line.
const LINE_BYTES: usize = 100;

/// Tries to put an older volume back while the others are heard.
const PUT_BACK_TRIES_MAX: u64 = 40;
/// A node that starts, and is heard, within this time has perhaps learned nothing new.
const SHORT_START_US: u64 = 120_000;
/// Within this time all voters know what a member has promised and made durable.
pub(crate) const HEARSAY_US: u64 = 800_000;

#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Copies of volumes, with the node that they are of.
    saved: Vec<(usize, Volume)>,
    /// Nothing new goes wrong before.
    hold_until_us: u64,
    /// No volume goes before: a member may be about to give up its own.
    volumes_last_until_us: u64,
    is_over: bool,
}

impl World {
    pub(crate) fn fault(&mut self) {
        if self.faults.is_over {
            return;
        }
        if self.now_us < self.faults.hold_until_us {
            return self.at(self.faults.hold_until_us, Event::Fault);
        }
        let pause_us = self.random.between(PAUSE_US.0, PAUSE_US.1);
        self.at(self.now_us + pause_us, Event::Fault);
        if self.shape.rots && self.random.percent(8) {
            return self.rot_somebody();
        }
        let index = self.random.index(self.shape.nodes);
        if self.shape.copies && (self.has_copy() || self.random.percent(PLANS_COPY_PERCENT)) {
            return self.trouble_with_copies(index);
        }
        self.trouble(index);
    }

    pub(crate) fn trouble(&mut self, index: usize) {
        if self.shape.emphasis == Emphasis::Volumes && self.random.percent(30) {
            return self.meddle_with_volumes(index);
        }
        match self.random.below(100) {
            0..10 => self.crash(index),
            10..18 => self.arm(index),
            18..22 => self.pause(index),
            22..34 if self.shape.emphasis == Emphasis::Disks && self.random.percent(50) => self.cut_leader_off(),
            22..34 => self.cut_something(index),
            34..42 => self.heal_network(),
            42..47 => self.change_weather(),
            47..50 => self.break_a_connection(),
            50..54 => self.fill_disk(index),
            54..57 => self.give_room(index),
            57..60 => self.slow_disk(index),
            60..62 => self.jump_wall_clock(index),
            62..76 => self.compact_here(index),
            76..80 => self.back_up(index),
            80..84 => self.lose_volume(index),
            84..88 => self.damage(index),
            88..92 => self.save_volume(index),
            92..95 => self.restore_volume(),
            95..97 => self.move_leadership(index),
            97..99 => self.find_damage(index),
            _ => {}
        }
    }

    /// What everybody knows of a member, everybody goes on knowing.
    pub(crate) fn trouble_without_crashes(&mut self, index: usize) {
        match self.random.below(12) {
            0 => self.pause(index),
            1..4 => self.cut_something(index),
            4..6 => self.heal_network(),
            6 => self.change_weather(),
            7 => self.break_a_connection(),
            8 => self.slow_disk(index),
            9 => self.jump_wall_clock(index),
            10 => self.compact_here(index),
            _ => self.back_up(index),
        }
    }

    fn meddle_with_volumes(&mut self, index: usize) {
        match self.random.below(8) {
            0 => self.damage(index),
            1 => self.save_volume(index),
            2 => self.restore_volume(),
            3 => self.lose_volume(index),
            4 | 5 => self.find_damage_late(),
            _ => self.start_twice(index),
        }
    }

    /// From now on nothing goes wrong any more, and what was wrong is put right.
    pub(crate) fn end_faults(&mut self) {
        self.faults.is_over = true;
        self.admin.repairs = true;
        self.stop_copies();
        self.network.heal();
        self.network.weather = Weather::Calm;
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            node.disk_delay_us = 0;
            node.paused_until_us = node.paused_until_us.min(self.now_us);
            node.volume.disk.set_room(None);
            node.volume.disk.disarm();
            if node.process.is_none() && index < self.shape.nodes {
                self.at(self.now_us, Event::Start(index));
            }
        }
    }

    pub(crate) fn faults_are_over(&self) -> bool {
        self.faults.is_over
    }

    pub(crate) fn hold_faults_until(&mut self, until_us: u64) {
        self.faults.hold_until_us = until_us;
    }

    pub(crate) fn heal_some(&mut self) {
        self.network.heal();
        self.network.weather = Weather::Calm;
    }

    pub(crate) fn crash(&mut self, index: usize) {
        if self.nodes[index].process.is_none() {
            return;
        }
        let crash = match self.random.below(4) {
            0 => Crash::PowerLosesAll,
            1 | 2 => Crash::Power,
            _ => Crash::Process,
        };
        self.part(index, crash);
        self.start_later(index);
    }

    /// Something goes wrong within one of the next calls to the disk.
    fn arm(&mut self, index: usize) {
        let trouble = match self.random.below(4) {
            0 => Trouble::SyncFails,
            1 => Trouble::WriteFails,
            _ => Trouble::Stops,
        };
        let calls = self.random.below(CALLS_MAX);
        let Volume { disk, ledger } = &self.nodes[index].volume;
        if !ledger.may_look_torn {
            disk.arm(calls, trouble);
        }
    }

    fn pause(&mut self, index: usize) {
        self.coverage.count(Reached::Paused);
        self.watch_paused(index);
        let pause_us = self.random.between(10_000, 2_000_000);
        self.nodes[index].paused_until_us = self.now_us + pause_us;
        self.tell(index, format_args!("is stopped for {} ms", pause_us / 1000));
    }

    fn cut_something(&mut self, index: usize) {
        let other = self.random.index(self.nodes.len());
        if self.random.percent(50) && other != index {
            self.coverage.count(Reached::CutOneWay);
            self.network.cut(index, other);
            return self.tell(index, format_args!("does not reach {}", self.nodes[other].name));
        }
        self.coverage.count(Reached::CutOff);
        self.cut_off(index);
    }

    fn cut_off(&mut self, index: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            self.network.cut(index, other);
            self.network.cut(other, index);
        }
        self.tell(index, format_args!("is cut off"));
    }

    /// Until the others have had the time to elect one: what it has ordered meanwhile, and perhaps not synced yet,
    /// meets the log of its successor.
    fn cut_leader_off(&mut self) {
        let Some(leader) = self.leader().map(|place| place.node) else { return };
        self.coverage.count(Reached::CutOff);
        self.cut_off(leader);
        let timeout_us = self.shape.timeout_ms * 1000;
        if self.random.percent(50) {
            self.nodes[leader].disk_delay_us = 3 * timeout_us;
        }
        let until_us = self.now_us + timeout_us * self.random.between(100, 250) / 100;
        self.at(until_us, Event::Rejoin(leader));
    }

    /// While somebody is refilled, the others need not be fast.
    fn slow_somebody(&mut self) {
        if self.profile == Profile::Tight && self.random.percent(60) {
            let index = self.random.index(self.nodes.len());
            self.nodes[index].disk_delay_us = SLOW_DISK_US;
            self.at(self.now_us + SLOW_US, Event::Rejoin(index));
        }
    }

    pub(crate) fn rejoin(&mut self, index: usize) {
        self.network.heal();
        self.nodes[index].disk_delay_us = 0;
    }

    fn heal_network(&mut self) {
        self.network.heal();
    }

    fn change_weather(&mut self) {
        let calm = if self.shape.emphasis == Emphasis::Storms { Weather::Chaos } else { Weather::Calm };
        self.network.weather = self.random.pick(&[calm, Weather::Slow, Weather::Chaos]).expect("three");
    }

    fn break_a_connection(&mut self) {
        let ids = self.network.ids();
        if let Some(id) = self.random.pick(&ids) {
            self.coverage.count(Reached::ConnectionBroken);
            self.disconnect(id);
        }
    }

    fn fill_disk(&mut self, index: usize) {
        let room = self.random.below(3_000);
        self.nodes[index].volume.disk.set_room(Some(room));
    }

    fn give_room(&mut self, index: usize) {
        self.nodes[index].volume.disk.set_room(None);
    }

    fn slow_disk(&mut self, index: usize) {
        let delay_us = self.random.pick(&[0, 0, 20_000, 200_000]).expect("four");
        self.nodes[index].disk_delay_us = delay_us;
    }

    fn jump_wall_clock(&mut self, index: usize) {
        self.coverage.count(Reached::WallClockJumped);
        let ahead_ms = i64::try_from(self.random.below(20_000_000)).expect("small") - 10_000_000;
        self.nodes[index].clock.jump(ahead_ms);
    }

    fn running(&self, index: usize) -> Option<Place> {
        self.nodes[index].process.as_ref().map(|process| process.place)
    }

    pub(crate) fn compact_here(&mut self, index: usize) {
        if let Some(place) = self.running(index) {
            self.compact(place);
        }
    }

    /// As each node's own compactor does.
    pub(crate) fn compact_everywhere(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.compact_here(index));
    }

    fn back_up(&mut self, index: usize) {
        if let Some(place) = self.running(index) {
            self.check_backup(place);
        }
    }

    fn lose_volume(&mut self, index: usize) {
        if !self.is_spare(index) {
            return;
        }
        self.coverage.count(Reached::VolumeLost);
        self.tell(index, format_args!("loses its volume"));
        self.part(index, Crash::Power);
        let seed = self.random.draw();
        let empty = Volume { disk: super::disk::SimDisk::new(seed), ledger: Ledger::default() };
        self.bury(index, empty);
        self.start_later(index);
    }

    pub(crate) fn slow_others(&mut self, index: usize) {
        for other in (0..self.shape.nodes).filter(|other| *other != index) {
            self.nodes[other].disk_delay_us = SLOW_DISK_US;
            self.at(self.now_us + SLOW_US, Event::Rejoin(other));
        }
    }

    /// Another volume takes the place of the node's own.
    pub(crate) fn bury(&mut self, index: usize, volume: Volume) {
        let old = std::mem::replace(&mut self.nodes[index].volume, volume);
        self.watch_put_back(index);
        self.watch.bury(old.ledger);
    }

    /// A bit flips, or a file vanishes, in what is sealed.
    fn damage(&mut self, index: usize) {
        if self.is_spare(index) {
            self.damage_volume(index);
        }
    }

    fn damage_volume(&mut self, index: usize) {
        let Some(process) = self.nodes[index].process.as_ref() else { return };
        // Of the active segment what is durable; with too little room nothing tells how much that is.
        let may_be_active = self.profile == Profile::Tight && !process.is_full;
        let mut segments = process.reader.segments();
        let active = segments.iter().find(|segment| segment.is_active).map(|segment| segment.path.clone());
        let active_bytes = segments.iter().filter(|segment| segment.is_active).map(|segment| segment.size_bytes).sum();
        segments.retain(|segment| !segment.is_active || (may_be_active && segment.size_bytes > 0));
        let names: Vec<String> = segments.into_iter().map(|segment| segment.path).collect();
        let others = ["wal.log.history.", "wal.log.sessions."];
        let base = self.nodes[index].volume.disk.names();
        let base = base
            .into_iter()
            .filter(|name| others.iter().any(|other| name.starts_with(other)) && !name.contains(".gen"));
        let names: Vec<String> = names.into_iter().chain(base).collect();
        if names.is_empty() {
            return;
        }
        let mut name = names[self.random.index(names.len())].clone();
        if let Some(active) =
            active.as_ref().filter(|active| names.contains(active)).filter(|_| self.random.percent(50))
        {
            name.clone_from(active);
        }
        self.part(index, Crash::Process);
        let disk = &self.nodes[index].volume.disk;
        let is_active = active.as_ref() == Some(&name);
        let bytes: u64 = if is_active { active_bytes } else { u64::MAX };
        let bytes = disk.bytes_of(&name).min(usize::try_from(bytes).unwrap_or(usize::MAX));
        if bytes > 0 && (is_active || self.random.percent(80)) {
            self.coverage.count(Reached::BitFlipped);
            let near_its_end = bytes - bytes.min(LINE_BYTES);
            let from = if is_active && self.random.percent(70) { near_its_end } else { 0 };
            disk.flip(
                &name,
                from + self.random.index(bytes - from),
                u32::try_from(self.random.below(8)).expect("small"),
            );
        } else {
            self.coverage.count(Reached::SegmentVanished);
            disk.vanish(&name);
        }
        self.tell(index, format_args!("is damaged: {name}"));
        self.slow_somebody();
        // What it has acknowledged may be committed by that, and nobody has applied it yet: it was on a majority's disks.
        self.watch.bury(self.nodes[index].volume.ledger.clone());
        let Volume { disk, ledger } = &mut self.nodes[index].volume;
        (ledger.is_damaged, ledger.may_look_torn) = (true, is_active);
        if is_active {
            disk.disarm();
        }
        self.start_later(index);
    }

    /// Who leads would hand over first.
    fn rot_somebody(&mut self) {
        let follows = |place: &Place| self.is_spare(place.node) && Some(*place) != self.leader();
        let places: Vec<Place> = self.processes().map(|process| process.place).filter(follows).collect();
        self.random.pick(&places).into_iter().for_each(|place| self.rot(place));
    }

    /// Somebody may be about to give up its own.
    pub(crate) fn hold_volumes(&mut self) {
        self.faults.volumes_last_until_us = self.now_us + 2 * HEARSAY_US;
    }

    /// What a running node finds in its sealed files, and cannot make again.
    fn find_damage(&mut self, index: usize) {
        if let Some(place) = self.running(index).filter(|_| self.is_spare(index)) {
            self.hold_volumes();
            let reason = "damaged: a sealed file".to_owned();
            self.arrives(place, Happening::Step(Input::Damaged { reason }));
        }
    }

    /// A follower asks up to where it must be refilled, of a leader that must apply first all that it has, and has a
    /// slow disk. Meanwhile who asks acknowledges more; or it falls before the answer comes, and its next start finds worse.
    fn find_damage_late(&mut self) {
        let Some(leader) = self.leader() else { return };
        let voters = self.voters_of(leader).into_iter().filter_map(|voter| self.place_of(voter));
        let followers: Vec<usize> = voters.map(|place| place.node).filter(|node| *node != leader.node).collect();
        let Some(index) = self.random.pick(&followers).filter(|index| self.is_spare(*index)) else { return };
        self.heal_some();
        self.faults.hold_until_us = self.now_us + 4 * SLOW_DISK_US;
        self.nodes[leader.node].disk_delay_us = SLOW_DISK_US;
        self.at(self.now_us + SLOW_US, Event::Rejoin(leader.node));
        self.find_damage(index);
        if self.random.percent(50) {
            let at_us = self.now_us + self.random.between(SLOW_DISK_US / 5, 2 * SLOW_DISK_US);
            self.at(at_us, Event::Worsen(index));
        }
    }

    /// No other volume has gone since: `volumes_last_until_us`.
    pub(crate) fn worsen(&mut self, index: usize) {
        let Some(leader) = self.leader().filter(|_| !self.faults.is_over && !self.has_copy()) else { return };
        let Some(member) = self.nodes[index].process.as_ref().map(|process| process.member) else { return };
        if self.is_one_of_many(leader, member) {
            self.damage_volume(index);
            self.at(self.now_us + SHORT_START_US / 10, Event::Start(index));
        }
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
    fn restore_volume(&mut self) {
        let fits = |index: &usize| self.older_copy(*index).is_some() && self.nodes[*index].process.is_some();
        let fitting: Vec<usize> = (0..self.nodes.len()).filter(fits).collect();
        if let Some(index) = self.random.pick(&fitting) {
            self.heal_some();
            self.faults.hold_until_us = self.now_us + 2 * HEARSAY_US;
            self.at(self.now_us + HEARSAY_US, Event::PutBack { index, tries: 1 });
        }
    }

    /// A copy is made while the node is down, the node starts, and the copy starts in its place: the second start
    /// of one incarnation.
    fn start_twice(&mut self, index: usize) {
        if !self.is_spare(index) {
            return;
        }
        self.heal_some();
        self.faults.hold_until_us = self.now_us + 2 * SHORT_START_US;
        self.part(index, Crash::Process);
        self.save_volume(index);
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
        let (_, saved) = self.faults.saved.swap_remove(at);
        self.coverage.count(Reached::VolumeRestored);
        self.tell(index, format_args!("gets an older volume"));
        self.part(index, Crash::Power);
        self.slow_somebody();
        self.bury(index, saved);
        self.start_later(index);
    }

    fn move_leadership(&mut self, index: usize) {
        if let Some(place) = self.leader().filter(|_| self.random.percent(50)) {
            self.part(place.node, Crash::Process);
            self.start_later(place.node);
        } else {
            self.pause(index);
        }
    }

    /// The node's volume may go: the others are a majority without it, and one that has everything.
    pub(crate) fn is_spare(&self, index: usize) -> bool {
        !self.has_copy() && self.can_be_spared(index)
    }

    pub(crate) fn can_be_spared(&self, index: usize) -> bool {
        let Some(member) = self.nodes[index].process.as_ref().map(|process| process.member) else { return false };
        self.whole_group().is_some_and(|leader| self.is_one_of_many(leader, member))
    }

    /// The leader of one that has everything, and in which nobody is about to give its volume up.
    pub(crate) fn whole_group(&self) -> Option<Place> {
        let leader = self.leader().filter(|_| self.now_us >= self.faults.volumes_last_until_us)?;
        self.is_whole(leader).then_some(leader)
    }

    /// The others are a majority.
    fn is_one_of_many(&self, leader: Place, member: MemberId) -> bool {
        let voters = self.voters_of(leader);
        (voters.len() > 2 || !voters.contains(&member)) && !self.becomes_two_voters(voters.len())
    }

    /// Of two voters each is needed, and has its own volume alone to lose. Whoever asks for the one change that makes
    /// them two is answered before a volume goes: what the leader has heard of a member by then may be its last word.
    fn becomes_two_voters(&self, voters: usize) -> bool {
        let changes = |waiter: &Waiter| matches!(waiter, Waiter::Admin(Order::Voter | Order::Remove));
        voters.abs_diff(2) == 1 && self.processes().any(|process| process.waiting.values().any(changes))
    }

    /// Every voter of the leader's configuration runs, is trusted, and holds all that was ever applied.
    fn is_whole(&self, leader: Place) -> bool {
        let newest = EntryId(self.watch.committed());
        let holds_all = |member: &MemberId| {
            let Some(place) = self.place_of(*member) else { return false };
            let node = &self.nodes[place.node];
            let Some(process) = node.process.as_ref() else { return false };
            let ledger = &node.volume.ledger;
            let trusted = process.view.serves && !ledger.is_damaged && !ledger.is_quarantined;
            trusted && process.applied() == newest && process.replica.positions().0.id == newest
        };
        newest > EntryId::ZERO && self.voters_of(leader).iter().all(holds_all)
    }
}
