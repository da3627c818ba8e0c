//! The other members: who is connected, what each has shown and reported, and whose silence makes it down. What
//! follows from a leader's silence is the follower's.

use super::identity::Answer;
use super::progress::{Pace, Progress};
use super::{Replica, Role};
use crate::contract::{Effect, Failover, Note, Now};
use crate::group::MemberId;
use crate::heartbeat::Heard;
use crate::message::{Heartbeat, Hello, Message};
use crate::status::Health;

/// Members that a replica remembers; disconnected strangers go first.
const PEERS_MAX: usize = 64;

/// Another member, connected or not.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) heard: Heard,
    pub(super) hello: Option<Hello>,
    pub(super) report: Option<Heartbeat>,
    pub(super) connected: bool,
}

impl Replica {
    pub(super) fn peer(&mut self, id: MemberId) -> &mut Peer {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&id) {
            let stranger = self.peers.iter().find(|(id, p)| !p.connected && !self.configuration().contains(**id));
            if let Some(stranger) = stranger.map(|(id, _)| *id) {
                self.peers.remove(&stranger);
            }
        }
        self.peers.entry(id).or_default()
    }

    /// What it has last said of itself.
    pub(super) fn report_of(&self, peer: MemberId) -> Option<&Heartbeat> {
        self.peers.get(&peer)?.report.as_ref()
    }

    /// A recovery by hand changes the group behind connections that stay open.
    pub(super) fn is_of_another_group(&self, peer: MemberId) -> bool {
        let theirs = self.peers.get(&peer).and_then(|peer| peer.hello.as_ref()?.cluster_id.as_ref());
        theirs.is_some() && self.hard.cluster_id.is_some() && theirs != self.hard.cluster_id.as_ref()
    }

    pub(super) fn on_connected(&mut self, now: Now, hello: Hello) {
        let from = hello.member_id;
        let peer = self.peer(from);
        peer.heard.mark(now.mono_ms);
        peer.connected = true;
        peer.hello = Some(hello.clone());
        if self.is_of_another_group(from) {
            return self.show_to(from, Answer::Given); // this member was of its group at their handshake
        }
        let next = self.log.last().id.next();
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            // What it acknowledged before may be gone with its volume: it starts from nothing.
            *progress = Progress::new(next, now.mono_ms);
        }
        self.judge(from, &hello);
        let heartbeat = self.heartbeat();
        self.send(from, Message::Heartbeat(heartbeat));
        if self.may_campaign() && self.lead_wanted && !self.leader_is_alive(now) {
            self.campaign_soon(now);
        }
    }

    pub(super) fn on_disconnected(&mut self, now: Now, peer: MemberId, refused: bool) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.connected = false;
        }
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&peer)
        {
            let next = progress.matched.next();
            if !matches!(progress.pace, Pace::Snapshot) {
                progress.probe(next, now.mono_ms);
            }
        }
        self.waiting_append.take_if(|(from, _)| *from == peer);
        self.redirect_transfer(now, peer);
        if self.leader != Some(peer) {
            return;
        }
        if refused {
            // Nobody listens there: the process is dead, and silence needs no time-out.
            self.forget_leader();
            if self.tuning.failover == Failover::Automatic || self.lead_wanted {
                self.campaign_soon(now);
            }
        } else {
            self.push_effect(Effect::Redial { peer });
        }
    }

    pub(super) fn is_reachable(&self, now: Now, peer: MemberId) -> bool {
        let timeout_ms = self.tuning.heartbeat_timeout_ms;
        self.peers.get(&peer).is_some_and(|p| p.connected && p.heard.health(now.mono_ms, timeout_ms) == Health::Healthy)
    }

    pub(super) fn note_health(&mut self, now: Now) {
        let timeout_ms = self.tuning.heartbeat_timeout_ms;
        let mut notes = Vec::new();
        for (id, peer) in &mut self.peers {
            let name = || peer.hello.as_ref().map(|hello| hello.name.clone());
            match (peer.heard.transition(now.mono_ms, timeout_ms), name()) {
                (Some(Health::Down), Some(name)) => notes.push((*id, Note::PeerDown(name))),
                (Some(Health::Healthy), Some(name)) => notes.push((*id, Note::PeerHealthy(name))),
                _ => {}
            }
        }
        notes.into_iter().for_each(|(_, note)| self.note(note));
    }
}
