//! Leading: taking office, replicating to each peer at its pace, counting acknowledgements, handing
//! over. Only entries of the own epoch are committed by counting, and only durable matched ids count.

use std::collections::BTreeMap;

use super::membership::{Change, Learner};
use super::progress::{Pace, Progress};
use super::reads::Rounds;
use super::transfer::Transfer;
use super::writes::Writes;
use super::{Replica, Role};
use crate::contract::{Effect, Failover, Note, Now, Refusal, Reply, Token};
use crate::entry::{Body, Control, Entry, EntryId, Epoch, LogPosition};
use crate::group::{FEATURE_LEVEL, FeatureLevel, MemberId};
use crate::message::{Append, AppendAck, AppendResult, Message, Round};
use crate::mutant::{self, Mutant};
use crate::quorum;

/// Compaction waits for a live voter that is at most this many entries behind.
const RETENTION_ENTRIES_MAX: u64 = 200_000;

#[derive(Debug)]
pub(super) struct Leader {
    /// Nothing is decided before this is applied: the end of what was inherited, epoch start included.
    pub(super) inherited: EntryId,
    pub(super) progress: BTreeMap<MemberId, Progress>,
    pub(super) learners: BTreeMap<MemberId, Learner>,
    pub(super) rounds: Rounds,
    pub(super) writes: Writes,
    pub(super) transfer: Option<Transfer>,
    pub(super) change: Option<Change>,
    /// Administrators waiting for a control entry to be applied.
    pub(super) control_waiting: Vec<(EntryId, Token)>,
    /// At the last check no majority had been heard within the time-out.
    pub(super) is_unheard: bool,
}

impl Replica {
    pub(super) fn become_leader(&mut self, now: Now) {
        let last = self.log.last();
        let others = self.other_voters();
        let progress = others.into_iter().map(|id| (id, Progress::new(last.id.next(), now.mono_ms))).collect();
        // A majority that votes for last id 0 proves that nothing was ever committed: no epoch start.
        let nothing = last.id == EntryId::ZERO && !mutant::on(Mutant::EpochStartOnEmptyLog);
        let inherited = if nothing { EntryId::ZERO } else { last.id.next() };
        self.role = Role::Leader(Box::new(Leader {
            inherited,
            progress,
            learners: BTreeMap::new(),
            rounds: Rounds::default(),
            writes: Writes::default(),
            transfer: None,
            change: None,
            control_waiting: Vec::new(),
            is_unheard: false,
        }));
        self.leader = Some(self.me());
        self.deposed = false;
        self.lead_wanted = false;
        self.campaigns_in_vain = 0;
        self.catch_up_to = Some(inherited);
        self.observe_inherited_time(now);
        if inherited > EntryId::ZERO && !mutant::on(Mutant::NoEpochStart) {
            let leader = self.me();
            self.append_control(now, Control::Epoch { leader });
            self.declare_lost(now);
        }
        self.take_over_replacements(now);
        self.note(Note::BecameLeader { epoch: self.epoch() });
        let config_id = self.config_id();
        for (token, _) in std::mem::take(&mut self.lead_waiting) {
            self.reply(token, Reply::Done { config_id });
        }
        self.heartbeat_at_ms = now.mono_ms + self.tuning.heartbeat_interval_ms;
        self.send_heartbeats(now);
    }

    /// Time in the log never goes back, also behind entries that are not applied yet.
    fn observe_inherited_time(&mut self, now: Now) {
        if mutant::on(Mutant::TimeByApplied) {
            return;
        }
        for id in self.applied().0 + 1..=self.log.last().id.0 {
            let entry = self.log.get(EntryId(id)).expect("what is not applied is in memory");
            if let Some(ts_ms) = entry.ts_ms {
                self.clock.observe(ts_ms, now);
            }
        }
    }

