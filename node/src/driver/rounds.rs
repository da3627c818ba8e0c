//! The loop: wait for anything, take what is queued, step, carry out. Everything here runs on the one
//! task that owns the replica.

use std::sync::Arc;
use std::time::Duration;

use kv_core::Replica;
use kv_core::contract::{Input, Now, Refusal, Reply};
use kv_core::entry::EntryId;
use kv_core::group::MemberId;
use kv_core::message::Hello;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::boot::BootOptions;
use super::commits::Commits;
use super::fetches::Fetches;
use super::handle::Call;
use super::lending::Lending;
use super::published::Published;
use super::replies::Replies;
use super::snapshots::{Floor, Turns};
use super::stop::Stopped;
use crate::transport::{Transport, TransportEvent};
use crate::wal::Committer;
use crate::wal::compaction::Settled;

/// Taken from each source in one round, so that none starves another: durable positions and peers go
/// first, and a flood of requests delays them by one such batch at most.
const PEER_EVENTS_PER_ROUND: usize = 256;
const REQUESTS_PER_ROUND: usize = 512;
const FINISHED_PER_ROUND: usize = 16;
/// Longest sleep, so that the sign of life is fresh on an idle node (it may be 30 s old at most).
const SLEEP_MAX_MS: u64 = 5_000;
/// How often callers that have gone are looked for.
const SWEEP_INTERVAL_MS: u64 = 1_000;

/// Background work that has ended.
#[derive(Debug)]
pub(crate) enum Finished {
    Fetch { peer: MemberId, input: Input },
    SnapshotSent { input: Input, floor: Floor },
    SnapshotStaged { input: Input, turn: OwnedSemaphorePermit },
}

/// Where events come from, each with what was taken of it for this round.
pub(crate) struct Sources {
    pub(crate) commits: Commits,
    pub(crate) peers: mpsc::Receiver<TransportEvent>,
    pub(crate) finished: mpsc::Receiver<Finished>,
    pub(crate) requests: mpsc::Receiver<Call>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) taken: Taken,
}

#[derive(Default)]
pub(crate) struct Taken {
    peers: Vec<TransportEvent>,
    finished: Vec<Finished>,
    requests: Vec<Call>,
}

/// The owner of the replica and of everything that its effects go to.
pub(crate) struct Driver {
    pub(crate) replica: Replica,
    pub(crate) boot: BootOptions,
    pub(crate) committer: Committer,
    pub(crate) transport: Transport,
    pub(crate) published: Arc<Published>,
    pub(crate) replies: Replies,
    pub(crate) fetches: Fetches,
    pub(crate) snapshots: Turns,
    pub(crate) lending: Lending,
    pub(crate) finished: mpsc::Sender<Finished>,
    pub(crate) sources: Sources,
    pub(crate) sweep_at_mono_ms: u64,
    /// What was last told to those that wait for an id.
    pub(crate) applied: EntryId,
    /// The replica may show another promise or durable id than is published.
    pub(crate) hello_is_stale: bool,
}

impl Sources {
    pub(crate) fn new(
        commits: Commits,
        peers: mpsc::Receiver<TransportEvent>,
        finished: mpsc::Receiver<Finished>,
        requests: mpsc::Receiver<Call>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { commits, peers, finished, requests, stop, taken: Taken::default() }
    }

    /// Peers whose connections are older than the replica.
    pub(crate) fn connected_before(&mut self, peers: Vec<Hello>) {
        self.taken.peers.extend(peers.into_iter().map(|hello| TransportEvent::Connected { hello }));
    }
}

enum Woken {
    Event,
    Stop,
}

impl Driver {
    pub(crate) fn new(
        replica: Replica,
        boot: BootOptions,
        committer: Committer,
        transport: Transport,
        published: Arc<Published>,
        (finished, lending): (mpsc::Sender<Finished>, Lending),
        sources: Sources,
    ) -> Self {
        Self {
            applied: published.state().keyspace.applied(),
            replica,
            boot,
            committer,
            transport,
            published,
            replies: Replies::default(),
            fetches: Fetches::default(),
            snapshots: Turns::default(),
            lending,
            finished,
            sources,
            sweep_at_mono_ms: 0,
            hello_is_stale: false,
        }
    }

    /// Runs until it is told to stop or must. Not to be cancelled.
    pub(crate) async fn run(mut self) -> Stopped {
        let why = self.rounds().await;
        self.end(&why).await;
        why
    }

    /// Closes what the driver owns. Whoever still waits for a reply gets none: `CallError::Stopped`.
    async fn end(self, why: &Stopped) {
        let Self { transport, committer, .. } = self;
        transport.shutdown().await;
        if *why == Stopped::Requested {
            committer.close().await;
        }
    }

