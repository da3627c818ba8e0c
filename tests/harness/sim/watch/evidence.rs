//! The checks of what counts: a leader, a commit, a lease and an acknowledgement rest on what was made durable and on
//! what has arrived, from whom and in which epoch. The watch keeps that evidence by itself, from the messages and the
//! disks, and compares. Called by the checks of sending and of rounds.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::entry::{Entry, EntryId, Epoch};
use kv_core::group::MemberId;
use kv_core::message::{Append, AppendAck, AppendResult, Message, Promise, VoteKind, VoteReply};
use kv_core::status::Role;

use super::Watch;
use super::rules::{LEASE_PERCENT, Question};
use crate::sim::network::End;
use crate::sim::node::Place;
use crate::sim::world::World;

/// The fastest clock, in percent of true time.
const CLOCKS_PERCENT_MAX: u64 = 106;

/// What has arrived where.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// What a start of a member has acknowledged to a leader since it counts, and whether it does.
    acknowledged: BTreeMap<(Place, Epoch, MemberId), (EntryId, Counts, u64)>,
    /// Whose votes have come to a candidate, and count.
    votes: BTreeMap<(Place, Epoch), BTreeSet<MemberId>>,
    /// Up to where appends of an epoch came to a process.
    covered: BTreeMap<(Place, Epoch), EntryId>,
    /// Up to where a snapshot has replaced the log of a process.
    installed: BTreeMap<Place, EntryId>,
    /// The epoch that a process led in after its last round, and what was committed.
    led: BTreeMap<Place, (Epoch, EntryId)>,
    /// The latest beginning of the time in the log, and when that was.
    time: Option<(u64, u64)>,
    /// When a leader was asked up to where a member must be refilled, by the epoch and the number of its question: first, if it asks
    /// again before it is answered.
    refills: BTreeMap<(Place, MemberId, (Epoch, u64)), Question>,
    /// The question of a process, its epoch and number, and what was committed when it asked that first.
    asked: BTreeMap<Place, ((Epoch, u64), EntryId)>,
    /// The last epoch in which a process has acknowledged so that it counts, and up to where.
    said: BTreeMap<Place, (Epoch, EntryId)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    Yes,
    No,
}

impl Watch {
    pub(super) fn note_installed(&mut self, place: Place, up_to: EntryId) {
        self.evidence.installed.insert(place, up_to);
    }
}

impl World {
    pub(super) fn note_evidence(&mut self, place: Place, end: End, message: &Message) {
        let (from, start) = (end.member, end.place.start);
        let is_refused = self.is_refused(place, from, start);
        let evidence = &mut self.watch.evidence;
        match message {
            Message::VoteReply(VoteReply { granted: true, kind, epoch, start_id, .. })
                if *kind != VoteKind::Pre && !is_refused && *start_id == place.start =>
            {
                evidence.votes.entry((place, *epoch)).or_default().insert(from);
            }
            Message::AppendAck(AppendAck { epoch, result: AppendResult::Durable(id), unfit, .. }) => {
                let counts = if *unfit || is_refused { Counts::No } else { Counts::Yes };
                let known = evidence.acknowledged.entry((place, *epoch, from)).or_insert((*id, counts, start));
                // What was acknowledged before it counted again may be gone with a snapshot that ends below.
                let before = if (known.1, known.2) == (counts, start) { known.0 } else { EntryId::ZERO };
                *known = (before.max(*id), counts, start);
            }
            Message::Append(Append { epoch, prev, entries, .. }) => {
                let end = entries.last().map_or(prev.id, |entry| entry.id);
                let covered = evidence.covered.entry((place, *epoch)).or_default();
                *covered = end.max(*covered);
            }
            Message::RefillRequest { epoch, number } if self.leads_in(place, *epoch) => {
                if let Some(question) = self.question(place, None) {
                    self.watch.evidence.refills.entry((place, from, (*epoch, *number))).or_insert(question);
                }
            }
            _ => {}
        }
    }

