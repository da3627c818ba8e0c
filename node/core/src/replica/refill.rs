//! The way out of quarantine: the member asks the present leader up to where it must be refilled, and is trusted
//! again once it holds all of that, durably. The leader's answer, after a majority has confirmed it: `reads.rs`.

use super::{Replica, Role};
use crate::contract::{Note, Now, Quarantine};
use crate::entry::{EntryId, Epoch};
use crate::group::MemberId;
use crate::message::Message;
use crate::mutant::{self, Mutant};

impl Replica {
    /// What was to be held was asked for by a former start. This volume may be an older copy of that one, whose member has
    /// acknowledged more since.
    pub(super) fn ask_anew(&mut self) {
        let quarantine = self.hard.quarantine.as_mut().filter(|quarantine| !quarantine.may_vote);
        if let Some(quarantine) = quarantine.filter(|_| !mutant::on(Mutant::KeepGoalOfFormerStart)) {
            quarantine.until = None;
        }
    }

    /// Never 0, which a release without numbers means.
    pub(super) fn draw_refill_number(&mut self) {
        self.refill_number = self.random.next() | 1;
    }

    pub(super) fn ask_for_refill(&mut self) {
        let Some(Quarantine { until, .. }) = self.hard.quarantine else { return };
        if self.superseded {
            return;
        }
        if self.refill_number == 0 {
            self.draw_refill_number();
        }
        let (epoch, number) = (self.epoch(), self.refill_number);
        if until.is_none() && mutant::on(Mutant::RefillFromFollower) {
            let peers: Vec<MemberId> = self.peers.keys().copied().collect();
            return peers.into_iter().for_each(|peer| self.send(peer, Message::RefillRequest { epoch, number }));
        }
        let Some(leader) = self.leader.filter(|leader| *leader != self.me()) else { return };
        // What this member acknowledged and nobody else held, a later leader may not have: it says up to where, again.
        let has = self.report_of(leader).map(|report| report.last);
        if until.is_none_or(|until| has.is_some_and(|has| has < until)) {
            self.send(leader, Message::RefillRequest { epoch, number });
        }
    }

    pub(super) fn on_refill_answer(&mut self, now: Now, from: MemberId, epoch: Epoch, number: u64, until: EntryId) {
        let leads = self.leader == Some(from) || mutant::on(Mutant::RefillFromFollower);
        let is_mine = number == self.refill_number || number == 0;
        if epoch != self.epoch() || !leads || !is_mine || self.superseded {
            return;
        }
        match &mut self.hard.quarantine {
            Some(quarantine) if quarantine.until.is_none_or(|known| until < known && number != 0) => {
                quarantine.until = Some(until);
                self.persist_state();
            }
            Some(_) => {}
            None => self.leave_for_snapshot(now, until),
        }
    }

    /// Up to here this member has what the present leader has, durably, and may have said so.
    pub(super) fn held(&self) -> EntryId {
        match &self.role {
            Role::Follower(follower) => follower.matched.min(self.persist.durable()),
            Role::Candidate(_) | Role::Leader(_) => self.applied(),
        }
    }

    /// The member holds, durably and matched with the present leader, all that the leader had when it was asked.
    /// Whether it is committed does not matter: committing it may need this member.
    pub(super) fn finish_refill(&mut self) {
        let held = self.held();
        let until = self.hard.quarantine.as_ref().and_then(|quarantine| quarantine.until);
        let has_all = |until: EntryId| until <= held || mutant::on(Mutant::EndQuarantineEarly);
        let is_settled = !self.installing && !self.needs_snapshot && self.persist.promise_is_durable();
        if until.is_some_and(has_all) && is_settled {
            self.hard.quarantine = None;
            self.persist_state();
            self.shown_to.clear();
            self.admitted = true;
            self.baseline = self.on_disk();
            self.show_to_all();
            self.owe_acknowledgement();
            self.note(Note::Refilled);
        }
    }
}
