//! The checks of what counts: a leader, a commit, a lease, a showing and an acknowledgement rest on what was
//! made durable and on what has arrived, from whom and in which epoch. The watch keeps that evidence by
//! itself, from the messages and the disks, and compares. Called by the checks of sending and of rounds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kv_core::entry::{Entry, EntryId, Epoch};
use kv_core::group::MemberId;
use kv_core::message::{
    Accepted, Append, AppendAck, AppendResult, Baseline, Hello, Message, Promise, VoteKind, VoteReply, VotersAt,
};
use kv_core::status::Role;

use super::rules::{LEASE_PERCENT, Question};
use super::{Watch, most};
use crate::sim::beside::VolumeId;
use crate::sim::network::End;
use crate::sim::node::Place;
use crate::sim::world::World;

/// Showings of one member that are remembered for their answers.
const SHOWINGS_MAX: usize = 256;
/// The fastest clock, in percent of true time.
const CLOCKS_PERCENT_MAX: u64 = 106;

/// What has arrived where.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// What a start of a member has acknowledged to a leader since it counts, and whether it does.
    acknowledged: BTreeMap<(Place, Epoch, MemberId), (EntryId, Counts, u64)>,
    /// Whose votes have come to a candidate, and count.
    votes: BTreeMap<(Place, Epoch), BTreeSet<MemberId>>,
    /// The start of a member that a process has refused since it showed itself.
    refused: BTreeMap<(Place, MemberId), u64>,
    /// Processes that a member which had accepted them has told that it has accepted another since, and the round that it was in.
    superseded: BTreeMap<Place, u64>,
    /// Up to where appends of an epoch came to a process.
    covered: BTreeMap<(Place, Epoch), EntryId>,
    /// Up to where a snapshot has replaced the log of a process.
    installed: BTreeMap<Place, EntryId>,
    /// Processes that started on a volume of a group, which may be an old one.
    must_show: BTreeSet<Place>,
    /// Of those, who was accepted by enough voters at some moment; and who has taken on a leader's epoch or entries, or was refilled.
    shown: BTreeSet<Place>,
    admitted: BTreeSet<Place>,
    /// Up to where the acknowledgement of a member's start has come to a leader that has that committed.
    counted: BTreeMap<(Place, MemberId, u64), EntryId>,
    /// Where the log of a start ended that is trusted, when it began or was refilled: by the start.
    began_at: BTreeMap<u64, EntryId>,
    /// Who has accepted what this process showed.
    accepted_by: BTreeSet<(Place, MemberId)>,
    /// And whom it took for the voters.
    told_voters: BTreeMap<(Place, MemberId), VotersAt>,
    /// What was shown to a process, and not answered yet.
    showings: BTreeMap<(Place, MemberId), Vec<Showing>>,
    /// The last showing that a volume accepted of a member.
    accepted: BTreeMap<(VolumeId, MemberId), Showing>,
    /// The epoch that a process led in after its last round, and what was committed.
    led: BTreeMap<Place, (Epoch, EntryId)>,
    /// The latest beginning of the time in the log, and when that was.
    time: Option<(u64, u64)>,
    /// When a leader was asked up to where a member must be refilled, by the number of its question. It may ask again
    /// before it is answered.
    refills: BTreeMap<(Place, MemberId, u64), VecDeque<Question>>,
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

/// What a member shows of one start of its volume: what that began with, and what it has by now.
#[derive(Debug, Clone, Copy)]
struct Showing {
    incarnation: u64,
    start_id: u64,
    began: Baseline,
    has: Baseline,
}

impl Showing {
    fn of(hello: &Hello) -> Self {
        let Hello { incarnation, start_id, promise, durable, baseline, .. } = hello;
        let has = Baseline { promise: promise.epoch, durable: *durable };
        Self { incarnation: *incarnation, start_id: *start_id, began: baseline.unwrap_or(has), has }
    }

