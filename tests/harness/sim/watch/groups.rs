//! Which group a volume is of: the one that was founded, or one that a recovery by hand has made of a survivor.
//! Each begins with voters of its own, from an id on; what its log says of voters below is of the group before.
//! And what members of two groups may be to each other: nothing.

use std::collections::BTreeMap;

use kv_core::contract::Persist;
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId};
use kv_core::message::{Hello, Message};
use kv_core::status::Role;

use super::{Ledger, Line, Watch};
use crate::sim::coverage::Reached;
use crate::sim::node::Place;
use crate::sim::world::World;

/// The lines of a volume.
type Log = BTreeMap<EntryId, Line>;

/// One group, or what became of it.
#[derive(Debug)]
struct Group {
    /// None: the one that was founded, by whatever id.
    cluster_id: Option<ClusterId>,
    /// Its first configuration holds from here on.
    at: EntryId,
    /// The first, and those that were committed since.
    configurations: Vec<Vec<MemberId>>,
}

/// All of them, in the order of time.
#[derive(Debug)]
pub(super) struct Groups {
    all: Vec<Group>,
    /// The one that has elected or committed last.
    present: usize,
    /// What members have shown a process of their group, and the round that it was in.
    shown: BTreeMap<(Place, MemberId), (ClusterId, u64)>,
}

impl Default for Groups {
    fn default() -> Self {
        let founded = Group { cluster_id: None, at: EntryId::ZERO, configurations: vec![Vec::new()] };
        Self { all: vec![founded], present: 0, shown: BTreeMap::new() }
    }
}

impl Groups {
    fn number(&self, cluster_id: Option<&ClusterId>) -> usize {
        self.all.iter().position(|group| group.cluster_id.as_ref() == cluster_id).unwrap_or(0)
    }

    fn of(&self, volume: &Ledger) -> &Group {
        &self.all[self.number(volume.cluster())]
    }

    /// A recovery that came to nothing before it was durable is asked for again.
    fn recovered(&mut self, group: Group) {
        self.all.retain(|known| known.cluster_id != group.cluster_id);
        self.all.push(group);
    }
}

impl Watch {
    /// The last configuration of a log below an id: a line that changes it, or the first one of the volume's group.
    fn configuration_in(&self, volume: &Ledger, log: &Log, below: EntryId) -> (EntryId, Vec<MemberId>) {
        let group = self.groups.of(volume);
        let proposed = self.proposed.range((group.at.next(), Epoch::default())..);
        let below = proposed.take_while(|((id, _), _)| *id < below);
        let is_here = |(id, epoch): &(EntryId, Epoch)| log.get(id).is_some_and(|line| line.epoch == *epoch);
        let last = below.filter(|(at, _)| is_here(at)).last();
        last.map_or_else(|| (group.at, group.configurations[0].clone()), |((id, _), voters)| (*id, voters.clone()))
    }

    pub(crate) fn founded(&mut self, voters: Vec<MemberId>) {
        self.groups.all[0].configurations = vec![voters];
    }

    /// As the replica orders it: a crash may leave the volume on either side of it.
    pub(super) fn watch_recovery(&mut self, op: &Persist) {
        let Persist::Recover { state, configuration } = op else { return };
        let configurations = vec![configuration.configuration.ids().collect()];
        self.groups.recovered(Group { cluster_id: state.cluster_id.clone(), at: configuration.id, configurations });
    }

    pub(super) fn committed_configuration(&mut self, voters: Vec<MemberId>) {
        let present = self.groups.present;
        self.groups.all[present].configurations.push(voters);
    }

    /// Those that were ever proposed above an id: who proposed them may be gone, and what he sent may arrive.
    pub(crate) fn configurations_above(&self, id: EntryId) -> impl Iterator<Item = Vec<MemberId>> {
        self.proposed.range((id.next(), Epoch::default())..).map(|(_, voters)| voters.clone())
    }

    /// Of a group that a recovery has made.
    pub(crate) fn is_of_a_recovered_group(&self, volume: &Ledger) -> bool {
        self.groups.number(volume.cluster()) > 0
    }

    /// A replacement is half done, as far as anybody has applied it.
    pub(crate) fn awaits_somebody(&self) -> bool {
        !self.replacing.is_empty()
    }

    /// The epoch that somebody has led in last.
    pub(crate) fn last_led(&self) -> Epoch {
        self.leaders.last_key_value().map_or(Epoch::default(), |(epoch, _)| *epoch)
    }
}

