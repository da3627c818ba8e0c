//! The checks of starts: what a member shows of itself is judged by what was seen of it before; who has not been accepted
//! promises, acknowledges and takes on nothing, and who was refused counts for nothing. The watch keeps what was shown to
//! whom, and what that one has said to it, and compares. Called by the checks of sending, of what arrives and of the log.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::entry::{EntryId, Epoch};
use kv_core::group::MemberId;
use kv_core::message::{
    Accepted, AppendAck, AppendResult, Baseline, Hello, Message, Seen, VoteKind, VoteReply, VotersAt,
};
use kv_core::status::Role;

use super::most;
use crate::sim::beside::VolumeId;
use crate::sim::network::End;
use crate::sim::node::Place;
use crate::sim::world::World;

/// Showings of one member that are remembered for their answers.
const SHOWINGS_MAX: usize = 256;

/// What was shown to whom, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Acceptance {
    /// What was shown to a process, and not answered yet.
    showings: BTreeMap<(Place, MemberId), Vec<Showing>>,
    /// The last showing that a volume accepted of a member.
    accepted: BTreeMap<(VolumeId, MemberId), Showing>,
    /// Who has accepted what this process showed.
    accepted_by: BTreeSet<(Place, MemberId)>,
    /// And whom it took for the voters.
    told_voters: BTreeMap<(Place, MemberId), VotersAt>,
    /// The start of a member that a process has refused since it showed itself.
    refused: BTreeMap<(Place, MemberId), u64>,
    /// Processes that a member which had accepted them has told that it has accepted another since, and the round that it was in.
    superseded: BTreeMap<Place, u64>,
    /// Processes that started on a volume of a group, which may be an old one.
    must_show: BTreeSet<Place>,
    /// Of those, who was accepted by enough voters at some moment; and who has taken on a leader's epoch or entries, or was refilled.
    shown: BTreeSet<Place>,
    admitted: BTreeSet<Place>,
    /// Where the log of a start ended that is trusted, when it began or was refilled: by the start.
    began_at: BTreeMap<u64, EntryId>,
    /// Up to where the acknowledgement of a member's start has come to a leader that has that committed.
    counted: BTreeMap<(Place, MemberId, u64), EntryId>,
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

impl World {
    pub(super) fn note_acceptance(&mut self, place: Place, from: MemberId, message: &Message) {
        match message {
            Message::Accepted(Accepted { start_id, voters, .. }) if *start_id == place.start => {
                let acceptance = &mut self.watch.acceptance;
                acceptance.accepted_by.insert((place, from));
                acceptance.told_voters.extend(voters.clone().map(|voters| ((place, from), voters)));
                if self.is_shown(place) {
                    self.watch.acceptance.shown.insert(place);
                }
            }
            Message::Stale { seen, .. } if self.is_superseded_by(place, from, seen) => {
                let round = self.watch.rounds + 1;
                self.watch.acceptance.superseded.entry(place).or_insert(round);
            }
            Message::Show { hello, .. } => self.watch_connected(place, hello),
            _ => {}
        }
    }

    pub(super) fn check_acceptance(&mut self, place: Place, to: MemberId, message: &Message) {
        match message {
            Message::Stale { seen, .. } => self.note_refused(place, to, seen),
            Message::VoteRequest(_) => self.check_not_superseded(place, "campaigns"),
            Message::AppendAck(AppendAck { result: AppendResult::Durable(id), unfit: false, .. })
                if *id > EntryId::ZERO =>
            {
                self.check_not_superseded(place, "acknowledges");
                self.check_shown(place, to, "acknowledges");
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
            _ => {}
        }
    }

    pub(super) fn watch_connected(&mut self, place: Place, hello: &Hello) {
        self.note_shown(place, hello);
        if hello.cluster_id.is_none() {
            return; // nothing to accept
        }
        self.watch.acceptance.refused.remove(&(place, hello.member_id));
        let showings = self.watch.acceptance.showings.entry((place, hello.member_id)).or_default();
        if showings.len() == SHOWINGS_MAX {
            showings.remove(0); // refused ones are never answered
        }
        showings.push(Showing::of(hello));
    }

    /// A volume that is put in the place of another remembers nothing of what that accepted since.
    pub(crate) fn watch_put_back(&mut self, index: usize) {
        self.watch.acceptance.accepted.retain(|((node, _), _), _| *node != index);
    }

    /// The last configuration of a log is in force, however it was compacted.
    pub(super) fn watch_started_in_a_group(&mut self, place: Place) {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return };
        if process.replica.view(self.clock_of(place)).role == Role::Uninitialised {
            return;
        }
        self.watch.acceptance.must_show.insert(place);
        if self.watch.rules.is_quarantined(place) {
            return;
        }
        self.note_began(place);
        self.check_voters(place);
    }

