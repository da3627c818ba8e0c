//! Following: heartbeats and appends of a leader. An append is matched, conflicting entries are cut
//! (never at or below the own commit id), new ones go to the WAL, and are acknowledged once durable.

use super::persist::Then;
use super::{Replica, Role, Standing};
use crate::contract::{Note, Now, Quarantine};
use crate::entry::{Body, Control, Entry, EntryId, Epoch};
use crate::group::{ConfigurationAt, MemberId};
use crate::message::{Append, AppendAck, AppendResult, Heartbeat, Message, Round};
use crate::mutant::{self, Mutant};

#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The last id known to match the log of the present leader in the present epoch.
    pub(super) matched: EntryId,
    /// An acknowledgement is owed, for the highest round heard.
    ack_owed: bool,
    round: Round,
    /// The last positive answer that was sent.
    acked: Option<(EntryId, Round)>,
}

impl Replica {
    pub(super) fn on_heartbeat(&mut self, now: Now, from: MemberId, heartbeat: Heartbeat) {
        let Heartbeat { epoch, last, applied, leaving, .. } = heartbeat;
        self.refuse_again(from);
        let lead = heartbeat.lead.clone().filter(|_| !self.is_refused(from));
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            progress.storage_full = heartbeat.storage_full;
            // That it counts again is told by an acknowledgement alone.
            progress.unfit |= heartbeat.unfit;
            if mutant::on(Mutant::CountHeartbeatPositions) {
                progress.matched = progress.matched.max(heartbeat.durable);
            }
        }
        self.peer(from).report = Some(heartbeat);
        if leaving {
            self.on_leaving(now, from);
        }
        if self.hard.cluster_id.is_none() {
            return;
        }
        if applied <= self.committed {
            self.saw(from, epoch, applied); // what both hold as committed is one and the same
        }
        self.turn_away(from);
        let Some(lead) = lead else { return self.on_epoch_rumour(now, from, epoch) };
        if !self.may_follow(from) && !mutant::on(Mutant::PromiseUnaccepted) {
            return;
        }
        if !self.follow(now, from, epoch) {
            return self.send_epoch_hint(from);
        }
        self.see_leaders_log(last);
        self.learn_committed(lead.committed);
        if self.is_believed_by(from) {
            // Late rather than never: the next heartbeat may be many seconds away.
            self.when_durable(Then::Send(from, Message::HeartbeatAck { epoch, round: lead.round }));
        }
    }

    /// A leader tells a member of its cluster that it is no part of the group (any more).
    fn turn_away(&mut self, from: MemberId) {
        let Role::Leader(leader) = &self.role else { return };
        let config_id = self.config_id();
        if config_id <= self.committed && !leader.progress.contains_key(&from) {
            self.send(from, Message::NotAMember { config_id });
        }
    }

    /// A leader hears of a higher epoch from a voter: it can't lead that voter any more.
    fn on_epoch_rumour(&mut self, now: Now, from: MemberId, epoch: Epoch) {
        if epoch > self.epoch() && matches!(self.role, Role::Leader(_)) && self.configuration().contains(from) {
            self.on_higher_epoch(now, epoch); // assigned, and deposed by nobody in particular: stand again
        }
    }

    /// Tells an old leader of the epoch that it has to reckon with.
    fn send_epoch_hint(&mut self, to: MemberId) {
        let ack = self.ack(Round::default(), AppendResult::Durable(EntryId::ZERO));
        if self.persist.promise_is_durable() {
            self.send(to, Message::AppendAck(ack));
        } else {
            self.when_durable(Then::Send(to, Message::AppendAck(ack)));
        }
    }

    /// Takes `from` as the leader of `epoch`. False: this replica has promised a later epoch.
    pub(super) fn follow(&mut self, now: Now, from: MemberId, epoch: Epoch) -> bool {
        if epoch < self.epoch() && !mutant::on(Mutant::FollowOlderLeader) {
            return false;
        }
        if epoch > self.epoch() {
            self.adopt_epoch(now, epoch);
        }
        assert!(!matches!(self.role, Role::Leader(_)), "two leaders in epoch {epoch}: {} and {from}", self.me());
        if matches!(self.role, Role::Candidate(_)) || self.leader != Some(from) {
            self.become_follower(now, epoch);
            self.leader = Some(from);
            if mutant::on(Mutant::TruncateToCommit) && self.committed < self.log.last().id {
                self.cut_tail(self.committed);
            }
            self.lead_wanted = false;
            self.campaigns_in_vain = 0;
            self.note(Note::Follows { leader: from, epoch });
        }
        (self.deposed, self.standing.removed) = (false, false);
        self.leader_heard.mark(now.mono_ms);
        self.schedule_election(now);
        true
    }

    /// Caught up is who has applied what the leader held when it was first heard in this epoch. What it calls committed may be less than
    /// was answered: that much it knows only when an entry of its own is committed.
    fn see_leaders_log(&mut self, end: EntryId) {
        self.catch_up_to.get_or_insert(end);
    }

    /// What the leader has committed counts here only as far as the logs are known to match.
    fn learn_committed(&mut self, leader_committed: EntryId) {
        if let Role::Follower(follower) = &self.role {
            let known = if mutant::on(Mutant::BelieveCommitUnmatched) { self.log.last().id } else { follower.matched };
            self.committed = self.committed.max(leader_committed.min(known));
        }
    }

    /// This volume is known to be the newest of its member.
    fn is_believed_by(&self, peer: MemberId) -> bool {
        self.is_shown_to(peer) && (self.hard.quarantine.is_none() || mutant::on(Mutant::QuarantinedConfirms))
    }

    pub(super) fn ack(&self, round: Round, result: AppendResult) -> AppendAck {
        let unfit = self.hard.quarantine.is_some();
        AppendAck { epoch: self.epoch(), round, result, storage_full: self.storage_full, unfit }
    }

    pub(super) fn on_append(&mut self, now: Now, from: MemberId, append: Append) {
        if self.installing {
            self.waiting_append = Some((from, append));
            return;
        }
        if self.hard.cluster_id.is_none() {
            let ack = self.ack(append.round, AppendResult::NeedSnapshot);
            let ack = AppendAck { epoch: append.epoch, ..ack };
            return self.send(from, Message::AppendAck(ack));
        }
        if self.superseded || self.is_refused(from) {
            return;
        }
        if !self.may_follow(from) && !mutant::on(Mutant::TakeEntriesUnaccepted) {
            self.waiting_append = Some((from, append));
            return;
        }
        if !self.follow(now, from, append.epoch) {
            return self.send_epoch_hint(from);
        }
        self.see_leaders_log(append.entries.last().map_or(append.prev.id, |entry| entry.id));
        self.standing = Standing { fed_in: Some(append.epoch), ..Standing::default() };
        if self.needs_snapshot {
            return; // asked for at its own pace
        }
        if self.hard.quarantine.is_some() && self.log.last().id == EntryId::ZERO {
            // Its base is gone, and with it the settings that the first lines were decided by.
            let ack = self.ack(Round::default(), AppendResult::NeedSnapshot);
            return self.when_durable(Then::Send(from, Message::AppendAck(ack)));
        }
        match self.match_log(&append) {
            Ok(()) => self.take_entries(append),
            Err(result) => {
                // Where the logs meet may be told by any volume; that its leader leads, may not.
                let round = if self.is_believed_by(from) { append.round } else { Round::default() };
                let ack = self.ack(round, result);
                self.when_durable(Then::Send(from, Message::AppendAck(ack)));
            }
        }
    }

    /// It waits for an installation, or for this start to be accepted.
    pub(super) fn take_up_waiting_append(&mut self, now: Now) {
        if let Some((from, append)) = self.waiting_append.take() {
            self.on_append(now, from, append);
        }
    }

    fn match_log(&self, append: &Append) -> Result<(), AppendResult> {
        let prev = append.prev;
        if prev.id < self.log.horizon().id {
            // What is compacted is committed, so it matches; the entries above it are looked at below.
            let reaches = append.entries.last().is_some_and(|entry| entry.id >= self.log.horizon().id);
            let hint = self.log.horizon();
            return if reaches { Ok(()) } else { Err(AppendResult::Mismatch { rejected: prev.id, hint }) };
        }
        let held = prev.id <= self.log.last().id && mutant::on(Mutant::SkipLogMatching);
        if self.log.matches(prev) || held {
            return Ok(());
        }
        Err(AppendResult::Mismatch { rejected: prev.id, hint: self.log.hint_below(prev) })
    }

    fn take_entries(&mut self, append: Append) {
        let mut matched = append.prev.id.max(self.log.horizon().id);
        if mutant::on(Mutant::CutMatchingTail) && append.prev.id < self.log.last().id {
            self.cut_tail(append.prev.id.max(self.committed));
        }
        for entry in append.entries {
            let position = entry.position();
            if position.id <= self.log.horizon().id || self.log.matches(position) {
                matched = matched.max(position.id);
                continue;
            }
            if position.id <= self.log.last().id && mutant::on(Mutant::KeepConflictingTail) {
                matched = position.id;
                continue;
            }
            if position.id <= self.log.last().id && !self.cut_tail(position.id.prev()) {
                return self.contradict();
            }
            if position.id != self.log.last().id.next() {
                break; // a gap inside one append: take what fits
            }
            self.append_followed(entry);
            matched = position.id;
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.matched = follower.matched.max(matched);
            follower.ack_owed = true;
            follower.round = follower.round.max(append.round);
        }
        self.learn_committed(append.committed);
    }

    fn append_followed(&mut self, entry: Entry) {
        self.observe_configuration(&entry);
        self.log.push(entry);
    }

    pub(super) fn observe_configuration(&mut self, entry: &Entry) {
        if let Body::Control(Control::Config(configuration)) = &entry.body {
            self.standing.let_go |= self.is_voter() && !configuration.contains(self.me());
            self.configurations.push(ConfigurationAt { id: entry.id, configuration: configuration.clone() });
            if self.is_voter() && !self.is_accepted() {
                self.show_to_all(); // a majority of the new voters must know this volume before it acts
            }
        }
    }

    /// The leader's log differs from committed entries here: a broken rule or a broken disk, never a
    /// state to go on from. The process stops; started again, it is quarantined and asks for a snapshot,
    /// which replaces everything.
    fn contradict(&mut self) {
        if self.hard.quarantine.is_some() {
            if let Some(leader) = self.leader {
                let ack = self.ack(Round::default(), AppendResult::NeedSnapshot);
                self.when_durable(Then::Send(leader, Message::AppendAck(ack)));
            }
            return;
        }
        let reason = format!("a leader's log contradicts entries up to {} that are committed here", self.committed);
        self.hard.quarantine = Some(Quarantine { reason: reason.clone(), until: None, may_vote: false });
        self.persist_state();
        self.stop(reason);
    }

    /// Drops a divergent tail. False: it would reach committed entries.
    fn cut_tail(&mut self, keep: EntryId) -> bool {
        if keep < self.committed {
            return false;
        }
        self.note(Note::TailCut { keep, last: self.log.last().id });
        self.persist_cut(keep);
        self.log.truncate(keep);
        if !mutant::on(Mutant::KeepCutConfiguration) {
            self.configurations.truncate(keep);
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.matched = follower.matched.min(keep);
        }
        true
    }

    /// What the leader knows of this member has changed with no append to answer.
    pub(super) fn owe_acknowledgement(&mut self) {
        if let Role::Follower(follower) = &mut self.role {
            follower.ack_owed = true;
        }
    }

    /// Acknowledges what is durable and matched, once for a batch of inputs.
    pub(super) fn settle_follower(&mut self) {
        let durable = if mutant::on(Mutant::AckBeforeFsync) { self.log.last().id } else { self.persist.durable() };
        let Some(leader) = self.leader else { return };
        let is_known = self.is_shown_to(leader) || self.hard.quarantine.is_some();
        let speaks = self.persist.promise_is_durable() && is_known;
        let Role::Follower(follower) = &mut self.role else { return };
        let matched = if mutant::on(Mutant::AckUnmatched) { durable } else { follower.matched };
        let positive = (durable.min(matched), follower.round);
        let progressed = follower.acked.is_some_and(|(id, _)| positive.0 > id);
        if !speaks || !(follower.ack_owed || progressed) {
            return;
        }
        follower.ack_owed = false;
        follower.acked = Some(positive);
        let ack = self.ack(positive.1, AppendResult::Durable(positive.0));
        self.send(leader, Message::AppendAck(ack));
    }

    pub(super) fn become_follower(&mut self, now: Now, epoch: Epoch) {
        let old = std::mem::replace(&mut self.role, Role::Follower(Follower::default()));
        self.catch_up_to = None;
        match old {
            Role::Leader(leader) => self.leave_office(now, *leader, epoch),
            Role::Candidate(_) | Role::Follower(_) => {}
        }
        self.schedule_election(now);
    }
}