    /// A leader that no majority is heard by any more decides nothing, and its heartbeats may still keep others
    /// from electing one that could: it steps down (Raft thesis, 6.2). Where nobody stands by himself, that
    /// would help nobody. Two checks in a row: after a pause of the process, what has arrived comes first.
    pub(super) fn check_majority(&mut self, now: Now) {
        let voters = self.configuration().voters.len();
        let heard = self.other_voters().into_iter().filter(|&voter| self.was_heard(now, voter)).count() + 1;
        let automatic = self.tuning.failover == Failover::Automatic;
        let epoch = self.epoch();
        let Role::Leader(leader) = &mut self.role else { return };
        let was_unheard = std::mem::replace(&mut leader.is_unheard, heard < quorum::majority(voters));
        if automatic && was_unheard && leader.is_unheard && !mutant::on(Mutant::LeadUnheard) {
            self.note(Note::Unheard { epoch });
            self.become_follower(now, epoch);
            self.leader = None;
        }
    }

    /// What a group of one lacks, nobody has: from here on its log says so, and no write is decided before.
    /// Members of a larger group are refilled instead.
    fn declare_lost(&mut self, now: Now) {
        if !self.is_only_voter() {
            return;
        }
        for (first, last) in std::mem::take(&mut self.undeclared) {
            let id = self.append_control(now, Control::Lost { first, last });
            self.log.lost_at(id);
            if let Role::Leader(leader) = &mut self.role {
                leader.inherited = id;
            }
            self.catch_up_to = Some(id);
        }
    }

    /// Orders a control entry; its id.
    pub(super) fn append_control(&mut self, now: Now, control: Control) -> EntryId {
        let ts = self.clock.now_ms(now);
        self.clock.observe(ts, now);
        self.append_led(Body::Control(control), Some(ts))
    }

    pub(super) fn append_led(&mut self, body: Body, ts_ms: Option<u64>) -> EntryId {
        let entry = Entry::encode(self.log.last().id.next(), self.epoch(), ts_ms, body);
        let id = entry.id;
        self.observe_configuration(&entry);
        self.log.push(entry);
        id
    }

    /// Answers everybody who waits, honestly: what was proposed may still take effect.
    pub(super) fn leave_office(&mut self, now: Now, leader: Leader, by: Epoch) {
        let Leader { rounds, writes, transfer, control_waiting, change, .. } = leader;
        let (unknown, unproposed) = writes.into_waiting();
        self.note(Note::Deposed { by, unknown_outcomes: unknown.len() });
        let change = change.and_then(|change| change.token);
        for token in unknown.into_iter().chain(control_waiting.into_iter().map(|(_, t)| t)).chain(change) {
            if mutant::on(Mutant::DeposedSaysNotProposed) {
                self.refuse(token, Refusal::NotLeader { leader: None });
                continue;
            }
            self.refuse(token, Refusal::OutcomeUnknown);
        }
        for token in unproposed.into_iter().chain(rounds.into_waiting()) {
            self.refuse(token, Refusal::NotLeader { leader: None });
        }
        if let Some(token) = transfer.and_then(Transfer::into_token) {
            let config_id = self.config_id();
            self.reply(token, Reply::Done { config_id });
        }
        self.deposed = true;
        self.leader_heard = crate::heartbeat::Heard::default();
        self.leader_heard.mark(now.mono_ms);
    }

