//! The driver: one task that owns the replica. It selects what has happened (durable positions, peer
//! messages, finished background work, requests, time), steps the replica through it, and carries out
//! the effects in their order. A step cannot await, so nothing is ever half done.
//!
//! ```text
//!  Handle ── requests (bounded; full = Busy) ──┐                    ┌─▶ committer (WAL thread)
//!  committer ── durable positions ─────────────┤                    ├─▶ transport
//!  transport ── messages (bounded) ────────────┼─▶ step · step · … ─┼─▶ replies
//!  fetches, snapshots ── results (bounded) ────┤    take_effects    ├─▶ fetches, snapshots
//!  time ───────────────────────────────────────┘                    └─▶ Published (view, keyspace, hello)
//! ```
//!
//! One round takes everything that is queued, within a budget for each source, before the effects are
//! taken once: group commit and batched replication fall out of the queues. Nobody else touches the
//! replica; everybody else reads what is [`published`] or asks through the [`Handle`].
//!
//! Reading order: this file, [`rounds`], [`effects`], then [`boot`], [`fetches`], [`snapshots`].

mod applied;
mod boot;
mod clock;
mod commits;
mod compaction;
mod effects;
mod fetches;
mod gathering;
mod handle;
mod healing;
mod learners;
mod lending;
mod mending;
mod notes;
mod published;
mod repairs;
mod replies;
mod rounds;
mod snapshots;
mod stop;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kv_core::Replica;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use boot::{BootOptions, boot, hello, random_u64};
pub use clock::Clock;
pub use fetches::{Fetch, Fetches};
pub use handle::{CallError, Handle};
pub use healing::heal;
pub use published::NodeReport;
pub use repairs::{DamageAtRest, ScrubSchedule};
pub use stop::Stopped;

use commits::Commits;
use lending::Lending;
use mending::Mended;
use published::{AppliedState, First, Log, Published};
use repairs::Repairs;
use rounds::{Driver, Sources};
use stop::Stop;

use crate::auth_token::AuthToken;
use crate::metrics::Metrics;
use crate::transport::{Transport, TransportConfig};
use crate::wal::{CommitEvent, Committer, FileStorage, Opened, Wal, WalError};

/// Messages of peers that wait for the driver; when full, reading from peers waits.
const PEER_EVENTS_MAX: usize = 1024;
/// Results of background work that wait for the driver; when full, the work waits.
const FINISHED_MAX: usize = 64;

/// What a driver is started with, besides the log.
pub struct DriverConfig {
    pub boot: BootOptions,
    /// The bound peer port.
    pub peer_listener: TcpListener,
    /// Proved by peers in their handshake.
    pub peer_secret: Option<AuthToken>,
    pub metrics: Arc<Metrics>,
    pub scrub: ScrubSchedule,
}

/// Starts the driver of an opened log. Must be called inside a tokio runtime; the driver runs until
/// [`Handle::stop`], the last handle is dropped, or it must stop: see [`Handle::stopped`].
///
/// # Errors
/// When what learners gave back to a damaged group of one cannot be written to the log.
pub async fn start(opened: Opened<FileStorage>, config: DriverConfig) -> Result<Handle, WalError> {
    let DriverConfig { boot: options, peer_listener, peer_secret, metrics, scrub } = config;
    let Opened { wal, reader, recovered } = opened;
    let hello = Arc::new(ArcSwap::from_pointee(boot::hello(&recovered, &options)));
    let (peer_events, mut peers) = mpsc::channel(PEER_EVENTS_MAX);
    let transport = Transport::start(
        TransportConfig { listener: peer_listener, hello: Arc::clone(&hello), secret: peer_secret },
        peer_events,
    );
    let mended = mending::mend(wal, recovered, &transport, &mut peers).await?;
    let Mended { wal, recovered, undeclared, connected } = mended;
    let clock = Clock::start();
    let commits = Commits::default();
    let committer = spawn_committer(wal, &commits, Arc::clone(&metrics));
    let log = Log { reader, committer: committer.handle(), recovery: recovered.report.clone() };
    let now = clock.now();
    let mut boot = boot::boot(recovered, &options, random_u64());
    boot.lost.undeclared = undeclared;
    let replica = Replica::new(boot, now);
    let state = AppliedState { keyspace: replica.keyspace(), sessions: replica.sessions() };
    hello.store(replica.hello().into());
    let first = First { view: replica.view(now), hello, state };
    let published = Arc::new(Published::new(clock, log, first));
    let (finished, finished_work) = mpsc::channel(FINISHED_MAX);
    let (requests, calls) = mpsc::channel(handle::REQUESTS_MAX);
    let mut sources = Sources::new(commits, peers, finished_work, calls, published.stop.requests());
    sources.connected_before(connected);
    let (lending, lines) = Lending::new();
    let stopping = CancellationToken::new();
    let repairs = Repairs {
        published: Arc::clone(&published),
        calls: requests.downgrade(),
        transport: transport.clone(),
        lines,
        metrics,
        schedule: scrub,
        stopping: stopping.clone(),
    };
    let on_the_side = (finished, lending);
    let addresses = transport.addresses().clone();
    let driver = Driver::new(replica, options, committer, transport, Arc::clone(&published), on_the_side, sources);
    let repairs = Beside { task: tokio::spawn(repairs.run()), stopping };
    tokio::spawn(supervise(driver, repairs, Arc::clone(&published.stop)));
    Ok(Handle { requests, published, addresses })
}

fn spawn_committer(wal: Wal<FileStorage>, commits: &Commits, metrics: Arc<Metrics>) -> Committer {
    let commits = commits.clone();
    Committer::spawn(wal, move |event| {
        if let CommitEvent::Persisted { took, .. } = &event {
            metrics.observe_fsync(*took);
        }
        commits.push(event);
    })
}

/// A task that ends after the driver, and before its end is announced: it has the log open.
struct Beside {
    task: JoinHandle<()>,
    stopping: CancellationToken,
}

/// Work that hangs longer than this in a broken disk is left behind.
const BESIDE_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// A panic is a broken rule, too: the node must not go on without its driver.
async fn supervise(driver: Driver, beside: Beside, stop: Arc<Stop>) {
    let stopped = match tokio::spawn(driver.run()).await {
        Ok(stopped) => stopped,
        Err(error) => Stopped::Rules(format!("the driver ended without a word: {error}")),
    };
    beside.stopping.cancel();
    let _hangs = timeout(BESIDE_ENDS_WITHIN, beside.task).await;
    match &stopped {
        Stopped::Requested => tracing::info!("the driver has stopped"),
        Stopped::Storage(reason) => tracing::error!(reason, "the log cannot be written any more: stopping"),
        Stopped::Rules(reason) => tracing::error!(reason, "going on would break a promise: stopping"),
    }
    stop.announce(stopped);
}
