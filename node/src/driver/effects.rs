//! The two sides of a step: what events mean to the replica, and carrying out what it asks for, in
//! its order.

use kv_core::contract::{Effect, Input, Now, Persist};
use kv_core::group::MemberId;
use kv_core::message::Message;

use super::boot;
use super::fetches::{self, Fetch};
use super::lending::Borrowed;
use super::notes;
use super::published::AppliedState;
use super::rounds::{Driver, Finished};
use super::stop::Stopped;
use crate::transport::TransportEvent;
use crate::wal::{CommitEvent, Recovered};

impl Driver {
    /// Something that was asked of the log is durable, or cannot be.
    pub(crate) fn committed(&mut self, now: Now, event: CommitEvent) -> Option<Stopped> {
        match event {
            CommitEvent::Persisted { seq, took: _ } => self.replica.step(now, Input::Persisted { seq }),
            CommitEvent::Installed { seq: _, recovered } => self.installed(now, *recovered),
            CommitEvent::Compacted { base, outcome: _ } => {
                self.replica.step(now, Input::Compacted { horizon: base.horizon })
            }
            CommitEvent::StorageFull(full) => {
                notes::log_storage(full);
                self.replica.step(now, Input::Storage { full });
            }
            CommitEvent::Failed(reason) => return Some(Stopped::Storage(reason)),
        }
        self.hello_is_stale = true;
        None
    }

    /// An installed snapshot replaces all applied state at once; what was published of the old one stays
    /// readable to whoever holds it.
    fn installed(&mut self, now: Now, recovered: Recovered) {
        self.published.publish_recovery(recovered.report.clone());
        let boot = boot::boot(recovered, &self.boot, boot::random_u64());
        self.replica.step(now, Input::Installed { boot: Box::new(boot) });
        self.snapshot_installed();
        self.publish_applied_state();
    }

    pub(crate) fn peer_event(&mut self, now: Now, event: TransportEvent) -> Option<Stopped> {
        match event {
            TransportEvent::Connected { hello } => self.replica.step(now, Input::Connected { hello }),
            TransportEvent::Disconnected { peer, refused } => {
                self.replica.step(now, Input::Disconnected { peer, refused });
            }
            TransportEvent::Received { from, message } => self.received(now, from, message),
            TransportEvent::UnknownLine { from, reason } => {
                return Some(Stopped::Rules(format!("member {from} sent an entry of a newer release: {reason}")));
            }
            TransportEvent::SnapshotIncoming { hello, epoch, stream } => self.receive_snapshot(hello, epoch, stream),
        }
        None
    }

    fn received(&mut self, now: Now, from: MemberId, message: Message) {
        match message {
            // Lines are lines, whoever asks: the log answers, the replica has no part in it.
            Message::LinesRequest { first, last } => self.lend_lines(from, first, last),
            Message::Lines { first, last, compacted: _, entries } => {
                self.lending.borrowed(Borrowed { from, first, last, entries });
            }
            message => self.replica.step(now, Input::Received { from, message }),
        }
    }

    pub(crate) fn work_finished(&mut self, now: Now, work: Finished) {
        match work {
            Finished::Fetch { peer, input } => {
                self.replica.step(now, input);
                if let Some(next) = self.fetches.ended(peer) {
                    self.start_fetch(next);
                }
            }
            Finished::SnapshotSent { input, floor } => {
                self.replica.step(now, input);
                drop(floor); // from here on the replica knows how far the peer is
            }
            Finished::SnapshotStaged { input, turn } => self.snapshot_staged(now, input, turn),
        }
    }

    /// Takes and carries out the effects of the round. Returns when the node must stop.
    pub(crate) fn carry_out(&mut self, now: Now) -> Option<Stopped> {
        let effects = self.replica.take_effects(now);
        self.publish_progress();
        for effect in effects {
            match effect {
                Effect::Persist { seq, op } => self.persist(seq, op),
                Effect::Send { to, message } => self.transport.send(to, message),
                Effect::Reply { token, reply } => self.replies.answer(token, reply),
                Effect::Peers(members) => self.transport.set_peers(members),
                Effect::Redial { peer } => self.transport.redial(peer),
                Effect::Fetch { peer, from, bytes_max } => self.fetch(Fetch { peer, from, bytes_max }),
                Effect::SendSnapshot { peer, epoch } => self.send_snapshot(peer, epoch),
                Effect::ViewChanged => self.published.publish_view(self.replica.view(now)),
                Effect::Note(note) => notes::log(note),
                Effect::Stop { reason } => return Some(Stopped::Rules(reason)),
            }
        }
        None
    }

    /// Before anything is sent or answered, what it says must be there to be read.
    fn publish_progress(&mut self) {
        if std::mem::take(&mut self.hello_is_stale) {
            self.published.hello.store(self.replica.hello().into());
        }
        let applied = self.published.state().keyspace.applied();
        if applied != self.applied {
            self.applied = applied;
            self.published.applied_waiters.applied(applied);
        }
    }

    pub(crate) fn publish_applied_state(&self) {
        let keyspace = self.replica.keyspace();
        let sessions = self.replica.sessions();
        self.published.publish_state(AppliedState { keyspace, sessions });
    }

    fn persist(&self, seq: u64, op: Persist) {
        self.committer.submit(seq, op);
    }

    fn fetch(&mut self, fetch: Fetch) {
        if let Some(fetch) = self.fetches.ask(fetch) {
            self.start_fetch(fetch);
        }
    }

    fn start_fetch(&self, fetch: Fetch) {
        fetches::start(fetch, self.published.reader.clone(), self.finished.clone());
    }
}
