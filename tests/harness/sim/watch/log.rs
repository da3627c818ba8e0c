//! The checks of the logs: what is asked, what is durable, what is sent, what is applied.

use std::collections::BTreeSet;

use kv_core::command::OperationKind;
use kv_core::contract::{HardState, Persist, View};
use kv_core::entry::{Body, Control, Entry, EntryId, Epoch};
use kv_core::group::MemberId;
use kv_core::message::{AppendAck, AppendResult, Message, Promise, VoteKind, VoteReply};
use kv_core::mutant;
use kv_core::state_machine::Outcome;
use kv_core::status::Role;

use super::rules::voters_in;
use super::{Decided, Effect, GONE_COUNTS_US, Ledger, Line, Watch, most};
use crate::sim::coverage::Reached;
use crate::sim::node::Place;
use crate::sim::world::{Waiter, World};

/// Every so many rounds the state of a replica is compared even if nothing else calls for it.
const COMPARE_EVERY: u64 = 3;

impl World {
    pub(crate) fn watch_started(&mut self, place: Place) {
        self.watch.applied_here.insert(place, EntryId::ZERO);
        let volume = self.volume_of(place);
        self.watch.volumes.insert(place.start, volume);
        self.watch_applied(place);
        self.compare_state(place);
        self.watch_started_in_a_group(place);
        self.watch_may_campaign(place);
    }

    /// After the steps of a round.
    pub(crate) fn watch_round(&mut self, place: Place) {
        self.watch.rounds += 1;
        self.watch_leader(place);
        self.check_leading(place);
        self.watch_unheard(place);
        self.check_pace(place);
        let has_applied = self.watch_applied(place);
        if has_applied && self.watch.rounds.is_multiple_of(COMPARE_EVERY) {
            self.compare_state(place);
        }
    }

    fn watch_leader(&mut self, place: Place) {
        let node = &self.nodes[place.node];
        let Some(process) = node.process.as_ref() else { return };
        let status = process.replica.view(node.now(self.now_us));
        if status.role != Role::Leader {
            return;
        }
        let first = *self.watch.leaders.entry(status.epoch).or_insert(place);
        assert_eq!(first, place, "two leaders in epoch {}", status.epoch);
    }

