//! What must hold in the stories' world after every step, whatever happened: one leader an epoch, one
//! entry an id, and nothing answered that a majority of disks does not hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_core::Replica;
use kv_core::command::OperationKind;
use kv_core::contract::{Now, Reply, Token, Written};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId};
use kv_core::quorum::majority;
use kv_core::state_machine::StateMachine;
use kv_core::status::Role;

use super::disk::Disk;
use super::{Node, World};

#[derive(Default)]
pub(super) struct Watch {
    /// Which start of which member: a copy of a volume is another leader.
    leaders: BTreeMap<(ClusterId, Epoch), (MemberId, u64)>,
    /// Every line that anybody ever applied.
    applied: BTreeMap<(ClusterId, EntryId), Bytes>,
    /// How far each node's present start has applied.
    applied_here: BTreeMap<String, EntryId>,
    /// Every write that was answered with success.
    acknowledged: Vec<Written>,
    /// The highest acknowledged id when a read arrived.
    reads: BTreeMap<Token, EntryId>,
    /// Volumes that were lost or put back: what they held, they held.
    pub(super) graveyard: Vec<Disk>,
    /// Replicas that stopped because a rule was broken.
    pub(super) stops: Vec<String>,
}

impl World {
    pub(super) fn watch_started(&mut self, name: &str) {
        self.watch.applied_here.remove(name);
    }

    /// Checks one replica against everything that was seen before.
    pub(super) fn watch(&mut self, name: &str) {
        let now = self.now();
        let node = &self.nodes[name];
        let Some(replica) = node.replica.as_ref() else { return };
        replica.check_invariants();
        let Some(cluster) = node.disk.hard.cluster_id.clone() else { return };
        let view = replica.view(now);
        if view.role == Role::Leader {
            let me = (node.disk.hard.member_id, node.start_id);
            let first = *self.watch.leaders.entry((cluster.clone(), view.epoch)).or_insert(me);
            assert_eq!(first, me, "two leaders in epoch {}", view.epoch);
        }
        let applied = replica.state().applied();
        let before = self.watch.applied_here.insert(name.to_owned(), applied).unwrap_or_default();
        assert!(applied >= before, "{name} applied {before}, and now {applied}");
        for id in (before.0 + 1..=applied.0).map(EntryId) {
            let line = &node.disk.line(id).expect("what is applied is on disk").line;
            let first = self.watch.applied.entry((cluster.clone(), id)).or_insert_with(|| line.clone());
            assert_eq!(first, line, "{name} applied another entry at {id}");
        }
    }

    pub(super) fn watch_read(&mut self, token: Token) {
        let newest = self.watch.acknowledged.iter().map(|written| written.id).max().unwrap_or_default();
        self.watch.reads.insert(token, newest);
    }

    pub(super) fn watch_reply(&mut self, name: &str, token: Token, reply: &Reply) {
        match reply {
            Reply::Written { written, replay } => {
                if !replay {
                    self.check_durable(name, written);
                }
                self.watch.acknowledged.push(written.clone());
            }
            Reply::ReadAt(id) => {
                let newest = self.watch.reads[&token];
                assert!(*id >= newest, "{name} read at {id}, but {newest} was acknowledged before");
            }
            _ => {}
        }
    }

    /// A majority of the voters' disks holds the line at the moment of the answer.
    fn check_durable(&self, name: &str, written: &Written) {
        let node = &self.nodes[name];
        let line = &node.disk.line(written.id).expect("what is answered is applied").line;
        let disks = || self.nodes.values().map(|node| &node.disk).chain(&self.watch.graveyard);
        let held_by = |voter: &MemberId| {
            let mut of_voter = disks().filter(|disk| disk.hard.member_id == *voter);
            of_voter.any(|disk| disk.line(written.id).is_some_and(|entry| entry.line == line))
        };
        let on_majority =
            |voters: Vec<MemberId>| voters.iter().filter(|v| held_by(v)).count() >= majority(voters.len());
        // It may have been committed just before the last change of voters, whose entry may still be in
        // memory alone: majorities of neighbouring configurations intersect.
        let on_disk = configurations_of(&node.disk).into_iter().rev().take(2);
        let holds = std::iter::once(self.voters_of(name)).chain(on_disk).any(on_majority);
        assert!(holds, "{written:?} is not on a majority of the disks");
    }

    /// The voters of the configuration that this node goes by.
    pub(super) fn voters_of(&self, name: &str) -> Vec<MemberId> {
        let Some(replica) = self.nodes[name].replica.as_ref() else { return Vec::new() };
        let members = replica.status(Now::default()).members;
        members.iter().filter(|member| member.voter).map(|member| member.member_id).collect()
    }
}

fn configurations_of(disk: &Disk) -> Vec<Vec<MemberId>> {
    let above = disk.log.iter().filter(|entry| entry.id > disk.base.configuration.id);
    let changes = above.filter_map(|entry| match &entry.body {
        Body::Control(Control::Config(configuration)) => Some(configuration),
        _ => None,
    });
    let all = std::iter::once(&disk.base.configuration.configuration).chain(changes);
    all.map(|configuration| configuration.ids().collect()).collect()
}

