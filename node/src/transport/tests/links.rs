//! One connection for each pair: how it comes about, how it ends, how it comes back.

use super::*;

#[tokio::test]
async fn two_members_find_each_other_and_every_kind_of_message_arrives() {
    let (mut a, mut b) = pair().await;
    for message in all_messages() {
        a.transport.send(b.id(), message.clone());
        assert_eq!(b.received(a.id()).await, message);
        b.transport.send(a.id(), message.clone());
        assert_eq!(a.received(b.id()).await, message);
    }
    assert_eq!(a.count(|c| &c.frames_sent), b.count(|c| &c.frames_received));
}

#[tokio::test]
async fn a_member_that_nobody_named_is_heard_and_answered() {
    let (mut a, mut b) = (Node::member(1).await, Node::member(2).await);
    b.transport.set_peers(vec![a.info()]);
    let shown = a.connected(b.id()).await;
    assert_eq!(shown, b.hello);
    b.connected(a.id()).await;
    let answer = Message::NotAMember { config_id: EntryId(4) };
    a.transport.send(b.id(), answer.clone());
    assert_eq!(b.received(a.id()).await, answer);
}

#[tokio::test]
async fn the_same_secret_opens_and_the_own_process_is_left_out_of_the_peers() {
    let mut a = Node::start(hello(1, None), Some("s3cret")).await;
    let mut b = Node::start(hello(2, Some("c")), Some("s3cret")).await;
    a.transport.set_peers(vec![a.info(), b.info()]);
    a.connected(b.id()).await;
    b.connected(a.id()).await;
}

#[tokio::test]
async fn simultaneous_dials_leave_one_connection() {
    for _ in 0..20 {
        let (mut a, mut b) = pair().await;
        // A second connection would have been told of before this arrives, or end what carries it.
        for round in 0..20 {
            let message = Message::Accepted(Accepted { incarnation: round, start_id: 1, voters: None });
            a.transport.send(b.id(), message.clone());
            assert_eq!(b.received(a.id()).await, message);
            b.transport.send(a.id(), message.clone());
            assert_eq!(a.received(b.id()).await, message);
        }
        for node in [&a, &b] {
            assert_eq!((node.count(|c| &c.connections_opened), node.count(|c| &c.connections_closed)), (1, 0));
        }
    }
}

#[tokio::test]
async fn a_hello_is_read_afresh_for_each_handshake() {
    let (mut a, mut b) = (Node::member(1).await, Node::member(2).await);
    let newer = Hello { durable: LogPosition { epoch: Epoch(3), id: EntryId(77) }, ..a.hello.clone() };
    a.transport.shared.credentials.hello.store(Arc::new(newer.clone()));
    a.transport.set_peers(vec![b.info()]);
    assert_eq!(b.connected(a.id()).await, newer);
    a.connected(b.id()).await;
}

/// Stops a transport as a crash would: without a word of farewell that a test could wait for.
async fn stop(node: Node) -> (SocketAddr, Hello) {
    node.transport.shutdown().await;
    (node.transport.local_addr(), node.hello)
}

#[tokio::test]
async fn a_process_that_died_is_reported_as_refused() {
    let (mut a, b) = pair().await;
    let b_id = b.id();
    let stopping = tokio::spawn(stop(b));
    // The connection may close a moment before the listener does.
    let refused = a.disconnected(b_id).await || a.disconnected(b_id).await;
    assert!(refused);
    stopping.await.expect("stops");
}

#[tokio::test]
async fn a_restart_reconnects_under_the_new_start_id() {
    let (mut a, b) = pair().await;
    let b_info = b.info();
    let (address, before) = stop(b).await;
    while !a.disconnected(before.member_id).await {}
    let listener = TcpListener::bind(address).await.expect("the port is free again");
    let mut b = Node::start_on(listener, hello(2, Some("c")), None);
    assert_eq!(b_info, b.info());
    let shown = a.connected(b.id()).await;
    assert_ne!(shown.start_id, before.start_id);
    b.connected(a.id()).await;
    a.transport.send(b.id(), Message::Accepted(Accepted { incarnation: 3, start_id: 1, voters: None }));
    assert_eq!(b.received(a.id()).await, Message::Accepted(Accepted { incarnation: 3, start_id: 1, voters: None }));
}