    /// Takes what a replica applied for the first time anywhere into the canon.
    fn watch_applied(&mut self, place: Place) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return false };
        let applied = process.applied();
        let before = self.watch.applied_here.insert(place, applied).unwrap_or_default();
        assert!(applied >= before, "{} applied {before}, and now {applied}", self.nodes[place.node].name);
        for id in (before.0 + 1..=applied.0).map(EntryId) {
            let line = self.nodes[place.node].volume.ledger.durable.get(&id).cloned();
            match (self.watch.line(id), line) {
                (Some(first), Some(line)) => assert_eq!(*first, line, "another entry was applied at {id}"),
                (Some(_), None) => {} // below the horizon of a snapshot
                (None, None) => panic!("entry {id} was applied, and is not on the disk"),
                (None, Some(line)) => self.extend_canon(place, id, line),
            }
        }
        applied > before
    }

    fn extend_canon(&mut self, place: Place, id: EntryId, line: Line) {
        self.watch_group_acts(place, "commits");
        if self.watch.counted.get(&id) != Some(&line.epoch) {
            self.check_majority(place, id, &line);
        }
        self.count_replacement(place, &line);
        self.watch.decide(line);
    }

    /// The steps of replacements, as entries tell of them: each entry names those that are half done.
    fn count_replacement(&mut self, place: Place, line: &Line) {
        let entry = Entry::decode(line.bytes.clone()).expect("what was applied is a line");
        let Body::Control(Control::Config(configuration)) = &entry.body else { return };
        let half_done: BTreeSet<MemberId> = configuration.replacing.iter().map(|r| r.new.member_id).collect();
        let begun = half_done.iter().filter(|new| !self.watch.replacing.contains_key(new)).count();
        if begun > 0 {
            self.coverage.count(Reached::ReplacementBegun);
            self.watch.replacement_begun_at = Some(place);
        }
        let before = std::mem::take(&mut self.watch.replacing);
        for (_, since) in before.iter().filter(|(new, _)| configuration.ids().any(|voter| voter == **new)) {
            self.coverage.count(Reached::ReplacementEnded);
            if *since < entry.epoch {
                self.coverage.count(Reached::ReplacementTakenOver);
            }
        }
        let since = |new: MemberId| (new, before.get(&new).copied().unwrap_or(entry.epoch));
        self.watch.replacing = half_done.into_iter().map(since).collect();
    }

    /// A majority of the voters' disks holds the line now. Majorities of neighbouring configurations
    /// intersect, so it may be that of the one before, or of one that a leader has proposed behind it:
    /// a configuration is in force from the moment it is in the log, which may be the leader's alone.
    pub(super) fn check_majority(&self, place: Place, id: EntryId, line: &Line) {
        let held_by = |voter: &MemberId| self.ledgers_of(*voter).any(|ledger| ledger.durable.get(&id) == Some(line));
        let (_, mine) = self.configuration_before(place, EntryId(u64::MAX));
        let recent = self.recent_configurations(place);
        let next = self.watch.proposed.range((id, line.epoch)..);
        let next = next.filter(|(at, _)| self.watch.is_behind(**at, (id, line.epoch))).map(|(_, voters)| voters);
        let holds = std::iter::once(&mine).chain(recent).chain(next).any(|voters| most(voters, held_by));
        assert!(holds, "entry {id} is committed, and not on the disks of a majority");
    }

    /// By its leader. Who has it on disk may lose that before anybody applies it.
    pub(super) fn counted(&mut self, place: Place, id: EntryId) {
        self.check_majority_of(place, id);
        let line = self.nodes[place.node].volume.ledger.asked.get(&id);
        self.watch.counted.extend(line.map(|line| (id, line.epoch)));
    }

    /// Also at the moment at which a client is told.
    pub(super) fn check_majority_of(&self, place: Place, id: EntryId) {
        let line = self.nodes[place.node].volume.ledger.asked.get(&id);
        self.check_majority(place, id, line.expect("who counts an entry, or answers for it, has it in its log"));
    }

    /// Of all volumes that this member has, or has had a moment ago.
    pub(super) fn ledgers_of(&self, member: MemberId) -> impl Iterator<Item = &Ledger> {
        let living = self.nodes.iter().map(|node| &node.volume.ledger);
        let gone = self.watch.graveyard.iter().filter(|(_, since_us)| self.now_us - since_us < GONE_COUNTS_US);
        living.chain(gone.map(|(ledger, _)| ledger)).filter(move |ledger| ledger.member() == Some(member))
    }

    /// What a replica takes for the voters is what its log says, after each of its rounds.
    pub(crate) fn watch_voters(&self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref().filter(|process| process.place == place) else {
            return;
        };
        let is_member = process.replica.view(self.clock_of(place)).role != Role::Uninitialised;
        // Of which group its volume is, a recovery by hand says when it is durable.
        let recovers = |op: &Persist| matches!(op, Persist::Recover { .. });
        let mut under_way = process.ops.iter().chain(&process.unfinished).map(|(_, op)| op);
        let is_between = process.replica.is_installing() || under_way.any(recovers);
        if is_member && !is_between && !self.watch.rules.is_quarantined(place) {
            self.check_voters(place);
        }
    }

    pub(super) fn check_voters(&self, place: Place) {
        let (_, last) = self.configuration_before(place, EntryId(u64::MAX));
        let voters: BTreeSet<MemberId> = self.voters_of(place).into_iter().collect();
        assert_eq!(voters, last.into_iter().collect(), "the voters, and those of the last configuration in the log");
    }

    pub(crate) fn compare_state(&self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        // A quarantined member may stand between a compaction's horizon and what that was made from.
        let is_complete = process.replica.view(self.clock_of(place)).serves;
        let applied = process.applied();
        if let Some(decided) = self.watch.decided(applied).filter(|_| is_complete) {
            let name = &self.nodes[place.node].name;
            assert_eq!(
                process.replica.state().digest(),
                decided.digest,
                "{name} differs from a replay up to {applied}"
            );
        }
    }

    pub(crate) fn watch_asked(&mut self, place: Place, op: &Persist) {
        if let Persist::Append { entries, .. } = op {
            return entries.iter().for_each(|entry| self.watch_entry_asked(place, entry));
        }
        if let Persist::Install { position, .. } = op {
            self.check_admitted(place, position.id);
            self.watch_replaced(place);
        }
        let ledger = &self.nodes[place.node].volume.ledger;
        // A recovery that is not on the disk yet has made a group of one.
        let takes_on = |hard: &HardState| {
            hard.quarantine.is_none()
                && hard.promise.epoch > ledger.promise.epoch
                && hard.cluster_id.as_ref() == ledger.cluster()
        };
        if matches!(op, Persist::Truncate { .. }) || matches!(op, Persist::State(hard) if takes_on(hard)) {
            self.check_admitted(place, EntryId(u64::MAX));
        }
        self.watch.watch_recovery(op);
        let (ledger, watch) = (&mut self.nodes[place.node].volume.ledger, &mut self.watch);
        match op {
            Persist::Append { .. } => {}
            Persist::Truncate { keep } => {
                for (id, line) in ledger.asked.split_off(&keep.next()) {
                    assert_ne!(watch.line(id), Some(&line), "entry {id} is committed, and is cut");
                    let is_counted = watch.counted.get(&id) == Some(&line.epoch);
                    assert!(!is_counted, "entry {id} was counted as committed, and is cut before anybody applies it");
                }
            }
            Persist::Install { position, .. } => {
                watch.note_installed(place, position.id);
                assert!(position.id.0 <= watch.committed(), "a snapshot holds only what is committed");
                let is_refilled = watch.rules.is_quarantined(place);
                for (id, line) in ledger.asked.range(position.id.next()..).filter(|_| !is_refilled) {
                    let is_kept = watch.line(*id) != Some(line);
                    assert!(is_kept, "entry {id} is committed, and a snapshot at {} drops it", position.id);
                }
                let lines = (1..=position.id.0).map(EntryId);
                ledger.asked = lines.filter_map(|id| Some((id, watch.line(id)?.clone()))).collect();
            }
            Persist::State(_) | Persist::Found { .. } | Persist::Recover { .. } => {}
        }
    }

    fn watch_entry_asked(&mut self, place: Place, entry: &Entry) {
        self.trace.line(&entry.line);
        self.check_admitted(place, entry.id);
        self.watch_change_of_voters(place, entry);
        self.watch_first_entry(place, entry);
        self.watch_time(place, entry);
        let (ledger, watch) = (&mut self.nodes[place.node].volume.ledger, &mut self.watch);
        assert_eq!(entry.id, ledger.last_asked().next(), "a log has no gap");
        let before = ledger.asked.last_key_value().map_or(Epoch::default(), |(_, line)| line.epoch);
        let line = watch.note_line(entry, before);
        ledger.asked.insert(entry.id, line);
    }

    /// The first write of a group has id 1, unless its voters were changed before: that needs an entry.
    fn watch_first_entry(&self, place: Place, entry: &Entry) {
        if entry.id != EntryId(1) || !matches!(entry.body, Body::Control(Control::Epoch { .. })) {
            return;
        }
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let is_needed = process.waiting.values().any(Waiter::changes_voters);
        let orders = self.leads_in(place, entry.epoch);
        assert!(!orders || is_needed, "the first entry is the start of an epoch, and nobody changes voters");
    }

    pub(crate) fn watch_persisted(&mut self, place: Place, op: &Persist) {
        let (ledger, watch) = (&mut self.nodes[place.node].volume.ledger, &self.watch);
        match op {
            Persist::Append { entries, .. } => {
                let line = |entry: &Entry| (entry.id, Line { epoch: entry.epoch, bytes: entry.line.clone() });
                ledger.durable.extend(entries.iter().map(line));
            }
            Persist::Truncate { .. } => {}
            Persist::State(state) | Persist::Found { state, .. } | Persist::Recover { state, .. } => {
                ledger.keeps_vote(state);
                ledger.keeps(state);
            }
            Persist::Install { state, position } => {
                ledger.keeps_vote(state);
                ledger.keeps(state);
                let lines = (1..=position.id.0).map(EntryId);
                ledger.durable = lines.filter_map(|id| Some((id, watch.line(id)?.clone()))).collect();
            }
        }
        self.audit_sometimes(place);
    }

    pub(crate) fn watch_sent(&mut self, place: Place, to: MemberId, message: &Message) {
        self.check_said(place, to, message);
        self.watch_rules_of_sending(place, to, message);
        match message {
            Message::AppendAck(AppendAck { epoch, result: AppendResult::Durable(id), unfit: false, .. }) => {
                self.check_ack(place, to, *epoch, *id);
            }
            Message::VoteReply(VoteReply { epoch, kind, granted: true, start_id, .. }) if *kind != VoteKind::Pre => {
                self.check_vote(place, to, *start_id, *epoch);
            }
            _ => {}
        }
    }

    fn check_ack(&self, place: Place, to: MemberId, epoch: Epoch, id: EntryId) {
        let ledger = &self.nodes[place.node].volume.ledger;
        if id == EntryId::ZERO {
            return;
        }
        let held = ledger.durable.get(&id);
        assert!(held.is_some(), "{} acknowledges {id}, which is not on its disk", self.nodes[place.node].name);
        let leads = |view: &View| view.role == Role::Leader && view.epoch == epoch;
        if let Some(leader) = self.processes().find(|process| process.member == to && leads(&process.view)) {
            let line = self.nodes[leader.place.node].volume.ledger.asked.get(&id);
            assert_eq!(line, held, "an acknowledgement up to {id} of another line than its leader's");
        }
    }

    fn check_vote(&mut self, place: Place, candidate: MemberId, start: u64, epoch: Epoch) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let Promise { epoch: promised, candidate: chosen } = self.nodes[place.node].volume.ledger.promise;
        let is_member = self.nodes[place.node].volume.ledger.is_member;
        assert!(is_member, "an uninitialised member votes in epoch {epoch}");
        let is_kept = promised > epoch || (promised == epoch && chosen == Some(candidate));
        assert!(is_kept, "a vote in epoch {epoch} that is not on the disk: {promised}, {chosen:?}");
        let (voter, volume) = (process.member, self.volume_of(place));
        let group = self.nodes[place.node].volume.ledger.cluster().cloned();
        let key = ((group, volume, voter), epoch);
        // Not for the start: a later one of that volume does not campaign in this epoch.
        let for_volume = *self.watch.volumes.get(&start).expect("whoever asks has started");
        let first = *self.watch.votes.entry(key).or_insert((candidate, for_volume));
        assert_eq!(first, (candidate, for_volume), "{voter} votes twice in epoch {epoch}");
    }

    /// A new leader holds everything that was committed in the epochs before its own. (Its votes may have
    /// been given before a later leader was elected.)
    pub(crate) fn watch_elected(&mut self, place: Place, epoch: Epoch) {
        self.note_elected(place);
        self.watch_group_acts(place, "elects a leader");
        self.check_promised(place, epoch);
        let ledger = &self.nodes[place.node].volume.ledger;
        for (decided, id) in self.watch.canon.iter().zip(1..).filter(|(decided, _)| decided.known_by < epoch) {
            let id = EntryId(id);
            assert_eq!(ledger.asked.get(&id), Some(&decided.line), "the new leader lacks entry {id}");
        }
    }
}