    pub(super) fn note_refilled(&mut self, place: Place) {
        self.watch.acceptance.admitted.insert(place);
        self.note_began(place);
    }

    fn note_began(&mut self, place: Place) {
        let last = self.nodes[place.node].volume.ledger.last_durable();
        self.watch.acceptance.began_at.insert(place.start, last);
    }

    /// What it holds says nothing of its member until it was refilled.
    pub(super) fn note_doubted(&mut self, place: Place) {
        self.watch.acceptance.began_at.remove(&place.start);
    }

    /// What was said of another process may reach this one, which has taken the connection over; and what was said of
    /// an earlier showing may come behind a later one.
    fn note_refused(&mut self, place: Place, to: MemberId, seen: &Seen) {
        let last = self.watch.acceptance.showings.get(&(place, to)).and_then(|showings| showings.last());
        let is_outdone = last.is_some_and(|showing| showing.incarnation > seen.incarnation);
        let end = self.end_of(place, to).filter(|end| end.start != seen.start_id && !is_outdone);
        if let Some(end) = end {
            self.watch.acceptance.refused.insert((place, to), end.start);
        }
    }

    /// What this start of a member says counts for nothing.
    pub(super) fn is_refused(&self, place: Place, member: MemberId, start: u64) -> bool {
        self.watch.acceptance.refused.get(&(place, member)) == Some(&start)
    }

    /// What is committed in an epoch, no later leader has cut. Of a start that was not accepted yet nothing counts.
    pub(super) fn note_counted(&mut self, place: Place, member: MemberId, start: u64, up_to: EntryId) {
        let volume = self.volume_of(place);
        let Acceptance { counted, accepted, .. } = &mut self.watch.acceptance;
        if accepted.get(&(volume, member)).is_some_and(|showing| showing.start_id == start) {
            let known = counted.entry((place, member, start)).or_default();
            *known = up_to.max(*known);
        }
    }

    /// This start of the member is the one that was accepted last, and no other one has shown itself since.
    pub(crate) fn surely_counts(&self, place: Place, end: End) -> bool {
        let is_it = |showing: &Showing| showing.start_id == end.place.start;
        let acceptance = &self.watch.acceptance;
        let accepted = acceptance.accepted.get(&(self.volume_of(place), end.member));
        let shown = acceptance.showings.get(&(place, end.member));
        accepted.is_none_or(is_it) && shown.is_none_or(|showings| showings.iter().all(is_it))
    }

    /// `from` had accepted this process, and accepts by now what is newer than it.
    fn is_superseded_by(&self, place: Place, from: MemberId, seen: &Seen) -> bool {
        let Some(process) = self.nodes[place.node].process.as_ref() else { return false };
        let incarnation = process.replica.status(self.clock_of(place)).incarnation;
        let was_accepted = self.watch.acceptance.accepted_by.contains(&(place, from));
        was_accepted && seen.start_id != place.start && seen.incarnation > incarnation && self.is_voter(place, from)
    }

    fn check_not_superseded(&self, place: Place, does: &str) {
        // What it does in this very round may have been called for before it learned of that.
        let told = self.watch.acceptance.superseded.get(&place).filter(|round| **round != self.watch.rounds);
        let is_superseded = told.is_some();
        assert!(!is_superseded, "{does}, and knows that another process of its member was accepted after it");
    }

