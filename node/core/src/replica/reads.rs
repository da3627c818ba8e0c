//! Confirmation rounds: the leader's proof, begun after a question arrived, that it still leads. One
//! round serves all that wait. Linearizable reads and refusals wait for one; the lease is a by-product
//! that bounds how stale a default read may be, and nothing else.

use std::collections::VecDeque;

use super::{Replica, Role};
use crate::command::{OperationKind, RequestId};
use crate::contract::{Now, Refusal, Reply, Token};
use crate::entry::{EntryId, Epoch};
use crate::group::MemberId;
use crate::message::{Message, Round};
use crate::mutant::{self, Mutant};
use crate::quorum;

/// The lease is this part of the heartbeat time-out, in percent, from the sending of a round.
const LEASE_PERCENT: u64 = 90;
/// Rounds whose sending time is remembered; older unanswered ones prove nothing any more.
const ROUNDS_REMEMBERED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Rounds {
    current: Round,
    confirmed: Round,
    sent: VecDeque<(Round, u64)>,
    /// The sending time of the last confirmed round.
    confirmed_sent_ms: Option<u64>,
    /// Two lines, since a read needs what is committed and a refusal all that is in flight. Within a
    /// line the needs only rise.
    reads: VecDeque<Waiting>,
    others: VecDeque<Waiting>,
    /// Of members that ask up to where they must be refilled: one each.
    refills: Vec<Waiting>,
    wanted: bool,
}

#[derive(Debug)]
struct Waiting {
    token: Option<Token>,
    round: Round,
    /// Must be applied before the answer.
    applied: EntryId,
    question: Question,
}

#[derive(Debug)]
pub(super) enum Question {
    ReadIndex,
    /// As of this timestamp.
    RequestStatus(RequestId, OperationKind, u64),
    /// A refusal that was decided on the log up to `applied`.
    Refused(Reply),
    /// A member that asks up to where it must be refilled, and the number of its question.
    Refill(MemberId, u64),
}

impl Rounds {
    pub(super) fn current(&self) -> Round {
        self.current
    }

    fn begin(&mut self, now_ms: u64) -> Round {
        self.current = Round(self.current.0 + 1);
        self.wanted = false;
        self.sent.push_back((self.current, now_ms));
        if self.sent.len() > ROUNDS_REMEMBERED {
            self.sent.pop_front();
        }
        self.current
    }

    fn confirm(&mut self, round: Round, now: Now) {
        self.confirmed = self.confirmed.max(round);
        while let Some(&(sent, at_ms)) = self.sent.front().filter(|(sent, _)| *sent <= round) {
            debug_assert!(sent <= round, "rounds are confirmed in order");
            self.confirmed_sent_ms = Some(if mutant::on(Mutant::LeaseFromAnswer) { now.mono_ms } else { at_ms });
            self.sent.pop_front();
        }
    }

    fn waiting(&self) -> usize {
        self.reads.len() + self.others.len() + self.refills.len()
    }

    /// A round that begins after now.
    pub(super) fn want(&mut self) -> Round {
        self.wanted = true;
        Round(self.current.0 + 1)
    }

    /// Waits for a round that begins after now.
    fn ask(&mut self, token: Option<Token>, applied: EntryId, question: Question) {
        let next = self.want();
        let begun = matches!(question, Question::ReadIndex) && mutant::on(Mutant::ReadByEarlierRound);
        let round = if begun { self.current } else { next };
        let waiting = Waiting { token, round, applied, question };
        match waiting.question {
            Question::ReadIndex => self.reads.push_back(waiting),
            Question::Refill(..) => self.refills.push(waiting),
            Question::RequestStatus(..) | Question::Refused(_) => self.others.push_back(waiting),
        }
    }

