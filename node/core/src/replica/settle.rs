//! What follows from a batch of steps: commit, apply, answer, send, announce. Runs once per
//! [`Replica::take_effects`], so that one write to the log, one frame to each peer and one round serve
//! the whole batch.

use super::{Replica, Role};
use crate::contract::{Effect, Note, Now, Persist, Refusal, Reply};
use crate::entry::{Body, Control, Entry, EntryId, Epoch, LogPosition};
use crate::group::{ClusterId, MemberId};
use crate::heartbeat::Heard;
use crate::message::Promise;
use crate::mutant::{self, Mutant};
use crate::state_machine::Outcome;

/// The hard state, with its committed id and what was seen of others, is saved at least this often.
const SAVE_EVERY_ENTRIES: u64 = 65_536;

impl Replica {
    pub(super) fn settle(&mut self, now: Now) {
        self.advance_commit();
        self.apply_committed(now);
        self.unpark(now);
        match self.role {
            Role::Leader(_) => self.settle_leader(now),
            Role::Follower(_) | Role::Candidate(_) => {
                self.submit_entries();
                self.settle_follower();
            }
        }
        self.finish_refill();
        if self.committed.0 >= self.saved_committed.0 + SAVE_EVERY_ENTRIES {
            self.persist_state();
        }
        self.log.trim_cache(self.state.applied(), self.limits.cache_bytes_max);
        self.announce_peers();
        self.announce_view(now);
    }

    /// Applies what is committed and durable here: state never runs ahead of the own disk, so earlier
    /// values can always be read from the log.
    fn apply_committed(&mut self, now: Now) {
        if self.installing {
            return;
        }
        let durable = if mutant::on(Mutant::ApplyAheadOfDisk) { self.log.last().id } else { self.persist.durable() };
        let up_to = self.committed.min(durable);
        while self.applied() < up_to {
            let id = self.applied().next();
            let entry = self.log.get(id).expect("what is not applied is in memory").clone();
            let outcome = self.state.apply(&entry);
            if let Some(ts) = entry.ts_ms {
                self.clock.observe(ts, now);
            }
            self.on_applied(&entry, outcome);
        }
    }

    fn on_applied(&mut self, entry: &Entry, outcome: Outcome) {
        if let Body::Control(Control::Config(configuration)) = &entry.body {
            self.note(Note::ConfigurationApplied { id: entry.id, configuration: configuration.clone() });
        }
        match entry.body {
            Body::Control(_) => self.answer_control(entry.id),
            Body::Set { .. } | Body::Delete { .. } => self.on_applied_led(entry, outcome),
        }
    }

    fn answer_control(&mut self, applied: EntryId) {
        let config_id = self.config_id();
        let Role::Leader(leader) = &mut self.role else { return };
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut leader.control_waiting).into_iter().partition(|&(id, _)| id <= applied);
        leader.control_waiting = waiting;
        for (_, token) in due {
            self.reply(token, Reply::Done { config_id });
        }
    }

    /// A snapshot from the present leader, whole and verified, is waiting on disk.
    pub(super) fn on_snapshot_staged(
        &mut self,
        now: Now,
        from: MemberId,
        epoch: Epoch,
        position: LogPosition,
        cluster_id: ClusterId,
    ) {
        let empty = self.hard.cluster_id.is_none();
        let same_group = self.hard.cluster_id.as_ref().is_none_or(|mine| *mine == cluster_id);
        // It was overtaken by appends: what stands above it may have been acknowledged, and must stay.
        let overtaken = (position.id < self.committed
            || (!empty && !self.needs_snapshot && self.log.matches(position)))
            && !mutant::on(Mutant::InstallOvertakenSnapshot);
        if overtaken {
            // The leader may not get further without this member: lines do until damage is told of again.
            self.needs_snapshot = false;
        }
        let may_follow = empty || self.may_follow(from) || mutant::on(Mutant::TakeEntriesUnaccepted);
        if self.installing || !same_group || overtaken || !may_follow || !(empty || self.follow(now, from, epoch)) {
            return; // the leader finds out by probing, and sends another if it is still needed
        }
        if empty {
            self.hard.cluster_id = Some(cluster_id);
            self.hard.promise = self.hard.promise.max(Promise { epoch, candidate: None });
            self.leader = Some(from);
            self.leader_heard.mark(now.mono_ms);
        }
        self.hard.committed = position.id;
        if let Some(quarantine) = &mut self.hard.quarantine {
            quarantine.may_vote = false; // it may end below what was acknowledged
            self.persist.take_back_what_counts();
        }
        self.installing = true;
        let state = Box::new(self.hard.clone());
        self.persist_install(Persist::Install { state, position });
    }

    pub(super) fn on_installed(&mut self, now: Now, boot: crate::contract::Boot) {
        let applied = boot.state.applied();
        self.persist_installed(now);
        (self.installing, self.needs_snapshot) = (false, false);
        let replaced = std::mem::replace(&mut self.state, boot.state);
        if mutant::on(Mutant::MergeSnapshot) {
            self.state.merge(&replaced);
        }
        let was_voter = self.is_voter();
        self.log = super::log::Log::new(boot.base.horizon, boot.epoch_runs, applied, boot.tail);
        self.log.lost_at(boot.lost.declared_at);
        self.undeclared = boot.lost.undeclared;
        self.configurations = super::Configurations::new(boot.base.configuration, boot.configurations);
        self.standing.let_go |= was_voter && !self.is_voter();
        self.committed = applied;
        self.persist_restarted(self.log.last().id);
        self.clock.observe(self.state.last_ts_ms(), now);
        if let Role::Follower(follower) = &mut self.role {
            // What is committed is in the log of whoever leads.
            *follower = super::Follower::default();
            follower.matched = applied;
        }
        if self.shown_to.is_empty() {
            self.show_to_all(); // initialised by this snapshot, over connections that are older
        }
        self.schedule_election(now);
        self.take_up_waiting_append(now);
    }

    pub(super) fn on_tune(&mut self, now: Now, token: crate::contract::Token, change: crate::contract::TuningChange) {
        let crate::contract::TuningChange { heartbeat_interval_ms, heartbeat_timeout_ms, failover } = change;
        let interval = heartbeat_interval_ms.unwrap_or(self.tuning.heartbeat_interval_ms);
        let timeout = heartbeat_timeout_ms.unwrap_or(self.tuning.heartbeat_timeout_ms);
        if interval == 0 || (timeout <= interval && !mutant::on(Mutant::TimeoutBelowInterval)) {
            let why = format!("heartbeat timeout {timeout} ms must be above the interval {interval} ms");
            return self.refuse(token, Refusal::Invalid(why));
        }
        self.tuning.heartbeat_interval_ms = interval;
        self.tuning.heartbeat_timeout_ms = timeout;
        self.tuning.failover = failover.unwrap_or(self.tuning.failover);
        if !mutant::on(Mutant::TuneLater) {
            self.heartbeat_at_ms = now.mono_ms;
        }
        self.schedule_election(now);
        let config_id = self.config_id();
        self.reply(token, Reply::Done { config_id });
    }

    /// Clients that gave up: nothing of theirs is proposed any more; what was proposed goes on.
    pub(super) fn on_cancelled(&mut self, token: crate::contract::Token) {
        self.lead_waiting.retain(|&(waiting, _)| waiting != token);
        if let Role::Leader(leader) = &mut self.role {
            leader.writes.cancel_parked(token);
        }
    }

    pub(super) fn forget_leader(&mut self) {
        self.leader_heard = Heard::default();
    }

    pub(super) fn push_effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
