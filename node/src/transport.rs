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
//! Reading order: [`frame`], [`handshake`], [`peers`], [`connection`].

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use kv_core::entry::Epoch;
use kv_core::group::{MemberId, MemberInfo};
use kv_core::message::{Hello, Message};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub use counters::Counters;
pub use snapshot::{SnapshotError, SnapshotReceiver, SnapshotSender};

mod counters;
mod snapshot;

/// What a transport is started with.
pub struct TransportConfig {
    /// Bound by the caller, so that a port in use is its error.
    pub listener: TcpListener,
    /// What this node shows of itself; read afresh for each handshake.
    pub hello: Arc<ArcSwap<Hello>>,
    /// Proved by both sides of each handshake when set.
    pub secret: Option<Vec<u8>>,
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

/// A handle of the transport; clones are the same transport.
#[derive(Clone)]
pub struct Transport {
    counters: Arc<Counters>,
    address: SocketAddr,
}

impl Transport {
    /// Starts the accept loop. Must be called inside a tokio runtime. `events` is the driver's bounded
    /// queue: when it is full, reading from peers waits.
    pub fn start(config: TransportConfig, events: mpsc::Sender<TransportEvent>) -> Self {
        let _ = events;
        let address = config.listener.local_addr().expect("a bound listener has an address");
        Self { counters: Arc::default(), address }
    }

    /// The address of the peer port, for tests that bind port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The members to hold connections with; the node itself is left out. Whoever was named before and
    /// is not any more is closed, and not dialed again. Members that connect by themselves stay.
    pub fn set_peers(&self, peers: Vec<MemberInfo>) {
        let _ = peers;
    }

    /// Best effort and never waits: dropped, and counted, when the peer is not connected or its queue is full.
    pub fn send(&self, to: MemberId, message: Message) {
        let _ = (to, message);
    }

    /// Dials at once, whatever the back-off says; nothing when the peer is connected or not to be dialed.
    pub fn redial(&self, peer: MemberId) {
        let _ = peer;
    }

    /// Opens a snapshot connection to a peer. Write the snapshot to it, then [`SnapshotSender::finish`].
    /// May be cancelled.
    pub async fn open_snapshot(&self, member: MemberId, epoch: Epoch) -> Result<SnapshotSender, SnapshotError> {
        let _ = epoch;
        Err(SnapshotError::UnknownMember(member))
    }

    /// Sends what is queued (bounded), closes all connections and stops; no event follows.
    pub async fn shutdown(&self) {}
}
