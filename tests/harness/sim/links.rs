//! Who holds connections with whom: dials, handshakes, ends of connections and what is told of them, as
//! the transport of `kv-node` does it.

use kv_core::contract::Input;
use kv_core::group::MemberId;
use kv_core::message::Hello;

use super::coverage::Reached;
use super::network::{ConnectionId, End};
use super::node::{Happening, Place};
use super::world::{Event, World};

/// Between two attempts, jittered.
const BACK_OFF_US: (u64, u64) = (20_000, 400_000);
/// After a connection that lived long enough, or else: two processes of one member push each other out.
const AT_ONCE_US: (u64, u64) = (100, 3_000);
const BACK_OFF_UNSTABLE_US: (u64, u64) = (10_000, 80_000);
const STABLE_US: u64 = 1_000_000;

/// What became of an attempt.
enum Dialed {
    Connected,
    /// Nobody listens there.
    Refused,
    Failed,
}

impl World {
    pub(crate) fn dial_peers(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let members: Vec<MemberId> = process.peers.iter().map(|peer| peer.member_id).collect();
        for member in members {
            let at_us = self.now_us + self.random.between(200, 20_000);
            self.dial_at(place, member, at_us);
        }
    }

    pub(crate) fn dial_at(&mut self, place: Place, member: MemberId, at_us: u64) {
        let Some(process) = self.process(place) else { return };
        if !process.connections.contains_key(&member) && process.dialing.insert(member) {
            self.at(at_us, Event::Dial(place, member));
        }
    }

    pub(crate) fn dial(&mut self, place: Place, member: MemberId) {
        let Some(process) = self.process(place) else { return };
        process.dialing.remove(&member);
        let wanted = process.peers.iter().find(|peer| peer.member_id == member).map(|peer| peer.peer_url.clone());
        let Some(address) = wanted.filter(|_| !process.connections.contains_key(&member)) else { return };
        let dialed = self.try_to_connect(place, member, &address);
        let Some(process) = self.process(place) else { return };
        let was_lost = process.lost.remove(&member);
        match dialed {
            Dialed::Connected => return,
            Dialed::Refused if was_lost => {
                self.coverage.count(Reached::DialRefused);
                self.arrives(place, Happening::Step(Input::Disconnected { peer: member, refused: true }));
            }
            Dialed::Failed if was_lost => self.tell_lost(place, member),
            Dialed::Refused | Dialed::Failed => {}
        }
        let wait_us = self.random.between(BACK_OFF_US.0, BACK_OFF_US.1);
        self.dial_at(place, member, self.now_us + wait_us);
    }

    fn try_to_connect(&mut self, place: Place, member: MemberId, address: &str) -> Dialed {
        let Some(index) = self.nodes.iter().position(|node| node.name.as_str() == address) else {
            return Dialed::Failed;
        };
        if !self.network.passes(place.node, index) {
            return Dialed::Failed;
        }
        let Some(there) = self.nodes[index].process.as_ref() else { return Dialed::Refused };
        let is_stopped = self.is_paused(index);
        let there = (there.place, there.replica.hello());
        let Some(here) = self.process(place).map(|process| process.replica.hello()) else { return Dialed::Failed };
        let are_strangers = self.are_strangers(place, there.0);
        if is_stopped || are_strangers || there.1.member_id != member || here.member_id == member {
            return Dialed::Failed;
        }
        self.connect((place, here), there)
    }

    /// No handshake succeeds between members of two groups.
    pub(crate) fn are_strangers(&self, place: Place, there: Place) -> bool {
        let process = |place: Place| self.nodes[place.node].process.as_ref();
        let group = |place: Place| process(place).and_then(|process| process.replica.hello().cluster_id);
        matches!((group(place), group(there)), (Some(mine), Some(theirs)) if mine != theirs)
    }

    fn connect(&mut self, (here, my_hello): (Place, Hello), (there, their_hello): (Place, Hello)) -> Dialed {
        let ends =
            [End { place: here, member: my_hello.member_id }, End { place: there, member: their_hello.member_id }];
        for [me, peer] in [ends, [ends[1], ends[0]]] {
            let open = self.process(me.place).and_then(|process| process.connections.get(&peer.member).copied());
            let Some(open) = open else { continue };
            let is_same = self.network.get(open).is_some_and(|connection| connection.other(me.place) == peer);
            if is_same {
                return Dialed::Failed; // a duplicate, and nothing is wrong
            }
            self.disconnect(open); // a new process takes the place of an old one
        }
        let id = self.network.open(self.now_us, ends);
        for ([me, peer], hello) in [(ends, their_hello), ([ends[1], ends[0]], my_hello)] {
            let Some(process) = self.process(me.place) else { continue };
            process.connections.insert(peer.member, id);
            if process.lost.remove(&peer.member) {
                self.tell_lost(me.place, peer.member);
            }
            self.arrives(me.place, Happening::Step(Input::Connected { hello }));
        }
        Dialed::Connected
    }

    /// Who is superseded wants nobody any more.
    pub(crate) fn hang_up(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        process.peers.clear();
        let connections: Vec<ConnectionId> = process.connections.values().copied().collect();
        connections.into_iter().for_each(|connection| self.disconnect(connection));
    }

    /// Both ends learn of it, each by itself.
    pub(crate) fn disconnect(&mut self, id: ConnectionId) {
        let Some(connection) = self.network.close(id) else { return };
        let (opened_us, [one, other]) = (connection.opened_us, connection.ends);
        for (me, peer) in [(one, other), (other, one)] {
            self.watch_disconnected(me.place, peer.member);
            let Some(process) = self.process(me.place) else { continue };
            process.connections.remove(&peer.member);
            if process.peers.iter().any(|wanted| wanted.member_id == peer.member) {
                process.lost.insert(peer.member);
                let lived_us = self.now_us - opened_us;
                let (least_us, most_us) =
                    if lived_us < STABLE_US && self.shape.copies { BACK_OFF_UNSTABLE_US } else { AT_ONCE_US };
                let at_us = self.now_us + self.random.between(least_us, most_us);
                self.dial_at(me.place, peer.member, at_us);
            } else {
                self.tell_lost(me.place, peer.member);
            }
        }
    }

    fn tell_lost(&mut self, place: Place, peer: MemberId) {
        self.arrives(place, Happening::Step(Input::Disconnected { peer, refused: false }));
    }

    /// Of a process that is gone.
    pub(crate) fn leave_network(&mut self, place: Place) {
        for id in self.network.ids() {
            if self.network.get(id).is_some_and(|connection| connection.ends.iter().any(|end| end.place == place)) {
                self.disconnect(id);
            }
        }
    }
}