    /// What a member that leaves for a snapshot must hold before it counts again: all that was committed when it asked its
    /// leader, who has that, and what it has acknowledged itself since.
    pub(crate) fn must_hold(&self, place: Place) -> EntryId {
        let Evidence { asked, said, .. } = &self.watch.evidence;
        let ((epoch, _), committed) = asked.get(&place).copied().expect("who leaves has asked");
        said.get(&place).filter(|(said_in, _)| *said_in == epoch).map_or(committed, |(_, id)| committed.max(*id))
    }

    pub(super) fn check_evidence(&mut self, place: Place, to: MemberId, message: &Message) {
        match message {
            Message::AppendAck(AppendAck { epoch, result: AppendResult::Durable(id), unfit, .. }) => {
                // What a snapshot holds is committed, and so in the log of whoever leads: it is matched, too.
                let evidence = &self.watch.evidence;
                let covered = evidence.covered.get(&(place, *epoch)).max(evidence.installed.get(&place));
                let covered = covered.copied().unwrap_or_default();
                assert!(*id <= covered, "acknowledges {id}, and appends of epoch {epoch} came up to {covered}");
                let is_quarantined = self.watch.rules.is_quarantined(place);
                assert!(*unfit || !is_quarantined, "a quarantined member's acknowledgement up to {id} counts");
                if !unfit && *id > EntryId::ZERO {
                    let said = self.watch.evidence.said.entry(place).or_default();
                    *said = (*said).max((*epoch, *id));
                }
            }
            Message::RefillRequest { epoch, number } => {
                let question = ((*epoch, *number), EntryId(self.watch.committed()));
                let asked = self.watch.evidence.asked.entry(place).or_insert(question);
                if asked.0 != question.0 {
                    *asked = question;
                }
            }
            Message::RefillAnswer { epoch, number, .. } => {
                let leads = self.leads_in(place, *epoch);
                assert!(leads, "says up to where to refill, and does not lead in epoch {epoch}");
                if let Some(question) = self.watch.evidence.refills.remove(&(place, to, (*epoch, *number))) {
                    let is_confirmed = self.is_confirmed_without(place, to, &question);
                    assert!(is_confirmed, "says up to where to refill, and the others have not confirmed it");
                }
            }
            _ => {}
        }
    }

    /// Time in the log never goes back, and goes on from its first entry no faster than true time, whatever the wall
    /// clocks show. (It may lag: it stands still while nobody leads.)
    pub(super) fn watch_time(&mut self, place: Place, entry: &Entry) {
        // Who orders a line is asked to hold it first, and may be deposed in the same round.
        let is_new = !self.watch.lines.contains_key(&(entry.id, entry.epoch));
        let Some(ts_ms) = entry.ts_ms.filter(|_| is_new) else { return };
        let below = self.nodes[place.node].volume.ledger.asked.range(..entry.id).rev();
        let mut entries = below.filter_map(|(_, line)| Entry::decode(line.bytes.clone()).ok());
        let before_ms = entries.find_map(|entry| entry.ts_ms);
        let most_ms = self
            .watch
            .evidence
            .time
            .map_or(0, |(ms, at_us)| ms + (self.now_us - at_us) * CLOCKS_PERCENT_MAX / 100 / 1000 + 2);
        match before_ms {
            Some(before_ms) => {
                let goes_on = (before_ms..=most_ms).contains(&ts_ms);
                assert!(goes_on, "entry {} is of {ts_ms}, and not in {before_ms}..={most_ms}", entry.id);
            }
            None if ts_ms > most_ms => self.watch.evidence.time = Some((ts_ms, self.now_us)),
            None => {}
        }
    }

