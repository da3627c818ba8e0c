//! Copied and restored volumes. At each start a member shows its incarnation, and the promise and last position that it
//! found on its disk, to enough voters for a majority; before that it neither votes nor acknowledges. A voter
//! that saw more of it says so, and the member is quarantined until the present leader refilled it.

use super::persist::Then;
use super::{Replica, Role};
use crate::contract::{Note, Now, Quarantine};
use crate::entry::{EntryId, Epoch, LogPosition};
use crate::group::MemberId;
use crate::message::{Accepted, Baseline, Hello, Message, Promise, Seen, VotersAt};
use crate::mutant::{self, Mutant};
use crate::quorum;

/// Members of whom is remembered what was seen; who is no voter is forgotten first.
const SEEN_MAX: usize = 32;

/// Whether the other side is to show itself in return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Wanted,
    Given,
}

impl Replica {
    /// Enough voters, with this member a majority, accepted what it showed since its start. Who was away while others were
    /// replaced learns from them who votes now: of those that its own log names too few may be left to ask, and enough for a
    /// majority of the past may know nothing of what an old copy lacks.
    pub(super) fn is_accepted(&self) -> bool {
        let by_own_log = || self.is_known_to_most(self.configuration().ids());
        let is_accepted = match self.told_voters() {
            Some(told) => {
                self.is_known_to_most(told.member_ids.iter().copied())
                    || ((self.admitted || mutant::on(Mutant::CountPastVoters)) && by_own_log())
            }
            None => by_own_log(),
        };
        is_accepted || mutant::on(Mutant::ActUnshown)
    }

    /// What it says to `peer` may count there. A learner counts for those who have accepted it.
    pub(super) fn is_shown_to(&self, peer: MemberId) -> bool {
        let is_known = if self.is_learner() { self.shown_to.contains_key(&peer) } else { self.is_accepted() };
        is_known || mutant::on(Mutant::ActUnshown)
    }

    /// As far as it knows, and was told.
    fn is_learner(&self) -> bool {
        self.told_voters().map_or_else(|| !self.is_voter(), |told| !told.member_ids.contains(&self.me()))
    }

    /// By a later configuration than the one that the own log ends with. A learner tells nothing: what is not committed in
    /// its log is of no use for an election, and may be of voters who are gone.
    fn told_voters(&self) -> Option<&VotersAt> {
        let told = self.shown_to.iter().filter_map(|(by, told)| Some((by, told.as_ref()?)));
        let told = told.filter(|(by, told)| told.config_id > self.config_id() && told.member_ids.contains(by));
        told.map(|(_, told)| told).max_by_key(|told| told.config_id)
    }

    /// A learner follows whoever leads and has accepted it: one who was let go may know nothing of it, nor of the group.
    pub(super) fn may_follow(&mut self, leader: MemberId) -> bool {
        self.admitted = self.admitted || (self.is_learner() && self.shown_to.contains_key(&leader));
        self.takes_part()
    }

    /// This start was accepted once, or is being refilled. Before that it follows nobody and promises nothing. An old copy would
    /// begin its next start with a later promise, by which nobody knows it any more; or go again through voters of
    /// the past, who may know nothing of what it lacks, and fall there: it may have been the only one.
    fn takes_part(&mut self) -> bool {
        self.admitted = self.admitted || self.is_accepted();
        self.admitted || self.hard.quarantine.is_some()
    }

    pub(super) fn may_promise(&mut self) -> bool {
        self.takes_part() || mutant::on(Mutant::PromiseUnaccepted)
    }

    fn is_known_to_most(&self, voters: impl Iterator<Item = MemberId>) -> bool {
        let knows = |voter| voter == self.me() || self.shown_to.contains_key(&voter);
        let (known, all) = voters.fold((0, 0), |(known, all), voter| (known + usize::from(knows(voter)), all + 1));
        known >= quorum::majority(all)
    }

    /// Only what is on disk is shown: it is held against this member at its next start.
    pub fn hello(&self) -> Hello {
        let has = self.on_disk();
        Hello {
            name: self.hard.name.clone(),
            member_id: self.me(),
            cluster_id: self.hard.cluster_id.clone(),
            incarnation: self.hard.incarnation,
            start_id: self.me.start_id,
            promise: if mutant::on(Mutant::ShowUndurable) { self.hard.promise } else { self.persist.promised() },
            durable: has.durable,
            baseline: Some(self.baseline),
            feature_level: Self::feature_level_of_this_build(),
            url: self.me.url.clone(),
            peer_url: self.me.peer_url.clone(),
        }
    }

    pub(super) fn on_disk(&self) -> Baseline {
        let id = self.persist.durable();
        let epoch = self.log.epoch_at(id).expect("what is durable is in the log");
        Baseline { promise: self.persist.promised().epoch, durable: LogPosition { epoch, id } }
    }

