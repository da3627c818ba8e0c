//! Who is in the group: bootstrap, learners, one voter more or less at a time, replacement of a lost
//! volume, the group's settings, and recovery by hand. A change waits until an entry of the leader's
//! own epoch is committed (Ongaro's erratum to single-server changes, raft-dev 2015).

use super::persist::Then;
use super::progress::{Pace, Progress};
use super::{Configurations, Replica, Role, Standing};
use crate::contract::{Base, Now, Persist, Refusal, Reply, SettingsChange, Target, Token};
use crate::entry::{Control, EntryId, Epoch};
use crate::group::{
    ClusterId, Configuration, ConfigurationAt, FEATURE_LEVEL, MemberId, MemberInfo, NodeName, Settings, VOTERS_MAX,
};
use crate::message::{Message, Promise, Round};
use crate::mutant::{self, Mutant};
use crate::quorum;

/// Learners that one leader keeps.
pub(super) const LEARNERS_MAX: usize = 16;
/// A change of voters that those whom it rests on have not answered by then is given up.
const ANSWERS_WAIT_MS: u64 = 2_000;
/// Administrators that wait for a control entry to be applied.
const CONTROL_WAITING_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Learner {
    pub(super) info: MemberInfo,
    /// The voter of the same name whose volume is lost.
    pub(super) replaces: Option<MemberId>,
}

/// The one change of voters under way.
#[derive(Debug)]
pub(super) struct Change {
    kind: ChangeKind,
    pub(super) token: Option<Token>,
    /// Whoever the group rests on then has answered this round, which began after the change was asked for: what was
    /// heard before says nothing of who is still there.
    round: Round,
    /// The answers are waited for until then.
    until_ms: u64,
    proposed: Option<EntryId>,
}

#[derive(Debug, Clone)]
pub(super) enum ChangeKind {
    Add(MemberInfo),
    Remove(MemberId),
}

impl Change {
    /// The entry that removes `member`, when that is the change.
    pub(super) fn removal_of(&self, member: MemberId) -> Option<EntryId> {
        self.proposed.filter(|_| matches!(self.kind, ChangeKind::Remove(removed) if removed == member))
    }
}

impl Replica {
    /// A directive is carried out only where, and on what, it was decided.
    pub(super) fn check_target(&self, target: Option<&Target>) -> Result<(), Refusal> {
        let Some(target) = target else { return Ok(()) };
        let Target { cluster_id, target_member_id, if_config_id } = target;
        let same = self.hard.cluster_id.as_ref() == Some(cluster_id)
            && *target_member_id == self.me()
            && *if_config_id == self.config_id();
        if same || mutant::on(Mutant::IgnoreTarget) { Ok(()) } else { Err(self.identity_mismatch()) }
    }

    fn identity_mismatch(&self) -> Refusal {
        Refusal::IdentityMismatch {
            cluster_id: self.hard.cluster_id.clone(),
            member_id: self.me(),
            config_id: self.config_id(),
            epoch: self.epoch(),
        }
    }

    pub(super) fn my_info(&self) -> MemberInfo {
        MemberInfo { name: self.hard.name.clone(), member_id: self.me(), peer_url: self.me.peer_url.clone() }
    }

    pub(super) fn on_bootstrap(
        &mut self,
        token: Token,
        target: Option<MemberId>,
        if_config_id: Option<EntryId>,
        cluster_id: ClusterId,
        voters: Vec<MemberInfo>,
        settings: Settings,
    ) {
        let configuration = Configuration::new(voters);
        let is_meant = target.is_none_or(|target| target == self.me());
        if !is_meant || if_config_id.is_some_and(|id| id != EntryId::ZERO) {
            return self.refuse(token, self.identity_mismatch());
        }
        if let Err(why) = check_bootstrap(&configuration, &self.my_info()) {
            return self.refuse(token, Refusal::Invalid(why));
        }
        if self.hard.cluster_id.is_some() && !mutant::on(Mutant::FoundTwice) {
            let base = &self.configurations.base;
            let same = self.hard.cluster_id.as_ref() == Some(&cluster_id)
                && base.id == EntryId::ZERO
                && base.configuration == configuration;
            if !same {
                return self.refuse(token, self.identity_mismatch());
            }
            let config_id = self.config_id();
            return self.when_durable(Then::Reply(token, Reply::Done { config_id }));
        }
        self.found(cluster_id, configuration, settings);
        if mutant::on(Mutant::AnswerBeforeFounded) {
            return self.reply(token, Reply::Done { config_id: EntryId::ZERO });
        }
        self.when_durable(Then::Reply(token, Reply::Done { config_id: EntryId::ZERO }));
    }