    async fn rounds(&mut self) -> Stopped {
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        // The replica speaks first: peers to dial, a campaign at start.
        if let Some(why) = self.round() {
            return why;
        }
        loop {
            let wake_at = self.wake_at();
            // Re-arming costs a lock: only when it would ring too late, or has rung.
            if timer.is_elapsed() || wake_at < timer.deadline() {
                timer.as_mut().reset(wake_at);
            }
            if let Woken::Stop = self.sources.wait(timer.as_mut()).await {
                return Stopped::Requested;
            }
            // Whoever is ready to ask gets to ask first: one fsync then serves more of them. With nobody
            // else ready this returns at once.
            tokio::task::yield_now().await;
            if let Some(why) = self.round() {
                return why;
            }
        }
    }

    /// One round: everything taken, stepped through, carried out. Returns when the node must stop.
    fn round(&mut self) -> Option<Stopped> {
        let now = self.published.clock.now();
        self.published.sign_of_life(now.mono_ms);
        self.sources.take_queued();
        let stopped = self.step_all(now);
        if stopped.is_some() {
            return stopped;
        }
        if now.mono_ms >= self.replica.deadline_ms() {
            self.replica.step(now, Input::Tick);
        }
        self.carry_out(now)
    }

    fn step_all(&mut self, now: Now) -> Option<Stopped> {
        let mut taken = std::mem::take(&mut self.sources.taken);
        while let Some(event) = self.sources.commits.pop() {
            if let Some(why) = self.committed(now, event) {
                return Some(why);
            }
        }
        // Before what peers say: an append that follows a snapshot comes after it.
        for work in taken.finished.drain(..) {
            self.work_finished(now, work);
        }
        for event in taken.peers.drain(..) {
            if let Some(why) = self.peer_event(now, event) {
                return Some(why);
            }
        }
        for call in taken.requests.drain(..) {
            self.call(now, call);
        }
        self.sweep(now);
        self.sources.taken = taken;
        None
    }

    fn call(&mut self, now: Now, call: Call) {
        match call {
            Call::Replica { request, reply } => match self.replies.insert(reply) {
                Ok(token) => self.replica.step(now, Input::Request { token, request }),
                Err(reply) => {
                    let _gone = reply.send(Reply::Refused(Refusal::Overloaded));
                }
            },
            Call::Damaged { reason } => self.replica.step(now, Input::Damaged { reason }),
            Call::Settled(reply) => {
                let state = self.replica.state();
                let _gone = reply.send(Settled { applied: state.applied(), refused: state.refused().to_vec() });
            }
        }
    }

    /// Callers that have gone are told to the replica, so that what waits for nobody is forgotten.
    fn sweep(&mut self, now: Now) {
        if now.mono_ms < self.sweep_at_mono_ms {
            return;
        }
        self.sweep_at_mono_ms = now.mono_ms + SWEEP_INTERVAL_MS;
        for token in self.replies.sweep_gone() {
            self.replica.step(now, Input::Cancelled { token });
        }
    }

    fn wake_at(&self) -> tokio::time::Instant {
        let clock = &self.published.clock;
        let mut wake_at_ms = self.replica.deadline_ms().min(clock.mono_ms() + SLEEP_MAX_MS);
        if !self.replies.is_empty() {
            wake_at_ms = wake_at_ms.min(self.sweep_at_mono_ms);
        }
        clock.instant_at(wake_at_ms).into()
    }
}

impl Sources {
    /// Waits until there is something to do. Loses nothing when it is cancelled, which it is not.
    async fn wait(&mut self, timer: std::pin::Pin<&mut tokio::time::Sleep>) -> Woken {
        let Self { commits, peers, finished, requests, stop, taken } = self;
        tokio::select! {
            biased;
            _ = stop.wait_for(|requested| *requested) => Woken::Stop,
            () = commits.arrived() => Woken::Event,
            _ = peers.recv_many(&mut taken.peers, PEER_EVENTS_PER_ROUND) => Woken::Event,
            _ = finished.recv_many(&mut taken.finished, FINISHED_PER_ROUND) => Woken::Event,
            count = requests.recv_many(&mut taken.requests, REQUESTS_PER_ROUND) => match count {
                0 => Woken::Stop, // the last handle has gone
                _ => Woken::Event,
            },
            () = timer => Woken::Event,
        }
    }

    /// Adds what is queued already, up to each source's budget.
    fn take_queued(&mut self) {
        let Self { peers, finished, requests, taken, .. } = self;
        take(peers, &mut taken.peers, PEER_EVENTS_PER_ROUND);
        take(finished, &mut taken.finished, FINISHED_PER_ROUND);
        take(requests, &mut taken.requests, REQUESTS_PER_ROUND);
    }
}

fn take<T>(queue: &mut mpsc::Receiver<T>, taken: &mut Vec<T>, budget: usize) {
    while taken.len() < budget {
        match queue.try_recv() {
            Ok(event) => taken.push(event),
            Err(_) => return,
        }
    }
}
