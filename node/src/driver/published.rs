//! What the driver publishes for everyone else to read without asking: view, applied state, hello,
//! readiness, the sign of life. Written by the driver alone, apart from the draining flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use kv_core::contract::View;
use kv_core::entry::EntryId;
use kv_core::message::Hello;
use tokio::sync::watch;

use super::applied::AppliedWaiters;
use super::clock::Clock;
use super::stop::Stop;

/// Without a round of the driver for this long, the node counts as stuck.
const STUCK_MS: u64 = 30_000;

pub(crate) struct Published {
    pub(crate) clock: Clock,
    pub(crate) hello: Arc<ArcSwap<Hello>>,
    pub(crate) applied_waiters: AppliedWaiters,
    pub(crate) stop: Stop,
    view: ArcSwap<View>,
    view_changed: watch::Sender<()>,
    applied: AtomicU64,
    caught_up_once: AtomicBool,
    draining: AtomicBool,
    last_round_mono_ms: AtomicU64,
    /// The lowest position of the snapshots on their way to peers.
    snapshots_floor: AtomicU64,
}

impl Published {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn view_changes(&self) -> watch::Receiver<()> {
        self.view_changed.subscribe()
    }

    pub(crate) fn applied(&self) -> EntryId {
        EntryId(self.applied.load(Ordering::Acquire))
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

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn compaction_limit(&self) -> EntryId {
        let floor = EntryId(self.snapshots_floor.load(Ordering::Relaxed));
        self.view.load().compaction_limit.min(floor)
    }

    /// Readiness is a latch: losing the leader does not clear it, being unfit to serve does.
    pub(crate) fn publish_view(&self, view: View) {
        if !view.serves {
            self.caught_up_once.store(false, Ordering::Relaxed);
        } else if view.caught_up {
            self.caught_up_once.store(true, Ordering::Relaxed);
        }
        self.view.store(Arc::new(view));
        self.view_changed.send_replace(());
    }

    pub(crate) fn publish_snapshots_floor(&self, floor: Option<EntryId>) {
        self.snapshots_floor.store(floor.map_or(u64::MAX, |id| id.0), Ordering::Relaxed);
    }

    pub(crate) fn sign_of_life(&self, mono_ms: u64) {
        self.last_round_mono_ms.store(mono_ms, Ordering::Relaxed);
    }
}