    fn found(&mut self, cluster_id: ClusterId, configuration: Configuration, settings: Settings) {
        self.hard.cluster_id = Some(cluster_id);
        let at = ConfigurationAt { id: EntryId::ZERO, configuration };
        let base = Base { configuration: at.clone(), settings, feature_level: FEATURE_LEVEL, ..Base::default() };
        self.state.found(&base);
        self.configurations = Configurations { base: at, above: Vec::new() };
        let state = Box::new(self.hard.clone());
        self.persist_with_state(Persist::Found { state, base: Box::new(base) });
        self.when_durable(Then::Founded);
    }

    pub(super) fn on_founded(&mut self, now: Now) {
        self.heartbeat_at_ms = now.mono_ms;
        self.schedule_election(now);
        self.show_to_all();
        if self.wants_to_lead_now() {
            self.campaign_at_ms = now.mono_ms;
        }
    }

    pub(super) fn on_add_member(
        &mut self,
        now: Now,
        token: Token,
        target: Option<Target>,
        member: MemberInfo,
        voter: bool,
    ) {
        if let Err(refusal) = self.check_leading(target.as_ref()).and_then(|()| self.check_name(now, &member)) {
            return self.refuse(token, refusal);
        }
        let config_id = self.config_id();
        if self.configuration().contains(member.member_id) {
            return self.reply(token, Reply::Done { config_id });
        }
        if voter {
            return self.promote(now, token, member);
        }
        match self.add_learner(now, member) {
            Ok(()) => self.reply(token, Reply::Done { config_id }),
            Err(refusal) => self.refuse(token, refusal),
        }
    }

    fn check_leading(&self, target: Option<&Target>) -> Result<(), Refusal> {
        match self.role {
            Role::Leader(_) => self.check_target(target),
            _ => Err(Refusal::NotLeader { leader: self.leader }),
        }
    }