    /// A majority's promises are on its disks, the new leader's among them.
    pub(super) fn check_promised(&self, place: Place, epoch: Epoch) {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let keeps = |promise: Promise| promise.epoch > epoch || promise == Promise { epoch, candidate: Some(me) };
        let has_promised = |voter: &MemberId| self.ledgers_of(*voter).any(|ledger| keeps(ledger.promise));
        let holds = self.any_majority(place, has_promised);
        let votes = self.watch.evidence.votes.get(&(place, epoch));
        let has_voted = |voter: &MemberId| *voter == me || votes.is_some_and(|votes| votes.contains(voter));
        let is_voted_for = self.any_majority(place, has_voted);
        assert!(is_voted_for, "{me} leads in epoch {epoch} without a majority of votes that count");
        assert!(holds && has_promised(&me), "{me} leads in epoch {epoch} without a majority's durable promises");
    }

    /// What a leader counts and how long it answers by itself, after each of its rounds.
    pub(super) fn check_leading(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let view = process.replica.view(self.clock_of(place));
        let committed = process.replica.positions().1;
        if view.role != Role::Leader {
            self.watch.evidence.led.remove(&place);
            return;
        }
        let before = self.watch.evidence.led.insert(place, (view.epoch, committed));
        if let Some((_, was)) = before.filter(|(epoch, was)| *epoch == view.epoch && *was < committed) {
            self.check_counted(place, view.epoch, committed);
            (was.0 + 1..=committed.0).for_each(|id| self.counted(place, EntryId(id)));
        }
        self.check_lease(place, view.epoch, view.lease_until_mono_ms);
        self.note_committed(place, view.epoch, committed);
    }

    /// Each of those who have acknowledged that must have it at its next start.
    fn note_committed(&mut self, place: Place, epoch: Epoch, committed: EntryId) {
        let acknowledged = &self.watch.evidence.acknowledged;
        let in_epoch = acknowledged.range((place, epoch, MemberId(0))..=(place, epoch, MemberId(u64::MAX)));
        let counts = in_epoch.filter(|(_, (_, counts, _))| *counts == Counts::Yes);
        let counts = counts.map(|((_, _, member), (up_to, _, start))| (*member, *start, committed.min(*up_to)));
        for (member, start, up_to) in counts.collect::<Vec<_>>() {
            self.note_counted(place, member, start, up_to);
        }
    }

    /// A member has answered this leader's appends in this epoch.
    pub(super) fn has_acknowledged(&self, place: Place, epoch: Epoch, member: MemberId) -> bool {
        self.watch.evidence.acknowledged.contains_key(&(place, epoch, member))
    }

    /// Entries are committed by counting those of the own epoch, as acknowledged in it by a majority.
    fn check_counted(&self, place: Place, epoch: Epoch, id: EntryId) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let ledger = &self.nodes[place.node].volume.ledger;
        let of = ledger.asked.get(&id).map(|line| line.epoch);
        assert_eq!(of, Some(epoch), "entry {id} is committed by counting, and is of another epoch than its leader's");
        let acknowledged = |voter: &MemberId| match self.watch.evidence.acknowledged.get(&(place, epoch, *voter)) {
            _ if *voter == process.member => ledger.durable.contains_key(&id),
            Some((up_to, Counts::Yes, _)) => *up_to >= id,
            Some((_, Counts::No, _)) | None => false,
        };
        let holds = self.any_majority(place, acknowledged);
        assert!(holds, "entry {id} is counted as committed, and no majority has acknowledged it in epoch {epoch}");
    }

    /// The lease ends so long after the sending of a round that a majority has answered, not later.
    fn check_lease(&self, place: Place, epoch: Epoch, until_ms: u64) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let rules = &self.watch.rules;
        let lease_ms = self.timeout_ms_of(place) * LEASE_PERCENT / 100;
        let covers = |voter: &MemberId| {
            let answered = rules.answered.get(&(place, epoch, *voter)).copied();
            let sent_ms = answered.and_then(|round| rules.rounds.get(&(place, epoch, round)).copied());
            *voter == process.member || sent_ms.is_some_and(|sent_ms| until_ms <= sent_ms + lease_ms)
        };
        let holds = until_ms == 0 || self.any_majority(place, covers);
        assert!(holds, "the lease ends at {until_ms}, later than what a majority has answered in epoch {epoch} allows");
    }
}