    /// Accepts what a voter shows, durably, or tells it that this is older than what was seen before.
    pub(super) fn judge(&mut self, from: MemberId, hello: &Hello) {
        // Also of one who is no voter as far as is known here: it may be by an entry that only it has yet,
        // and may be needed to commit that entry.
        if hello.cluster_id.is_none() || hello.cluster_id != self.hard.cluster_id {
            return;
        }
        let shown = shown_by(hello);
        if let Some(seen) = self.hard.seen.get(&from).copied()
            && let Some(reason) = staleness(&seen, &shown, self.tail_of(&seen))
        {
            if let Role::Leader(leader) = &mut self.role
                && let Some(progress) = leader.progress.get_mut(&from)
            {
                progress.unfit = true; // until it acknowledges as one that is trusted
            }
            return self.send(from, Message::Stale { seen, reason });
        }
        let seen = self.hard.seen.get(&from).copied().unwrap_or_default();
        let promise = hello.promise.epoch.max(seen.promise);
        let has = Seen { promise, durable: hello.durable.max(seen.durable), ..shown };
        if seen != has {
            *self.seen_of(from) = has;
        }
        // Also what was known already: it may be by what `saw` has only in memory.
        if self.saved_seen.get(&from) != Some(&has) {
            self.persist_state();
        }
        let voters = VotersAt { config_id: self.config_id(), member_ids: self.configuration().ids().collect() };
        let (incarnation, start_id) = (hello.incarnation, hello.start_id);
        let accepted = Message::Accepted(Accepted { incarnation, start_id, voters: Some(voters) });
        if mutant::on(Mutant::AcceptBeforeSeenIsDurable) {
            return self.send(from, accepted);
        }
        self.when_durable(Then::Send(from, accepted));
    }

    /// What is committed here, no leader has cut.
    fn tail_of(&self, seen: &Seen) -> Tail {
        let is_committed = seen.durable.id <= self.committed && self.log.matches(seen.durable);
        if is_committed { Tail::Stays } else { Tail::MayBeCut }
    }

    /// Remembers, until the next save, what a voter is known to have promised and made durable. Only
    /// what is certain is remembered: `durable` is of an entry that this log holds, too.
    pub(super) fn saw(&mut self, from: MemberId, promise: Epoch, durable: EntryId) {
        let Some(hello) = self.peers.get(&from).and_then(|peer| peer.hello.as_ref()) else { return };
        let (incarnation, start_id) = (hello.incarnation, hello.start_id);
        let position = self.log.epoch_at(durable).map(|epoch| LogPosition { epoch, id: durable });
        let seen = self.seen_of(from);
        if *seen == Seen::default() {
            // Not shown yet in this group; what it shows next may have been overtaken by this.
            *seen = Seen { incarnation, start_id, ..Seen::default() };
        }
        if (seen.incarnation, seen.start_id) == (incarnation, start_id) {
            seen.promise = seen.promise.max(promise);
            seen.durable = seen.durable.max(position.unwrap_or_default());
        }
    }

    fn seen_of(&mut self, member: MemberId) -> &mut Seen {
        let full = self.hard.seen.len() >= SEEN_MAX && !self.hard.seen.contains_key(&member);
        let configuration = &self.configurations.current().configuration;
        let stranger = self.hard.seen.keys().copied().find(|id| full && !configuration.contains(*id));
        if let Some(stranger) = stranger {
            self.hard.seen.remove(&stranger);
        }
        // Known by its connection alone: a learner shows itself only when it is initialised.
        let hello = self.peers.get(&member).and_then(|peer| peer.hello.as_ref());
        let start = hello.map(|hello| (hello.incarnation, hello.start_id));
        self.hard.seen.entry(member).or_insert_with(|| {
            let (incarnation, start_id) = start.unwrap_or_default();
            Seen { incarnation, start_id, ..Seen::default() }
        })
    }

    /// This member has changed around connections that exist already: founded, or refilled.
    pub(super) fn show_to_all(&mut self) {
        let connected: Vec<MemberId> = self.peers.iter().filter(|(_, p)| p.connected).map(|(id, _)| *id).collect();
        for peer in connected {
            self.show_to(peer, Answer::Wanted);
        }
    }

