//! A volume started twice: a copy of a member's volume runs in a place of its own, beside the original, under the same
//! member id. Peers hold one connection with a member, and the two push each other out of it. Kept here: when a copy is
//! made, where, what goes wrong meanwhile, how it ends.
//!
//! What is promised depends on how many voters there are (`docs/correctness.md`, *What escapes*). Of an even number any
//! two majorities share a voter besides the copied one: anything may happen, and nothing is lost. Of an odd number they
//! need not: only a copy that every voter knows to be older is made, no voter forgets what it knows, and the copy is
//! stopped when it was refilled.

use kv_core::group::NodeName;
use kv_core::message::Message;

use super::Profile;
use super::admin::Order;
use super::clock::Clock;
use super::coverage::Reached;
use super::disk::Crash;
use super::faults::HEARSAY_US;
use super::network::Weather;
use super::node::{Node, Place, Volume};
use super::world::{Event, Waiter, World};

/// What the copies' place is called. Nobody knows it: a copy has its original's name, and dials by itself.
const NAME: &str = "copy";
/// How long a copy runs at most.
const RUNS_US: (u64, u64) = (300_000, 6_000_000);
const RUNS_TIGHT_US: (u64, u64) = (200_000, 1_500_000);
/// Tries to start a copy at a moment at which nothing is on its way.
const TRIES_MAX: u64 = 40;

/// Its place, and which of the copies that came to that one after the other.
pub(crate) type VolumeId = (usize, u64);

/// The copy that runs, or is about to.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    copy: Option<Copy>,
    /// Copies so far: each is a volume of its own.
    made: u64,
}

#[derive(Debug, Clone, Copy)]
struct Copy {
    original: usize,
    voters: Voters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Voters {
    Even,
    Odd,
}

impl World {
    /// Processes of one member beside each other: the group's voters stay who they are, and no other volume goes.
    pub(crate) fn has_copy(&self) -> bool {
        self.beside.copy.is_some()
    }

    /// Nobody may forget what he saw of the member.
    pub(crate) fn has_copy_among_odd(&self) -> bool {
        self.beside.copy.is_some_and(|copy| copy.voters == Voters::Odd)
    }

    /// The place of copies, behind those of the nodes.
    pub(crate) fn is_place_of_copies(&self, index: usize) -> bool {
        index >= self.shape.nodes
    }

    pub(crate) fn trouble_with_copies(&mut self, index: usize) {
        match self.beside.copy {
            None => self.plan_copy(index),
            Some(copy) if copy.voters == Voters::Odd => self.trouble_without_crashes(index),
            Some(copy) if self.random.percent(15) => self.crash(copy.original), // its next start outdoes the copy
            Some(_) => self.trouble(index),
        }
    }

    fn plan_copy(&mut self, index: usize) {
        let Some(leader) = self.leader().filter(|_| !self.has_copy() && self.is_settled()) else { return };
        if !self.is_spare(index) || !self.is_voter_at(leader, index) {
            return;
        }
        let voters = if self.voters_of(leader).len().is_multiple_of(2) { Voters::Even } else { Voters::Odd };
        self.beside.copy = Some(Copy { original: index, voters });
        if voters == Voters::Even {
            return self.start_copy(1);
        }
        self.save_volume(index);
        self.heal_some();
        self.calm_disks();
        self.hold_faults_until(self.now_us + HEARSAY_US);
        self.at(self.now_us + HEARSAY_US, Event::StartCopy(1));
    }

    fn is_voter_at(&self, leader: Place, index: usize) -> bool {
        let member = self.nodes[index].process.as_ref().map(|process| process.member);
        member.is_some_and(|member| self.is_voter(leader, member))
    }

    /// No change of voters is asked for or under way, none follows by itself, and nobody may be about to leave.
    fn is_settled(&self) -> bool {
        let replaces = |waiter: &Waiter| matches!(waiter, Waiter::Admin(Order::Replacement | Order::TakeName(_)));
        let changes = |waiter: &Waiter| waiter.changes_voters() || replaces(waiter);
        let is_asked_for = self.processes().any(|process| process.waiting.values().any(changes));
        let awaits = self.leader().is_none_or(|leader| self.nodes[leader.node].volume.ledger.awaits_somebody());
        let rots = self.processes().any(|process| process.rot.is_some());
        !is_asked_for && !awaits && !rots
    }