#[allow(dead_code, reason = "the fixed stories state what they expect in their output")]
impl World {
    /// The leader of the highest epoch that runs.
    pub(crate) fn leader(&self) -> Option<String> {
        let running = self.nodes.iter().filter_map(|(name, node)| Some((name, node.replica.as_ref()?)));
        let leaders = running.map(|(name, replica)| (replica.view(self.now()), name));
        let newest = leaders.filter(|(view, _)| view.role == Role::Leader).max_by_key(|(view, _)| view.epoch);
        newest.map(|(_, name)| name.clone())
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| node.replica.is_some())
    }

    pub(crate) fn is_voter(&self, by: &str, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|node| self.voters_of(by).contains(&node.disk.hard.member_id))
    }

    /// The node's volume may be lost: the others are a majority without it, and one that has all.
    pub(crate) fn is_expendable(&self, name: &str) -> bool {
        let Some(leader) = self.leader().filter(|_| self.is_whole()) else { return false };
        self.is_running(name) && (self.voters_of(&leader).len() > 2 || !self.is_voter(&leader, name))
    }

    /// Every voter of the leader's configuration has its volume, trusted, with all that was ever applied.
    fn is_whole(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some((_, newest)) = self.watch.applied.keys().next_back() else { return false };
        let of =
            |id: &MemberId| self.nodes.values().find(|node| node.disk.hard.member_id == *id && node.replica.is_some());
        // Else its configuration may yet be lost.
        let at_rest = self.nodes[&leader].replica.as_ref().is_some_and(|replica| replica.positions().0.id == *newest);
        at_rest
            && self.voters_of(&leader).iter().all(|id| {
                of(id).is_some_and(|node| {
                    let state = node.replica.as_ref().map(Replica::state);
                    node.disk.hard.quarantine.is_none() && state.is_some_and(|state| state.applied() == *newest)
                })
            })
    }

    /// All that run have applied everything that anybody applied.
    pub(crate) fn all_have_caught_up(&self) -> bool {
        let newest = self.watch.applied.keys().next_back().map(|(_, id)| *id);
        let mut running = self.nodes.values().filter_map(|node| node.replica.as_ref());
        running.all(|replica| Some(replica.state().applied()) == newest)
    }

    /// A saved volume that may be started beside the others: its member went for good.
    pub(crate) fn is_ghost(&self, name: &str) -> bool {
        let Some(leader) = self.leader().filter(|_| self.is_whole()) else { return false };
        let Some(node) = self.nodes.get(name) else { return false };
        let id = node.disk.hard.member_id;
        let others = self.nodes.iter().filter(|(other, _)| *other != name);
        let alone = others.filter(|(other, _)| !other.contains('-')).all(|(_, other)| other.disk.hard.member_id != id);
        node.disk.hard.cluster_id.is_some() && alone && !self.voters_of(&leader).contains(&id)
    }

    /// The saved volume is of the member that the node is now.
    pub(crate) fn is_older_self(&self, name: &str, saved: &str) -> bool {
        // A copy from when it was the only voter asks nobody: nothing can hold it back.
        let alone = |node: &Node| configurations_of(&node.disk).last().is_some_and(|voters| voters.len() < 2);
        if self.nodes.get(saved).is_some_and(alone) {
            return false;
        }
        let of = |name: &str| self.nodes.get(name).map(|node| node.disk.hard.member_id);
        of(saved).is_some() && of(name) == of(saved)
    }

    /// All running replicas have the same state, and it holds every acknowledged SET.
    pub(crate) fn check_agreement(&self, context: &str) {
        assert!(self.watch.stops.is_empty(), "{:?}; {context}", self.watch.stops);
        let states: Vec<&StateMachine> =
            self.nodes.values().filter_map(|node| node.replica.as_ref()).map(Replica::state).collect();
        for state in &states {
            assert_eq!(state.applied(), states[0].applied(), "not all have caught up; {context}");
            assert_eq!(state.digest(), states[0].digest(), "states differ; {context}");
        }
        let acknowledged = &self.watch.acknowledged;
        for written in acknowledged {
            let later = |w: &&Written| w.key == written.key && w.id > written.id;
            let current = states[0].keyspace().get(written.key.as_str()).found.map(|c| c.id);
            let expected = (written.operation == OperationKind::Set).then_some(written.id);
            // A later write to the key may have taken effect without an answer that anybody got.
            let superseded = acknowledged.iter().any(|w| later(&w)) || current > expected || self.is_deleted(written);
            assert!(superseded || current == expected, "{written:?} was acknowledged; {context}");
        }
    }

    /// A DELETE that nobody got an answer to may stand in the log.
    fn is_deleted(&self, written: &Written) -> bool {
        let deletes =
            |e: &Entry| matches!(&e.body, Body::Delete { key, .. } if *key == written.key && e.id > written.id);
        self.nodes.values().any(|node| node.disk.log.iter().any(deletes))
    }
}