impl Watch {
    /// Both are in one log, in this order: each line names the epoch of the one before it.
    fn is_behind(&self, (at, of): (EntryId, Epoch), (id, epoch): (EntryId, Epoch)) -> bool {
        let below = |of: Epoch, at: u64| self.lines.get(&(EntryId(at), of)).map(|(_, before)| *before);
        at >= id && (id.0 + 1..=at.0).rev().try_fold(of, below) == Some(epoch)
    }

    fn note_line(&mut self, entry: &Entry, before: Epoch) -> Line {
        if let Some(voters) = voters_in(entry) {
            self.proposed.insert((entry.id, entry.epoch), voters);
        }
        let line = Line { epoch: entry.epoch, bytes: entry.line.clone() };
        let noted = self.lines.entry((entry.id, entry.epoch)).or_insert_with(|| (line.clone(), before));
        assert_eq!(*noted, (line.clone(), before), "two logs differ at or before entry {}", entry.id);
        line
    }

    /// The next entry of the canon is decided as every replica must decide it.
    fn decide(&mut self, line: Line) {
        let entry = Entry::decode(line.bytes.clone()).expect("what was applied is a line");
        let outcome = mutant::without(|| self.oracle.apply(&entry));
        self.note_effect(&entry, &outcome);
        if let Body::Control(Control::Config(configuration)) = &entry.body {
            self.committed_configuration(configuration.ids().collect());
        }
        if let Body::Control(Control::Settings(settings)) = &entry.body {
            let shortest = &mut self.shortest;
            shortest.dedup_limit = shortest.dedup_limit.min(settings.dedup_limit);
            shortest.dedup_expiry_seconds = shortest.dedup_expiry_seconds.min(settings.dedup_expiry_seconds);
        }
        let digest = self.oracle.digest();
        let known_by = self.leaders.last_key_value().map_or(Epoch::default(), |(epoch, _)| *epoch);
        self.canon.push(Decided { line, outcome, digest, known_by });
    }