    pub(crate) fn start_copy(&mut self, tries: u64) {
        let Some(Copy { original, voters }) = self.beside.copy else { return };
        let can_be = !self.faults_are_over() && self.can_be_spared(original);
        let volume = match voters {
            _ if !can_be => None,
            Voters::Even => self.image_of(original),
            Voters::Odd => self.take_outdated_copy(original),
        };
        let Some(volume) = volume else {
            if tries < TRIES_MAX && !self.faults_are_over() {
                return self.at(self.now_us + 10_000, Event::StartCopy(tries + 1));
            }
            self.beside.copy = None;
            return;
        };
        let index = self.place_for_copies(volume);
        self.beside.made += 1;
        self.coverage.count(Reached::CopyStarted);
        self.tell(index, format_args!("is started on a copy of the volume of {}", self.nodes[original].name));
        self.start(index);
        if voters == Voters::Even {
            self.begin_again_beside(original);
        }
        let (least_us, most_us) = if self.profile == Profile::Tight { RUNS_TIGHT_US } else { RUNS_US };
        let ends_us = self.now_us + self.random.between(least_us, most_us);
        self.at(ends_us, Event::StopCopy(self.beside.made));
    }

    /// The copy and the original at the same incarnation; in tight worlds what is said of one is late, and reaches the other.
    fn begin_again_beside(&mut self, original: usize) {
        if self.random.percent(50) {
            self.part(original, Crash::Process);
            self.at(self.now_us, Event::Start(original));
        }
        if self.profile == Profile::Tight && self.random.percent(50) {
            self.network.weather = Weather::Chaos;
        }
        if self.profile == Profile::Tight && self.random.percent(50) {
            self.slow_others(original);
        }
    }

    /// In tight worlds: that one of the two is refused.
    pub(crate) fn is_lost_beside_copies(&mut self, message: &Message) -> bool {
        let is_refusal = matches!(message, Message::Stale { .. });
        is_refusal && self.profile == Profile::Tight && self.has_copy() && self.random.percent(50)
    }

    fn place_for_copies(&mut self, volume: Volume) -> usize {
        let index = self.shape.nodes;
        let node = Node {
            name: NodeName::new(NAME).expect("a name"),
            volume,
            clock: Clock::new(self.random.between(950, 1050)),
            paused_until_us: 0,
            disk_delay_us: 0,
            process: None,
        };
        match self.nodes.get_mut(index) {
            Some(place) => {
                let old = std::mem::replace(place, node);
                self.watch.bury(old.volume.ledger, self.now_us);
            }
            None => self.nodes.push(node),
        }
        index
    }

    pub(crate) fn stop_copy(&mut self, number: u64) {
        let Some(Copy { original, .. }) = self.beside.copy.filter(|_| number == self.beside.made && number > 0) else {
            return;
        };
        self.beside.copy = None;
        let index = self.shape.nodes;
        self.tell(index, format_args!("is stopped for good"));
        self.part(index, Crash::Process);
        // The others may know a later start than the original's: it shows at its next one, and is refilled.
        if self.nodes[original].process.is_some() {
            self.coverage.count(Reached::OriginalStartedAgain);
            self.part(original, Crash::Process);
            self.at(self.now_us, Event::Start(original));
        }
    }

    pub(crate) fn stop_copies(&mut self) {
        self.stop_copy(self.beside.made);
        self.beside.copy = None;
    }

    /// A process has learned that it is not alone.
    pub(crate) fn note_superseded(&mut self, place: Place) {
        self.hang_up(place);
        let is_copy = self.is_place_of_copies(place.node);
        self.coverage.count(if is_copy { Reached::CopySuperseded } else { Reached::OriginalSuperseded });
    }

    /// Among an odd number of voters a copy that is trusted again could be half of a majority, and its original of another.
    pub(crate) fn note_copy_refilled(&mut self, place: Place) {
        if self.is_place_of_copies(place.node) && self.has_copy_among_odd() {
            self.coverage.count(Reached::CopyRefilled);
            self.at(self.now_us, Event::StopCopy(self.beside.made));
        }
    }

    /// Which volume a process runs on.
    pub(crate) fn volume_of(&self, place: Place) -> VolumeId {
        (place.node, if self.is_place_of_copies(place.node) { self.beside.made } else { 0 })
    }

    fn calm_disks(&mut self) {
        for node in &mut self.nodes {
            node.disk_delay_us = 0;
            node.volume.disk.disarm();
            node.volume.disk.set_room(None);
        }
    }
}
