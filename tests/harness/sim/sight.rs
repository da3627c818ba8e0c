//! What can be seen of the world at a moment: who runs, who leads, who votes, who is at the other end. Nothing changes by it.

use kv_core::contract::Now;
use kv_core::entry::Epoch;
use kv_core::group::MemberId;
use kv_core::status::Role;

use super::node::{Place, Process};
use super::world::World;

impl World {
    pub(crate) fn clock_of(&self, place: Place) -> Now {
        self.nodes[place.node].now(self.now_us)
    }

    pub(crate) fn is_paused(&self, index: usize) -> bool {
        self.nodes[index].paused_until_us > self.now_us
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.nodes.iter().filter_map(|node| node.process.as_ref())
    }

    pub(crate) fn running(&self, index: usize) -> Option<Place> {
        self.nodes[index].process.as_ref().map(|process| process.place)
    }

    /// Of the original, when a copy runs beside it.
    pub(crate) fn place_of(&self, member: MemberId) -> Option<Place> {
        self.processes().find(|process| process.member == member).map(|process| process.place)
    }

    /// The process at the other end of the connection that a process has with a member.
    pub(crate) fn end_of(&self, place: Place, member: MemberId) -> Option<Place> {
        let process = self.nodes[place.node].process.as_ref().filter(|process| process.place == place)?;
        self.network.get(*process.connections.get(&member)?).map(|connection| connection.other(place).place)
    }

    /// The leader of the highest epoch that runs.
    pub(crate) fn leader(&self) -> Option<Place> {
        let leads = self.processes().filter(|process| process.view.role == Role::Leader);
        leads.max_by_key(|process| process.view.epoch).map(|process| process.place)
    }

    pub(crate) fn leads_in(&self, place: Place, epoch: Epoch) -> bool {
        let process = self.nodes[place.node].process.as_ref();
        let view = process.map(|process| process.replica.view(self.clock_of(place)));
        view.is_some_and(|view| view.role == Role::Leader && view.epoch == epoch)
    }

    pub(crate) fn voters_of(&self, place: Place) -> Vec<MemberId> {
        let node = &self.nodes[place.node];
        let Some(process) = node.process.as_ref() else { return Vec::new() };
        let members = process.replica.status(node.now(self.now_us)).members;
        members.iter().filter(|member| member.voter).map(|member| member.member_id).collect()
    }

    pub(crate) fn is_voter(&self, place: Place, member: MemberId) -> bool {
        self.voters_of(place).contains(&member)
    }
}