    /// Nothing that the earlier one had and that counts was missing, and it is no second start beside that. What was
    /// acknowledged to the leader of an epoch counts with the first entry of that epoch.
    fn follows(&self, earlier: &Self) -> bool {
        let is_same = self.start_id == earlier.start_id && self.incarnation >= earlier.incarnation;
        let counts = |baseline: &Baseline| match baseline.durable {
            durable if durable.epoch == baseline.promise => (baseline.promise, durable.id),
            _ => (baseline.promise, EntryId::ZERO),
        };
        is_same || (self.incarnation > earlier.incarnation && counts(&self.began) >= counts(&earlier.has))
    }
}

impl Watch {
    pub(super) fn note_installed(&mut self, place: Place, up_to: EntryId) {
        self.evidence.installed.insert(place, up_to);
    }
}

impl World {
    pub(super) fn watch_connected(&mut self, place: Place, hello: &Hello) {
        self.note_shown(place, hello);
        if hello.cluster_id.is_none() {
            return; // nothing to accept
        }
        self.watch.evidence.refused.remove(&(place, hello.member_id));
        let showings = self.watch.evidence.showings.entry((place, hello.member_id)).or_default();
        if showings.len() == SHOWINGS_MAX {
            showings.remove(0); // refused ones are never answered
        }
        showings.push(Showing::of(hello));
    }

    /// A volume that is put in the place of another remembers nothing of what that accepted since.
    pub(crate) fn watch_put_back(&mut self, index: usize) {
        self.watch.evidence.accepted.retain(|((node, _), _), _| *node != index);
    }

    /// What was due has been done: it is not due again at the same time.
    pub(crate) fn watch_ticked(&self, place: Place) {
        let now_ms = self.clock_of(place).mono_ms;
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        let due_ms = process.replica.deadline_ms();
        assert!(due_ms > now_ms, "what was due at {due_ms} is not done at {now_ms}");
    }

    pub(super) fn note_evidence(&mut self, place: Place, end: End, message: &Message) {
        let (from, start) = (end.member, end.place.start);
        let is_superseded = self.is_superseded_by(place, from, message);
        let (evidence, round) = (&mut self.watch.evidence, self.watch.rounds + 1);
        let is_refused = evidence.refused.get(&(place, from)) == Some(&start);
        if is_superseded {
            evidence.superseded.entry(place).or_insert(round);
        }
        match message {
            Message::VoteReply(VoteReply { granted: true, kind, epoch, .. })
                if *kind != VoteKind::Pre && !is_refused =>
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
            Message::Accepted(Accepted { start_id, voters, .. }) if *start_id == place.start => {
                evidence.accepted_by.insert((place, from));
                evidence.told_voters.extend(voters.clone().map(|voters| ((place, from), voters)));
                if self.is_shown(place) {
                    self.watch.evidence.shown.insert(place);
                }
            }
            Message::Show { hello, .. } => self.watch_connected(place, hello),
            Message::RefillRequest { epoch, number } if self.leads_in(place, *epoch) => {
                if let Some(question) = self.question(place, None) {
                    self.watch.evidence.refills.entry((place, from, *number)).or_default().push_back(question);
                }
            }
            _ => {}
        }
    }

    /// This start of the member is the one that was accepted last, and no other one has shown itself since.
    pub(crate) fn surely_counts(&self, place: Place, end: End) -> bool {
        let is_it = |showing: &Showing| showing.start_id == end.place.start;
        let evidence = &self.watch.evidence;
        let accepted = evidence.accepted.get(&(self.volume_of(place), end.member));
        let shown = evidence.showings.get(&(place, end.member));
        accepted.is_none_or(is_it) && shown.is_none_or(|showings| showings.iter().all(is_it))
    }

    /// What a member that leaves for a snapshot must hold before it counts again: all that was committed when it asked its
    /// leader, who has that, and what it has acknowledged itself since.
    pub(crate) fn must_hold(&self, place: Place) -> EntryId {
        let Evidence { asked, said, .. } = &self.watch.evidence;
        let ((epoch, _), committed) = asked.get(&place).copied().expect("who leaves has asked");
        said.get(&place).filter(|(said_in, _)| *said_in == epoch).map_or(committed, |(_, id)| committed.max(*id))
    }

