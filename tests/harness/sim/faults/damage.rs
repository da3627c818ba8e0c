//! Damage at rest: bits that flip and files that vanish, on a volume whose node is down or under a process that runs, and
//! what a running node finds and cannot make again.

use kv_core::contract::Input;

use super::{LINE_BYTES, SHORT_START_US, SLOW_DISK_US, SLOW_US};
use crate::random::Random;
use crate::sim::Profile;
use crate::sim::coverage::Reached;
use crate::sim::disk::Crash;
use crate::sim::node::{Happening, Place, Volume};
use crate::sim::world::{Event, World};

/// Tries to find damage while the leader's disk works.
const FINDS_MAX: u64 = 60;

/// One that may be damaged.
#[derive(Debug, Clone)]
struct File {
    name: String,
    bytes: usize,
    is_active: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Segment,
    /// Earlier versions, or request ids.
    Base,
}

impl World {
    /// A bit flips, or a file vanishes, in what is sealed, or in what says which files there are.
    pub(super) fn damage(&mut self, index: usize) {
        match self.random.below(10) {
            0 => self.flip_hint(index),
            1 if self.may_be_lost(index) => self.flip_manifest(index),
            2.. if self.may_be_lost(index) => self.damage_volume(index),
            _ => {}
        }
    }

    /// It claims less than is there, and no more.
    fn flip_hint(&mut self, index: usize) {
        if self.running(index).is_some() && self.flip_somewhere(index, "durable") {
            self.coverage.count(Reached::HintFlipped);
        }
    }

    fn flip_manifest(&mut self, index: usize) {
        if self.running(index).is_some() && self.flip_somewhere(index, "manifest.json") {
            let ledger = &mut self.nodes[index].volume.ledger;
            (ledger.is_damaged, ledger.has_bad_manifest) = (true, true);
            self.bury_a_copy(index);
        }
    }

    /// While the node is down.
    fn flip_somewhere(&mut self, index: usize, name: &str) -> bool {
        self.part(index, Crash::Process);
        self.start_later(index);
        let bytes = self.nodes[index].volume.disk.bytes_of(name);
        if bytes > 0 {
            self.nodes[index].volume.disk.flip(name, self.random.index(bytes), bit(&mut self.random));
            self.tell(index, format_args!("is damaged: {name}"));
        }
        bytes > 0
    }

    /// Files of earlier versions, and of request ids.
    pub(crate) fn base_files(&self, index: usize) -> Vec<String> {
        let is_of_base = |name: &String| {
            let others = ["wal.log.history.", "wal.log.sessions."];
            others.iter().any(|other| name.starts_with(other)) && !name.contains(".gen")
        };
        self.nodes[index].volume.disk.names().into_iter().filter(is_of_base).collect()
    }

    fn damage_volume(&mut self, index: usize) {
        let files = self.files_to_damage(index);
        if files.is_empty() {
            return;
        }
        let drawn = &files[self.random.index(files.len())];
        let file = files.iter().find(|file| file.is_active && self.random.percent(50)).unwrap_or(drawn);
        self.part(index, Crash::Process);
        self.strike(index, file);
        let sealed: Vec<&File> = files.iter().filter(|other| !other.is_active && other.name != file.name).collect();
        self.damage_another(index, &sealed);
        self.slow_somebody();
        self.bury_a_copy(index);
        let Volume { disk, ledger } = &mut self.nodes[index].volume;
        (ledger.is_damaged, ledger.may_look_torn) = (true, file.is_active);
        if file.is_active {
            disk.disarm();
        }
        self.start_later(index);
    }

    /// Sealed files, and what is durable of the active segment; with too little room nothing tells how much that is.
    fn files_to_damage(&self, index: usize) -> Vec<File> {
        let Some(process) = self.nodes[index].process.as_ref() else { return Vec::new() };
        let may_be_active = self.profile == Profile::Tight && !process.is_full;
        let mut segments = process.reader.segments();
        segments.retain(|segment| !segment.is_active || (may_be_active && segment.size_bytes > 0));
        let segments = segments.into_iter().map(|segment| File {
            bytes: usize::try_from(segment.size_bytes).expect("small"),
            is_active: segment.is_active,
            kind: Kind::Segment,
            name: segment.path,
        });
        let disk = &self.nodes[index].volume.disk;
        let base = self.base_files(index).into_iter().map(|name| File {
            bytes: disk.bytes_of(&name),
            is_active: false,
            kind: Kind::Base,
            name,
        });
        segments.chain(base).collect()
    }

