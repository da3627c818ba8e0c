//! Campaigns and votes. A campaign starts by time (automatic failover, PreVote first) or because this
//! member was told to lead; only durable promises of a majority make a leader.

use std::collections::BTreeMap;

use super::persist::Then;
use super::{Replica, Role};
use crate::contract::{Failover, Note, Now, Quarantine, Refusal, Target, Token};
use crate::entry::{EntryId, Epoch, LogPosition};
use crate::group::{MemberId, NodeName};
use crate::message::{Message, Promise, VoteKind, VoteReply, VoteRequest};
use crate::mutant::{self, Mutant};
use crate::quorum::{Tally, tally};

/// How long a directive to lead is pursued before it is answered with a refusal: one hand-over, and the
/// time to be shown to the voters at start. Longer would park the clients of a leader more than once.
const LEAD_WAIT_MS: u64 = 1500;
/// Spread of the first try after the leader's process is known to be dead.
const SOON_MS: u64 = 20;
/// By so much each voter lets the one before it go first: most campaigns are over by then, their fsync included, and two at
/// once split the votes and wait for long.
const TURN_MS: u64 = 40;
/// A campaign without an outcome is tried again after a random part of the time-out between these
/// fractions, in percent; shorter than the time-out, since silence was established already.
const RETRY_PERCENT: (u64, u64) = (15, 40);
/// Each campaign in a row that came to nothing doubles that wait, so often: promises take their time on slow disks, and
/// votes that come after the next campaign has begun are lost.
const RETRY_DOUBLINGS_MAX: u32 = 4;
/// Directives to lead that wait at once.
const LEAD_WAITING_MAX: usize = 64;
/// The longest wait of a member that was told to lead between two tries.
const WANTED_RETRY_MS_MAX: u64 = 500;

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) kind: VoteKind,
    /// The epoch campaigned for; for PreVote one above the promise.
    pub(super) epoch: Epoch,
    votes: BTreeMap<MemberId, bool>,
    own_vote: bool,
    ahead: Option<LogPosition>,
    ahead_member: Option<MemberId>,
}

impl Replica {
    /// Whether the clock may start a campaign here.
    pub(super) fn may_campaign(&self) -> bool {
        // The only voter has nobody to wait for or to be told by.
        let told = self.lead_wanted || !self.lead_waiting.is_empty();
        let by_itself = self.tuning.failover == Failover::Automatic || mutant::on(Mutant::CampaignUntold);
        let willing = by_itself || told || self.is_only_voter();
        willing && self.is_electable() && !matches!(self.role, Role::Leader(_))
    }

    fn is_electable(&self) -> bool {
        self.hard.cluster_id.is_some()
            && self.is_voter()
            && (self.hard.quarantine.is_none() || mutant::on(Mutant::QuarantinedCampaigns))
            && !self.standing.removed
            && !self.installing // the log that would be stood with is about to be replaced
            && self.is_accepted()
    }

    pub(super) fn wants_to_lead_now(&self) -> bool {
        self.lead_wanted || self.is_only_voter()
    }

    pub(super) fn schedule_election(&mut self, now: Now) {
        let timeout = self.tuning.heartbeat_timeout_ms;
        self.campaign_at_ms = now.mono_ms + self.random.between(timeout, timeout + timeout * 3 / 10);
    }

    pub(super) fn campaign_soon(&mut self, now: Now) {
        let soon = now.mono_ms + self.turn() * TURN_MS + self.random.between(0, SOON_MS);
        self.campaign_at_ms = self.campaign_at_ms.min(soon);
    }

    /// How many of the voters that are there go first. Whoever is to lead waits for nobody.
    fn turn(&self) -> u64 {
        let is_before = |id: &&MemberId| **id < self.me() && self.peers.get(id).is_some_and(|peer| peer.connected);
        let before = self.other_voters().iter().filter(is_before).count();
        if self.lead_wanted { 0 } else { u64::try_from(before).expect("at most seven voters") }
    }

    fn schedule_retry(&mut self, now: Now) {
        let timeout = self.tuning.heartbeat_timeout_ms;
        let mut wait = self.random.between(timeout * RETRY_PERCENT.0 / 100, timeout * RETRY_PERCENT.1 / 100).max(10);
        if self.lead_wanted {
            wait = wait.min(self.random.between(WANTED_RETRY_MS_MAX / 2, WANTED_RETRY_MS_MAX));
        }
        let in_vain = if mutant::on(Mutant::CampaignOverCampaign) { 0 } else { self.campaigns_in_vain };
        let doublings = in_vain.saturating_sub(1).min(RETRY_DOUBLINGS_MAX);
        self.campaign_at_ms = now.mono_ms + (wait << doublings);
    }

