//! What a replica shows of itself: heartbeats, the view for HTTP handlers, the status document, and
//! the peers to connect with. Reads state, changes none but the record of what was announced.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Peer, Replica, Role};
use crate::contract::{Effect, Now, View};
use crate::entry::EntryId;
use crate::group::{MemberId, MemberInfo};
use crate::message::{Heartbeat, Lead, Message};
use crate::mutant::{self, Mutant};
use crate::status::{Health, LeaderStatus, MemberStatus, ReplicaStatus, Role as RoleName};

impl Replica {
    pub(super) fn heartbeat(&self) -> Heartbeat {
        let lead = self.current_round().map(|round| Lead { round, committed: self.committed });
        Heartbeat {
            // What is on disk: it is held against this member at its next start.
            epoch: if mutant::on(Mutant::ShowUndurable) { self.epoch() } else { self.persist.promised().epoch },
            lead,
            leader: self.leader,
            last: self.log.last().id,
            durable: self.persist.durable(),
            applied: self.applied(),
            storage_full: self.storage_full,
            unfit: self.hard.quarantine.is_some() || self.hard.cluster_id.is_none(),
            leaving: self.leaving,
            feature_level: Self::feature_level_of_this_build(),
        }
    }

    /// To everyone connected; a leader's heartbeat is a round of its own.
    pub(super) fn send_heartbeats(&mut self, now: Now) {
        self.begin_round(now);
        let heartbeat = self.heartbeat();
        let peers: Vec<MemberId> = self.peers.iter().filter(|(_, p)| p.connected).map(|(id, _)| *id).collect();
        for peer in peers {
            self.send(peer, Message::Heartbeat(heartbeat.clone()));
        }
    }

    /// The members to hold connections with: the voters, and the learners of the one who leads.
    pub(super) fn announce_peers(&mut self) {
        let me = self.me();
        let learners = match &self.role {
            Role::Leader(leader) => leader.learners.values().map(|learner| learner.info.clone()).collect(),
            _ => Vec::new(),
        };
        let voters = self.configuration().voters.iter().filter(|v| v.member_id != me).cloned();
        // Who is not alone under its identity leaves the connections to the other one.
        let peers: Vec<MemberInfo> = voters.chain(learners).filter(|_| !self.superseded).collect();
        if peers != self.announced_peers {
            self.announced_peers.clone_from(&peers);
            self.effects.push(Effect::Peers(peers));
        }
    }

    pub fn view(&self, now: Now) -> View {
        View {
            role: self.role_name(),
            epoch: self.epoch(),
            leader: self.leader,
            lease_until_mono_ms: self.lease_until_ms(),
            deposed: self.deposed,
            leader_fell_silent: self.leader_fell_silent,
            let_go: self.standing.let_go,
            forgotten: self.standing.forgotten && self.role_name() == RoleName::Learner,
            serves: self.hard.cluster_id.is_some()
                && (self.hard.quarantine.is_none() || mutant::on(Mutant::QuarantinedServes))
                && !self.installing,
            caught_up: self.is_caught_up_with_leader(now),
            committed: self.committed,
            compaction_limit: self.compaction_limit(now),
            urls: Arc::clone(&self.urls),
        }
    }

    fn is_caught_up_with_leader(&self, now: Now) -> bool {
        let reached = self.catch_up_to.is_some_and(|target| self.applied() >= target);
        let led = match self.role {
            Role::Leader(_) => self.lease_until_ms() >= now.mono_ms,
            _ => self.leader_is_alive(now),
        };
        reached && led && self.hard.quarantine.is_none() && !self.standing.removed
    }

    pub(super) fn announce_view(&mut self, now: Now) {
        self.refresh_urls();
        let view = self.view(now);
        if self.announced_view.as_ref() != Some(&view) {
            self.announced_view = Some(view);
            self.effects.push(Effect::ViewChanged);
        }
    }

    fn refresh_urls(&mut self) {
        let url_of = |(id, peer): (&MemberId, &Peer)| Some((*id, peer.hello.as_ref()?.url.clone()));
        let known = self.peers.iter().filter(|(_, peer)| peer.hello.is_some()).count();
        let stale = known + 1 != self.urls.len()
            || self.peers.iter().any(|(id, p)| p.hello.as_ref().is_some_and(|h| self.urls.get(id) != Some(&h.url)));
        if stale {
            let mut urls: BTreeMap<_, _> = self.peers.iter().filter_map(url_of).collect();
            urls.insert(self.me(), self.me.url.clone());
            self.urls = Arc::new(urls);
        }
    }