    /// A bit flips, or the file vanishes.
    fn strike(&mut self, index: usize, file: &File) {
        let disk = &self.nodes[index].volume.disk;
        if file.bytes > 0 && (file.is_active || self.random.percent(80)) {
            let near_its_end = file.bytes - file.bytes.min(LINE_BYTES);
            let from = if file.is_active && self.random.percent(70) { near_its_end } else { 0 };
            disk.flip(&file.name, from + self.random.index(file.bytes - from), bit(&mut self.random));
            self.coverage.count(Reached::BitFlipped);
        } else {
            disk.vanish(&file.name);
            self.coverage.count(Reached::SegmentVanished);
        }
        match file.kind {
            Kind::Base => self.coverage.count(Reached::BaseDamaged),
            Kind::Segment if file.is_active => self.coverage.count(Reached::ActiveDamaged),
            Kind::Segment => {}
        }
        self.tell(index, format_args!("is damaged: {}", file.name));
    }

    fn damage_another(&mut self, index: usize, sealed: &[&File]) {
        let another = self.random.pick(sealed).filter(|file| file.bytes > 0 && self.random.percent(20));
        let Some(File { name, bytes, .. }) = another else { return };
        self.nodes[index].volume.disk.flip(name, self.random.index(*bytes), bit(&mut self.random));
        self.coverage.count(Reached::TwoDamaged);
        self.tell(index, format_args!("is damaged, too: {name}"));
    }

    pub(super) fn rot_somebody(&mut self) {
        let may_be_lost = |place: &Place| self.may_be_lost(place.node);
        let places: Vec<Place> = self.processes().map(|process| process.place).filter(may_be_lost).collect();
        let leader = self.leader().filter(|leader| places.contains(leader));
        if let Some(leader) = leader.filter(|_| self.random.percent(40)) {
            return self.rot(leader);
        }
        self.random.pick(&places).into_iter().for_each(|place| self.rot(place));
    }

    /// What a running node finds in its sealed files, and cannot make again. Its log is in truth sound, so that it may find
    /// this also while others are needed, and must stay.
    pub(super) fn find_damage(&mut self, index: usize) {
        if self.faults.is_over {
            return;
        }
        let may_be_needed = self.profile == Profile::Tight && self.random.percent(50);
        if let Some(place) = self.running(index).filter(|_| may_be_needed || self.may_be_lost(index)) {
            self.hold_volumes();
            let reason = "damaged: a sealed file".to_owned();
            self.arrives(place, Happening::Step(Input::Damaged { reason }));
        }
    }

    /// A follower finds damage while its leader has a slow disk, so that others commit what the leader has not applied: by
    /// the time it is told up to where it must be refilled, it has acknowledged more, and the leader's snapshot ends below
    /// that. Or it falls before the answer comes, and its next start finds worse.
    pub(super) fn find_damage_late(&mut self) {
        let Some(leader) = self.leader() else { return };
        let voters = self.voters_of(leader).into_iter().filter_map(|voter| self.place_of(voter));
        let followers: Vec<usize> = voters.map(|place| place.node).filter(|node| *node != leader.node).collect();
        let Some(index) = self.random.pick(&followers).filter(|index| self.may_be_lost(*index)) else { return };
        self.heal_some();
        self.hold_faults_until(self.now_us + 6 * SLOW_DISK_US);
        self.nodes[leader.node].disk_delay_us = SLOW_DISK_US;
        self.at(self.now_us + SLOW_US, Event::Rejoin(leader.node));
        self.at(self.now_us + SLOW_DISK_US, Event::FindDamage { index, tries: 1 });
    }

    /// While the leader's disk works on something.
    pub(crate) fn find_damage_in_time(&mut self, index: usize, tries: u64) {
        let ledger = self.leader().map(|leader| &self.nodes[leader.node].volume.ledger);
        let works = ledger.is_some_and(|ledger| ledger.last_durable() < ledger.last_asked());
        if !works && tries < FINDS_MAX {
            return self.at(self.now_us + 5_000, Event::FindDamage { index, tries: tries + 1 });
        }
        let may_worsen = self.may_be_lost(index);
        self.find_damage(index);
        if may_worsen && self.random.percent(50) {
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
}

fn bit(random: &mut Random) -> u32 {
    u32::try_from(random.below(8)).expect("small")
}