    pub(super) fn campaign_by_time(&mut self, now: Now) {
        if self.leader_is_alive(now) {
            return self.schedule_election(now);
        }
        if self.awaits_own_vote() && !mutant::on(Mutant::CampaignOverCampaign) {
            return self.schedule_retry(now); // another campaign would only stand behind this one's promise
        }
        self.campaign(now, VoteKind::Pre);
    }

    /// The promise of the campaign under way is not on disk yet, and nobody has been asked for a vote.
    fn awaits_own_vote(&self) -> bool {
        matches!(&self.role, Role::Candidate(candidate) if !candidate.own_vote)
    }

    fn campaign(&mut self, now: Now, kind: VoteKind) {
        let epoch = Epoch(self.epoch().0 + 1);
        self.campaigns_in_vain += u32::from(kind != VoteKind::Pre);
        self.role = Role::Candidate(Candidate {
            kind,
            epoch,
            votes: BTreeMap::new(),
            own_vote: false,
            ahead: None,
            ahead_member: None,
        });
        self.leader = None;
        self.catch_up_to = None;
        self.schedule_retry(now);
        if kind == VoteKind::Pre {
            self.ask_for_votes();
            self.on_own_vote(now);
        } else {
            self.note(Note::Campaigns { epoch });
            self.judge_former_leader(now);
            self.hard.promise = Promise { epoch, candidate: Some(self.me()) };
            self.persist_state();
            self.when_durable(Then::OwnVote);
            self.ask_for_votes();
            if mutant::on(Mutant::CountOwnVoteUnsynced) {
                self.on_own_vote(now);
            }
        }
    }

    fn ask_for_votes(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        let (epoch, kind) = (candidate.epoch, candidate.kind);
        let request = VoteRequest { epoch, kind, last: self.log.last(), start_id: self.me.start_id };
        for voter in self.other_voters() {
            let message = Message::VoteRequest(request.clone());
            if request.kind == VoteKind::Pre || mutant::on(Mutant::ClaimEpochBeforePromise) {
                self.send(voter, message);
            } else {
                self.when_durable(Then::Send(voter, message)); // the epoch is promised before it is claimed
            }
        }
    }

    /// The own promise is durable (or, for PreVote, needs not be).
    pub(super) fn on_own_vote(&mut self, now: Now) {
        // Not the present promise: this may be the fsync of an earlier campaign.
        let promised = self.persist.promised();
        let me = self.me();
        let Role::Candidate(candidate) = &mut self.role else { return };
        let current = candidate.kind == VoteKind::Pre
            || promised == Promise { epoch: candidate.epoch, candidate: Some(me) }
            || mutant::on(Mutant::CountOwnVoteUnsynced);
        if current {
            candidate.own_vote = true;
            self.schedule_retry(now); // the others are asked from now on
            self.count_votes(now);
        }
    }

    pub(super) fn on_vote_request(&mut self, now: Now, from: MemberId, request: VoteRequest) {
        if request.kind == VoteKind::Pre {
            let granted = request.epoch > self.epoch() && self.would_vote(now, from, &request);
            return self.answer_vote(from, &request, granted);
        }
        self.saw(from, request.epoch, EntryId::ZERO);
        if request.epoch < self.epoch() || !self.heeds(now, from, &request) {
            return self.answer_vote(from, &request, false);
        }
        if request.epoch > self.epoch() {
            if !self.may_promise() {
                return self.answer_vote(from, &request, false);
            }
            self.lead_wanted |= matches!(self.role, Role::Leader(_)); // unless somebody leads in time
            self.adopt_epoch(now, request.epoch);
        }
        let free =
            self.hard.promise.candidate.is_none_or(|candidate| candidate == from || mutant::on(Mutant::VoteTwice));
        let granted = free && self.would_vote(now, from, &request) && self.leader.is_none();
        if granted {
            self.hard.promise.candidate = Some(from);
            self.persist_state();
            self.schedule_election(now);
        }
        self.answer_vote(from, &request, granted);
    }

