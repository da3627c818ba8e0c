//! Snapshot connections: beside the messages, whole or not at all.

use super::*;

async fn incoming(node: &mut Node) -> (Hello, Epoch, SnapshotReceiver) {
    match node.event().await {
        TransportEvent::SnapshotIncoming { hello, epoch, stream } => (hello, epoch, stream),
        other => panic!("not a snapshot but {other:?}"),
    }
}

async fn pair_with_secret() -> (Node, Node) {
    let mut a = Node::start(hello(1, Some("c")), Some("s")).await;
    let mut b = Node::start(hello(2, None), Some("s")).await;
    a.transport.set_peers(vec![b.info()]);
    a.connected(b.id()).await;
    b.connected(a.id()).await;
    (a, b)
}

#[tokio::test]
async fn a_snapshot_arrives_whole_and_its_sender_learns_where_it_was_staged() {
    let (a, mut b) = pair_with_secret().await;
    let snapshot: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    let mut sender = a.transport.open_snapshot(b.id(), Epoch(5)).await.expect("opens");
    let sending = tokio::spawn({
        let snapshot = snapshot.clone();
        async move {
            sender.write_all(&snapshot).await.expect("writes");
            sender.finish().await
        }
    });
    let (shown, epoch, mut stream) = incoming(&mut b).await;
    assert_eq!((shown, epoch), (a.hello.clone(), Epoch(5)));
    let mut arrived = Vec::new();
    stream.read_to_end(&mut arrived).await.expect("reads");
    assert!(arrived == snapshot);
    let position = LogPosition { epoch: Epoch(4), id: EntryId(99) };
    stream.answer(Ok(position)).await.expect("answers");
    assert_eq!(sending.await.expect("no panic").expect("staged"), position);
}

#[tokio::test]
async fn a_receiver_that_fails_midway_says_why() {
    let (a, mut b) = pair_with_secret().await;
    let mut sender = a.transport.open_snapshot(b.id(), Epoch(5)).await.expect("opens");
    sender.write_all(&vec![7; 100_000]).await.expect("writes");
    let (_, _, stream) = incoming(&mut b).await;
    let answering = tokio::spawn(stream.answer(Err("the disk is full".into())));
    let error = sender.finish().await.expect_err("not staged");
    assert!(matches!(&error, SnapshotError::Receiver(reason) if reason == "the disk is full"), "{error}");
    answering.await.expect("no panic").expect("answers");
}

#[tokio::test]
async fn a_receiver_that_vanishes_is_an_error_and_not_a_staged_snapshot() {
    let (a, mut b) = pair_with_secret().await;
    let mut sender = a.transport.open_snapshot(b.id(), Epoch(5)).await.expect("opens");
    sender.write_all(b"line").await.expect("writes");
    drop(incoming(&mut b).await);
    assert!(sender.finish().await.is_err());
}

#[tokio::test]
async fn a_snapshot_goes_to_a_named_member_alone() {
    let (a, b) = (Node::member(1).await, Node::member(2).await);
    let unknown = a.transport.open_snapshot(b.id(), Epoch(1)).await.expect_err("not a peer");
    assert!(matches!(unknown, SnapshotError::UnknownMember(_)));
    a.transport.set_peers(vec![MemberInfo { member_id: MemberId(3), ..b.info() }]);
    let other = a.transport.open_snapshot(MemberId(3), Epoch(1)).await.expect_err("another member");
    assert!(matches!(&other, SnapshotError::Connect(reason) if reason.contains("looked for member")), "{other}");
}
