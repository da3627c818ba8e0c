//! Transports against each other and against scripted peers, over real sockets on port 0. What must
//! happen is waited for with a deadline; nothing sleeps.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::entry::{EntryId, LogPosition};
use kv_core::group::{ClusterId, FEATURE_LEVEL, NodeName};
use kv_core::message::{Accepted, Promise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::frame::tests::{all_messages, append, entry};
use super::*;
use crate::auth_token::AuthToken;

mod bad_peers;
mod links;
mod snapshots;
mod stress;

/// Nothing here takes so long; it is the deadline of each wait.
const PATIENCE: Duration = Duration::from_secs(10);

/// Differs in each process that the tests play.
static START_ID: AtomicU64 = AtomicU64::new(1);

pub(super) fn hello(member_id: u64, cluster: Option<&str>) -> Hello {
    Hello {
        name: NodeName::new(&format!("node-{member_id}")).expect("legal"),
        member_id: MemberId(member_id),
        cluster_id: cluster.map(|name| ClusterId::new(name).expect("legal")),
        incarnation: 1,
        start_id: START_ID.fetch_add(1, Ordering::Relaxed),
        promise: Promise::default(),
        durable: LogPosition::default(),
        baseline: None,
        feature_level: FEATURE_LEVEL,
        url: String::new(),
        peer_url: String::new(),
    }
}

/// A transport with the driver's end of its queue.
struct Node {
    transport: Transport,
    events: mpsc::Receiver<TransportEvent>,
    hello: Hello,
}

impl Node {
    async fn start(hello: Hello, secret: Option<&str>) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.expect("binds"), hello, secret)
    }

    fn start_on(listener: TcpListener, hello: Hello, secret: Option<&str>) -> Self {
        let (sender, events) = mpsc::channel(64);
        let config = TransportConfig {
            listener,
            hello: Arc::new(ArcSwap::from_pointee(hello.clone())),
            secret: secret.map(|secret| AuthToken::fixed(secret.as_bytes())),
        };
        Self { transport: Transport::start(config, sender), events, hello }
    }

    /// A member of the cluster "c" without a secret.
    async fn member(member_id: u64) -> Self {
        Self::start(hello(member_id, Some("c")), None).await
    }

    fn id(&self) -> MemberId {
        self.hello.member_id
    }

    fn info(&self) -> MemberInfo {
        MemberInfo {
            name: self.hello.name.clone(),
            member_id: self.id(),
            peer_url: format!("http://{}", self.transport.local_addr()),
        }
    }

    async fn event(&mut self) -> TransportEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("the transport runs")
    }

    async fn connected(&mut self, to: MemberId) -> Hello {
        match self.event().await {
            TransportEvent::Connected { hello } if hello.member_id == to => hello,
            other => panic!("{}: not connected to {to} but {other:?}", self.hello.name),
        }
    }

    async fn disconnected(&mut self, from: MemberId) -> bool {
        match self.event().await {
            TransportEvent::Disconnected { peer, refused } if peer == from => refused,
            other => panic!("{}: not disconnected from {from} but {other:?}", self.hello.name),
        }
    }

    async fn received(&mut self, from: MemberId) -> Message {
        match self.event().await {
            TransportEvent::Received { from: sender, message } if sender == from => message,
            other => panic!("{}: nothing received from {from} but {other:?}", self.hello.name),
        }
    }

    fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        counter(self.transport.counters()).load(Ordering::Relaxed)
    }
}

/// Two members that know each other and are connected.
async fn pair() -> (Node, Node) {
    let (mut a, mut b) = (Node::member(1).await, Node::member(2).await);
    a.transport.set_peers(vec![b.info()]);
    b.transport.set_peers(vec![a.info()]);
    a.connected(b.id()).await;
    b.connected(a.id()).await;
    (a, b)
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::task::yield_now().await;
    }
}
