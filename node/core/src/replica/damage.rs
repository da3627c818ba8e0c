//! Damage at rest that cannot be repaired byte for byte. The applied state is sound, so the member goes on
//! until the others are a majority without it; then it is quarantined, and the present leader's snapshot
//! replaces all that it has. A leader hands over first: whoever leads is never quarantined here.

use super::persist::Then;
use super::{Replica, Role};
use crate::contract::{Note, Now, Quarantine};
use crate::message::{AppendResult, Message, Round};
use crate::quorum;
use crate::status::Health;

impl Replica {
    pub(super) fn on_damaged(&mut self, now: Now, reason: String) {
        let follows = matches!(self.role, Role::Follower(_)) && self.leader_is_alive(now);
        if !follows || self.needs_snapshot || self.installing || !self.is_dispensable(now) {
            return;
        }
        self.needs_snapshot = true;
        if self.hard.quarantine.is_none() {
            self.note(Note::Quarantined { reason: reason.clone() });
            // The snapshot may end below what was acknowledged.
            self.hard.quarantine = Some(Quarantine { reason, until: None, may_vote: false });
            self.persist_state();
        }
        self.ask_for_refill();
        self.ask_for_snapshot();
    }

    /// The other voters can commit without this member.
    fn is_dispensable(&self, now: Now) -> bool {
        let timeout_ms = self.tuning.heartbeat_timeout_ms;
        let fit = |id: &&crate::group::MemberId| {
            let peer = self.peers.get(id).filter(|peer| peer.heard.health(now.mono_ms, timeout_ms) == Health::Healthy);
            peer.and_then(|peer| peer.report.as_ref()).is_some_and(|report| !report.unfit)
        };
        let fit = self.other_voters().iter().filter(fit).count();
        !self.is_voter() || fit >= quorum::majority(self.configuration().voters.len())
    }

    /// Repeated with every look for silence: it may be lost, or end below what is committed here.
    pub(super) fn ask_for_snapshot(&mut self) {
        if let Some(leader) = self.leader.filter(|_| self.needs_snapshot && !self.installing) {
            let ack = self.ack(Round::default(), AppendResult::NeedSnapshot);
            self.when_durable(Then::Send(leader, Message::AppendAck(ack)));
        }
    }
}