    /// A campaign by time-out means nothing to a voter that hears its leader (Raft thesis, 4.2.3).
    fn heeds(&self, now: Now, from: MemberId, request: &VoteRequest) -> bool {
        let undisturbed = self.leader_is_alive(now) && self.leader != Some(from);
        let is_due = request.kind == VoteKind::Directed || !undisturbed || mutant::on(Mutant::VoteWhileLed);
        is_due && !self.is_refused(from)
    }

    fn would_vote(&self, now: Now, from: MemberId, request: &VoteRequest) -> bool {
        let may_vote = |quarantine: &Quarantine| quarantine.may_vote || mutant::on(Mutant::QuarantinedVotes);
        let fit = self.hard.quarantine.as_ref().is_none_or(may_vote);
        let behind = request.last < self.log.last() && !mutant::on(Mutant::SkipVoteRestriction);
        let is_empty = self.hard.cluster_id.is_none();
        let is_known = self.is_accepted() || (is_empty && mutant::on(Mutant::UninitialisedVotes));
        fit && is_known && !behind && self.heeds(now, from, request)
    }

    fn answer_vote(&mut self, to: MemberId, request: &VoteRequest, granted: bool) {
        let epoch = if granted { request.epoch } else { self.epoch() };
        let VoteRequest { kind, start_id, .. } = *request;
        let reply = VoteReply { epoch, kind, granted, last: self.log.last(), start_id };
        if mutant::on(Mutant::VoteBeforePromiseIsDurable) {
            return self.send(to, Message::VoteReply(reply));
        }
        // Granted or not, the answer tells of an epoch: promise first, then answer.
        self.when_durable(Then::Send(to, Message::VoteReply(reply)));
    }

    pub(super) fn on_vote_reply(&mut self, now: Now, from: MemberId, reply: VoteReply) {
        if !reply.granted || reply.kind != VoteKind::Pre {
            self.saw(from, reply.epoch, EntryId::ZERO);
        }
        if !reply.granted && reply.epoch > self.epoch() && self.may_promise() {
            return self.on_refused_by_later_epoch(now, from, &reply);
        }
        if !self.is_this_start(reply.start_id) || (reply.granted && self.is_refused(from)) {
            return;
        }
        let last = self.log.last();
        let Role::Candidate(candidate) = &mut self.role else { return };
        // A campaign that was directed is heeded by all, so that its refusals tell of its epoch, too.
        let tells_epoch = reply.granted || candidate.kind == VoteKind::Directed;
        let stale = tells_epoch && reply.epoch != candidate.epoch && !mutant::on(Mutant::CountStaleVote);
        if reply.kind != candidate.kind || stale {
            return;
        }
        // A refusal may be a late one, of an earlier campaign: it takes no vote back.
        *candidate.votes.entry(from).or_insert(false) |= reply.granted;
        if !reply.granted && reply.last > last.max(candidate.ahead.unwrap_or_default()) {
            candidate.ahead = Some(reply.last);
            candidate.ahead_member = Some(from);
        }
        self.count_votes(now);
    }

    /// The campaign was for an epoch that is over. One that was directed goes on above what was seen.
    fn on_refused_by_later_epoch(&mut self, now: Now, from: MemberId, reply: &VoteReply) {
        let directed = matches!(&self.role, Role::Candidate(c) if c.kind == VoteKind::Directed);
        let behind = reply.last > self.log.last();
        self.adopt_epoch(now, reply.epoch);
        self.schedule_retry(now);
        if behind && let Some(ahead) = self.name_of(from) {
            self.give_way(ahead);
        } else if directed && !self.lead_waiting.is_empty() {
            self.campaign(now, VoteKind::Directed);
        }
    }

    fn count_votes(&mut self, now: Now) {
        let Role::Candidate(candidate) = &self.role else { return };
        let voters = &self.configuration().voters;
        let vote_of = |vote: bool| voters.iter().filter(|v| candidate.votes.get(&v.member_id) == Some(&vote)).count();
        let granted = vote_of(true) + usize::from(candidate.own_vote);
        match (tally(voters.len(), granted, vote_of(false)), candidate.kind) {
            (Tally::Won, VoteKind::Pre) => self.campaign(now, VoteKind::Election),
            (Tally::Won, _) if candidate.own_vote => self.become_leader(now),
            (Tally::Lost, _) => self.lose_campaign(now),
            // Who could answer has answered, and somebody is ahead: more waiting wins nothing.
            (Tally::Open, _) if candidate.ahead.is_some() && self.all_connected_have_voted() => self.lose_campaign(now),
            _ => {}
        }
    }

