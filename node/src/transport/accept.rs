//! The accept loop: whoever connects gets a bounded time and a bounded number of places to prove that
//! it is a peer. It hands proven connections on and logs what failed, once per source and reason.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use kv_core::entry::Epoch;
use kv_core::message::Hello;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Duration, Instant, sleep, timeout};

use super::handshake::{self, Accepted, HANDSHAKE_TIMEOUT, HandshakeError};
use super::peers::Shared;
use super::snapshot::SnapshotReceiver;
use super::{Counters, TransportEvent, dial};

/// Most connections in their handshake.
const HALF_OPEN_MAX: usize = 256;
/// Most of them from one address, so that one source cannot take all places.
const HALF_OPEN_PER_SOURCE_MAX: usize = 64;
/// Most snapshots received at once; a member needs one.
const SNAPSHOTS_MAX: usize = 4;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The same complaint about the same source is repeated after this time at the earliest.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// Most complaints in that time; sources choose their texts, in part.
const COMPLAINTS_MAX: usize = 256;

/// Runs until the transport stops.
pub(crate) async fn run(listener: TcpListener, shared: Arc<Shared>) {
    let acceptor = Arc::new(Acceptor::new(shared.clone()));
    loop {
        tokio::select! {
            biased;
            () = shared.stopping.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, source)) => acceptor.admit(stream, source),
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

struct Acceptor {
    shared: Arc<Shared>,
    half_open: Mutex<HalfOpen>,
    snapshots: Arc<Semaphore>,
    complaints: Mutex<Complaints>,
}

/// Connections in their handshake, by source.
#[derive(Debug, Default)]
struct HalfOpen {
    by_source: HashMap<IpAddr, usize>,
    total: usize,
}

impl HalfOpen {
    fn enter(&mut self, source: IpAddr) -> bool {
        let here = self.by_source.get(&source).copied().unwrap_or(0);
        if self.total >= HALF_OPEN_MAX || here >= HALF_OPEN_PER_SOURCE_MAX {
            return false;
        }
        self.by_source.insert(source, here + 1);
        self.total += 1;
        true
    }

    fn leave(&mut self, source: IpAddr) {
        self.total -= 1;
        match self.by_source.get_mut(&source) {
            Some(here) if *here > 1 => *here -= 1,
            _ => drop(self.by_source.remove(&source)),
        }
    }
}

/// What was lately logged about whom, and when.
#[derive(Debug, Default)]
struct Complaints {
    said: HashMap<(IpAddr, String), Instant>,
}

impl Complaints {
    /// Remembers it, too. When there is too much to remember, silence: the counter goes on.
    fn is_new(&mut self, source: IpAddr, text: &str) -> bool {
        let is_recent = |said: &Instant| said.elapsed() < COMPLAINT_INTERVAL;
        let key = (source, text.to_owned());
        if self.said.get(&key).is_some_and(is_recent) {
            return false;
        }
        if self.said.len() >= COMPLAINTS_MAX {
            self.said.retain(|_, said| is_recent(said));
        }
        let has_room = self.said.len() < COMPLAINTS_MAX;
        if has_room {
            self.said.insert(key, Instant::now());
        }
        has_room
    }
}

/// A place among the half-open connections; given back when dropped.
struct Place {
    acceptor: Arc<Acceptor>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.acceptor.half_open.lock().expect("no holder of this lock panics").leave(self.source);
    }
}

impl Acceptor {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            half_open: Mutex::default(),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            complaints: Mutex::default(),
        }
    }

    fn admit(self: &Arc<Self>, stream: TcpStream, source: SocketAddr) {
        if !self.half_open.lock().expect("no holder of this lock panics").enter(source.ip()) {
            Counters::add(&self.shared.counters.accepts_shed, 1);
            return;
        }
        let place = Place { acceptor: self.clone(), source: source.ip() };
        self.shared.tasks.spawn(async move {
            let stopping = place.acceptor.shared.stopping.clone();
            stopping.run_until_cancelled(place.receive(stream)).await;
        });
    }

    /// The driver's queue may be full: the connection waits in its turn, and holds a place of its own kind.
    async fn receive_snapshot(&self, stream: TcpStream, hello: Hello, epoch: Epoch) {
        let tuned = dial::tune_for_snapshot(&stream);
        let Ok(permit) = self.snapshots.clone().try_acquire_owned() else {
            let stream = SnapshotReceiver::new(stream, None);
            let _ = stream.answer(Err("too many snapshots are being received".into())).await;
            return;
        };
        if tuned.is_ok() {
            let stream = SnapshotReceiver::new(stream, Some(permit));
            self.shared.emit(TransportEvent::SnapshotIncoming { hello, epoch, stream }).await;
        }
    }

    fn complain(&self, source: IpAddr, error: &HandshakeError) {
        let text = error.to_string();
        if self.complaints.lock().expect("no holder of this lock panics").is_new(source, &text) {
            tracing::warn!(%source, reason = %text, "a connection to the peer port was not accepted");
        }
    }
}

impl Place {
    async fn receive(self, stream: TcpStream) {
        let shared = &self.acceptor.shared;
        let handshake = async {
            dial::tune_for_messages(&stream)?;
            handshake::accept(stream, &shared.credentials).await
        };
        match timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(HandshakeError::TimedOut)) {
            Ok(Accepted::Peer(proven)) => shared.offer(proven),
            Ok(Accepted::Snapshot { stream, hello, epoch }) => {
                let acceptor = self.acceptor.clone();
                drop(self);
                acceptor.receive_snapshot(stream, hello, epoch).await;
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&self, error: &HandshakeError) {
        match error {
            // A dialer that has found another way hangs up; that is no news.
            HandshakeError::Io(error) => tracing::debug!(source = %self.source, %error, "a handshake was broken off"),
            _ => {
                Counters::add(&self.acceptor.shared.counters.handshakes_refused, 1);
                self.acceptor.complain(self.source, error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_complaint_is_made_once_and_their_number_is_bounded() {
        let mut complaints = Complaints::default();
        let made = |complaints: &mut Complaints, text: &str| complaints.is_new(SOURCE, text);
        assert!(made(&mut complaints, "wrong cluster") && made(&mut complaints, "wrong secret"));
        assert!(!made(&mut complaints, "wrong cluster") && !made(&mut complaints, "wrong secret"));
        let more = (0..2 * COMPLAINTS_MAX).filter(|n| made(&mut complaints, &n.to_string())).count();
        assert_eq!(more, COMPLAINTS_MAX - 2);
    }

    #[test]
    fn no_source_takes_all_places_and_each_is_given_back() {
        let mut half_open = HalfOpen::default();
        let taken = (0..HALF_OPEN_MAX).filter(|_| half_open.enter(SOURCE)).count();
        assert_eq!(taken, HALF_OPEN_PER_SOURCE_MAX);
        assert!(half_open.enter(IpAddr::V4(Ipv4Addr::BROADCAST)));
        for _ in 0..taken {
            half_open.leave(SOURCE);
        }
        assert_eq!((half_open.total, half_open.by_source.len()), (1, 1));
    }
}