    /// `from` had accepted this process, and accepts by now what is newer than it.
    fn is_superseded_by(&self, place: Place, from: MemberId, message: &Message) -> bool {
        let Message::Stale { seen, .. } = message else { return false };
        let Some(process) = self.nodes[place.node].process.as_ref() else { return false };
        let incarnation = process.replica.status(self.clock_of(place)).incarnation;
        let was_accepted = self.watch.evidence.accepted_by.contains(&(place, from));
        was_accepted && seen.start_id != place.start && seen.incarnation > incarnation && self.is_voter(place, from)
    }

    fn check_not_superseded(&self, place: Place, does: &str) {
        // What it does in this very round may have been called for before it learned of that.
        let told = self.watch.evidence.superseded.get(&place).filter(|round| **round != self.watch.rounds);
        let is_superseded = told.is_some();
        assert!(!is_superseded, "{does}, and knows that another process of its member was accepted after it");
    }

    pub(super) fn check_evidence(&mut self, place: Place, to: MemberId, message: &Message) {
        match message {
            // What was said of another process may reach this one, which has taken the connection over; and what was said of
            // an earlier showing may come behind a later one.
            Message::Stale { seen, .. } => {
                let last = self.watch.evidence.showings.get(&(place, to)).and_then(|showings| showings.last());
                let is_outdone = last.is_some_and(|showing| showing.incarnation > seen.incarnation);
                let end = self.end_of(place, to).filter(|end| end.start != seen.start_id && !is_outdone);
                if let Some(end) = end {
                    self.watch.evidence.refused.insert((place, to), end.start);
                }
            }
            Message::VoteRequest(_) => self.check_not_superseded(place, "campaigns"),
            Message::AppendAck(AppendAck { epoch, result: AppendResult::Durable(id), unfit, .. }) => {
                // What a snapshot holds is committed, and so in the log of whoever leads: it is matched, too.
                let evidence = &self.watch.evidence;
                let covered = evidence.covered.get(&(place, *epoch)).max(evidence.installed.get(&place));
                let covered = covered.copied().unwrap_or_default();
                assert!(*id <= covered, "acknowledges {id}, and appends of epoch {epoch} came up to {covered}");
                let is_quarantined = self.watch.rules.is_quarantined(place);
                assert!(*unfit || !is_quarantined, "a quarantined member's acknowledgement up to {id} counts");
                if !unfit && *id > EntryId::ZERO {
                    self.check_not_superseded(place, "acknowledges");
                    self.check_shown(place, to, "acknowledges");
                    let said = self.watch.evidence.said.entry(place).or_default();
                    *said = (*said).max((*epoch, *id));
                }
            }
            Message::HeartbeatAck { .. } => self.check_shown(place, to, "confirms a leader"),
            Message::VoteReply(VoteReply { granted: true, kind, .. }) if *kind != VoteKind::Pre => {
                self.check_not_superseded(place, "votes");
                self.check_shown(place, to, "votes");
            }
            Message::Accepted(Accepted { incarnation, start_id, voters }) => {
                self.check_accepted(place, to, (*incarnation, *start_id));
                self.check_told_voters(place, voters.as_ref());
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
                let asked = self.watch.evidence.refills.get_mut(&(place, to, *number));
                if let Some(question) = asked.and_then(VecDeque::pop_front) {
                    assert!(self.is_confirmed(place, &question), "says up to where to refill, and is not confirmed");
                }
            }
            _ => {}
        }
    }

    pub(super) fn leads_in(&self, place: Place, epoch: Epoch) -> bool {
        let process = self.nodes[place.node].process.as_ref();
        let view = process.map(|process| process.replica.view(self.clock_of(place)));
        view.is_some_and(|view| view.role == Role::Leader && view.epoch == epoch)
    }