#[tokio::test]
async fn a_new_process_supersedes_the_connection_of_the_old_one() {
    let (mut a, b) = pair().await;
    // The old process is not gone: as if its host had lost power and its connections hung.
    let mut second = Node::start(hello(2, Some("c")), None).await;
    second.transport.set_peers(vec![a.info()]);
    assert!(!a.disconnected(b.id()).await);
    assert_eq!(a.connected(b.id()).await.start_id, second.hello.start_id);
    second.connected(a.id()).await;
}

#[tokio::test]
async fn a_peer_that_is_not_wanted_any_more_is_closed_and_not_dialed() {
    let (mut a, mut b) = (Node::member(1).await, Node::member(2).await);
    a.transport.set_peers(vec![b.info()]);
    a.connected(b.id()).await;
    b.connected(a.id()).await;
    let farewell = Message::NotAMember { config_id: EntryId(4) };
    a.transport.send(b.id(), farewell.clone());
    a.transport.set_peers(vec![]);
    assert!(!a.disconnected(b.id()).await);
    assert_eq!(b.received(a.id()).await, farewell);
    assert!(!b.disconnected(a.id()).await);
    wait_until("its task has ended", || a.transport.shared.peer(b.id()).is_none()).await;
    a.transport.send(b.id(), farewell);
    assert_eq!(a.count(|c| &c.dropped_unconnected), 1);
}

#[tokio::test]
async fn redial_does_not_wait_for_the_back_off() {
    let mut a = Node::member(1).await;
    let unborn = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = unborn.local_addr().expect("bound");
    drop(unborn);
    let b_hello = hello(2, Some("c"));
    a.transport.set_peers(vec![MemberInfo {
        name: b_hello.name.clone(),
        member_id: b_hello.member_id,
        peer_url: address.to_string(),
    }]);
    // No more than asks for: nobody listens yet, and nothing was connected that could be reported.
    a.transport.redial(b_hello.member_id);
    let mut b = Node::start_on(TcpListener::bind(address).await.expect("free"), b_hello, None);
    a.transport.redial(b.id());
    a.connected(b.id()).await;
    b.connected(a.id()).await;
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_keeps_the_order_of_the_rest() {
    let (a, mut b) = pair().await;
    let sent = 3 * outbox::CONTROL_FRAMES_MAX as u64;
    // The writer cannot run in between: this test has one thread and does not wait here.
    for incarnation in 0..sent {
        a.transport.send(b.id(), Message::Accepted(Accepted { incarnation, start_id: 1, voters: None }));
    }
    let dropped = a.count(|c| &c.dropped_control);
    assert_eq!(dropped, sent - outbox::CONTROL_FRAMES_MAX as u64);
    for incarnation in 0..sent - dropped {
        assert_eq!(b.received(a.id()).await, Message::Accepted(Accepted { incarnation, start_id: 1, voters: None }));
    }
}

#[tokio::test]
async fn a_driver_that_stands_still_stops_the_reader_and_costs_nothing_else() {
    let (a, mut b) = pair().await;
    let line = format!("\"{}\"", "v".repeat(100_000));
    let total = 100;
    for id in 0..total {
        a.transport.send(b.id(), Message::Append(append(vec![entry(id + 1, &line)])));
    }
    // More than the driver's queue holds has been read by nobody; votes still pass what waits here.
    wait_until("the driver's queue is full", || b.events.len() == b.events.max_capacity()).await;
    for id in 0..total {
        let Message::Append(append) = b.received(a.id()).await else { panic!("not an append") };
        assert_eq!(append.entries[0].id, EntryId(id + 1));
    }
    assert_eq!(a.count(|c| &c.dropped_bulk), 0);
}