    /// Asked again, it waits as it did before; but a release without numbers may ask for another quarantine by now.
    fn ask_for_refill(&mut self, member: MemberId, number: u64, last: EntryId) {
        let is_its = |waiting: &Waiting| matches!(waiting.question, Question::Refill(by, _) if by == member);
        let is_known = |waiting: &Waiting| matches!(waiting.question, Question::Refill(_, known) if known == number);
        if number == 0 || !self.refills.iter().any(|waiting| is_its(waiting) && is_known(waiting)) {
            self.refills.retain(|waiting| !is_its(waiting));
            self.ask(None, last, Question::Refill(member, number));
        }
    }

    fn pop_due(&mut self, applied: EntryId) -> Option<Waiting> {
        let confirmed = self.confirmed;
        let unconfirmed = |w: &Waiting| match w.question {
            Question::ReadIndex => mutant::on(Mutant::ReadWithoutRound),
            Question::Refused(_) => mutant::on(Mutant::RefuseUnconfirmed),
            Question::Refill(..) | Question::RequestStatus(..) => false,
        };
        let due = |w: &Waiting| (w.round <= confirmed || unconfirmed(w)) && w.applied <= applied;
        let line = if self.reads.front().is_some_and(due) { &mut self.reads } else { &mut self.others };
        if line.front().is_some_and(due) { line.pop_front() } else { None }
    }

    pub(super) fn into_waiting(self) -> Vec<Token> {
        self.reads.into_iter().chain(self.others).filter_map(|waiting| waiting.token).collect()
    }
}

impl Replica {
    pub(super) fn on_read_index(&mut self, token: Token) {
        let needs = match &self.role {
            Role::Leader(_) if mutant::on(Mutant::ReadBeforeInherited) => self.committed,
            Role::Leader(leader) => self.committed.max(leader.inherited),
            _ => self.committed,
        };
        self.ask_after(token, needs, Question::ReadIndex);
    }

    /// Judged like a copy of the request that arrives now: records expire on an idle store, too.
    pub(super) fn on_request_status(&mut self, now: Now, token: Token, request: RequestId, operation: OperationKind) {
        let (needs, ts_ms) = (self.log.last().id, self.clock.now_ms(now));
        self.ask_after(token, needs, Question::RequestStatus(request, operation, ts_ms));
    }

    /// Answers `question` when a round begun from now on is confirmed and `applied` is applied.
    pub(super) fn ask_after(&mut self, token: Token, applied: EntryId, question: Question) {
        let leader_id = self.leader;
        let Role::Leader(leader) = &mut self.role else {
            return self.refuse(token, Refusal::NotLeader { leader: leader_id });
        };
        if leader.rounds.waiting() >= self.limits.reads_max {
            return self.refuse(token, Refusal::Overloaded);
        }
        leader.rounds.ask(Some(token), applied, question);
    }

    pub(super) fn on_refill_request(&mut self, from: MemberId, epoch: Epoch, number: u64) {
        if epoch != self.epoch() {
            return;
        }
        let last = self.log.last().id;
        if !matches!(self.role, Role::Leader(_)) && mutant::on(Mutant::RefillFromFollower) {
            self.send(from, Message::RefillAnswer { epoch, number, until: self.applied() });
        }
        if let Role::Leader(leader) = &mut self.role
            && leader.rounds.waiting() < self.limits.reads_max
        {
            leader.rounds.ask_for_refill(from, number, last);
        }
    }

    pub(super) fn on_heartbeat_ack(&mut self, from: MemberId, epoch: Epoch, round: Round) {
        if self.is_refused(from) {
            return;
        }
        let mine = self.epoch();
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.progress.get_mut(&from)
            && (epoch == mine || mutant::on(Mutant::CountStaleRound))
        {
            progress.acked_round = progress.acked_round.max(round);
        }
    }

    /// Begins the round that somebody waits for, unless one is still on its way; answers what a
    /// majority has confirmed.
    pub(super) fn advance_rounds(&mut self, now: Now) {
        self.confirm_rounds(now);
        let Role::Leader(leader) = &self.role else { return };
        if leader.rounds.wanted && leader.rounds.confirmed == leader.rounds.current {
            self.send_round(now);
            self.confirm_rounds(now);
        }
        self.answer_confirmed();
    }

