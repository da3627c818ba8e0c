//! What the transport counts. Only ever rises; `metrics` reads it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start of the transport.
#[derive(Debug, Default)]
pub struct Counters {
    pub frames_sent: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub frames_received: AtomicU64,
    pub bytes_received: AtomicU64,
    /// Messages to a peer that was not connected.
    pub dropped_unconnected: AtomicU64,
    /// Messages other than appends and lines that found the queue full.
    pub dropped_control: AtomicU64,
    /// Appends and lines that found the queue full.
    pub dropped_bulk: AtomicU64,
    /// Lines whose CRC or form is wrong; each has cost its connection.
    pub invalid_lines: AtomicU64,
    /// Frames that are no message; each has cost its connection.
    pub invalid_frames: AtomicU64,
    /// Connections that a peer opened and that this node refused.
    pub handshakes_refused: AtomicU64,
    /// Connections closed unheard: too many were half open.
    pub accepts_shed: AtomicU64,
    /// Dials that were refused by the other side's handshake.
    pub dials_refused: AtomicU64,
    pub connections_opened: AtomicU64,
    pub connections_closed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}
