//! Whoever is no peer, is one of another cluster, release or secret, or breaks the protocol: refused
//! with a clear reason, counted, and no event.

use super::*;
use crate::auth_token::AuthToken;
use crate::transport::handshake::preamble::{Preamble, Purpose};
use crate::transport::handshake::{self, Arbiter, Credentials, Proven, Refusal, RefusalKind};

fn credentials(hello: &Hello, secret: Option<&str>) -> Credentials {
    let hello = Arc::new(ArcSwap::from_pointee(hello.clone()));
    Credentials { hello, secret: secret.map(|secret| AuthToken::fixed(secret.as_bytes())) }
}

async fn reach(node: &Node) -> TcpStream {
    TcpStream::connect(node.transport.local_addr()).await.expect("connects")
}

/// Dials a node as a scripted peer.
async fn dial(node: &Node, shown: &Hello, secret: Option<&str>) -> Result<Proven, HandshakeError> {
    handshake::dial_peer(reach(node).await, &credentials(shown, secret), node.id(), |_| 0).await
}

/// A scripted peer of the greatest id, through its handshake.
async fn stranger(node: &mut Node) -> (TcpStream, MemberId) {
    let shown = hello(99, Some("c"));
    let proven = dial(node, &shown, None).await.expect("accepted");
    assert_eq!(proven.arbiter, Arbiter::There { connection: 1 });
    node.connected(shown.member_id).await;
    (proven.stream, shown.member_id)
}