    fn all_connected_have_voted(&self) -> bool {
        let Role::Candidate(candidate) = &self.role else { return false };
        let connected = |id: &MemberId| self.peers.get(id).is_some_and(|peer| peer.connected);
        self.other_voters().iter().filter(|id| connected(id)).all(|id| candidate.votes.contains_key(id))
    }

    fn lose_campaign(&mut self, now: Now) {
        let Role::Candidate(candidate) = &self.role else { return };
        let ahead = candidate.ahead_member.and_then(|member| self.name_of(member));
        let epoch = self.epoch();
        self.become_follower(now, epoch);
        self.schedule_retry(now);
        if let Some(ahead) = ahead {
            self.give_way(ahead);
        }
    }

    /// A member that is behind stops trying because it was told to.
    fn give_way(&mut self, ahead: NodeName) {
        if self.lead_wanted {
            self.lead_wanted = false;
            self.note(Note::Behind { ahead: ahead.clone() });
        }
        for (token, _) in std::mem::take(&mut self.lead_waiting) {
            self.refuse(token, Refusal::Behind { ahead: ahead.clone() });
        }
    }

    /// `POST /cluster/lead`: by transfer while a leader lives, else by campaign.
    pub(super) fn on_lead(&mut self, now: Now, token: Token, target: Option<Target>) {
        if let Err(refusal) = self.check_target(target.as_ref()) {
            return self.refuse(token, refusal);
        }
        if matches!(self.role, Role::Leader(_)) {
            let config_id = self.config_id();
            return self.reply(token, crate::contract::Reply::Done { config_id });
        }
        if !self.is_electable() {
            return self.refuse(token, self.why_not_electable());
        }
        if self.lead_waiting.len() >= LEAD_WAITING_MAX {
            return self.refuse(token, Refusal::Overloaded);
        }
        self.lead_waiting.push((token, now.mono_ms + LEAD_WAIT_MS));
        match self.leader {
            Some(leader) if self.leader_is_alive(now) => {
                let epoch = self.epoch();
                self.send(leader, Message::TransferRequest { epoch });
            }
            _ if matches!(&self.role, Role::Candidate(candidate) if candidate.kind == VoteKind::Directed) => {}
            _ => self.campaign(now, VoteKind::Directed),
        }
    }

    /// Time alone makes no voter of a learner: that is no state to wait out.
    fn why_not_electable(&self) -> Refusal {
        let why = match &self.hard.quarantine {
            _ if self.hard.cluster_id.is_none() => "the node is uninitialised".to_owned(),
            _ if !self.is_voter() => return Refusal::Conflict("the node is not a voter".to_owned()),
            Some(quarantine) => format!("the node is quarantined: {}", quarantine.reason),
            None if self.standing.removed => "the node was removed from the group".to_owned(),
            None if self.installing => "the node installs a snapshot".to_owned(),
            None => "the node has not shown itself to a majority of the voters yet".to_owned(),
        };
        Refusal::NotReady(why)
    }

    pub(super) fn on_timeout_now(&mut self, now: Now, from: MemberId, epoch: Epoch) {
        if epoch == self.epoch() && self.leader == Some(from) && self.is_electable() {
            self.lead_wanted = true; // votes can be lost, and nobody else is about to campaign
            self.campaign(now, VoteKind::Directed);
        }
    }

    /// A directive is pursued until it is answered: a request to hand over or a vote may have been lost,
    /// or have come before the voters could act.
    pub(super) fn pursue_lead_directives(&mut self, now: Now) {
        if self.lead_waiting.is_empty() || !self.is_electable() {
            return;
        }
        match (&self.role, self.leader) {
            (Role::Follower(_), Some(leader)) if self.leader_is_alive(now) => {
                let epoch = self.epoch();
                self.send(leader, Message::TransferRequest { epoch });
            }
            (Role::Follower(_), _) => self.campaign(now, VoteKind::Directed),
            (Role::Candidate(_) | Role::Leader(_), _) => {}
        }
    }

    pub(super) fn expire_lead_directives(&mut self, now: Now) {
        let (expired, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lead_waiting).into_iter().partition(|&(_, until)| now.mono_ms >= until);
        self.lead_waiting = waiting;
        for (token, _) in expired {
            self.refuse(token, Refusal::NotConfirmed);
        }
    }
}