    /// What was shown, or its acceptance, may have been lost, or have come before the receiver knew this
    /// member for a voter.
    pub(super) fn show_again(&mut self) {
        if self.hard.cluster_id.is_none() || self.hard.quarantine.is_some() {
            return;
        }
        // One of the two may have become a member of its group since they met.
        let strangers = self.peers.iter().filter(|(id, peer)| peer.connected && self.is_of_another_group(**id));
        let strangers: Vec<MemberId> = strangers.map(|(id, _)| *id).collect();
        strangers.into_iter().for_each(|stranger| self.show_to(stranger, Answer::Wanted));
        if !self.is_learner() && !self.is_accepted() {
            return self.show_to_all();
        }
        // Whoever has not accepted this start may go by another one, and then heeds nothing that this one says: learners, too.
        let unaware = self.peers.iter().filter(|(id, peer)| peer.connected && self.has_yet_to_accept(**id));
        let unaware: Vec<MemberId> = unaware.map(|(id, _)| *id).collect();
        unaware.into_iter().for_each(|peer| self.show_to(peer, Answer::Wanted));
    }

    fn has_yet_to_accept(&self, peer: MemberId) -> bool {
        let hello = self.peers.get(&peer).and_then(|peer| peer.hello.as_ref());
        let is_of_this_group = hello.is_some_and(|hello| hello.cluster_id == self.hard.cluster_id);
        is_of_this_group && !self.shown_to.contains_key(&peer)
    }

    pub(super) fn show_to(&mut self, peer: MemberId, answer: Answer) {
        let message = Message::Show { hello: Box::new(self.hello()), answer: answer == Answer::Wanted };
        self.when_durable(Then::Send(peer, message));
    }

    pub(super) fn on_show(&mut self, from: MemberId, hello: Hello, answer: bool) {
        if hello.member_id != from {
            return;
        }
        self.judge(from, &hello);
        self.peer(from).hello = Some(hello);
        if answer && !self.shown_to.contains_key(&from) {
            self.show_to(from, Answer::Given);
        }
    }

    /// Late, it may be of a start before this one, and this one a copy that began at the same incarnation.
    pub(super) fn on_accepted(&mut self, now: Now, from: MemberId, accepted: Accepted) {
        let Accepted { incarnation, start_id, voters } = accepted;
        let is_mine = self.is_this_start(start_id);
        let counts_all = mutant::on(Mutant::CountAcceptanceOfAnotherStart);
        if is_mine || counts_all {
            self.accepted_by.insert(from);
        }
        if (is_mine && incarnation == self.hard.incarnation) || counts_all {
            self.shown_to.insert(from, voters);
        }
        self.take_up_waiting_append(now);
    }

    /// As an answer names who has asked; a release before that names 0.
    pub(super) fn is_this_start(&self, start_id: u64) -> bool {
        start_id == self.me.start_id || start_id == 0
    }

    /// This volume is older than what `from` saw of it. It takes no part until it was refilled; what it
    /// may have promised in the meantime counts as promised, and its next showing outdoes the last one.
    pub(super) fn on_stale(&mut self, now: Now, from: MemberId, seen: Seen, reason: &str) {
        // It knows this very start: what it refused is a late showing of an earlier one, or a copy's.
        if seen.start_id == self.me.start_id || !self.may_be_refused_by(from) || self.superseded {
            return;
        }
        // Of what it shows now nothing is stale: this was said of an earlier showing, and comes late. What of its tail stays,
        // `from` knows.
        if staleness(&seen, &shown_by(&self.hello()), Tail::Stays).is_none() {
            return;
        }
        let has_rival = self.has_rival(from, &seen);
        if !has_rival && self.knows_it_is_stale(&seen) {
            return;
        }
        let name = self.name_of(from).map_or_else(|| from.to_string(), |name| name.to_string());
        let reason = format!("a copied or restored volume: {name} {reason}");
        let epoch = self.epoch().max(seen.promise);
        self.become_follower(now, epoch);
        self.leader = None;
        // A vote of this epoch that it knows of stands; one that it does not know of may have been given.
        let knows_none = self.hard.promise.candidate.is_none() || mutant::on(Mutant::ReplaceKnownVote);
        if seen.promise > self.epoch() || (seen.promise == self.epoch() && knows_none) {
            self.hard.promise = Promise { epoch: seen.promise, candidate: Some(self.me()) };
        }
        self.persist.take_back_what_counts();
        if has_rival {
            return self.give_way_to_rival(&name, &seen);
        }
        self.hard.incarnation = self.hard.incarnation.max(seen.incarnation) + 1;
        let known = self.hard.quarantine.take().filter(|quarantine| !quarantine.may_vote);
        if known.is_none() {
            self.note(Note::Quarantined { reason: reason.clone() });
            self.draw_refill_number();
        }
        // Several voters say so: one refill is enough.
        let fresh = Quarantine { reason, until: None, may_vote: false };
        self.hard.quarantine = Some(known.unwrap_or(fresh));
        self.persist_state();
    }

    /// By a voter, or by who leads. Of the voters that an old copy knows nobody may be left.
    fn may_be_refused_by(&self, member: MemberId) -> bool {
        let is_told = self.told_voters().is_some_and(|told| told.member_ids.contains(&member));
        let leads = self.report_of(member).is_some_and(|report| report.lead.is_some() && report.epoch >= self.epoch());
        self.configuration().contains(member) || is_told || leads
    }

