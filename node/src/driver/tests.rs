//! One driver over a real log in a temporary directory, and groups of them over loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_core::command::{Change, Command, Key, Precondition, Value};
use kv_core::contract::{Failover, Limits, Refusal, Reply, Request, Tuning};
use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberId, MemberInfo, NodeName, Settings};
use kv_core::message::Hello;
use kv_core::status::Role;
use tokio::net::TcpListener;
use tokio::time::Instant;

mod mending;

use super::*;
use crate::wal::{NewVolume, Opened, Options, open};

/// Longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(10);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

async fn start_node(dir: &Path, name: &str) -> Handle {
    start_node_at(dir, name, "127.0.0.1:0").await
}

async fn start_node_at(dir: &Path, name: &str, peer_address: &str) -> Handle {
    let storage = Arc::new(FileStorage::open(dir).expect("a directory of our own"));
    let member_id = MemberId(random_u64());
    let volume = NewVolume { name: NodeName::new(name).expect("a name"), member_id, settings: Settings::default() };
    let opened =
        open(storage, &Options { segment_bytes_max: 2_000, ..Options::default() }, &volume).expect("a good log");
    let peer_listener = TcpListener::bind(peer_address).await.expect("a free port");
    let tuning = Tuning { heartbeat_interval_ms: 50, heartbeat_timeout_ms: 2_000, failover: Failover::Manual };
    start_opened(opened, &format!("http://{name}"), peer_listener, tuning).await
}

/// A driver without secrets over a log that needs no mending.
pub(crate) async fn start_opened(
    opened: Opened<FileStorage>,
    url: &str,
    peer_listener: TcpListener,
    tuning: Tuning,
) -> Handle {
    let boot = BootOptions {
        url: url.to_owned(),
        peer_url: peer_listener.local_addr().expect("bound").to_string(),
        tuning,
        lead_at_start: false,
        limits: Limits::default(),
        start_id: random_u64(),
    };
    let scrub = ScrubSchedule::default();
    let config = DriverConfig { boot, peer_listener, peer_secret: None, metrics: Arc::default(), scrub };
    start(opened, config).await.expect("nothing to mend")
}

async fn ask(node: &Handle, request: Request) -> Reply {
    node.request(request, soon()).await.expect("an answer in time")
}

async fn hello(node: &Handle) -> Hello {
    match ask(node, Request::Hello).await {
        Reply::Hello(hello) => *hello,
        other => panic!("not a hello: {other:?}"),
    }
}

async fn info(node: &Handle) -> MemberInfo {
    let Hello { name, member_id, peer_url, .. } = hello(node).await;
    MemberInfo { name, member_id, peer_url }
}

fn bootstrap(voters: Vec<MemberInfo>) -> Request {
    let cluster_id = ClusterId::new("test").expect("a name");
    Request::Bootstrap { target_member_id: None, if_config_id: None, cluster_id, voters, settings: Settings::default() }
}

async fn found(nodes: &[&Handle]) {
    let mut voters = Vec::new();
    for node in nodes {
        voters.push(info(node).await);
    }
    for node in nodes {
        let reply = ask(node, bootstrap(voters.clone())).await;
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }
    lead(nodes[0]).await;
}

/// Told again until it is ready to: voters have to see each other first.
async fn lead(node: &Handle) {
    let give_up_at = soon();
    loop {
        match ask(node, Request::Lead { target: None }).await {
            Reply::Done { .. } => return,
            Reply::Refused(Refusal::NotReady(_)) if Instant::now() < give_up_at => {
                let view = node.view();
                let soon = Instant::now() + Duration::from_millis(20);
                node.wait_view(soon, |now| *now != *view).await;
            }
            other => panic!("does not lead: {other:?}"),
        }
    }
}

fn set(key: &str, json: &str) -> Request {
    let key = Key::new(key).expect("a key");
    let value = Value::from_json(json.as_bytes(), 1 << 20).expect("a value");
    Request::Write(Command { key, change: Change::Set(value), precondition: Precondition::default(), request: None })
}

async fn write(node: &Handle, key: &str, json: &str) -> EntryId {
    match ask(node, set(key, json)).await {
        Reply::Written { written, replay: false } => written.id,
        other => panic!("not written: {other:?}"),
    }
}

fn value(node: &Handle, key: &str) -> Option<String> {
    let current = node.keyspace().get(key).found?;
    Some(String::from_utf8_lossy(&current.value).into_owned())
}

async fn stop(node: Handle) {
    let stopped = node.stopped();
    node.stop();
    drop(node);
    assert_eq!(stopped.await, Stopped::Requested);
}

#[tokio::test]
async fn an_empty_node_refuses_and_a_founded_one_keeps_what_it_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = start_node(dir.path(), "a").await;
    let refused = ask(&node, set("k", "1")).await;
    assert!(matches!(refused, Reply::Refused(_)), "{refused:?}");
    assert!(!node.is_ready());

    found(&[&node]).await;
    let id = write(&node, "k", "[1, 2]").await;
    assert_eq!(id, EntryId(1));
    assert_eq!(value(&node, "k").as_deref(), Some("[1,2]"));
    assert!(node.answers_default_reads(&node.view()));
    node.wait_view(soon(), |view| view.caught_up).await.expect("caught up");
    assert!(node.is_ready());
    stop(node).await;

    let node = start_node(dir.path(), "a").await;
    assert_eq!(value(&node, "k").as_deref(), Some("[1,2]"));
    assert_eq!(hello(&node).await.incarnation, 2);
    node.wait_view(soon(), |view| view.role == Role::Leader && view.caught_up).await.expect("leads again");
    assert!(write(&node, "k", "2").await > id);
    stop(node).await;
}

