//! The task of one peer: dials with back-off, decides which connection of the pair lives, and tells
//! the driver in order.
//!
//! Two processes dial each other, so two connections can be under way. The smaller member id decides,
//! alone, at the end of each handshake, and numbers what it opens; the other side obeys. An open
//! connection makes a second one a duplicate, unless the other side has seen it and yet dialed (then
//! it has lost it), is a new process, or has had the time of a whole handshake to see it. So a pair
//! never has two connections for longer than a refusal takes, and no half-dead one blocks the next.

use std::future::pending;
use std::sync::Arc;

use kv_core::message::Hello;
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{Peer, Shared};
use crate::transport::connection::{Connection, End};
use crate::transport::dial::{self, Backoff, DialError};
use crate::transport::handshake::{self, Arbiter, HANDSHAKE_TIMEOUT, HandshakeError, Proven, Refusal, RefusalKind};
use crate::transport::{Counters, TransportEvent};

/// How long the end of a connection may wait for a dial to show whether the other process is dead.
const REFUSAL_WAIT: Duration = Duration::from_millis(50);
/// The same complaint is repeated after this time at the earliest.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct PeerTask {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    link: Link,
    report: Report,
    backoff: Backoff,
    /// The last connection number that this side has given.
    connections: u64,
    /// What was last said in the log, and when: once for each change, not at each attempt.
    complaint: Option<(String, Instant)>,
}

/// Where the connection stands.
enum Link {
    /// Not to be dialed.
    Idle,
    /// Dials then.
    Waiting(Instant),
    Connecting(AbortOnDropHandle<Result<TcpStream, DialError>>),
    Greeting(AbortOnDropHandle<Result<Proven, HandshakeError>>),
    Live(Box<Live>),
}

struct Live {
    connection: Connection,
    /// The number that the smaller member id gave it.
    number: u64,
    hello: Hello,
    since: Instant,
}

/// What the driver still has to learn about the last connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Report {
    Nothing,
    /// It has ended; tell then at the latest.
    Due(Instant),
    /// Told, without a refusal.
    Told,
}

enum Step {
    Dial,
    Connected(Result<TcpStream, DialError>),
    Greeted(Result<Proven, HandshakeError>),
    Ended(End),
}

/// What becomes of a second connection.
enum Verdict {
    Adopt {
        number: u64,
    },
    Duplicate,
    /// Older than the one that is open: its other side knows.
    Outdated,
}