    /// Several voters say so, and each says it again: quarantined already, it has outdone that one.
    fn knows_it_is_stale(&self, seen: &Seen) -> bool {
        let is_quarantined = self.hard.quarantine.as_ref().is_some_and(|quarantine| !quarantine.may_vote);
        let Promise { epoch, candidate } = self.hard.promise;
        let is_promised = seen.promise < epoch || (seen.promise == epoch && candidate.is_some());
        is_quarantined && seen.incarnation < self.hard.incarnation && is_promised
    }
}

/// What a start is judged by.
fn shown_by(hello: &Hello) -> Seen {
    let Hello { incarnation, start_id, promise, durable, baseline, .. } = *hello;
    let Baseline { promise, durable } = baseline.unwrap_or(Baseline { promise: promise.epoch, durable });
    Seen { incarnation, start_id, promise, durable }
}

/// What a member was seen to have on disk of epochs before the one that it had promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// Only the leader of the promised epoch may have it cut, and only where it is not committed.
    MayBeCut,
    Stays,
}

/// Within one start nothing can be forgotten, or a refill has made up for it: what is shown may only have been overtaken on the way. Under one promise
/// durable ids compare, once an entry of the promised epoch was seen: until then its leader may have the tail cut, and
/// nothing that was acknowledged to it counts, since it commits by entries of its own.
fn staleness(seen: &Seen, shown: &Seen, tail: Tail) -> Option<String> {
    let Seen { incarnation, start_id, promise, durable } = *shown;
    let is_refilled = incarnation > seen.incarnation && start_id != 0;
    let is_this_start = start_id == seen.start_id && (incarnation == seen.incarnation || is_refilled);
    if is_this_start || mutant::on(Mutant::AcceptRestoredVolume) {
        return None;
    }
    if incarnation < seen.incarnation {
        Some(format!("saw incarnation {}, it shows {incarnation}", seen.incarnation))
    } else if incarnation == seen.incarnation && !mutant::on(Mutant::AcceptCopiedVolume) {
        Some(format!("saw another start of incarnation {incarnation}"))
    } else if promise < seen.promise {
        Some(format!("saw a promise of epoch {}, it shows {promise}", seen.promise))
    } else if promise == seen.promise
        && durable < seen.durable
        && (seen.durable.epoch == promise || tail == Tail::Stays)
    {
        Some(format!("saw it durable up to id {}, it shows {}", seen.durable.id, durable.id))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(incarnation: u64, start_id: u64, promise: u64, durable: (u64, u64)) -> Seen {
        let durable = LogPosition { epoch: Epoch(durable.0), id: EntryId(durable.1) };
        Seen { incarnation, start_id, promise: Epoch(promise), durable }
    }

    #[test]
    fn an_older_volume_is_known_by_each_of_its_marks() {
        let before = seen(5, 50, 2, (2, 9));
        for older in [
            seen(4, 50, 2, (2, 9)),
            seen(4, 40, 2, (2, 9)),
            seen(5, 51, 2, (2, 9)),
            seen(6, 60, 1, (2, 9)),
            seen(6, 60, 2, (2, 8)),
        ] {
            assert!(staleness(&before, &older, Tail::MayBeCut).is_some(), "{older:?}");
        }
        assert_eq!(staleness(&before, &seen(6, 60, 2, (2, 9)), Tail::MayBeCut), None);
        // It lacks an entry of the epoch that it has promised, and what is committed.
        assert!(staleness(&seen(5, 50, 3, (3, 10)), &seen(6, 60, 3, (2, 8)), Tail::MayBeCut).is_some());
        assert!(staleness(&seen(5, 50, 3, (2, 9)), &seen(6, 60, 3, (2, 8)), Tail::Stays).is_some());
    }

    #[test]
    fn a_showing_that_was_overtaken_on_the_way_and_a_cut_tail_are_no_older_volume() {
        let before = seen(5, 50, 2, (2, 9));
        for tail in [Tail::MayBeCut, Tail::Stays] {
            assert_eq!(staleness(&before, &seen(5, 50, 1, (1, 3)), tail), None);
            assert_eq!(staleness(&before, &seen(6, 50, 2, (2, 8)), tail), None, "refilled meanwhile");
            assert_eq!(staleness(&before, &seen(6, 60, 3, (1, 3)), tail), None);
        }
        // Cut by the leader of epoch 3, of which nothing is on disk yet.
        assert_eq!(staleness(&seen(5, 50, 3, (2, 9)), &seen(6, 60, 3, (2, 8)), Tail::MayBeCut), None);
    }
}