#[tokio::test]
async fn a_request_too_many_is_refused_at_once_and_a_stopped_node_answers_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = start_node(dir.path(), "a").await;
    found(&[&node]).await;
    // On one thread the driver gets its turn only when this task waits.
    let asked = (0..=handle::REQUESTS_MAX).map(|_| node.request(Request::Hello, soon()));
    let answers = futures::future::join_all(asked).await;
    let busy = answers.iter().filter(|answer| **answer == Err(CallError::Busy)).count();
    assert_eq!(busy, 1);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Reply::Hello(_)) | Err(CallError::Busy))));

    let other = node.clone();
    stop(node).await;
    assert_eq!(other.request(Request::Hello, soon()).await, Err(CallError::Stopped));
    assert!(!other.is_ready());
}

#[tokio::test]
async fn who_waits_for_an_id_is_woken_by_it_or_by_the_deadline() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = start_node(dir.path(), "a").await;
    found(&[&node]).await;
    assert!(!node.wait_applied(EntryId(2), Instant::now() + Duration::from_millis(30)).await);
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.wait_applied(EntryId(2), soon()).await }
    });
    write(&node, "a", "1").await;
    write(&node, "b", "2").await;
    assert!(waiting.await.expect("no panic"));
    assert_eq!(node.applied(), EntryId(2));
    assert!(node.wait_applied(EntryId(1), Instant::now()).await);
    stop(node).await;
}

#[tokio::test]
async fn what_was_written_on_the_leader_is_read_on_every_follower() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let mut nodes = Vec::new();
    for (dir, name) in dirs.iter().zip(["a", "b", "c"]) {
        nodes.push(start_node(dir.path(), name).await);
    }
    found(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    for i in 0..50 {
        write(&nodes[0], &format!("k{i}"), &i.to_string()).await;
    }
    let last = nodes[0].applied();
    for node in &nodes {
        assert!(node.wait_applied(last, soon()).await);
        assert_eq!(value(node, "k49").as_deref(), Some("49"));
    }
    let refused = ask(&nodes[1], set("k", "1")).await;
    let leader = Some(info(&nodes[0]).await.member_id);
    assert_eq!(refused, Reply::Refused(Refusal::NotLeader { leader }));

    // A switchover ends what was forwarded under the old epoch.
    let epoch = nodes[2].view().epoch;
    let seen = tokio::spawn({
        let node = nodes[2].clone();
        async move { node.epoch_above(epoch).await }
    });
    lead(&nodes[1]).await;
    tokio::time::timeout(PATIENCE, seen).await.expect("in time").expect("no panic");
    write(&nodes[1], "k", "1").await;
    for node in nodes {
        stop(node).await;
    }
}

#[tokio::test]
async fn an_empty_learner_is_given_a_snapshot_and_then_follows() {
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let leader = start_node(dirs[0].path(), "a").await;
    let learner = start_node(dirs[1].path(), "b").await;
    found(&[&leader]).await;
    write(&leader, "k", "1").await;
    write(&leader, "k", "2").await;
    let before = learner.keyspace();
    let member = info(&learner).await;
    let reply = ask(&leader, Request::AddMember { target: None, member, voter: false }).await;
    assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    learner.wait_view(soon(), |view| view.role == Role::Learner && view.caught_up).await.expect("follows");
    assert_eq!(value(&learner, "k").as_deref(), Some("2"));
    assert_eq!(before.get("k").found.map(|c| c.version), None);
    assert!(learner.is_ready());

    let id = write(&leader, "k", "3").await;
    assert!(learner.wait_applied(id, soon()).await);
    assert_eq!(value(&learner, "k").as_deref(), Some("3"));
    assert_eq!(learner.keyspace().versions("k").found.map(|v| v.earlier.len()), Some(2));
    stop(learner).await;
    stop(leader).await;
}

#[tokio::test]
async fn compaction_drops_what_is_superseded_and_a_restart_shows_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = start_node(dir.path(), "a").await;
    found(&[&node]).await;
    for i in 0..200 {
        write(&node, &format!("k{}", i % 3), &i.to_string()).await;
    }
    let job = node.compaction_job();
    let outcome = tokio::task::spawn_blocking(move || job.run()).await.expect("no panic").expect("a good log");
    assert!(outcome.segments_compacted > 1, "{outcome:?}");
    let shown = |node: &Handle| {
        let versions = node.keyspace().versions("k0").found.expect("held");
        (value(node, "k0"), versions.current.version, versions.earlier.len())
    };
    let before = shown(&node);
    assert_eq!(before, (Some("198".to_owned()), 67, 66));
    stop(node).await;

    let node = start_node(dir.path(), "a").await;
    assert_eq!(shown(&node), before);
    node.wait_view(soon(), |view| view.role == Role::Leader).await.expect("leads again");
    write(&node, "k0", "1").await;
    stop(node).await;
}