    /// A name belongs to its member while that one leads or was heard within the time-out.
    fn check_name(&self, now: Now, member: &MemberInfo) -> Result<(), Refusal> {
        let Role::Leader(leader) = &self.role else { return Ok(()) };
        let known = self.configuration().voters.iter().chain(leader.learners.values().map(|learner| &learner.info));
        let mut holders = known.filter(|k| k.name == member.name && k.member_id != member.member_id);
        match holders.find(|holder| holder.member_id == self.me() || self.was_heard(now, holder.member_id)) {
            Some(holder) if !mutant::on(Mutant::TakeNameOfTheLiving) => {
                Err(Refusal::NameTaken { holder: holder.member_id })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn was_heard(&self, now: Now, member: MemberId) -> bool {
        let timeout_ms = self.tuning.heartbeat_timeout_ms;
        self.peers.get(&member).is_some_and(|p| p.heard.ago_ms(now.mono_ms).is_some_and(|ago| ago < timeout_ms))
    }

    fn promote(&mut self, now: Now, token: Token, member: MemberInfo) {
        let too_many = self.configuration().voters.len() >= VOTERS_MAX;
        let Role::Leader(leader) = &self.role else { return };
        let known = leader.learners.get(&member.member_id);
        let refused = match known {
            None => Some("add it as a learner first".to_owned()),
            Some(learner) if learner.replaces.is_some() => Some("the leader replaces it by itself".to_owned()),
            Some(_) if too_many => Some(format!("a group has at most {VOTERS_MAX} voters")),
            Some(_) if leader.change.is_some() && !mutant::on(Mutant::ChangeWhileChanging) => {
                Some("another change of voters is under way".to_owned())
            }
            Some(_) if !self.is_reachable(now, member.member_id) => Some("the learner is not reachable".to_owned()),
            Some(_) if !self.is_caught_up(member.member_id) => Some("the learner has not caught up yet".to_owned()),
            Some(_) => None,
        };
        match refused {
            Some(why) => self.refuse(token, Refusal::Conflict(why)),
            None => self.begin_change(now, ChangeKind::Add(member), Some(token)),
        }
    }

    pub(super) fn begin_change(&mut self, now: Now, kind: ChangeKind, token: Option<Token>) {
        let until_ms = now.mono_ms + ANSWERS_WAIT_MS;
        if let Role::Leader(leader) = &mut self.role {
            let round = leader.rounds.want();
            leader.change = Some(Change { kind, token, round, until_ms, proposed: None });
        }
    }

    pub(super) fn is_caught_up(&self, member: MemberId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let enough = EntryId(self.committed.0.saturating_sub(quorum::CAUGHT_UP_ENTRIES));
        // Its answer counts, not an empty log's distance from a short one.
        let caught_up = |p: &Progress| p.pace == Pace::Replicate && p.matched >= enough && !p.unfit;
        member == self.me()
            || leader.progress.get(&member).is_some_and(caught_up)
            || mutant::on(Mutant::PromoteBeforeCaughtUp)
    }

    pub(super) fn on_remove_member(&mut self, now: Now, token: Token, target: Option<Target>, member: MemberId) {
        if let Err(refusal) = self.check_leading(target.as_ref()) {
            return self.refuse(token, refusal);
        }
        let config_id = self.config_id();
        // Whoever is awaited in a lost voter's place is part of the configuration, too.
        let listed = self.configuration().contains(member) || self.configuration().awaits(member);
        let Role::Leader(leader) = &mut self.role else { return };
        let becomes_voter = |change: &Change| matches!(&change.kind, ChangeKind::Add(new) if new.member_id == member);
        if leader.change.as_ref().is_some_and(becomes_voter) {
            return self.refuse(token, Refusal::Conflict("it is being made a voter".to_owned()));
        }
        if !listed {
            if leader.learners.remove(&member).is_some() {
                leader.progress.remove(&member);
            }
            return self.reply(token, Reply::Done { config_id });
        }
        if leader.change.is_some() {
            return self.refuse(token, Refusal::Conflict("another change of voters is under way".to_owned()));
        }
        match self.why_not_remove(now, member, Round::default()) {
            Some(why) => self.refuse(token, Refusal::Conflict(why)),
            None => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.learners.remove(&member); // awaited no more
                }
                self.begin_change(now, ChangeKind::Remove(member), Some(token));
            }
        }
    }

    /// Who remains must be reachable, have caught up, and have answered `round`.
    pub(super) fn why_not_remove(&self, now: Now, member: MemberId, round: Round) -> Option<String> {
        if member == self.me() {
            return Some("the leader can't be removed: move leadership first".to_owned());
        }
        let remaining: Vec<MemberId> = self.configuration().ids().filter(|&id| id != member).collect();
        let answers = |id: MemberId| self.is_reachable(now, id) && self.has_answered(id, round);
        let fit = |&&id: &&MemberId| id == self.me() || (answers(id) && self.is_caught_up(id));
        let caught_up = remaining.iter().filter(fit).count();
        (!quorum::safe_to_remove(remaining.len(), caught_up))
            .then(|| "no majority of the remaining voters is reachable and caught up".to_owned())
    }

    fn has_answered(&self, member: MemberId, round: Round) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let answered = |progress: &Progress| progress.acked_round >= round || mutant::on(Mutant::ChangeUnanswered);
        leader.progress.get(&member).is_some_and(answered)
    }

    /// Ends the change under way, or starts a replacement that is due.
    pub(super) fn settle_membership(&mut self, now: Now) {
        self.finish_change(now);
        self.replace_lost(now);
    }

    /// The learner that is being made a voter. Like the voters it must answer the round that this waits for.
    pub(super) fn becomes_voter(&self) -> Option<MemberId> {
        let Role::Leader(leader) = &self.role else { return None };
        match &leader.change.as_ref()?.kind {
            ChangeKind::Add(member) => Some(member.member_id),
            ChangeKind::Remove(_) => None,
        }
    }

