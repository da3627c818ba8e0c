//! Handing leadership over: to whoever asks for it, or, when the process ends, to whoever is most advanced.
//! New writes are parked meanwhile. Never longer than a second; without success the leader goes on leading.

use super::leader::Leader;
use super::progress::Progress;
use super::{Replica, Role};
use crate::contract::{Now, Refusal, Reply, Token};
use crate::entry::Epoch;
use crate::group::MemberId;
use crate::message::Message;
use crate::mutant::{self, Mutant};

/// A hand-over that has not succeeded by then is given up, and the leader goes on leading.
const TRANSFER_MS: u64 = 1000;

#[derive(Debug)]
pub(super) struct Transfer {
    target: MemberId,
    until_ms: u64,
    told: bool,
    token: Option<Token>,
}

impl Transfer {
    /// Whoever waits for its end.
    pub(super) fn into_token(self) -> Option<Token> {
        self.token
    }
}

impl Leader {
    pub(super) fn transfer_deadline_ms(&self) -> u64 {
        self.transfer.as_ref().map_or(u64::MAX, |transfer| transfer.until_ms)
    }
}

impl Replica {
    pub(super) fn on_transfer_request(&mut self, now: Now, from: MemberId, epoch: Epoch) {
        if epoch == self.epoch() && self.configuration().contains(from) {
            self.begin_transfer(now, from, None);
        }
    }

    /// The log must come to rest, or the target never holds the last entry.
    pub(super) fn is_handing_over(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.transfer.is_some())
    }

    fn begin_transfer(&mut self, now: Now, target: MemberId, token: Option<Token>) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.transfer.is_some() {
            if let Some(token) = token {
                self.refuse(token, Refusal::Conflict("leadership is being handed over already".to_owned()));
            }
            return;
        }
        leader.transfer = Some(Transfer { target, until_ms: now.mono_ms + TRANSFER_MS, told: false, token });
    }

    /// Tells the target to campaign once it is durable up to the last id, and everybody who waits for
    /// an entry was answered: nobody is left with an unknown outcome. New writes are parked.
    pub(super) fn settle_transfer(&mut self) {
        let (last, epoch) = (self.log.last().id, self.epoch());
        let all_answered = self.applied() == last;
        let Role::Leader(leader) = &mut self.role else { return };
        let Leader { transfer: Some(transfer), progress, .. } = &mut **leader else { return };
        let caught_up = progress.get(&transfer.target).is_some_and(|p| p.matched >= last && !p.unfit);
        if ((caught_up && all_answered) || mutant::on(Mutant::HandOverTooEarly)) && !transfer.told {
            transfer.told = true;
            let target = transfer.target;
            self.send(target, Message::TimeoutNow { epoch });
        }
    }

    pub(super) fn has_handed_over(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.transfer.as_ref().is_some_and(|transfer| transfer.told))
    }

    pub(super) fn expire_transfer(&mut self, now: Now) {
        let is_over = matches!(&self.role, Role::Leader(leader) if now.mono_ms >= leader.transfer_deadline_ms());
        if is_over && !mutant::on(Mutant::NeverGiveUpHandOver) {
            self.give_up_transfer(now);
        }
    }

    fn give_up_transfer(&mut self, now: Now) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(token) = leader.transfer.take().and_then(Transfer::into_token) {
            self.refuse(token, Refusal::Conflict("no voter took over leadership".to_owned()));
        }
        self.unpark(now);
    }

    /// `peer` is shutting down: nothing is handed to it, unless it was told to lead nevertheless.
    pub(super) fn on_leaving(&mut self, now: Now, peer: MemberId) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.transfer.as_ref().is_some_and(|transfer| transfer.token.is_some()) {
            self.redirect_transfer(now, peer);
        }
    }

    /// `gone` does not take over any more: in a hand-over to it another takes its place, or nobody.
    pub(super) fn redirect_transfer(&mut self, now: Now, gone: MemberId) {
        let heir = self.heir(now);
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = leader.transfer.as_mut().filter(|transfer| transfer.target == gone) else { return };
        match heir.filter(|_| transfer.token.is_some()) {
            Some(heir) => (transfer.target, transfer.told) = (heir, false),
            None => self.give_up_transfer(now),
        }
    }

    /// Shutting down: the most advanced healthy voter takes over. Everybody is told, so that no other one that shuts
    /// down waits for this one.
    pub(super) fn on_hand_over(&mut self, now: Now, token: Token) {
        self.leaving = true;
        self.send_heartbeats(now);
        self.step_down(now, token);
    }

    pub(super) fn step_down(&mut self, now: Now, token: Token) {
        match self.heir(now) {
            Some(heir) => self.begin_transfer(now, heir, Some(token)),
            None => {
                let config_id = self.config_id();
                self.reply(token, Reply::Done { config_id });
            }
        }
    }

    /// The most advanced voter that could lead, and will be there. One that needs a snapshot does not catch up in time.
    fn heir(&self, now: Now) -> Option<MemberId> {
        let Role::Leader(leader) = &self.role else { return None };
        let leaves = |id: &MemberId| self.report_of(*id).is_some_and(|report| report.leaving);
        let is_near = |progress: &Progress| !progress.unfit && !progress.needs_snapshot();
        let fit =
            |id: &MemberId| self.is_reachable(now, *id) && !leaves(id) && leader.progress.get(id).is_some_and(is_near);
        self.other_voters().into_iter().filter(fit).max_by_key(|id| leader.progress[id].matched)
    }
}