    /// Who acts has shown itself to enough voters for a majority with itself; or, as a learner, to whom it speaks to.
    fn check_shown(&self, place: Place, to: MemberId, does: &str) {
        let acceptance = &self.watch.acceptance;
        if !acceptance.must_show.contains(&place) {
            return;
        }
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let is_learner = match self.told_voters(place) {
            Some(told) => !told.contains(&me),
            None => self.any_configuration(place, |voters| !voters.contains(&me)),
        };
        let is_known_there = is_learner && acceptance.accepted_by.contains(&(place, to));
        // What it says may have waited for its disk while it was told of more voters.
        let is_known = is_known_there || acceptance.shown.contains(&place) || self.is_shown(place);
        assert!(is_known, "{} {does} before a majority has accepted what it shows", self.nodes[place.node].name);
    }

    /// To a majority of the newest voters that it was told of, if these are newer than its log's.
    fn is_shown(&self, place: Place) -> bool {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return false };
        let Acceptance { accepted_by, admitted, .. } = &self.watch.acceptance;
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
        let all = self.watch.acceptance.told_voters.iter().filter(|((to, _), _)| *to == place);
        let newest = all.filter(|((_, by), told)| told.config_id > at && told.member_ids.contains(by));
        newest.max_by_key(|(_, told)| told.config_id).map(|(_, told)| &told.member_ids)
    }

    /// Who takes on a leader's epoch or entries has been accepted once by enough voters; or by anybody, as a learner.
    pub(super) fn check_admitted(&mut self, place: Place, next: EntryId) {
        let Some(me) = self.nodes[place.node].process.as_ref().map(|process| process.member) else { return };
        let (_, voters) = self.configuration_before(place, next);
        let acceptance = &self.watch.acceptance;
        let must_show = acceptance.must_show.contains(&place) && !self.watch.rules.is_quarantined(place);
        if !must_show || acceptance.admitted.contains(&place) {
            return;
        }
        let by = acceptance.accepted_by.range((place, MemberId(0))..=(place, MemberId(u64::MAX)));
        let by: BTreeSet<MemberId> = by.map(|(_, voter)| *voter).collect();
        let voters = self.told_voters(place).unwrap_or(&voters);
        let is_enough = most(voters, |voter| *voter == me || by.contains(voter));
        let is_accepted = is_enough || acceptance.shown.contains(&place) || (!voters.contains(&me) && !by.is_empty());
        assert!(is_accepted, "{me} takes part before {next}, and {by:?} alone have accepted it of {voters:?}");
        self.watch.acceptance.admitted.insert(place);
    }

    /// Who has accepted one start of a member accepts no older and no second one; and has it on its disk.
    fn check_accepted(&mut self, place: Place, of: MemberId, start: (u64, u64)) {
        let key = (self.volume_of(place), of);
        let Some(showings) = self.watch.acceptance.showings.get_mut(&(place, of)) else { return };
        let earlier = self.watch.acceptance.accepted.get(&key);
        let is_it = |s: &Showing| (s.incarnation, s.start_id) == start;
        let Some(at) = showings.iter().position(|s| is_it(s) && earlier.is_none_or(|earlier| s.follows(earlier)))
        else {
            panic!("accepts start {start:?} of {of} after {earlier:?}; it showed {showings:?}");
        };
        let showing = showings.drain(..=at).next_back().expect("it is there"); // those before it were judged before it
        let Acceptance { counted, began_at, .. } = &self.watch.acceptance;
        let of_earlier_starts = counted.range((place, of, 0)..(place, of, showing.start_id));
        let counted = of_earlier_starts.map(|(_, id)| *id).max().unwrap_or_default();
        let began_at = began_at.get(&showing.start_id).copied();
        let lacks_none = began_at.is_none_or(|began_at| counted <= began_at);
        assert!(lacks_none, "accepts {showing:?} of {of}, which began at {began_at:?}: up to {counted} it has counted");
        let seen = self.nodes[place.node].volume.ledger.seen.get(&of);
        let is_durable = seen.is_some_and(|seen| seen.incarnation >= showing.incarnation);
        assert!(is_durable, "accepts {showing:?} of {of}, and has {seen:?} on its disk");
        self.watch.acceptance.accepted.insert(key, showing);
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
}