impl World {
    /// The configuration below an entry in this node's log, and where it stands.
    pub(super) fn configuration_before(&self, place: Place, id: EntryId) -> (EntryId, Vec<MemberId>) {
        let volume = &self.nodes[place.node].volume.ledger;
        self.watch.configuration_in(volume, &volume.asked, id)
    }

    /// Of the configuration that the durable log of a volume ends with.
    pub(crate) fn voters_of_volume(&self, volume: &Ledger) -> Vec<MemberId> {
        self.watch.configuration_in(volume, &volume.durable, EntryId(u64::MAX)).1
    }

    /// The same with what is on its way to the disk.
    pub(crate) fn voters_of_volume_soon(&self, volume: &Ledger) -> Vec<MemberId> {
        self.watch.configuration_in(volume, &volume.asked, EntryId(u64::MAX)).1
    }

    /// The last two that were committed in this node's group.
    pub(super) fn recent_configurations(&self, place: Place) -> impl Iterator<Item = &Vec<MemberId>> {
        self.watch.groups.of(&self.nodes[place.node].volume.ledger).configurations.iter().rev().take(2)
    }

    /// The group that this node's volume is of acts. None does so any more when one that came out of it has.
    pub(super) fn watch_group_acts(&mut self, place: Place, does: &str) {
        let number = self.watch.groups.number(self.nodes[place.node].volume.ledger.cluster());
        let present = &mut self.watch.groups.present;
        assert!(number >= *present, "{} {does} in a group that was given up", self.nodes[place.node].name);
        *present = number;
    }

    /// Whoever is of a group that this one came out of, as far as was shown, is told no more than that.
    pub(super) fn check_said(&self, place: Place, to: MemberId, message: &Message) {
        // Lines are lines, whoever asks: the log answers, the replica has no part in it.
        let is_harmless =
            matches!(message, Message::Show { .. } | Message::LinesRequest { .. } | Message::Lines { .. });
        let is_told = is_harmless || !self.is_stranger(place, to);
        assert!(is_told, "says this to a member of a former group: {message:?}");
    }

    /// As far as was shown: nothing else that it says is heeded.
    pub(super) fn is_of_another_group(&self, place: Place, member: MemberId) -> bool {
        let mine = self.nodes[place.node].volume.ledger.cluster();
        let theirs = self.watch.groups.shown.get(&(place, member)).map(|(theirs, _)| theirs);
        mine.is_some() && theirs.is_some() && mine != theirs
    }

    fn is_stranger(&self, place: Place, member: MemberId) -> bool {
        let Groups { shown, .. } = &self.watch.groups;
        let number = |cluster_id| self.watch.groups.number(cluster_id);
        let mine = number(self.nodes[place.node].volume.ledger.cluster());
        // What came in this very round may have come behind what called for the message.
        let theirs = shown.get(&(place, member)).filter(|(_, round)| *round != self.watch.rounds);
        theirs.is_some_and(|(theirs, _)| number(Some(theirs)) < mine)
    }

    pub(super) fn note_shown(&mut self, place: Place, hello: &Hello) {
        let (shown, round) = (&mut self.watch.groups.shown, self.watch.rounds + 1);
        match &hello.cluster_id {
            Some(cluster_id) => drop(shown.insert((place, hello.member_id), (cluster_id.clone(), round))),
            None => drop(shown.remove(&(place, hello.member_id))),
        }
    }

    /// The epoch and the leader of one who is spoken to by a member of a group that its own came out of.
    pub(crate) fn watch_stranger(&mut self, place: Place, from: MemberId) -> Option<(Epoch, Option<MemberId>)> {
        if !self.is_stranger(place, from) {
            return None;
        }
        self.tell(place.node, format_args!("hears {from}, which is of a former group"));
        self.coverage.count(Reached::StrangerSpoke);
        let now = self.clock_of(place);
        let view = self.process(place)?.replica.view(now);
        Some((view.epoch, view.leader))
    }

    /// It follows nobody of that group, and takes no epoch from it.
    pub(crate) fn watch_unmoved(&self, place: Place, by: MemberId, before: (Epoch, Option<MemberId>)) {
        let (epoch, leader) = before;
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let view = process.replica.view(self.clock_of(place));
        assert!(view.leader == leader || view.leader != Some(by), "{by} of another group is followed");
        let stands = matches!(view.role, Role::Candidate | Role::Leader);
        assert!(view.epoch == epoch || stands, "epoch {} is of a member of another group", view.epoch);
    }
}
