//! Who is connected: one [`Peer`] and one task for each member that is to be dialed or has connected
//! by itself. Everyone else leaves notes for that task; it alone dials, adopts and drops connections,
//! so their events have an order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use kv_core::group::{MemberId, MemberInfo};
use kv_core::message::{Hello, Message};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::handshake::{Arbiter, Credentials, Proven, Refusal, RefusalKind, refuse_proven};
use super::outbox::{Full, Outbox};
use super::{Addresses, Counters, TransportEvent};

mod task;

/// Most members known at once, whether named or connected by themselves.
const PEERS_MAX: usize = 128;
/// Most connections of one member that wait for its task.
const OFFERS_MAX: usize = 4;

/// What all tasks of a transport share.
pub(crate) struct Shared {
    pub(crate) credentials: Credentials,
    pub(crate) counters: Arc<Counters>,
    pub(crate) addresses: Addresses,
    pub(crate) events: mpsc::Sender<TransportEvent>,
    pub(crate) stopping: CancellationToken,
    pub(crate) tasks: TaskTracker,
    peers: Mutex<BTreeMap<MemberId, Arc<Peer>>>,
}

/// One member, as seen by others than its task.
pub(crate) struct Peer {
    id: MemberId,
    notes: Mutex<Notes>,
    /// There is something in `notes`.
    noted: Notify,
    /// Of the open connection.
    outbox: Mutex<Option<Arc<Outbox>>>,
    seen: Mutex<Seen>,
}

/// The last connection that the other side opened. 0: none.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    start_id: u64,
    connection: u64,
}

impl Seen {
    /// The number, if the other side is still the same process.
    fn of_process(self, hello: &Hello) -> u64 {
        if self.start_id == hello.start_id { self.connection } else { 0 }
    }
}

/// What the task of a peer is to do.
#[derive(Default)]
struct Notes {
    /// Dial it there; None: only hold what it opens by itself.
    wanted: Option<MemberInfo>,
    /// It was wanted, and is not any more: close.
    leave: bool,
    redial: bool,
    offers: VecDeque<Proven>,
}

impl Shared {
    pub(crate) fn new(credentials: Credentials, events: mpsc::Sender<TransportEvent>) -> Arc<Self> {
        Arc::new(Self {
            credentials,
            events,
            counters: Arc::default(),
            addresses: Addresses::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            peers: Mutex::default(),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<MemberId, Arc<Peer>>> {
        self.peers.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn peer(&self, id: MemberId) -> Option<Arc<Peer>> {
        self.peers().get(&id).cloned()
    }

    pub(crate) fn set_peers(self: &Arc<Self>, wanted: Vec<MemberInfo>) {
        let own = self.credentials.hello.load().member_id;
        let mut wanted: BTreeMap<_, _> =
            wanted.into_iter().filter(|info| info.member_id != own).map(|info| (info.member_id, info)).collect();
        let mut peers = self.peers();
        for (id, peer) in peers.iter() {
            peer.want(wanted.remove(id));
        }
        for (id, info) in wanted {
            self.add(&mut peers, id).want(Some(info));
        }
    }

    /// A new peer and its task; the caller leaves it a note before the lock is given back.
    fn add(self: &Arc<Self>, peers: &mut BTreeMap<MemberId, Arc<Peer>>, id: MemberId) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            id,
            notes: Mutex::default(),
            noted: Notify::new(),
            outbox: Mutex::default(),
            seen: Mutex::default(),
        });
        peers.insert(id, peer.clone());
        self.tasks.spawn(task::PeerTask::new(self.clone(), peer.clone()).run());
        peer
    }

    /// Hands a connection that a peer has opened to the peer's task.
    pub(crate) fn offer(self: &Arc<Self>, proven: Proven) {
        let id = proven.hello.member_id;
        let rejected = {
            let mut peers = self.peers();
            let known = peers.get(&id).cloned();
            match known.or_else(|| (peers.len() < PEERS_MAX).then(|| self.add(&mut peers, id))) {
                Some(peer) => peer.offer(proven),
                None => Some(proven),
            }
        };
        if let Some(proven) = rejected {
            Counters::add(&self.counters.handshakes_refused, 1);
            self.refuse(proven, RefusalKind::Busy, "too many members, or connections of this one");
        }
    }

    /// Refuses a connection in the background; one that the other side has opened just ends.
    fn refuse(&self, proven: Proven, kind: RefusalKind, reason: &str) {
        if let Arbiter::Here { .. } = proven.arbiter {
            self.tasks.spawn(refuse_proven(proven.stream, Refusal::new(kind, reason)));
        }
    }

    pub(crate) fn send(&self, to: MemberId, message: Message) {
        let outbox = self.peer(to).and_then(|peer| peer.outbox());
        let dropped = match outbox.map(|outbox| outbox.push(message)) {
            Some(Ok(())) => return,
            Some(Err(Full::Control)) => &self.counters.dropped_control,
            Some(Err(Full::Bulk)) => &self.counters.dropped_bulk,
            None => &self.counters.dropped_unconnected,
        };
        Counters::add(dropped, 1);
    }

    pub(crate) fn redial(&self, id: MemberId) {
        if let Some(peer) = self.peer(id) {
            peer.notes().redial = true;
            peer.noted.notify_one();
        }
    }

    /// Where a member is to be dialed.
    pub(crate) fn peer_url(&self, id: MemberId) -> Option<String> {
        let peer = self.peer(id)?;
        let notes = peer.notes();
        notes.wanted.as_ref().map(|info| info.peer_url.clone())
    }

    /// Tells the driver; waits while its queue is full, but not beyond the end of the transport.
    pub(crate) async fn emit(&self, event: TransportEvent) {
        tokio::select! {
            biased;
            () = self.stopping.cancelled() => {}
            _ = self.events.send(event) => {}
        }
    }
}

impl Peer {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("no holder of this lock panics")
    }

    fn outbox(&self) -> Option<Arc<Outbox>> {
        self.outbox.lock().expect("no holder of this lock panics").clone()
    }

    fn set_outbox(&self, outbox: Option<Arc<Outbox>>) {
        *self.outbox.lock().expect("no holder of this lock panics") = outbox;
    }

    fn want(&self, info: Option<MemberInfo>) {
        let mut notes = self.notes();
        if notes.wanted == info {
            return;
        }
        notes.leave = info.is_none();
        notes.redial = info.is_some();
        notes.wanted = info;
        self.noted.notify_one();
    }

    /// Gives the connection back when too many wait.
    fn offer(&self, proven: Proven) -> Option<Proven> {
        let mut notes = self.notes();
        if notes.offers.len() >= OFFERS_MAX {
            return Some(proven);
        }
        notes.offers.push_back(proven);
        self.noted.notify_one();
        None
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().expect("no holder of this lock panics")
    }

    fn set_seen(&self, hello: &Hello, connection: u64) {
        *self.seen.lock().expect("no holder of this lock panics") = Seen { start_id: hello.start_id, connection };
    }
}