    /// Who acts has shown itself to enough voters for a majority with itself; or, as a learner, to whom it speaks to.
    fn check_shown(&self, place: Place, to: MemberId, does: &str) {
        let evidence = &self.watch.evidence;
        if !evidence.must_show.contains(&place) {
            return;
        }
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let is_learner = match self.told_voters(place) {
            Some(told) => !told.contains(&me),
            None => self.any_configuration(place, |voters| !voters.contains(&me)),
        };
        let is_known_there = is_learner && evidence.accepted_by.contains(&(place, to));
        // What it says may have waited for its disk while it was told of more voters.
        let is_known = is_known_there || evidence.shown.contains(&place) || self.is_shown(place);
        assert!(is_known, "{} {does} before a majority has accepted what it shows", self.nodes[place.node].name);
    }

    /// To a majority of the newest voters that it was told of, if these are newer than its log's.
    fn is_shown(&self, place: Place) -> bool {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return false };
        let Evidence { accepted_by, admitted, .. } = &self.watch.evidence;
        let knows = |voter: &MemberId| *voter == me || accepted_by.contains(&(place, *voter));
        let is_enough = |voters: &[MemberId]| most(voters, knows);
        match self.told_voters(place) {
            Some(told) if is_enough(told) => true,
            Some(_) if !admitted.contains(&place) => false,
            _ => self.any_configuration(place, is_enough),
        }
    }

    fn told_voters(&self, place: Place) -> Option<&Vec<MemberId>> {
        let (at, _) = self.configuration_before(place, EntryId(u64::MAX));
        let all = self.watch.evidence.told_voters.iter().filter(|((to, _), _)| *to == place);
        let newest = all.filter(|((_, by), told)| told.config_id > at && told.member_ids.contains(by));
        newest.max_by_key(|(_, told)| told.config_id).map(|(_, told)| &told.member_ids)
    }

    /// Who takes on a leader's epoch or entries has been accepted once by enough voters; or by anybody, as a learner.
    pub(super) fn check_admitted(&mut self, place: Place, next: EntryId) {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let (_, voters) = self.configuration_before(place, next);
        let evidence = &self.watch.evidence;
        let must_show = evidence.must_show.contains(&place) && !self.watch.rules.is_quarantined(place);
        if !must_show || evidence.admitted.contains(&place) {
            return;
        }
        let by = evidence.accepted_by.range((place, MemberId(0))..=(place, MemberId(u64::MAX)));
        let by: BTreeSet<MemberId> = by.map(|(_, voter)| *voter).collect();
        let voters = self.told_voters(place).unwrap_or(&voters);
        let is_enough = most(voters, |voter| *voter == me || by.contains(voter));
        let is_accepted = is_enough || evidence.shown.contains(&place) || (!voters.contains(&me) && !by.is_empty());
        assert!(is_accepted, "{me} takes part before {next}, and {by:?} alone have accepted it of {voters:?}");
        self.watch.evidence.admitted.insert(place);
    }

    /// Those of the log that it had when it accepted; more may have come while that was made durable, or may have been cut. One
    /// that is about to be founded, or filled, knows of none yet.
    fn check_told_voters(&self, place: Place, told: Option<&VotersAt>) {
        let told = told.expect("this release says so");
        let (id, voters) = self.configuration_before(place, told.config_id.next());
        let [voters, told_voters] = [voters, told.member_ids.clone()].map(BTreeSet::from_iter);
        let proposed = self.watch.proposed.range((id, Epoch::default())..=(id, Epoch(u64::MAX)));
        let mut proposed = proposed.map(|(_, voters)| voters.iter().copied().collect::<BTreeSet<_>>());
        assert!(
            told_voters.is_empty()
                || id < told.config_id
                || voters == told_voters
                || proposed.any(|p| p == told_voters),
            "takes {told_voters:?} for the voters of {id}, and not {voters:?}"
        );
    }

    /// The last start of each voter, by every other one.
    pub(crate) fn voters_accept_each_other(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let voters: Vec<Place> = self.voters_of(leader).into_iter().filter_map(|voter| self.place_of(voter)).collect();
        let member = |place: &Place| self.nodes[place.node].volume.ledger.member();
        let accepts = |by: &Place, of: &Place| {
            let seen = member(of).and_then(|of| self.nodes[by.node].volume.ledger.seen.get(&of));
            by == of || seen.is_some_and(|seen| seen.start_id == of.start)
        };
        voters.iter().all(|by| voters.iter().all(|of| accepts(by, of)))
    }

    /// Who has accepted one start of a member accepts no older and no second one; and has it on its disk.
    fn check_accepted(&mut self, place: Place, of: MemberId, start: (u64, u64)) {
        let key = (self.volume_of(place), of);
        let Some(showings) = self.watch.evidence.showings.get_mut(&(place, of)) else { return };
        let earlier = self.watch.evidence.accepted.get(&key);
        let is_it = |s: &Showing| (s.incarnation, s.start_id) == start;
        let Some(at) = showings.iter().position(|s| is_it(s) && earlier.is_none_or(|earlier| s.follows(earlier)))
        else {
            panic!("accepts start {start:?} of {of} after {earlier:?}; it showed {showings:?}");
        };
        let showing = showings.drain(..=at).next_back().expect("it is there"); // those before it were judged before it
        let Evidence { counted, began_at, .. } = &self.watch.evidence;
        let of_earlier_starts = counted.range((place, of, 0)..(place, of, showing.start_id));
        let counted = of_earlier_starts.map(|(_, id)| *id).max().unwrap_or_default();
        let began_at = began_at.get(&showing.start_id).copied();
        let lacks_none = began_at.is_none_or(|began_at| counted <= began_at);
        assert!(lacks_none, "accepts {showing:?} of {of}, which began at {began_at:?}: up to {counted} it has counted");
        let seen = self.nodes[place.node].volume.ledger.seen.get(&of);
        let is_durable = seen.is_some_and(|seen| seen.incarnation >= showing.incarnation);
        assert!(is_durable, "accepts {showing:?} of {of}, and has {seen:?} on its disk");
        self.watch.evidence.accepted.insert(key, showing);
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

    /// The last configuration of a log is in force, however it was compacted.
    pub(super) fn watch_started_in_a_group(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        if process.replica.view(self.clock_of(place)).role == Role::Uninitialised {
            return;
        }
        self.watch.evidence.must_show.insert(place);
        if self.watch.rules.is_quarantined(place) {
            return;
        }
        self.note_began(place);
        self.check_voters(place);
    }

    pub(super) fn note_refilled(&mut self, place: Place) {
        self.watch.evidence.admitted.insert(place);
        self.note_began(place);
    }

    fn note_began(&mut self, place: Place) {
        let last = self.nodes[place.node].volume.ledger.last_durable();
        self.watch.evidence.began_at.insert(place.start, last);
    }

    /// What it holds says nothing of its member until it was refilled.
    pub(super) fn note_doubted(&mut self, place: Place) {
        self.watch.evidence.began_at.remove(&place.start);
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
        self.note_counted(place, view.epoch, committed);
    }

    /// What is committed in an epoch, no later leader has cut. Of a start that was not accepted yet nothing counts.
    fn note_counted(&mut self, place: Place, epoch: Epoch, committed: EntryId) {
        let volume = self.volume_of(place);
        let Evidence { acknowledged, counted, accepted, .. } = &mut self.watch.evidence;
        let in_epoch = acknowledged.range((place, epoch, MemberId(0))..=(place, epoch, MemberId(u64::MAX)));
        for ((_, _, member), (up_to, counts, start)) in in_epoch {
            let is_accepted = accepted.get(&(volume, *member)).is_some_and(|showing| showing.start_id == *start);
            if *counts == Counts::Yes && is_accepted {
                let known = counted.entry((place, *member, *start)).or_default();
                *known = (*known).max(committed.min(*up_to));
            }
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
