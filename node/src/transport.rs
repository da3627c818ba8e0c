//! The peer transport: one persistent TCP connection for each pair of members, and a second one for
//! each snapshot. It moves messages and knows who is connected; it never looks into epochs, votes or
//! positions. The driver owns it, feeds it and reads its events. The wire: `docs/protocol.md`.
//!
//! ```text
//!  driver ─ send ─▶ outbox (bounded, drops) ─▶ writer ─▶ TCP ─▶ reader (CRC of every line) ─ event ─▶ driver
//!           set_peers, redial ─▶ peer task: dial · back-off · adopt · supersede
//!                        accept loop: bounded, handshake with time-out ─▶ peer task
//! ```
//!
//! Reading order: `frame`, `handshake`, `peers`, `connection`.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kv_core::entry::Epoch;
use kv_core::group::{MemberId, MemberInfo};
use kv_core::message::{Hello, Message};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Duration, timeout};

use handshake::{Credentials, HANDSHAKE_TIMEOUT, HandshakeError};
use peers::Shared;

use crate::auth_token::AuthToken;

pub(crate) use addresses::Addresses;
pub use counters::Counters;
pub use snapshot::{SnapshotError, SnapshotReceiver, SnapshotSender};

mod accept;
mod addresses;
mod connection;
mod counters;
mod dial;
pub(crate) mod frame;
mod handshake;
mod outbox;
mod peers;
mod snapshot;

/// What a transport is started with.
pub struct TransportConfig {
    /// Bound by the caller, so that a port in use is its error.
    pub listener: TcpListener,
    /// What this node shows of itself; read afresh for each handshake.
    pub hello: Arc<ArcSwap<Hello>>,
    /// Proved by both sides of each handshake when set.
    pub secret: Option<AuthToken>,
}

/// What the driver learns from the transport.
///
/// For each connection that survives: `Connected`, then what was `Received` on it, then `Disconnected`.
/// A connection that loses against another one of the same pair has no events at all.
#[derive(Debug)]
pub enum TransportEvent {
    /// A connection to `hello.member_id` is open in both directions.
    Connected {
        hello: Hello,
    },
    /// The connection has ended. `refused`: an attempt to dial again was refused, so the peer's process
    /// is dead. A second `Disconnected`, with `refused`, may follow one without it when the refusal
    /// takes longer to show.
    Disconnected {
        peer: MemberId,
        refused: bool,
    },
    Received {
        from: MemberId,
        message: Message,
    },
    /// A peer sent a line that is intact and of a newer release. It must never be skipped: the node stops.
    UnknownLine {
        from: MemberId,
        reason: String,
    },
    /// A peer that has proved itself streams a snapshot as the leader of `epoch`.
    SnapshotIncoming {
        hello: Hello,
        epoch: Epoch,
        stream: SnapshotReceiver,
    },
}

/// How long [`Transport::shutdown`] waits for connections to drain.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A handle of the transport; clones are the same transport.
#[derive(Clone)]
pub struct Transport {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Transport {
    /// Starts the accept loop. Must be called inside a tokio runtime. `events` is the driver's bounded
    /// queue: when it is full, reading from peers waits.
    pub fn start(config: TransportConfig, events: mpsc::Sender<TransportEvent>) -> Self {
        let TransportConfig { listener, hello, secret } = config;
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Shared::new(Credentials { hello, secret }, events);
        shared.tasks.spawn(accept::run(listener, shared.clone()));
        Self { shared, address }
    }

    /// The address of the peer port, for tests that bind port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where peers were last connected.
    pub(crate) fn addresses(&self) -> &Addresses {
        &self.shared.addresses
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }

    /// The members to hold connections with; the node itself is left out. Whoever was named before and
    /// is not any more is closed, and not dialed again. Members that connect by themselves stay.
    pub fn set_peers(&self, peers: Vec<MemberInfo>) {
        self.shared.set_peers(peers);
    }

    /// Best effort and never waits: dropped, and counted, when the peer is not connected or its queue is full.
    pub fn send(&self, to: MemberId, message: Message) {
        self.shared.send(to, message);
    }

    /// Dials at once, whatever the back-off says; nothing when the peer is connected or not to be dialed.
    pub fn redial(&self, peer: MemberId) {
        self.shared.redial(peer);
    }

    /// Opens a snapshot connection to a peer. Write the snapshot to it, then [`SnapshotSender::finish`].
    /// May be cancelled.
    pub async fn open_snapshot(&self, member: MemberId, epoch: Epoch) -> Result<SnapshotSender, SnapshotError> {
        let peer_url = self.shared.peer_url(member).ok_or(SnapshotError::UnknownMember(member))?;
        let stream = dial::connect(&peer_url).await.map_err(|error| SnapshotError::Connect(error.to_string()))?;
        dial::tune_for_snapshot(&stream)?;
        let handshake = handshake::dial_snapshot(stream, &self.shared.credentials, member, epoch);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(HandshakeError::TimedOut));
        stream.map(SnapshotSender::new).map_err(|error| SnapshotError::Connect(error.to_string()))
    }

    /// Sends what is queued (bounded), closes all connections and stops; no event follows.
    pub async fn shutdown(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        if timeout(SHUTDOWN_TIMEOUT, self.shared.tasks.wait()).await.is_err() {
            tracing::debug!("peer connections were still closing at the end");
        }
    }
}

#[cfg(test)]
mod tests;
