//! What everyone else holds of a running node: requests go in by a bounded queue, published state is
//! read without asking anyone. Clones are the same node. Never touches the replica.

use std::net::IpAddr;
use std::sync::Arc;

use kv_core::contract::{Reply, Request, View};
use kv_core::entry::{EntryId, Epoch};
use kv_core::keyspace::Keyspace;
use kv_core::sessions::Sessions;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::clock::Clock;
use super::published::{NodeReport, Published};
use super::stop::Stopped;
use crate::transport::Addresses;
use crate::wal::compaction::Settled;
use crate::wal::{FileStorage, LogReader};

/// Requests that wait for the driver's next batch; over it: [`CallError::Busy`].
pub(crate) const REQUESTS_MAX: usize = 4096;

/// A question on its way to the driver.
#[derive(Debug)]
pub(crate) enum Call {
    Replica {
        request: Request,
        reply: oneshot::Sender<Reply>,
    },
    /// A sealed file that cannot be repaired but by a snapshot.
    Damaged {
        reason: String,
    },
    /// For compaction: what is applied, and what was refused, between two entries.
    Settled(oneshot::Sender<Settled>),
}

/// Why a request got no reply. Only `Busy` says that it was not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the node's request queue is full")]
    Busy,
    #[error("the node did not answer in time")]
    TimedOut,
    #[error("the node is stopping")]
    Stopped,
}

#[derive(Clone)]
pub struct Handle {
    pub(crate) requests: mpsc::Sender<Call>,
    pub(crate) published: Arc<Published>,
    pub(crate) addresses: Addresses,
}

impl Handle {
    /// Where the peer with this name in its URLs was last connected.
    pub(crate) fn address(&self, name: &str) -> Option<IpAddr> {
        self.addresses.of(name)
    }

    /// Asks the replica. After `TimedOut` and `Stopped` the outcome of a write is unknown.
    /// May be cancelled: what was proposed goes on.
    pub async fn request(&self, request: Request, deadline: Instant) -> Result<Reply, CallError> {
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Call::Replica { request, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(CallError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(CallError::Stopped),
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(CallError::Stopped),
            Err(_) => Err(CallError::TimedOut),
        }
    }

    pub fn view(&self) -> Arc<View> {
        self.published.view()
    }

    /// Waits until the view is as asked, or the deadline: then None. May be cancelled.
    pub async fn wait_view(&self, deadline: Instant, wanted: impl Fn(&View) -> bool) -> Option<Arc<View>> {
        let mut changes = self.published.view_changes();
        loop {
            let view = self.view();
            if wanted(&view) {
                return Some(view);
            }
            timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Completes when the node has seen an epoch above this one: a forward to its leader is then void.
    /// May be cancelled.
    pub async fn epoch_above(&self, epoch: Epoch) {
        let mut epochs = self.published.epochs();
        let _node_gone = epochs.wait_for(|published| *published > epoch).await;
    }

    /// The keyspace in force; an installed snapshot replaces it, so ask again for each request.
    pub fn keyspace(&self) -> Arc<Keyspace> {
        Arc::clone(&self.published.state().keyspace)
    }

    /// The deduplication table in force; an installed snapshot replaces it.
    pub fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.published.state().sessions)
    }

    /// The id that is applied here: `X-Kv-Id` of whatever shows no key.
    pub fn applied(&self) -> EntryId {
        self.published.state().keyspace.applied()
    }

    /// Whether `id` was applied here before the deadline. Cheap when it already is. May be cancelled.
    pub async fn wait_applied(&self, id: EntryId, deadline: Instant) -> bool {
        if self.applied() >= id {
            return true;
        }
        let Some(mut wait) = self.published.applied_waiters.register(id) else {
            return false;
        };
        if self.applied() >= id {
            return true;
        }
        matches!(timeout_at(deadline, &mut wait.reached).await, Ok(Ok(())))
    }

    pub fn reader(&self) -> &LogReader<FileStorage> {
        &self.published.reader
    }

    /// In force for every request that comes when this has returned. May be cancelled.
    pub async fn limit_storage(&self, limit_bytes: Option<u64>, deadline: Instant) -> Result<(), CallError> {
        self.published.reader.set_storage_limit_bytes(limit_bytes);
        let committer = self.published.committer.clone();
        let looked = tokio::task::spawn_blocking(move || committer.look_at_limit());
        match timeout_at(deadline, looked).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(_))) => return Err(CallError::Busy), // the queue is full; it is looked at soon all the same
            Ok(Err(_)) => return Err(CallError::Stopped),
            Err(_) => return Err(CallError::TimedOut),
        }
        // The driver takes what the log told before what is asked: it knows when it answers anything.
        self.request(Request::Hello, deadline).await.map(drop)
    }

    pub fn clock(&self) -> Clock {
        self.published.clock
    }

    /// Whether the view is one that default reads are answered by, now.
    pub fn answers_default_reads(&self, view: &View) -> bool {
        view.answers_default_reads(self.published.clock.mono_ms())
    }

    /// Latched: caught up with a confirmed leader since the start, and neither draining nor unfit since.
    pub fn is_ready(&self) -> bool {
        self.published.is_ready()
    }

    /// False when the driver has not come round for 30 s.
    pub fn is_live(&self) -> bool {
        self.published.is_live()
    }

    /// Unready from now on; requests are still answered.
    pub fn start_draining(&self) {
        self.published.start_draining();
    }

    pub fn is_draining(&self) -> bool {
        self.published.is_draining()
    }

    /// Changes whenever a damaged file has been repaired; see [`LogReader::take_suspect`].
    pub fn repairs(&self) -> tokio::sync::watch::Receiver<()> {
        self.published.at_rest.repairs()
    }

    /// What the node reports around the replica's own status. Looks at the volume: do not call per request.
    pub fn status_extra(&self) -> NodeReport {
        self.published.report()
    }

    /// Entries up to here may be compacted: nobody that is near needs them, no snapshot under way ends below.
    pub fn compaction_limit(&self) -> EntryId {
        self.published.compaction_limit()
    }

    /// Ends the driver: what it was asked before is answered or dropped, the log is closed. Wait for
    /// [`Self::stopped`] afterwards.
    pub fn stop(&self) {
        self.published.stop.request();
    }

    /// Completes when the driver has ended, with the reason. May be cancelled.
    ///
    /// The future keeps no part of the node open: the data directory is free for the next one when it
    /// has completed and all handles are dropped.
    pub fn stopped(&self) -> impl Future<Output = Stopped> + use<> {
        let stop = Arc::clone(&self.published.stop);
        async move { stop.stopped().await }
    }
}