    pub(super) fn propose_change(&mut self, now: Now) {
        if self.is_handing_over() {
            return;
        }
        let Role::Leader(leader) = &self.role else { return };
        let Some(Change { kind, round, until_ms, proposed: None, .. }) = &leader.change else { return };
        let (kind, round, until_ms) = (kind.clone(), *round, *until_ms);
        if self.log.last().epoch != self.epoch() {
            let leader = self.me();
            self.append_control(now, Control::Epoch { leader });
        }
        let own_committed = self.log.epoch_at(self.committed) == Some(self.epoch());
        let too_soon = !own_committed && !mutant::on(Mutant::ChangeBeforeOwnEpoch);
        let changing = self.config_id() > self.committed && !mutant::on(Mutant::ChangeWhileChanging);
        if too_soon || changing {
            return;
        }
        let why_not = match &kind {
            ChangeKind::Add(member) => self.why_not_add(now, member.member_id, round),
            ChangeKind::Remove(member) => self.why_not_remove(now, *member, round),
        };
        match why_not {
            Some(why) if now.mono_ms >= until_ms => return self.give_up_change(why),
            Some(_) => return,
            None => {}
        }
        let configuration = match kind {
            ChangeKind::Add(member) => self.configuration().with(member),
            ChangeKind::Remove(member) if mutant::on(Mutant::ReplaceInOneEntry) => {
                let successor = self.successor_of(member);
                let configuration = self.configuration().without(member, None);
                successor.map_or(configuration.clone(), |successor| configuration.with(successor))
            }
            ChangeKind::Remove(member) => self.configuration().without(member, self.successor_of(member)),
        };
        let id = self.append_control(now, Control::Config(configuration));
        if let Role::Leader(leader) = &mut self.role
            && let Some(change) = &mut leader.change
        {
            change.proposed = Some(id);
        }
    }

    fn why_not_add(&self, now: Now, member: MemberId, round: Round) -> Option<String> {
        let fit = self.is_reachable(now, member) && self.has_answered(member, round) && self.is_caught_up(member);
        (!fit).then(|| "the learner does not answer".to_owned())
    }

