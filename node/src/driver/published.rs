//! What the driver publishes for everyone else to read without asking: view, applied state, hello,
//! readiness, the sign of life. Written by the driver alone, apart from the draining flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use kv_core::contract::View;
use kv_core::entry::{EntryId, Epoch};
use kv_core::keyspace::Keyspace;
use kv_core::message::Hello;
use kv_core::sessions::Sessions;
use kv_core::status::Role;
use tokio::sync::watch;

use super::applied::AppliedWaiters;
use super::clock::Clock;
use super::repairs::{AtRest, DamageAtRest};
use super::snapshots::Floors;
use super::stop::Stop;
use crate::wal::{CommitterHandle, FileStorage, LogReader, RecoveryReport};

/// Without a round of the driver for this long, the node counts as stuck.
const STUCK_MS: u64 = 30_000;

/// The applied state in force; replaced whole by an installed snapshot.
pub(crate) struct AppliedState {
    pub(crate) keyspace: Arc<Keyspace>,
    pub(crate) sessions: Arc<Sessions>,
}

/// What a node reports around the replica's own status.
#[derive(Debug, Clone)]
pub struct NodeReport {
    pub ready: bool,
    pub draining: bool,
    /// Bytes of the log's files.
    pub disk_used_bytes: u64,
    /// Bytes free on the volume; None: it could not be asked.
    pub disk_available_bytes: Option<u64>,
    /// What the last recovery found.
    pub recovery: Arc<RecoveryReport>,
    /// What was found since.
    pub at_rest: DamageAtRest,
}

/// The parts of an open log that others than the driver use.
pub(crate) struct Log {
    pub(crate) reader: LogReader<FileStorage>,
    pub(crate) committer: CommitterHandle,
    pub(crate) recovery: RecoveryReport,
}

/// What is published before the first round.
pub(crate) struct First {
    pub(crate) view: View,
    /// Shown to peers already.
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) state: AppliedState,
}

pub(crate) struct Published {
    pub(crate) clock: Clock,
    pub(crate) reader: LogReader<FileStorage>,
    pub(crate) committer: CommitterHandle,
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) applied_waiters: AppliedWaiters,
    /// Apart, so that whoever waits for the end does not keep the log open.
    pub(crate) stop: Arc<Stop>,
    view: ArcSwap<View>,
    view_changed: watch::Sender<()>,
    /// The view's epoch, apart: views change with each commit, epochs hardly ever.
    epoch: watch::Sender<Epoch>,
    state: ArcSwap<AppliedState>,
    recovery: ArcSwap<RecoveryReport>,
    caught_up_once: AtomicBool,
    draining: AtomicBool,
    last_round_mono_ms: AtomicU64,
    pub(crate) snapshot_floors: Floors,
    pub(crate) at_rest: AtRest,
    /// Shared with whoever has the disk busy.
    busy: Arc<()>,
}

impl Published {
    pub(crate) fn new(clock: Clock, log: Log, first: First) -> Self {
        let Log { reader, committer, recovery } = log;
        let First { view, hello, state } = first;
        Self {
            clock,
            reader,
            committer,
            hello,
            applied_waiters: AppliedWaiters::default(),
            stop: Arc::default(),
            epoch: watch::Sender::new(view.epoch),
            view: ArcSwap::from_pointee(view),
            view_changed: watch::Sender::new(()),
            state: ArcSwap::from_pointee(state),
            recovery: ArcSwap::from_pointee(recovery),
            caught_up_once: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            last_round_mono_ms: AtomicU64::new(clock.mono_ms()),
            snapshot_floors: Floors::default(),
            at_rest: AtRest::default(),
            busy: Arc::default(),
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn view_changes(&self) -> watch::Receiver<()> {
        self.view_changed.subscribe()
    }

    pub(crate) fn epochs(&self) -> watch::Receiver<Epoch> {
        self.epoch.subscribe()
    }

    pub(crate) fn state(&self) -> Guard<Arc<AppliedState>> {
        self.state.load()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.caught_up_once.load(Ordering::Relaxed)
            && !self.draining.load(Ordering::Relaxed)
            && !self.stop.has_stopped()
    }

    /// Before the first round there is no sign of life to miss: the driver starts with the node.
    pub(crate) fn is_live(&self) -> bool {
        let silence_ms = self.clock.mono_ms().saturating_sub(self.last_round_mono_ms.load(Ordering::Relaxed));
        silence_ms < STUCK_MS && !self.stop.has_stopped()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn compaction_limit(&self) -> EntryId {
        let limit = self.view.load().compaction_limit;
        self.snapshot_floors.lowest().map_or(limit, |floor| limit.min(floor))
    }

    /// The disk is busy with more than the log's own writes, until it is dropped.
    pub(crate) fn busy(&self) -> Arc<()> {
        Arc::clone(&self.busy)
    }

    pub(crate) fn is_busy(&self) -> bool {
        Arc::strong_count(&self.busy) > 1 || self.snapshot_floors.lowest().is_some()
    }

    pub(crate) fn report(&self) -> NodeReport {
        NodeReport {
            ready: self.is_ready(),
            draining: self.draining.load(Ordering::Relaxed),
            disk_used_bytes: self.reader.disk_bytes(),
            disk_available_bytes: self.reader.available_bytes().ok(),
            recovery: self.recovery.load_full(),
            at_rest: self.at_rest.report(),
        }
    }

    /// Readiness is a latch: losing the leader does not clear it, being unfit to serve or removed does.
    pub(crate) fn publish_view(&self, view: View) {
        let was_voter = self.view.load().role != Role::Learner;
        let removed = was_voter && view.role == Role::Learner;
        if removed || !view.serves {
            self.caught_up_once.store(false, Ordering::Relaxed);
        } else if view.caught_up {
            self.caught_up_once.store(true, Ordering::Relaxed);
        }
        let epoch = view.epoch;
        self.view.store(Arc::new(view));
        self.epoch.send_if_modified(|published| std::mem::replace(published, epoch) != epoch);
        self.view_changed.send_replace(());
    }

    pub(crate) fn publish_state(&self, state: AppliedState) {
        self.state.store(Arc::new(state));
    }

    /// What was found at the start stays told when a snapshot has replaced it.
    pub(crate) fn publish_recovery(&self, report: RecoveryReport) {
        let told = report.told_with(&self.recovery.load());
        self.recovery.store(Arc::new(told));
    }

    pub(crate) fn sign_of_life(&self, mono_ms: u64) {
        self.last_round_mono_ms.store(mono_ms, Ordering::Relaxed);
    }
}