fn refusal(result: Result<Proven, HandshakeError>) -> Refusal {
    match result {
        Err(HandshakeError::There(refusal) | HandshakeError::Here(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_no_event(node: &mut Node) {
    assert!(node.events.try_recv().is_err());
}

/// The other side has hung up.
async fn assert_closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("closed in time");
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_name() {
    let mut node = Node::member(1).await;
    let refusal = refusal(dial(&node, &hello(2, Some("other")), None).await);
    assert_eq!(refusal.kind, RefusalKind::Cluster);
    assert_eq!(refusal.reason, "node-2 is of cluster other, node-1 is of cluster c");
    wait_until("it is counted", || node.count(|c| &c.handshakes_refused) == 1).await;
    assert_no_event(&mut node);
}

#[tokio::test]
async fn two_nodes_of_different_clusters_never_connect_whoever_dials() {
    let mut a = Node::start(hello(1, Some("a")), None).await;
    let mut b = Node::start(hello(2, Some("b")), None).await;
    a.transport.set_peers(vec![b.info()]);
    wait_until("the dial was refused", || a.count(|c| &c.dials_refused) > 0).await;
    b.transport.set_peers(vec![a.info()]);
    wait_until("the dial was refused", || b.count(|c| &c.dials_refused) > 0).await;
    assert_no_event(&mut a);
    assert_no_event(&mut b);
}

#[tokio::test]
async fn the_own_member_id_from_another_process_is_refused() {
    let mut node = Node::member(1).await;
    let refusal = refusal(dial(&node, &hello(1, Some("c")), None).await);
    assert_eq!(refusal.kind, RefusalKind::Member);
    assert!(refusal.reason.contains("another process"), "{}", refusal.reason);
    assert_no_event(&mut node);
}

#[tokio::test]
async fn a_member_that_answers_in_place_of_another_is_refused() {
    let node = Node::member(1).await;
    let shown = hello(2, Some("c"));
    let result = handshake::dial_peer(reach(&node).await, &credentials(&shown, None), MemberId(7), |_| 0).await;
    assert_eq!(refusal(result).kind, RefusalKind::Member);
}

#[tokio::test]
async fn a_wrong_missing_or_unasked_secret_is_refused() {
    for (ours, theirs) in [(Some("right"), Some("wrong")), (Some("right"), None), (None, Some("right"))] {
        for peer_id in [1, 3] {
            let mut node = Node::start(hello(2, Some("c")), ours).await;
            let refusal = refusal(dial(&node, &hello(peer_id, Some("c")), theirs).await);
            assert_eq!(refusal.kind, RefusalKind::Proof);
            wait_until("it is counted", || node.count(|c| &c.handshakes_refused) == 1).await;
            assert_no_event(&mut node);
        }
    }
}

#[tokio::test]
async fn a_newer_protocol_is_refused_with_a_clear_message() {
    let mut node = Node::member(1).await;
    let mut stream = reach(&node).await;
    let newer = Preamble { version_min: 40, version_max: 41, purpose: Purpose::Peer };
    stream.write_all(&newer.encode()).await.expect("writes");
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("in time").expect("reads");
    assert_eq!(answer[..8], Preamble::own(Purpose::Peer).encode());
    let text = String::from_utf8_lossy(&answer[12..]);
    assert!(text.contains(r#"{"refused":{"kind":"version","reason":"peer protocol 40 to 41 is too new"#), "{text}");
    assert_no_event(&mut node);
}

#[tokio::test]
async fn garbage_instead_of_a_handshake_is_dropped_and_counted() {
    let mut node = Node::member(1).await;
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 64], b"KVPT\x01\x01P\n\xff\xff\xff\xff"] {
        let mut stream = reach(&node).await;
        stream.write_all(garbage).await.expect("writes");
        assert_closed(stream).await;
    }
    wait_until("it is counted", || node.count(|c| &c.handshakes_refused) == 3).await;
    assert_no_event(&mut node);
}

#[tokio::test]
async fn a_half_open_client_is_closed_in_a_bounded_time() {
    let mut node = Node::member(1).await;
    let mut stream = reach(&node).await;
    stream.write_all(b"KVPT").await.expect("writes");
    assert_closed(stream).await;
    assert_no_event(&mut node);
}

#[tokio::test]
async fn too_many_half_open_clients_are_shed_and_peers_still_come_afterwards() {
    let mut node = Node::member(1).await;
    let mut clients = Vec::new();
    while node.count(|c| &c.accepts_shed) == 0 {
        assert!(clients.len() < 500, "no bound");
        clients.push(reach(&node).await);
        tokio::task::yield_now().await;
    }
    drop(clients);
    let shown = hello(2, Some("c"));
    let deadline = Instant::now() + PATIENCE;
    while dial(&node, &shown, None).await.is_err() {
        assert!(Instant::now() < deadline, "the places are never given back");
    }
    node.connected(shown.member_id).await;
}

#[tokio::test]
async fn garbage_after_the_handshake_ends_the_connection() {
    let mut node = Node::member(1).await;
    let (mut stream, peer) = stranger(&mut node).await;
    stream.write_all(b"\x00\x00\x00\x05?????").await.expect("writes");
    assert!(!node.disconnected(peer).await);
    assert_eq!(node.count(|c| &c.invalid_frames), 1);
    assert_closed(stream).await;
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_the_connection_unread() {
    let mut node = Node::member(1).await;
    let (mut stream, peer) = stranger(&mut node).await;
    stream.write_all(&[0xff; 4]).await.expect("writes");
    assert!(!node.disconnected(peer).await);
    assert_eq!(node.count(|c| &c.invalid_frames), 1);
}

#[tokio::test]
async fn a_line_with_a_bad_crc_is_never_passed_on() {
    let mut node = Node::member(1).await;
    let (mut stream, peer) = stranger(&mut node).await;
    let good = Message::Append(append(vec![entry(7, "\"good\"")]));
    let mut frames = bytes::BytesMut::new();
    frame::encode(&good, &mut frames).expect("fits");
    let end = frames.len();
    frame::encode(&Message::Append(append(vec![entry(7, "\"fine\""), entry(8, "\"evil\"")])), &mut frames)
        .expect("fits");
    let at = end + frames[end..].windows(4).position(|bytes| bytes == b"evil").expect("the value");
    frames[at] ^= 1;
    frame::encode(&good, &mut frames).expect("fits");
    stream.write_all(&frames).await.expect("writes");

    assert_eq!(node.received(peer).await, good);
    assert!(!node.disconnected(peer).await);
    assert_eq!(node.count(|c| &c.invalid_lines), 1);
}

#[tokio::test]
async fn an_operation_of_a_newer_release_is_told_and_not_skipped() {
    let mut node = Node::member(1).await;
    let (mut stream, peer) = stranger(&mut node).await;
    let newer = kv_core::entry::seal_line(br#"{"id":7,"epoch":1,"operation":"MERGE","key":null,"value":{}"#.to_vec());
    let unknown = kv_core::entry::Entry { line: newer.into(), ..entry(7, "1") };
    let mut frames = bytes::BytesMut::new();
    frame::encode(&Message::Append(append(vec![unknown])), &mut frames).expect("fits");
    stream.write_all(&frames).await.expect("writes");
    match node.event().await {
        TransportEvent::UnknownLine { from, reason } => {
            assert_eq!(from, peer);
            assert!(reason.contains("MERGE"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!node.disconnected(peer).await);
    assert_eq!(node.count(|c| &c.invalid_lines), 0);
}

#[tokio::test]
async fn a_second_connection_of_the_same_process_is_a_duplicate_until_the_first_was_lost() {
    let mut node = Node::member(1).await;
    let shown = hello(99, Some("c"));
    let first = dial(&node, &shown, None).await.expect("accepted");
    node.connected(shown.member_id).await;
    // It dialed before it heard that the first one is open.
    assert_eq!(refusal(dial(&node, &shown, None).await).kind, RefusalKind::Duplicate);
    // It has heard, and has lost it, though this side cannot know.
    let credentials = credentials(&shown, None);
    let second = handshake::dial_peer(reach(&node).await, &credentials, node.id(), |_| 1).await.expect("accepted");
    assert_eq!(second.arbiter, Arbiter::There { connection: 2 });
    assert!(!node.disconnected(shown.member_id).await);
    node.connected(shown.member_id).await;
    assert_closed(first.stream).await;
}