    fn note_effect(&mut self, entry: &Entry, outcome: &Outcome) {
        let Outcome::Written(written) = outcome else { return };
        let version = (written.operation == OperationKind::Set).then_some((written.id, written.version));
        self.keys.entry(written.key.clone()).or_default().push((entry.id, version));
        if let Body::Set { value, .. } = &entry.body {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let call = text.trim_start_matches('[').split(',').next().and_then(|call| call.parse().ok());
            let is_refused = call.is_some_and(|call| self.without_effect.contains(&call));
            assert!(!is_refused, "entry {} took effect, and was answered as refused: {text}", entry.id);
        }
        let Some((request, operation)) = entry.request() else { return };
        self.effects_total += 1;
        let ts_ms = entry.ts_ms.expect("an entry with a request id has its time");
        let effect = Effect { id: entry.id, ts_ms, number: self.effects_total };
        let effects = self.effects.entry((request.clone(), operation)).or_default();
        effects.push(effect);
        if let [.., first, _] = effects.as_slice() {
            let expired = ts_ms > first.ts_ms + self.shortest.dedup_expiry_seconds * 1000;
            let evicted = self.effects_total - first.number > self.shortest.dedup_limit;
            self.has_forgotten_requests = true;
            assert!(expired || evicted, "request {request:?} took effect twice, at last as entry {}", entry.id);
        }
    }
}