    fn send_round(&mut self, now: Now) {
        self.begin_round(now);
        for peer in self.other_voters().into_iter().chain(self.becomes_voter()) {
            let heartbeat = self.heartbeat();
            self.send(peer, Message::Heartbeat(heartbeat));
        }
    }

    pub(super) fn begin_round(&mut self, now: Now) {
        if let Role::Leader(leader) = &mut self.role {
            leader.rounds.begin(now.mono_ms);
        }
    }

    fn confirm_rounds(&mut self, now: Now) {
        let round = self.answered_by_most(None);
        if let Role::Leader(leader) = &mut self.role {
            leader.rounds.confirm(round, now);
        }
    }

    /// The last round that a majority has answered, `without` one of them.
    fn answered_by_most(&self, without: Option<MemberId>) -> Round {
        let Role::Leader(leader) = &self.role else { return Round::default() };
        if !self.is_accepted() {
            return Round::default();
        }
        let acked = |voter: MemberId| match leader.progress.get(&voter) {
            _ if voter == self.me() => leader.rounds.current,
            Some(progress) if !progress.unfit && Some(voter) != without => progress.acked_round,
            _ => Round::default(),
        };
        let mut rounds: Vec<EntryId> = self.configuration().ids().map(|v| EntryId(acked(v).0)).collect();
        Round(quorum::durable_on_majority(&mut rounds).0)
    }

    fn answer_confirmed(&mut self) {
        let applied = self.applied();
        while let Role::Leader(leader) = &mut self.role
            && let Some(waiting) = leader.rounds.pop_due(applied)
        {
            self.answer_question(waiting);
        }
        self.answer_refills();
    }

    /// Who asks may leave the quorum with the answer. So the others have confirmed it by themselves: they are a majority, and live.
    fn answer_refills(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let applied = self.state.applied();
        for waiting in std::mem::take(&mut leader.rounds.refills) {
            let Question::Refill(member, _) = waiting.question else { continue };
            let without = Some(member).filter(|_| !mutant::on(Mutant::CountWhoLeaves));
            let is_confirmed = waiting.round <= self.answered_by_most(without) || mutant::on(Mutant::RefillUnconfirmed);
            if is_confirmed && waiting.applied <= applied {
                self.answer_question(waiting);
            } else if let Role::Leader(leader) = &mut self.role {
                leader.rounds.refills.push(waiting);
            }
        }
    }

    fn answer_question(&mut self, waiting: Waiting) {
        let reply = match waiting.question {
            Question::ReadIndex => Reply::ReadAt(waiting.applied),
            Question::Refused(reply) => reply,
            Question::RequestStatus(request, operation, ts_ms) => {
                let record = self.state.sessions().lookup(&request, operation, ts_ms);
                Reply::RequestStatus(record.map(|record| record.written()))
            }
            Question::Refill(member, number) => {
                let (epoch, until) = (self.epoch(), waiting.applied);
                return self.send(member, Message::RefillAnswer { epoch, number, until });
            }
        };
        if let Some(token) = waiting.token {
            self.reply(token, reply);
        }
    }

    /// Until when default reads are answered here.
    pub(super) fn lease_until_ms(&self) -> u64 {
        let Role::Leader(leader) = &self.role else { return 0 };
        if self.is_only_voter() || mutant::on(Mutant::LeaseNeverLapses) {
            return u64::MAX;
        }
        let lease_ms = self.tuning.heartbeat_timeout_ms * LEASE_PERCENT / 100;
        leader.rounds.confirmed_sent_ms.map_or(0, |sent| sent + lease_ms)
    }

    /// The lease was held and is not any more: no majority answers.
    pub(super) fn lease_has_lapsed(&self, now: Now) -> bool {
        matches!(self.role, Role::Leader(_)) && self.lease_until_ms() > 0 && now.mono_ms > self.lease_until_ms()
    }
}
