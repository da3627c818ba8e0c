//! Trouble: what goes wrong, when, and to whom; and what goes wrong with processes, networks, clocks and calls to disks.
//! Each fault is counted where it takes effect. What it does to volumes is in [`volumes`], and to their files in
//! [`damage`]. Who may be hit, `super::spare` says.

mod damage;
mod volumes;

use super::Profile;
use super::coverage::Reached;
use super::disk::{Crash, Trouble};
use super::network::Weather;
use super::node::{Place, Volume};
use super::shape::Emphasis;
use super::world::{Event, World};

/// Between two faults.
const PAUSE_US: (u64, u64) = (5_000, 250_000);
/// A machine stops within so many calls.
const CALLS_MAX: u64 = 40;

/// Somebody is kept behind this long.
const BEHIND_US: u64 = 1_000_000;
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
        match self.random.below(12) {
            0 => self.damage(index),
            1 => self.save_volume(index),
            2 => self.restore_volume(),
            3 => self.lose_volume(index),
            4..7 => self.find_damage_late(),
            7 => self.lose_volume_behind_somebody(),
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

    /// Before it says anything more: a later leader has to end what this one has begun.
    pub(crate) fn fall_with_a_replacement_half_done(&mut self, place: Place) {
        let has_begun = self.watch.take_replacement_begun_at(place);
        if has_begun && !self.faults.is_over && !self.has_copy_among_odd() && self.random.percent(70) {
            self.cut_off(place.node);
            self.at(self.now_us, Event::Fall(place.node));
        }
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
        let trouble = match self.random.below(8) {
            0 => Trouble::SyncFails,
            1 => Trouble::WriteFails,
            2 => Trouble::ReadFails,
            3 => Trouble::ChangeFails,
            4 => Trouble::Killed,
            _ => Trouble::Stops,
        };
        let calls = self.random.below(CALLS_MAX);
        let Volume { disk, ledger } = &self.nodes[index].volume;
        if !ledger.may_look_torn {
            disk.arm(calls, trouble);
        }
    }

    fn pause(&mut self, index: usize) {
        if self.running(index).is_none() {
            return;
        }
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
        if self.running(index).is_some() {
            self.coverage.count(Reached::WallClockJumped);
        }
        let ahead_ms = i64::try_from(self.random.below(20_000_000)).expect("small") - 10_000_000;
        self.nodes[index].clock.jump(ahead_ms);
    }

    pub(crate) fn compact_here(&mut self, index: usize) {
        if let Some(place) = self.running(index).filter(|_| !self.is_paused(index)) {
            self.compact(place);
        }
    }

    /// As each node's own compactor does.
    pub(crate) fn compact_everywhere(&mut self) {
        (0..self.nodes.len()).for_each(|index| self.compact_here(index));
    }

    fn back_up(&mut self, index: usize) {
        if let Some(place) = self.running(index).filter(|_| !self.is_paused(index)) {
            self.check_backup(place);
        }
    }

    pub(crate) fn slow_others(&mut self, index: usize) {
        for other in (0..self.shape.nodes).filter(|other| *other != index) {
            self.nodes[other].disk_delay_us = SLOW_DISK_US;
            self.at(self.now_us + SLOW_US, Event::Rejoin(other));
        }
    }

    fn move_leadership(&mut self, index: usize) {
        let Some(leader) = self.leader().filter(|_| self.random.percent(70)) else { return self.pause(index) };
        if self.random.percent(40) {
            return self.pause(leader.node);
        }
        self.part(leader.node, Crash::Process);
        self.start_later(leader.node);
    }
}
