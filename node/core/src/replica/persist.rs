//! What has been handed to the WAL and is not yet durable, and what waits for it. Numbers rise by
//! one; the WAL works them off in order. Nothing that depends on durability leaves before.

use std::collections::VecDeque;

use super::Replica;
use crate::contract::{Effect, Now, Persist, Reply, Token};
use crate::entry::EntryId;
use crate::group::MemberId;
use crate::message::{Message, Promise};
use crate::mutant::{self, Mutant};

/// What to do once a number is durable.
#[derive(Debug)]
pub(super) enum Then {
    /// The log is durable up to here (lower after a cut).
    Durable(EntryId),
    Send(MemberId, Message),
    Reply(Token, Reply),
    /// The own vote of the present campaign counts.
    OwnVote,
    /// This member has become part of a group.
    Founded,
    /// The promise on disk, and so what may be shown of it.
    Promised(Promise),
}

#[derive(Debug, Default)]
pub(super) struct PersistQueue {
    submitted: u64,
    done: u64,
    waiting: VecDeque<(u64, Then)>,
    durable: EntryId,
    /// The number of the last saved promise: no vote or acknowledgement leaves before it.
    promise_seq: u64,
    promised: Promise,
    /// The number of the last snapshot installation.
    install_seq: u64,
}

impl PersistQueue {
    pub(super) fn start(&mut self, durable: EntryId, promised: Promise) {
        self.durable = durable;
        self.promised = promised;
    }

    /// The promise that is on disk; the present one may still be on its way there.
    pub(super) fn promised(&self) -> Promise {
        self.promised
    }

    pub(super) fn durable(&self) -> EntryId {
        self.durable
    }

    pub(super) fn promise_is_durable(&self) -> bool {
        self.done >= self.promise_seq
    }

    fn is_idle(&self) -> bool {
        self.done >= self.submitted
    }

    fn then(&mut self, then: Then) {
        self.waiting.push_back((self.submitted, then));
    }

    /// Votes, and requests for them, that wait for their promise stay: who is quarantined now gives none and asks for none.
    /// What it acknowledges does not count.
    pub(super) fn take_back_what_counts(&mut self) {
        let is_taken_back = |then: &Then| match then {
            Then::Send(_, Message::VoteRequest(_)) => true,
            Then::Send(_, Message::VoteReply(reply)) => reply.granted,
            _ => false,
        };
        self.waiting.retain(|(_, then)| !is_taken_back(then));
        for (_, then) in &mut self.waiting {
            if let Then::Send(_, Message::AppendAck(ack)) = then {
                ack.unfit = true;
            }
        }
    }

    /// A cut lowers what appends that are still under way will have made durable.
    fn cut(&mut self, keep: EntryId) {
        self.durable = self.durable.min(keep);
        if mutant::on(Mutant::CutForgetsWhatIsUnderWay) {
            return;
        }
        for (_, then) in &mut self.waiting {
            if let Then::Durable(id) = then {
                *id = (*id).min(keep);
            }
        }
    }
}

impl Replica {
    fn persist(&mut self, op: Persist) {
        self.persist.submitted += 1;
        self.effects.push(Effect::Persist { seq: self.persist.submitted, op });
    }

    /// Hands new entries to the WAL. Called before anything else is persisted: log, then promise.
    pub(super) fn submit_entries(&mut self) {
        let entries = self.log.take_unsubmitted();
        let Some(last) = entries.last().map(|entry| entry.id) else { return };
        self.persist(Persist::Append { entries, committed: self.committed });
        self.persist.then(Then::Durable(last));
    }

    pub(super) fn persist_state(&mut self) {
        self.hard.committed = self.applied();
        self.saved_committed = self.committed;
        self.persist_with_state(Persist::State(Box::new(self.hard.clone())));
    }

    /// Like [`Self::persist`] for operations that carry the state themselves.
    pub(super) fn persist_with_state(&mut self, op: Persist) {
        self.submit_entries();
        self.persist(op);
        self.saved_seen.clone_from(&self.hard.seen);
        self.persist.promise_seq = self.persist.submitted;
        self.persist.then(Then::Promised(self.hard.promise));
    }

    pub(super) fn persist_cut(&mut self, keep: EntryId) {
        self.submit_entries();
        self.persist.cut(keep);
        self.persist(Persist::Truncate { keep });
    }

    /// Once everything persisted so far is durable; at once, if it is.
    pub(super) fn when_durable(&mut self, then: Then) {
        match then {
            Then::Send(to, message) if self.persist.is_idle() => self.send(to, message),
            Then::Reply(token, reply) if self.persist.is_idle() => self.reply(token, reply),
            then => self.persist.then(then),
        }
    }

    /// An installed snapshot has replaced the log; what was submitted before it is settled.
    pub(super) fn persist_restarted(&mut self, durable: EntryId) {
        self.persist.durable = durable;
    }

    /// The snapshot is installed, and with it everything that was submitted before.
    pub(super) fn persist_installed(&mut self, now: Now) {
        self.on_persisted(now, self.persist.install_seq);
    }

    pub(super) fn persist_install(&mut self, op: Persist) {
        self.persist_with_state(op);
        self.persist.install_seq = self.persist.submitted;
    }

    pub(super) fn on_persisted(&mut self, now: Now, seq: u64) {
        assert!(seq <= self.persist.submitted, "the WAL confirms only what it was given");
        self.persist.done = self.persist.done.max(seq);
        while self.persist.waiting.front().is_some_and(|&(due, _)| due <= seq) {
            let (_, then) = self.persist.waiting.pop_front().expect("just seen");
            match then {
                Then::Durable(id) => self.persist.durable = id,
                Then::Send(to, message) => self.send(to, message),
                Then::Reply(token, reply) => self.reply(token, reply),
                Then::OwnVote => self.on_own_vote(now),
                Then::Founded => self.on_founded(now),
                Then::Promised(promise) => self.persist.promised = promise,
            }
        }
    }
}