    pub(super) fn on_append_ack(&mut self, now: Now, from: MemberId, ack: AppendAck) {
        if ack.epoch > self.epoch() {
            // A learner may have promised more when it was a voter; it can follow no lower epoch.
            let learns = matches!(&self.role, Role::Leader(leader) if leader.learners.contains_key(&from));
            if learns || self.configuration().contains(from) {
                self.on_higher_epoch(now, ack.epoch);
            }
            return;
        }
        let (last, mine) = (self.log.last().id, self.epoch());
        let stale = ack.epoch != mine && !mutant::on(Mutant::CountStaleAck);
        if stale || !matches!(self.role, Role::Leader(_)) {
            return;
        }
        let unfit = ack.unfit || self.is_refused(from);
        if let AppendResult::Durable(id) = ack.result {
            // What does not count it may lose: a snapshot may end below.
            self.saw(from, ack.epoch, if unfit { EntryId::ZERO } else { id });
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&from) else { return };
        progress.storage_full = ack.storage_full;
        let counts_again = progress.judge_fitness(unfit);
        if ack.result != AppendResult::NeedSnapshot {
            progress.acked_round = progress.acked_round.max(ack.round);
        }
        match ack.result {
            AppendResult::Durable(id) if id <= last => {
                progress.accepted(id, now.mono_ms);
                if counts_again {
                    progress.probe(id.next(), now.mono_ms); // it may be a late answer, and no other is due
                }
            }
            AppendResult::Durable(_) => {} // above our log: not an answer to anything we sent
            AppendResult::Mismatch { rejected, hint } => {
                if unfit {
                    // What it acknowledged before it was quarantined, it may have lost.
                    progress.matched = progress.matched.min(hint.id);
                }
                // A late refusal of an append that was answered meanwhile changes nothing. At the matched
                // id itself: the peer's horizon is above it.
                if counts_again || (rejected >= progress.matched && rejected < progress.next) {
                    progress.probe(hint.id.next().max(EntryId(1)).min(last.next()), now.mono_ms);
                }
            }
            AppendResult::NeedSnapshot => self.start_snapshot(from),
        }
    }

    /// A voter has promised a later epoch: this one is over.
    pub(super) fn on_higher_epoch(&mut self, now: Now, epoch: Epoch) {
        if !self.may_promise() {
            return; // what is answered to a former start, or to the original of a copy
        }
        let led = matches!(self.role, Role::Leader(_));
        let handed_over = self.has_handed_over();
        self.lead_wanted |= led;
        self.adopt_epoch(now, epoch);
        // The epoch of a hand-over belongs to its target: it has the whole time-out for winning it.
        if led && !handed_over {
            self.campaign_soon(now);
        }
    }

    pub(super) fn start_snapshot(&mut self, peer: MemberId) {
        let (floor, epoch, lines_after) = (self.applied(), self.epoch(), self.log.snapshot_up_to());
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        if progress.needs_snapshot() || floor < lines_after {
            return; // a snapshot from before a LOST entry would be followed by another one
        }
        progress.snapshot_started(floor);
        self.effects.push(Effect::SendSnapshot { peer, epoch });
    }

