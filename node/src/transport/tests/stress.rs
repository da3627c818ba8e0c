//! Many losses of connections, under load: through a proxy that cuts them, the events keep their
//! order, messages of one connection keep theirs, and the pair always comes back.

use tokio::sync::broadcast;

use super::*;

/// Forwards to `target` until it is told to cut.
struct Proxy {
    address: SocketAddr,
    cut: broadcast::Sender<()>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let (cut, _) = broadcast::channel(1);
        let cuts = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = cut.recv() => {}
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    }
                });
            }
        });
        Self { address, cut }
    }

    fn info(&self, of: &Node) -> MemberInfo {
        MemberInfo { peer_url: self.address.to_string(), ..of.info() }
    }
}

/// Follows one node's events: alternating, rising, and to the end of `total` connections.
struct Follower {
    node: Node,
    peer: MemberId,
    is_connected: bool,
    last_received: u64,
    connections: u64,
    sent: u64,
}

impl Follower {
    fn new(node: Node, peer: MemberId) -> Self {
        Self { node, peer, is_connected: false, last_received: 0, connections: 0, sent: 0 }
    }

    async fn follow(&mut self) {
        match self.node.event().await {
            TransportEvent::Connected { hello } => {
                assert_eq!(hello.member_id, self.peer);
                assert!(!self.is_connected, "connected twice");
                self.is_connected = true;
                self.connections += 1;
            }
            TransportEvent::Disconnected { peer, .. } => {
                assert_eq!(peer, self.peer);
                assert!(self.is_connected, "disconnected twice");
                self.is_connected = false;
            }
            TransportEvent::Received { message: Message::Accepted(Accepted { incarnation, .. }), .. } => {
                assert!(self.is_connected, "a message of no connection");
                assert!(incarnation > self.last_received, "out of order");
                self.last_received = incarnation;
            }
            other => panic!("{other:?}"),
        }
        for _ in 0..10 {
            self.sent += 1;
            self.node
                .transport
                .send(self.peer, Message::Accepted(Accepted { incarnation: self.sent, start_id: 1, voters: None }));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_again_and_again_always_come_back_in_order() {
    const ROUNDS: u64 = 60;
    let (a, b) = (Node::member(1).await, Node::member(2).await);
    let to_a = Proxy::start(a.transport.local_addr()).await;
    let to_b = Proxy::start(b.transport.local_addr()).await;
    a.transport.set_peers(vec![to_b.info(&b)]);
    b.transport.set_peers(vec![to_a.info(&a)]);
    let (a_id, b_id) = (a.id(), b.id());
    let (mut a, mut b) = (Follower::new(a, b_id), Follower::new(b, a_id));
    let mut heard = (0, 0);
    while a.connections < ROUNDS {
        tokio::select! {
            () = a.follow() => {}
            () = b.follow() => {}
        }
        // Each round both hear something new; then the connection goes, whoever dialed it.
        if a.is_connected && b.is_connected && a.last_received > heard.0 && b.last_received > heard.1 {
            heard = (a.last_received, b.last_received);
            let _ = (to_a.cut.send(()), to_b.cut.send(()));
        }
    }
    let (heard_a, heard_b) = (a.sent, b.sent);
    while a.last_received <= heard_b || b.last_received <= heard_a {
        tokio::select! {
            () = a.follow() => {}
            () = b.follow() => {}
        }
    }
    // A connection that is cut while it opens is one for the side that opened it alone.
    assert!(b.connections > ROUNDS / 2, "{} and {} connections", a.connections, b.connections);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seven_members_that_start_at_once_have_one_connection_for_each_pair() {
    let mut nodes = Vec::new();
    for id in 1..=7 {
        nodes.push(Node::member(id).await);
    }
    let everyone: Vec<_> = nodes.iter().map(Node::info).collect();
    for node in &nodes {
        node.transport.set_peers(everyone.clone());
    }
    for node in &mut nodes {
        let mut seen = Vec::new();
        while seen.len() < 6 {
            match node.event().await {
                TransportEvent::Connected { hello } => seen.push(hello.member_id),
                other => panic!("{other:?}"),
            }
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 6);
    }
    for node in &nodes {
        assert_eq!((node.count(|c| &c.connections_opened), node.count(|c| &c.connections_closed)), (6, 0));
    }
}