    fn role_name(&self) -> RoleName {
        match self.role {
            _ if self.hard.cluster_id.is_none() => RoleName::Uninitialised,
            Role::Leader(_) => RoleName::Leader,
            _ if !self.is_voter() => RoleName::Learner,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Follower(_) => RoleName::Follower,
        }
    }

    pub fn status(&self, now: Now) -> ReplicaStatus {
        let leader_last = match (&self.role, self.leader) {
            (Role::Leader(_), _) => self.log.last().id,
            (_, Some(leader)) => self.report_of(leader).map_or(EntryId::ZERO, |report| report.last),
            _ => EntryId::ZERO,
        };
        ReplicaStatus {
            name: self.hard.name.clone(),
            member_id: self.me(),
            cluster_id: self.hard.cluster_id.clone(),
            role: self.role_name(),
            epoch: self.epoch(),
            leader: self.leader.and_then(|id| self.leader_status(id)),
            last_id: self.log.last().id,
            durable_id: self.persist.durable(),
            committed_id: self.committed,
            applied_id: self.applied(),
            lag: leader_last.0.saturating_sub(self.applied().0),
            config_id: self.config_id(),
            members: self.member_statuses(now),
            settings: self.state.settings(),
            tuning: self.tuning,
            feature_level: self.state.feature_level(),
            incarnation: self.hard.incarnation,
            quarantined: self.hard.quarantine.as_ref().map(|quarantine| quarantine.reason.clone()),
            leader_heard_ms_ago: match self.role {
                Role::Leader(_) => Some(0),
                _ => self.leader.and(self.leader_heard.ago_ms(now.mono_ms)),
            },
            lease_held: self.lease_until_ms() >= now.mono_ms.max(1),
            at_mono_ms: now.mono_ms,
        }
    }

    fn leader_status(&self, id: MemberId) -> Option<LeaderStatus> {
        let name = if id == self.me() { Some(self.hard.name.clone()) } else { self.name_of(id) };
        Some(LeaderStatus { name: name?, member_id: id, url: self.urls.get(&id).cloned() })
    }

    /// The voters, the learners this node knows of, and others that it exchanges heartbeats with.
    fn member_statuses(&self, now: Now) -> Vec<MemberStatus> {
        let mut infos: BTreeMap<MemberId, MemberInfo> = BTreeMap::new();
        for (id, peer) in &self.peers {
            if let Some(hello) = peer.hello.as_ref().filter(|_| peer.connected || self.leader == Some(*id)) {
                let (name, peer_url) = (hello.name.clone(), hello.peer_url.clone());
                infos.insert(*id, MemberInfo { name, member_id: *id, peer_url });
            }
        }
        if let Role::Leader(leader) = &self.role {
            infos.extend(leader.learners.values().map(|l| (l.info.member_id, l.info.clone())));
        }
        infos.extend(self.configuration().voters.iter().map(|v| (v.member_id, v.clone())));
        infos.insert(self.me(), self.my_info());
        infos.into_values().map(|info| self.member_status(now, info)).collect()
    }

    fn member_status(&self, now: Now, info: MemberInfo) -> MemberStatus {
        let MemberInfo { name, member_id, peer_url } = info;
        let voter = self.configuration().contains(member_id);
        let peer = self.peers.get(&member_id);
        let report = peer.and_then(|p| p.report.as_ref());
        let own = (member_id == self.me()).then(|| self.heartbeat());
        let report = own.as_ref().or(report);
        let timeout_ms = self.tuning.heartbeat_timeout_ms;
        let durable_id = report.map_or(EntryId::ZERO, |r| r.durable);
        let (health, heard_ms_ago) = match peer {
            _ if own.is_some() => (Health::Healthy, Some(0)),
            Some(p) => (p.heard.health(now.mono_ms, timeout_ms), p.heard.ago_ms(now.mono_ms)),
            None => (Health::Down, None),
        };
        let role = match () {
            () if self.leader == Some(member_id) => RoleName::Leader,
            () if voter => RoleName::Follower,
            () => RoleName::Learner,
        };
        let last = self.log.last().id;
        let leads = matches!(self.role, Role::Leader(_));
        MemberStatus {
            url: self.urls.get(&member_id).cloned(),
            name,
            member_id,
            peer_url,
            role,
            voter,
            health,
            heard_ms_ago,
            last_id: report.map_or(EntryId::ZERO, |r| r.last),
            durable_id,
            applied_id: report.map_or(EntryId::ZERO, |r| r.applied),
            lag: if leads { last.0.saturating_sub(durable_id.0) } else { 0 },
            storage_full: report.is_some_and(|r| r.storage_full),
            unfit: report.is_some_and(|r| r.unfit),
        }
    }
}