    pub(super) fn on_snapshot_sent(&mut self, now: Now, peer: MemberId, result: Result<LogPosition, String>) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        if progress.pace != Pace::Snapshot {
            return;
        }
        match result {
            Ok(position) => progress.probe(position.id.next(), now.mono_ms),
            Err(_) => progress.snapshot_failed(now.mono_ms),
        }
    }

    pub(super) fn on_fetched(&mut self, now: Now, peer: MemberId, from: EntryId, mut entries: Vec<Entry>) {
        let last = self.last_to_send(peer);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&peer).filter(|p| p.fetching) else { return };
        progress.fetching = false;
        if progress.next != from {
            return;
        }
        if entries.is_empty() || from <= self.log.snapshot_up_to() {
            return self.start_snapshot(peer);
        }
        entries.retain(|entry| entry.id <= last);
        // Only what this log still holds as read: the cut of a tail may have come in between.
        if entries.iter().all(|entry| self.log.matches(entry.position())) {
            self.send_append(now, peer, entries);
        }
    }

    /// Sends each peer what it can take now. Peers that are down get heartbeats alone.
    fn replicate(&mut self, now: Now) {
        let Role::Leader(leader) = &self.role else { return };
        let peers: Vec<MemberId> = leader.progress.keys().copied().collect();
        for peer in peers {
            self.replicate_all_to(now, peer);
        }
    }

    pub(super) fn replicate_all_to(&mut self, now: Now, peer: MemberId) {
        if self.is_reachable(now, peer) {
            while self.replicate_to(now, peer) {}
        }
    }

    /// One append, fetch or snapshot to one peer. True: there may be more to send.
    fn replicate_to(&mut self, now: Now, peer: MemberId) -> bool {
        let (last, lines_after) = (self.last_to_send(peer), self.log.snapshot_up_to());
        let Role::Leader(leader) = &mut self.role else { return false };
        let Some(progress) = leader.progress.get_mut(&peer) else { return false };
        let Some((entries_max, bytes_max)) = progress.room(&self.limits).filter(|_| !progress.fetching) else {
            return false;
        };
        let from = progress.next;
        if from <= lines_after {
            self.start_snapshot(peer);
            return false;
        }
        // A commit id goes out alone only when nothing is on the way that will be answered soon: the answer
        // comes back here, with new entries to carry it or with nothing left in flight.
        let commit_news = progress.told_committed < self.committed
            && progress.told_committed < progress.next.prev()
            && progress.is_answered();
        let idle = progress.pace == Pace::Replicate && !commit_news;
        if from > last && idle {
            return false;
        }
        let unsent = usize::try_from(last.next().0.saturating_sub(from.0)).unwrap_or(usize::MAX);
        match self.log.slice(from, entries_max.min(unsent), bytes_max) {
            Some(entries) => {
                let more = !entries.is_empty();
                self.send_append(now, peer, entries);
                more
            }
            None => {
                progress.fetching = true;
                self.effects.push(Effect::Fetch { peer, from, bytes_max });
                false
            }
        }
    }

    /// The only voter sends nothing that a crash may take from it, and a member that is being removed gets
    /// nothing from the entry on that removes it, until that is committed. Else it could be left with the
    /// longest log, and the others would wait for its vote for ever.
    fn last_to_send(&self, peer: MemberId) -> EntryId {
        let alone = self.is_only_voter() && !mutant::on(Mutant::SendUndurableAlone);
        let last = if alone { self.persist.durable() } else { self.log.last().id };
        let Role::Leader(leader) = &self.role else { return last };
        match leader.change.as_ref().and_then(|change| change.removal_of(peer)) {
            Some(removal) if removal > self.committed && !mutant::on(Mutant::SendRemovalToTheRemoved) => {
                last.min(removal.prev())
            }
            _ => last,
        }
    }

    fn send_append(&mut self, now: Now, peer: MemberId, entries: Vec<Entry>) {
        let committed = self.committed;
        let epoch = self.epoch();
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        let prev_id = progress.next.prev();
        let prev_epoch = self.log.epoch_at(prev_id).expect("what is sent is above the horizon");
        let bytes = entries.iter().map(|entry| entry.line.len()).sum();
        progress.sent(entries.last().map_or(prev_id, |entry| entry.id), bytes, committed, now.mono_ms);
        let prev = LogPosition { epoch: prev_epoch, id: prev_id };
        let append = Append { epoch, round: leader.rounds.current(), prev, committed, entries };
        self.send(peer, Message::Append(append));
    }

    /// Counts acknowledgements, moves commits, hand-overs and rounds on, and sends what follows.
    pub(super) fn settle_leader(&mut self, now: Now) {
        self.settle_membership(now);
        self.advance_rounds(now);
        self.settle_transfer();
        self.propose_change(now);
        self.submit_entries();
        self.replicate(now);
    }

    pub(super) fn advance_commit(&mut self) {
        let (me, durable) = (self.me(), self.persist.durable());
        let may_count = self.persist.promise_is_durable() && self.is_accepted();
        let Role::Leader(leader) = &self.role else { return };
        let counted = |voter: MemberId| match leader.progress.get(&voter) {
            _ if voter == me && mutant::on(Mutant::CommitOwnUnsynced) => self.log.last().id,
            _ if voter == me => durable,
            Some(progress) if !progress.unfit || mutant::on(Mutant::CountUnfit) => progress.matched,
            _ => EntryId::ZERO,
        };
        let mut ids: Vec<EntryId> = self.configuration().ids().map(counted).collect();
        if mutant::on(Mutant::CountLearners) {
            ids.extend(leader.learners.keys().map(|&learner| counted(learner)));
        }
        let id = quorum::durable_on_majority(&mut ids);
        // Entries of earlier epochs are committed only beneath one of the own (Raft paper, figure 8).
        let is_own = self.log.epoch_at(id) == Some(self.epoch()) || mutant::on(Mutant::CommitOldEpoch);
        if may_count && id > self.committed && is_own {
            self.committed = id;
        }
    }

    pub(super) fn is_ready_to_decide(&self) -> bool {
        let has_applied = |id| self.applied() >= id || mutant::on(Mutant::DecideBeforeInherited);
        matches!(&self.role, Role::Leader(leader) if has_applied(leader.inherited))
    }

    pub(super) fn tick_leader(&mut self, now: Now) {
        let end = self.log.last().id.next();
        let Role::Leader(leader) = &mut self.role else { return };
        for progress in leader.progress.values_mut().filter(|progress| progress.is_stalled(now.mono_ms)) {
            let next = match progress.matched {
                // Answered, and not durable there when it was: the peer may owe no answer any more.
                _ if progress.pace == Pace::Replicate && progress.is_answered() => progress.next,
                // Nothing known to match yet: ask at the end again, rather than send all from the first entry.
                EntryId::ZERO => end,
                matched => matched.next(),
            };
            progress.probe(next, now.mono_ms);
        }
        // Only an acknowledgement makes a member count again, and an idle group has none to give.
        for progress in leader.progress.values_mut().filter(|p| p.unfit && p.pace == Pace::Replicate) {
            progress.probe(progress.next, now.mono_ms);
        }
        self.expire_transfer(now);
        self.raise_feature_level(now);
    }

    /// When all voters understand more than the group uses, an entry raises the level.
    fn raise_feature_level(&mut self, now: Now) {
        let busy = !self.is_ready_to_decide() || self.is_handing_over();
        if busy || self.state.feature_level() >= FEATURE_LEVEL {
            return;
        }
        let level_of = |id: MemberId| self.peers.get(&id)?.hello.as_ref().map(|hello| hello.feature_level);
        let others = self.other_voters().into_iter().map(|id| level_of(id).unwrap_or_default());
        let level = others.min().unwrap_or(FEATURE_LEVEL).min(FEATURE_LEVEL);
        let pending = self.log.last().id > self.applied();
        if level > self.state.feature_level() && !pending {
            self.append_control(now, Control::Feature(level));
        }
    }

    pub(super) fn compaction_limit(&self, now: Now) -> EntryId {
        let applied = self.applied();
        let Role::Leader(leader) = &self.role else { return applied };
        let oldest = EntryId(applied.0.saturating_sub(RETENTION_ENTRIES_MAX));
        let needed_by = |(&id, progress): (&MemberId, &Progress)| match progress.floor {
            Some(floor) => Some(floor),
            None if mutant::on(Mutant::CompactPastVoter) => None,
            None if self.is_reachable(now, id) && self.configuration().contains(id) => Some(progress.matched),
            None => None,
        };
        let needed = leader.progress.iter().filter_map(needed_by).filter(|&id| id >= oldest).min();
        needed.map_or(applied, |needed| needed.min(applied))
    }

    pub(super) fn feature_level_of_this_build() -> FeatureLevel {
        FEATURE_LEVEL
    }

    pub(super) fn current_round(&self) -> Option<Round> {
        match &self.role {
            Role::Leader(leader) => Some(leader.rounds.current()),
            _ => None,
        }
    }
}
