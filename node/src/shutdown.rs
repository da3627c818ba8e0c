//! The end of a node. The first signal drains: unready, leadership handed over, requests answered, the
//! log flushed. The second one aborts. Called by `serve`; `dev` uses the signals alone.

use std::io;
use std::time::Duration;

use kv_core::contract::{Reply, Request};
use kv_core::status::Role;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::{Handle, Stopped};

/// The replica gives a hand-over up after 1 s; this is for a driver that is busy.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// How long a node that has handed over waits to hear of the new leader.
const SUCCESSOR_MAX: Duration = Duration::from_secs(1);
/// From then on, how long the other nodes may take to hear of it, too, and to stop sending requests here: a port
/// that closes on them leaves requests with an unknown outcome.
const OTHERS_HEAR: Duration = Duration::from_millis(200);

/// What asks a process to end.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on signals wait here instead of ending the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The name of the next signal. May be cancelled: none is lost.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// What a drain needs of a running node.
pub struct Draining {
    pub handle: Handle,
    pub drain_delay: Duration,
    /// Ends the client port.
    pub http_stop: CancellationToken,
    /// The client port's task; over when the last request is answered.
    pub http: JoinHandle<()>,
}

/// Ends the node in order. Must not be cancelled unless the process ends at once: what is in flight
/// then has an unknown outcome.
pub async fn drain(draining: Draining) -> Stopped {
    let Draining { handle, drain_delay, http_stop, http } = draining;
    handle.start_draining();
    let settling = hand_over(&handle).await;
    tokio::time::sleep(drain_delay.max(settling)).await;
    http_stop.cancel();
    if let Err(error) = http.await {
        tracing::error!(%error, "the client port ended badly");
    }
    handle.stop();
    handle.stopped().await
}

/// Whoever does not lead, or has nobody to hand over to, just goes on. Returns how long requests of other nodes may
/// still arrive here.
async fn hand_over(handle: &Handle) -> Duration {
    let led = handle.view().role == Role::Leader;
    match handle.request(Request::HandOver, Instant::now() + HAND_OVER_MAX).await {
        Ok(Reply::Done { .. }) => tracing::debug!("this node does not lead, or nobody else could"),
        Ok(reply) => tracing::info!(?reply, "leadership is not handed over"),
        Err(error) => tracing::info!(%error, "leadership is not handed over"),
    }
    if !led || handle.view().role == Role::Leader {
        return Duration::ZERO;
    }
    let deadline = Instant::now() + SUCCESSOR_MAX;
    let _nobody_leads = handle.wait_view(deadline, |view| view.leader.is_some()).await;
    OTHERS_HEAR
}