impl PeerTask {
    pub(super) fn new(shared: Arc<Shared>, peer: Arc<Peer>) -> Self {
        Self {
            shared,
            peer,
            link: Link::Idle,
            report: Report::Nothing,
            backoff: Backoff::default(),
            connections: 0,
            complaint: None,
        }
    }

    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let peer = self.peer.clone();
        loop {
            self.read_notes().await;
            if self.retire() {
                return;
            }
            tokio::select! {
                () = shared.stopping.cancelled() => return self.stop().await,
                () = peer.noted.notified() => {}
                () = at(self.report_due()) => self.report_lost().await,
                step = self.link.step() => self.take(step).await,
            }
        }
    }

    /// Ends the task of a peer that nobody wants and that is not connected.
    fn retire(&self) -> bool {
        // The lock on all peers keeps a new note from falling between the look and the removal.
        let mut peers = self.shared.peers();
        let notes = self.peer.notes();
        let is_idle = matches!(self.link, Link::Idle) && notes.wanted.is_none() && notes.offers.is_empty();
        if is_idle {
            peers.remove(&self.peer.id);
        }
        is_idle
    }

    async fn read_notes(&mut self) {
        let (leave, redial, offers) = {
            let mut notes = self.peer.notes();
            (std::mem::take(&mut notes.leave), std::mem::take(&mut notes.redial), std::mem::take(&mut notes.offers))
        };
        if leave {
            self.leave().await;
        }
        if redial && matches!(self.link, Link::Idle | Link::Waiting(_)) {
            self.dial();
        }
        for proven in offers {
            self.consider(proven).await;
        }
    }

    async fn leave(&mut self) {
        let was_live = self.disconnect(Connection::drain).await.is_some();
        if was_live || self.report_due().is_some() {
            self.report_lost().await;
        }
        self.report = Report::Nothing;
    }

    /// Takes the connection away from everyone and ends it; the link is idle afterwards.
    async fn disconnect<F: Future<Output = ()>>(&mut self, end: impl FnOnce(Connection) -> F) -> Option<Hello> {
        let Link::Live(live) = std::mem::replace(&mut self.link, Link::Idle) else { return None };
        self.peer.set_outbox(None);
        Counters::add(&self.shared.counters.connections_closed, 1);
        end(live.connection).await;
        Some(live.hello)
    }

    async fn stop(mut self) {
        self.disconnect(Connection::drain).await;
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Dial => self.dial(),
            Step::Connected(Ok(stream)) => {
                self.report_if_due().await;
                self.greet(stream);
            }
            Step::Connected(Err(DialError::Refused)) => {
                self.report_refused().await;
                self.wait();
            }
            Step::Connected(Err(DialError::Failed(reason))) => {
                self.report_if_due().await;
                self.complain(reason);
                self.wait();
            }
            Step::Greeted(Ok(proven)) => self.consider(proven).await,
            Step::Greeted(Err(error)) => self.not_greeted(&error),
            Step::Ended(end) => self.ended(end).await,
        }
    }

    fn dial(&mut self) {
        let wanted = self.peer.notes().wanted.clone();
        self.link =
            match wanted {
                None => Link::Idle,
                Some(info) => Link::Connecting(AbortOnDropHandle::new(tokio::spawn(async move {
                    dial::connect(&info.peer_url).await
                }))),
            };
    }

    fn wait(&mut self) {
        let is_wanted = self.peer.notes().wanted.is_some();
        self.link = if is_wanted { Link::Waiting(Instant::now() + self.backoff.next()) } else { Link::Idle };
    }

    fn greet(&mut self, stream: TcpStream) {
        let (shared, expected) = (self.shared.clone(), self.peer.id);
        // Read now, while nothing is connected: what is seen during the handshake is not lost.
        let seen = self.peer.seen();
        self.link = Link::Greeting(AbortOnDropHandle::new(tokio::spawn(async move {
            dial::tune_for_messages(&stream)?;
            let handshake = handshake::dial_peer(stream, &shared.credentials, expected, |hello| seen.of_process(hello));
            timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(HandshakeError::TimedOut))
        })));
    }

    fn not_greeted(&mut self, error: &HandshakeError) {
        match error {
            // The other side has a connection already, and is about to tell.
            HandshakeError::There(Refusal { kind: RefusalKind::Duplicate, .. }) => {}
            HandshakeError::Io(_) => tracing::debug!(peer = %self.peer.id, %error, "a handshake was broken off"),
            _ => {
                Counters::add(&self.shared.counters.dials_refused, 1);
                self.complain(error.to_string());
            }
        }
        self.wait();
    }

    fn complain(&mut self, text: String) {
        let is_repeated = |(last, said): &(String, Instant)| *last == text && said.elapsed() < COMPLAINT_INTERVAL;
        if !self.complaint.as_ref().is_some_and(is_repeated) {
            tracing::warn!(peer = %self.peer.id, reason = %text, "no connection to a peer");
            self.complaint = Some((text, Instant::now()));
        }
    }

    /// A connection is through its handshake: it becomes the one of the pair, or goes.
    async fn consider(&mut self, proven: Proven) {
        match self.judge(&proven) {
            Verdict::Adopt { number } => self.adopt(proven, number).await,
            Verdict::Duplicate => {
                self.shared.refuse(proven, RefusalKind::Duplicate, "this pair of members has a connection");
            }
            Verdict::Outdated => {}
        }
    }

    fn judge(&self, proven: &Proven) -> Verdict {
        let same_process = |live: &&Live| live.hello.start_id == proven.hello.start_id;
        let live = self.link.live().filter(same_process);
        match (proven.arbiter, live) {
            (Arbiter::There { connection }, Some(live)) if connection <= live.number => Verdict::Outdated,
            (Arbiter::There { connection }, _) => Verdict::Adopt { number: connection },
            (Arbiter::Here { seen }, Some(live)) if live.makes_duplicate(seen) => Verdict::Duplicate,
            (Arbiter::Here { .. }, _) => Verdict::Adopt { number: self.connections + 1 },
        }
    }

    async fn adopt(&mut self, proven: Proven, number: u64) {
        let Proven { stream, hello, arbiter } = proven;
        let greeting = match arbiter {
            Arbiter::Here { .. } => {
                self.connections = number;
                handshake::open(number)
            }
            Arbiter::There { .. } => {
                self.peer.set_seen(&hello, number);
                Vec::new()
            }
        };
        if let Ok(address) = stream.peer_addr() {
            self.shared.addresses.note(&hello.url, &hello.peer_url, address.ip());
        }
        let counters = &self.shared.counters;
        let mut connection = Connection::open(stream, greeting, counters.clone());
        if self.disconnect(Connection::abort).await.is_some() {
            self.report_lost().await;
        }
        self.report_if_due().await;
        self.report = Report::Nothing;
        Counters::add(&self.shared.counters.connections_opened, 1);
        self.peer.set_outbox(Some(connection.outbox.clone()));
        self.shared.emit(TransportEvent::Connected { hello: hello.clone() }).await;
        connection.start_reading(self.peer.id, self.shared.events.clone(), self.shared.counters.clone());
        self.link = Link::Live(Box::new(Live { connection, number, hello, since: Instant::now() }));
    }

    async fn ended(&mut self, end: End) {
        let age = self.link.live().map_or(Duration::ZERO, |live| live.since.elapsed());
        self.disconnect(Connection::abort).await;
        self.explain(&end);
        self.report = Report::Due(Instant::now() + REFUSAL_WAIT);
        let wait = self.backoff.after_connection(age);
        if wait.is_zero() {
            self.dial();
        } else {
            self.link = Link::Waiting(Instant::now() + wait);
        }
        if self.peer.notes().wanted.is_none() {
            self.link = Link::Idle;
            self.report_lost().await;
            self.report = Report::Nothing;
        }
    }

    fn explain(&mut self, end: &End) {
        match end {
            End::Frame(error) => self.complain(format!("what it sent was not believed: {error}")),
            End::Closed | End::Io(_) | End::Here => {
                tracing::debug!(peer = %self.peer.id, reason = %end, "a connection has ended");
            }
        }
    }

    fn report_due(&self) -> Option<Instant> {
        match self.report {
            Report::Due(due) => Some(due),
            Report::Nothing | Report::Told => None,
        }
    }

    async fn report_if_due(&mut self) {
        if self.report_due().is_some() {
            self.report_lost().await;
        }
    }

    async fn report_lost(&mut self) {
        self.report = Report::Told;
        self.shared.emit(TransportEvent::Disconnected { peer: self.peer.id, refused: false }).await;
    }

    /// Nobody listens where the peer was: its process is dead, and the driver may act on it at once.
    async fn report_refused(&mut self) {
        if self.report != Report::Nothing {
            self.report = Report::Nothing;
            self.shared.emit(TransportEvent::Disconnected { peer: self.peer.id, refused: true }).await;
        }
    }
}

impl Link {
    fn live(&self) -> Option<&Live> {
        match self {
            Self::Live(live) => Some(live),
            _ => None,
        }
    }

    /// Waits for what the link does next. May be cancelled.
    async fn step(&mut self) -> Step {
        match self {
            Self::Idle => pending().await,
            Self::Waiting(until) => {
                sleep_until(*until).await;
                Step::Dial
            }
            Self::Connecting(task) => {
                let result = task.await;
                Step::Connected(result.unwrap_or_else(|error| Err(DialError::Failed(error.to_string()))))
            }
            Self::Greeting(task) => {
                let result = task.await;
                Step::Greeted(result.unwrap_or_else(|error| Err(HandshakeError::Io(error.into()))))
            }
            Self::Live(live) => Step::Ended(live.connection.ended().await),
        }
    }
}

impl Live {
    /// Whether a second connection from the same process is one too many. `seen`: the last number that
    /// the other side knew when it said that it was ready; None: this side dialed.
    fn makes_duplicate(&self, seen: Option<u64>) -> bool {
        match seen {
            None => true,
            Some(seen) => seen < self.number && self.since.elapsed() < HANDSHAKE_TIMEOUT,
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