    /// It waited for its turn, and what was true when it was asked for is not any more.
    fn give_up_change(&mut self, why: String) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(token) = leader.change.take().and_then(|change| change.token) {
            self.refuse(token, Refusal::Conflict(why));
        }
    }

    fn finish_change(&mut self, now: Now) {
        let (applied, config_id) = (self.applied(), self.config_id());
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.change.as_ref().and_then(|change| change.proposed).is_none_or(|id| id > applied) {
            return;
        }
        let Change { kind, token, .. } = leader.change.take().expect("just seen");
        if let ChangeKind::Remove(member) = kind {
            self.replicate_all_to(now, member); // it learns of it by the entry, if it can take it at once
        }
        let Role::Leader(leader) = &mut self.role else { return };
        match kind {
            ChangeKind::Add(member) => drop(leader.learners.remove(&member.member_id)),
            ChangeKind::Remove(member) => {
                if !leader.learners.contains_key(&member) {
                    leader.progress.remove(&member);
                }
                self.send(member, Message::NotAMember { config_id });
            }
        }
        if let Some(token) = token {
            self.reply(token, Reply::Done { config_id });
        }
    }

    pub(super) fn on_change_settings(
        &mut self,
        now: Now,
        token: Token,
        target: Option<Target>,
        change: SettingsChange,
    ) {
        if let Err(refusal) = self.check_leading(target.as_ref()) {
            return self.refuse(token, refusal);
        }
        if let Some(refusal) = self.why_not_change_settings() {
            return self.refuse(token, refusal);
        }
        let SettingsChange { history_limit, dedup_expiry_seconds, dedup_limit } = change;
        let current = self.state.settings();
        let settings = Settings {
            history_limit: history_limit.unwrap_or(current.history_limit),
            dedup_expiry_seconds: dedup_expiry_seconds.unwrap_or(current.dedup_expiry_seconds),
            dedup_limit: dedup_limit.unwrap_or(current.dedup_limit),
        };
        if let Err(why) = settings.check() {
            return self.refuse(token, Refusal::Invalid(why));
        }
        let id = self.append_control(now, Control::Settings(settings));
        if let Role::Leader(leader) = &mut self.role {
            leader.control_waiting.push((id, token));
        }
    }

    fn why_not_change_settings(&self) -> Option<Refusal> {
        let Role::Leader(leader) = &self.role else { return None };
        if !self.is_ready_to_decide() {
            return Some(Refusal::NotReady("the leader still applies what it inherited".to_owned()));
        }
        if self.is_handing_over() {
            return Some(Refusal::Conflict("leadership is being handed over".to_owned()));
        }
        (leader.control_waiting.len() >= CONTROL_WAITING_MAX).then_some(Refusal::Overloaded)
    }

    /// Majority lost for good: this survivor goes on alone, as another cluster.
    pub(super) fn on_recover(
        &mut self,
        now: Now,
        token: Token,
        target: Option<Target>,
        accept_at: Epoch,
        cluster_id: ClusterId,
    ) {
        if let Err(refusal) = self.check_target(target.as_ref()) {
            return self.refuse(token, refusal);
        }
        let is_of_now = accept_at == self.epoch() || mutant::on(Mutant::RecoverAtAnyEpoch);
        if self.hard.cluster_id.is_none() || !is_of_now {
            return self.refuse(token, self.identity_mismatch());
        }
        if self.leader_is_alive(now) && !self.lease_has_lapsed(now) && !mutant::on(Mutant::RecoverBesideLeader) {
            return self.refuse(token, Refusal::Conflict("a leader lives: nothing is lost for good".to_owned()));
        }
        if self.hears_a_majority(now) && !mutant::on(Mutant::RecoverBesideMajority) {
            let why = "a majority of the voters is heard: nothing is lost for good";
            return self.refuse(token, Refusal::Conflict(why.to_owned()));
        }
        if self.installing {
            return self.refuse(token, Refusal::NotReady("the node installs a snapshot".to_owned()));
        }
        let epoch = Epoch(self.epoch().0 + 1);
        self.become_follower(now, epoch);
        self.hard.cluster_id = Some(cluster_id);
        self.hard.promise = Promise { epoch, candidate: Some(self.me()) };
        self.hard.seen.clear();
        self.hard.quarantine = None;
        // Damage at rest is told of again. A snapshot that was asked for before would come without a quarantine, and
        // could take what was acknowledged since.
        (self.needs_snapshot, self.damage_told) = (false, None);
        self.standing = Standing::default();
        (self.leader, self.waiting_append) = (None, None);
        self.submit_entries();
        let at = ConfigurationAt { id: self.log.last().id, configuration: Configuration::new(vec![self.my_info()]) };
        self.configurations = Configurations { base: at.clone(), above: Vec::new() };
        let state = Box::new(self.hard.clone());
        self.persist_with_state(Persist::Recover { state, configuration: at });
        self.when_durable(Then::Founded);
        let config_id = self.config_id();
        if mutant::on(Mutant::AnswerRecoveryUndurable) {
            return self.reply(token, Reply::Done { config_id });
        }
        self.when_durable(Then::Reply(token, Reply::Done { config_id }));
    }

    /// This one and those whom it hears could elect. The only voter has nobody to hear.
    fn hears_a_majority(&self, now: Now) -> bool {
        let is_unfit = |id: &MemberId| self.report_of(*id).is_some_and(|report| report.unfit);
        let others = self.other_voters().into_iter().filter(|id| self.is_reachable(now, *id) && !is_unfit(id)).count();
        let own = usize::from(self.is_voter() && self.hard.quarantine.is_none());
        others > 0 && own + others >= quorum::majority(self.configuration().voters.len())
    }

    /// Learners stand in no configuration. A leader that has fed this one, and knows it no more, was told to remove
    /// it; one that never has may just not have been told of it.
    pub(super) fn on_not_a_member(&mut self, now: Now, from: MemberId, config_id: EntryId) {
        let newer = config_id >= self.config_id();
        if newer && (self.leader == Some(from) || !self.leader_is_alive(now)) {
            let was_fed = self.leader == Some(from) && self.standing.fed_in == Some(self.epoch());
            self.standing.removed = true;
            self.standing.let_go |= was_fed;
            self.standing.forgotten = !self.standing.let_go;
            self.forget_leader();
        }
    }

    pub(super) fn name_of(&self, member: MemberId) -> Option<NodeName> {
        let voter = self.configuration().voters.iter().find(|v| v.member_id == member).map(|v| v.name.clone());
        voter.or_else(|| self.peers.get(&member)?.hello.as_ref().map(|hello| hello.name.clone()))
    }
}

fn check_bootstrap(configuration: &Configuration, me: &MemberInfo) -> Result<(), String> {
    let voters = &configuration.voters;
    if voters.is_empty() || voters.len() > VOTERS_MAX {
        return Err(format!("voters: a group has 1 to {VOTERS_MAX}"));
    }
    if voters.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err("voters: a name stands twice".to_owned());
    }
    let twice = |v: &MemberInfo| voters.iter().filter(|w| w.member_id == v.member_id).count() > 1;
    if voters.iter().any(twice) {
        return Err("voters: a member id stands twice".to_owned());
    }
    let MemberInfo { name, member_id, peer_url: _ } = me;
    match voters.iter().find(|voter| voter.member_id == *member_id) {
        None => Err(format!("voters: this node's member id {member_id} is missing")),
        Some(own) if own.name != *name => Err(format!("voters: member {member_id} is {name}, not {}", own.name)),
        Some(_) => Ok(()),
    }
}
