//! Which volume may be lost or damaged, as the promise has it: an acknowledged write survives while a majority of the
//! voters' volumes survive. So one of three or more may go at any moment, while others are behind, cut off or down, as
//! long as no other volume of its group's voters is lost, damaged or awaited, whoever counts by whichever configuration.

use kv_core::entry::EntryId;
use kv_core::group::MemberId;

use super::network::End;
use super::node::{Node, Place};
use super::world::{Waiter, World};

impl World {
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
        let leader = self.leader().filter(|_| self.volumes_may_go())?;
        self.is_whole(leader).then_some(leader)
    }

    /// The others are a majority.
    pub(super) fn is_one_of_many(&self, leader: Place, member: MemberId) -> bool {
        let voters = self.voters_of(leader);
        (voters.len() > 2 || !voters.contains(&member)) && !self.becomes_two_voters(voters.len())
    }

    /// Every voter of the leader's configuration runs, is trusted, and holds all that was ever applied.
    fn is_whole(&self, leader: Place) -> bool {
        let (newest, voters) = (EntryId(self.watch.committed()), self.voters_of(leader));
        let holds_all = |member: &MemberId| {
            let Some(place) = self.place_of(*member) else { return false };
            let node = &self.nodes[place.node];
            let Some(process) = node.process.as_ref() else { return false };
            let ledger = &node.volume.ledger;
            let is_sound = !ledger.is_damaged && !ledger.is_quarantined && !ledger.is_old_copy;
            let trusted = process.view.serves && is_sound;
            let is_known = !self.shape.copies || self.is_known_to(&voters, End { place, member: *member });
            trusted && is_known && process.applied() == newest && process.replica.positions().0.id == newest
        };
        newest > EntryId::ZERO && voters.iter().all(holds_all)
    }

    /// By this very start: who has run beside a copy of itself may still be found out as the older one.
    fn is_known_to(&self, voters: &[MemberId], end: End) -> bool {
        let mut others = voters.iter().filter_map(|voter| self.place_of(*voter)).filter(|place| *place != end.place);
        others.all(|place| self.surely_counts(place, end))
    }

    /// What is left is a majority of intact volumes in every configuration that may be in force.
    pub(crate) fn may_be_lost(&self, index: usize) -> bool {
        let Some(member) = self.nodes[index].volume.ledger.member() else { return false };
        let configurations = self.configurations();
        // One that is no voter may be about to become one.
        let is_voter = self.watch.committed() > 0 && configurations.iter().any(|voters| voters.contains(&member));
        let may_go = self.volumes_may_go()
            && !self.shape.copies // whoever has run beside a copy of itself may still be found out as the older one
            && configurations.iter().all(|voters| self.can_spare(voters, member));
        self.is_spare(index) || (is_voter && may_go)
    }

    fn can_spare(&self, voters: &[MemberId], member: MemberId) -> bool {
        let is_one_of_many = voters.len() > 2 && voters.iter().all(|voter| self.is_intact(*voter));
        (is_one_of_many || !voters.contains(&member)) && !self.becomes_two_voters(voters.len())
    }

    /// Those that a log ends with, in memory or on a disk, and those that may be on their way to one, or be on one that
    /// has not called them durable.
    fn configurations(&self) -> Vec<Vec<MemberId>> {
        let is_of_group =
            |(index, node): &(usize, &Node)| node.volume.ledger.is_member && !self.is_former_member(*index);
        let nodes = self.nodes[..self.shape.nodes].iter().enumerate().filter(is_of_group).map(|(_, node)| node);
        let is_voter = |node: &&Node| {
            let ledger = &node.volume.ledger;
            ledger.member().is_some_and(|member| self.voters_of_volume(ledger).contains(&member))
        };
        let voters = nodes.clone().filter(is_voter);
        let surely = voters.map(|node| node.volume.ledger.last_durable()).min().unwrap_or_default();
        let on_disks = nodes.clone().map(|node| self.voters_of_volume(&node.volume.ledger));
        let in_memory = nodes.filter_map(|node| Some(self.voters_of(node.process.as_ref()?.place)));
        let mut all: Vec<_> = on_disks.chain(in_memory).chain(self.watch.configurations_above(surely)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// It holds whatever its member has acknowledged.
    pub(super) fn is_intact(&self, voter: MemberId) -> bool {
        let is_its = |(index, node): &(usize, &Node)| {
            node.volume.ledger.member() == Some(voter) && !self.is_former_member(*index)
        };
        let Some((_, node)) = self.nodes[..self.shape.nodes].iter().enumerate().find(is_its) else { return false };
        let ledger = &node.volume.ledger;
        let is_trusted = ledger.is_member && !ledger.is_quarantined && !ledger.is_damaged && !ledger.is_old_copy;
        let leaves = node
            .process
            .as_ref()
            .is_some_and(|process| process.replica.status(node.now(self.now_us)).quarantined.is_some());
        is_trusted && !leaves
    }

    /// Of two voters each is needed, and has its own volume alone to lose. Whoever asks for the one change that makes
    /// them two is answered before a volume goes: what the leader has heard of a member by then may be its last word. So is a
    /// replacement that is half done, whose leader asks for that by itself.
    pub(super) fn becomes_two_voters(&self, voters: usize) -> bool {
        let is_asked = || self.processes().any(|process| process.waiting.values().any(Waiter::changes_voters));
        (voters == 1 && self.watch.awaits_somebody()) || (voters.abs_diff(2) == 1 && is_asked())
    }

    /// A voter of the configuration that the volume's own log ends with lacks something that is committed.
    pub(super) fn is_somebody_behind(&self, index: usize) -> bool {
        let volume = &self.nodes[index].volume.ledger;
        let newest = EntryId(self.watch.committed());
        let is_behind = |node: &&Node| {
            let ledger = &node.volume.ledger;
            ledger.member() != volume.member() && ledger.last_durable() < newest
        };
        let voters = self.voters_of_volume(volume);
        let is_among = |member: Option<MemberId>| member.is_some_and(|member| voters.contains(&member));
        let others = self.nodes[..self.shape.nodes].iter().filter(|node| is_among(node.volume.ledger.member()));
        is_among(volume.member()) && others.filter(is_behind).count() > 0
    }
}
