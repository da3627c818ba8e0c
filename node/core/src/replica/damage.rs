//! Damage at rest that cannot be repaired byte for byte. The applied state is sound, so the member goes on
//! until the others are a majority without it; then it is quarantined, and the present leader's snapshot
//! replaces all that it has. A leader hands over first: whoever leads is never quarantined here.

use super::persist::Then;
use super::{Replica, Role};
use crate::contract::{Note, Now, Quarantine};
use crate::entry::EntryId;
use crate::group::MemberId;
use crate::message::{AppendResult, Message, Round};
use crate::mutant::{self, Mutant};
use crate::quorum;

impl Replica {
    /// Up to where it must be refilled, the leader says first, while this member still counts: so that it can
    /// come back also when the group cannot confirm a leader without it any more.
    pub(super) fn on_damaged(&mut self, now: Now, reason: String) {
        if !self.may_leave(now) {
            return;
        }
        if self.hard.quarantine.is_some() {
            self.needs_snapshot = true;
            return self.ask_for_snapshot();
        }
        if self.damage_told.replace(reason).is_none() {
            self.draw_refill_number();
        }
        if let Some(leader) = self.leader {
            let (epoch, number) = (self.epoch(), self.refill_number);
            self.send(leader, Message::RefillRequest { epoch, number });
        }
    }

    /// The leader has said up to where, and was confirmed.
    pub(super) fn leave_for_snapshot(&mut self, now: Now, until: EntryId) {
        let Some(reason) = self.damage_told.take().filter(|_| self.may_leave(now)) else { return };
        self.needs_snapshot = true;
        self.note(Note::Quarantined { reason: reason.clone() });
        self.draw_refill_number();
        self.persist.take_back_what_counts(); // votes, too, of campaigns that are over: a slow disk may still have them
        // The snapshot may end below what was acknowledged, also since the leader was asked. Until it takes the log's
        // place, the log is whole, and good for a vote that may be needed.
        let until = if mutant::on(Mutant::LeaveWithLess) { until } else { until.max(self.held()) };
        self.hard.quarantine = Some(Quarantine { reason, until: Some(until), may_vote: true });
        self.persist_state();
        self.ask_for_snapshot();
    }

    fn may_leave(&self, now: Now) -> bool {
        let follows = matches!(self.role, Role::Follower(_)) && self.leader_is_alive(now);
        follows && !self.needs_snapshot && !self.installing && self.is_dispensable(now)
    }

    /// The other voters can commit without this member, as far as it knows. Whether they do, the leader finds out.
    fn is_dispensable(&self, now: Now) -> bool {
        let fit = |id: &&MemberId| {
            let report = self.report_of(**id);
            self.is_reachable(now, **id) && report.is_some_and(|report| !report.unfit && !report.leaving)
        };
        let fit = self.other_voters().iter().filter(fit).count();
        !self.is_voter()
            || fit >= quorum::majority(self.configuration().voters.len())
            || mutant::on(Mutant::LeaveTheOthersTooFew)
    }

    /// Repeated with every look for silence: it may be lost, or end below what is committed here.
    pub(super) fn ask_for_snapshot(&mut self) {
        if let Some(leader) = self.leader.filter(|_| self.needs_snapshot && !self.installing && !self.superseded) {
            let ack = self.ack(Round::default(), AppendResult::NeedSnapshot);
            self.when_durable(Then::Send(leader, Message::AppendAck(ack)));
        }
    }
}
