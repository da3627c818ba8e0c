//! Reaching a peer: from its URL to a connected socket, within a bound, and how long to wait before
//! the next attempt. Names are resolved afresh each time: a pod comes back under another address.

use std::io;
use std::net::SocketAddr;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Duration, timeout};

/// Bounds name resolution and connecting together. Just below the first repetition of a SYN: a fresh
/// attempt also asks for the name again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// First wait after a failed attempt; small, since a failover may wait for it.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest wait between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that lived shorter is no reason to dial without a wait: two processes of one identity
/// would push each other out without end.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Doublings of the first wait that such connections add up to at most: they do connect, after all.
const UNSTABLE_DOUBLINGS_MAX: u32 = 2;
/// Silence after which the kernel begins to probe, and between probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that stay unacknowledged for so long end a connection: after a partition has healed, a new
/// one is there sooner than the old one's next repetition.
const PEER_UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);
/// The same for a snapshot, whose receiver may stand still while its disk does.
const SNAPSHOT_UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Nobody listens there, or not any more: the process is dead.
    #[error("connection refused")]
    Refused,
    #[error("{0}")]
    Failed(String),
}

/// Connects to a `peer_url`. May be cancelled.
pub(crate) async fn connect(peer_url: &str) -> Result<TcpStream, DialError> {
    let host_and_port = host_and_port(peer_url).map_err(DialError::Failed)?;
    match timeout(CONNECT_TIMEOUT, connect_any(host_and_port)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Failed(format!("{host_and_port} does not answer"))),
    }
}

/// `host:port`, with or without `http://` in front.
pub(crate) fn host_and_port(peer_url: &str) -> Result<&str, String> {
    let rest = peer_url.strip_prefix("http://").unwrap_or(peer_url);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let port = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) if !rest.contains("//") => Ok(rest),
        _ => Err(format!("peer URL {peer_url:?} is not host:port or http://host:port")),
    }
}

/// Tries each address of the name; it is refused only if all are.
async fn connect_any(host_and_port: &str) -> Result<TcpStream, DialError> {
    let failed = |error: io::Error| DialError::Failed(format!("{host_and_port}: {error}"));
    let addresses = lookup_host(host_and_port).await.map_err(failed)?;
    let mut worst = None;
    for address in addresses {
        match connect_one(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if is_refusal(&error) => worst = worst.or(Some(DialError::Refused)),
            Err(error) => worst = Some(failed(error)),
        }
    }
    Err(worst.unwrap_or_else(|| DialError::Failed(format!("{host_and_port} has no address"))))
}

/// What was in the listener's queue when its process died is reset, and has no other side any more.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotConnected};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | NotConnected)
}

async fn connect_one(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // On one host, a port in the ephemeral range that nobody listens on can connect to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// For messages: no delay, and a dead other side is noticed.
pub(crate) fn tune_for_messages(stream: &TcpStream) -> io::Result<()> {
    tune(stream, PEER_UNACKNOWLEDGED_MAX)
}

pub(crate) fn tune_for_snapshot(stream: &TcpStream) -> io::Result<()> {
    tune(stream, SNAPSHOT_UNACKNOWLEDGED_MAX)
}

fn tune(stream: &TcpStream, unacknowledged_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(unacknowledged_max))?;
    #[cfg(not(target_os = "linux"))]
    let _ = unacknowledged_max;
    Ok(())
}

/// The waits between attempts: doubling, jittered, bounded.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a connection of this age has ended: none, if it lived.
    pub(crate) fn after_connection(&mut self, age: Duration) -> Duration {
        if age < STABLE_AFTER {
            self.failures = self.failures.min(UNSTABLE_DOUBLINGS_MAX);
            return self.next();
        }
        self.failures = 0;
        Duration::ZERO
    }

    /// The wait after one more failed attempt: between half of the step and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let step = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        step / 2 + step.mul_f64(jitter() / 2.0)
    }
}

/// Between 0 and 1. Without entropy all nodes step alike, which costs time and nothing else.
fn jitter() -> f64 {
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_peer_url_is_host_and_port_with_or_without_a_scheme() {
        for (url, expected) in [
            ("node-1:9000", Some("node-1:9000")),
            ("http://node-1.nodes.default.svc:9000/", Some("node-1.nodes.default.svc:9000")),
            ("[::1]:9000", Some("[::1]:9000")),
            ("node-1", None),
            ("https://node-1:9000", None),
            ("http://node-1:9000/path", None),
            (":9000", None),
            ("node-1:99999", None),
        ] {
            assert_eq!(host_and_port(url).ok(), expected, "{url}");
        }
    }

    #[test]
    fn waits_double_with_jitter_up_to_their_bound() {
        let mut backoff = Backoff::default();
        let mut step = BACKOFF_MIN;
        for _ in 0..40 {
            let wait = backoff.next();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            step = (step * 2).min(BACKOFF_MAX);
        }
    }

    #[test]
    fn only_a_connection_that_lived_is_dialed_again_at_once() {
        let mut backoff = Backoff::default();
        assert!(backoff.after_connection(Duration::ZERO) > Duration::ZERO);
        assert_eq!(backoff.after_connection(STABLE_AFTER), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        connect(&url).await.expect("connects");
        drop(listener);
        assert!(matches!(connect(&url).await, Err(DialError::Refused)));
    }

    #[tokio::test]
    async fn a_listener_that_dies_before_it_takes_the_connection_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let mut connecting = pin!(connect(&url));
        // The kernel puts it into the queue of the listener at once, and it is asked how that went afterwards.
        assert!((&mut connecting).now_or_never().is_none());
        drop(listener);
        assert!(matches!(connecting.await, Err(DialError::Refused)));
    }
}
