//! Who leads, by hand and by election, and that no acknowledged write is lost on the way.

use std::time::Duration;

use kv_tests::{Cluster, ClusterSpec, Load, wait_for, wait_until};
use serde_json::json;

/// Longer than any election and any time-out.
const PATIENCE: Duration = Duration::from_secs(30);

fn load(cluster: &Cluster, clients: usize) -> Load {
    Load::start(&cluster.site, &cluster.urls(), clients, PATIENCE)
}

#[tokio::test]
async fn by_hand_nobody_leads_until_told_to() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
    cluster.nodes[0].kill();
    cluster.wait_seen(1, 0, "down").await;
    let seen = cluster.nodes[1].get("/cluster_status").await.json();
    let ago = &seen["leader"]["seconds_since_last_heartbeat"];
    assert!(ago.is_f64() && seen["leader"]["last_heartbeat"].is_f64(), "it says when it heard it last: {seen}");
    wait_until("writes are refused", 20, || async {
        let answer = cluster.nodes[1].put("b", "1").await;
        answer.status == 503
            && answer.header("x-kv-error") == Some("no_leader")
            && answer.header("retry-after").is_some()
    })
    .await;
    cluster.nodes[1].get("/key/a").await.is(200, r#"{"key":"a","value":1,"version":1}"#);
    assert_eq!(cluster.nodes[1].status().await["role"], "follower");
    cluster.nodes[1].direct("/cluster/lead", json!({})).await.ok();
    cluster.nodes[1].put("b", "1").await.ok();
    cluster.nodes[2].put("c", "1").await.ok();
    cluster.nodes[0].start_again().await;
    cluster.settle().await;
    assert_eq!(cluster.leader().await, 1);
    for key in ["a", "b", "c"] {
        cluster.nodes[0].get(&format!("/key/{key}")).await.ok();
    }
}

#[tokio::test]
async fn leadership_is_handed_over_without_a_failed_write() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    let load = load(&cluster, 8);
    for next in [1, 2, 0, 1] {
        load.progress(100).await;
        cluster.nodes[next].direct("/cluster/lead", json!({})).await.ok();
        assert_eq!(cluster.nodes[next].status().await["role"], "leader");
    }
    load.progress(100).await;
    let report = load.stop().await;
    cluster.settle().await;
    report.nothing_lost();
    assert!(report.failed_attempts.is_empty(), "a hand-over failed requests: {:?}", report.failed_attempts);
    for node in &cluster.nodes {
        report.check(node).await;
    }
}

#[tokio::test]
async fn a_node_that_is_behind_is_refused_and_told_who_is_ahead() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
    cluster.nodes[2].kill();
    for n in 0..20 {
        cluster.nodes[0].put("b", &n.to_string()).await.ok();
    }
    cluster.nodes[0].kill();
    cluster.nodes[2].spawn_again();
    let refused = wait_for("the late node may campaign", 20, || async {
        cluster.nodes[2].try_status().await?;
        Some(cluster.nodes[2].direct("/cluster/lead", json!({})).await).filter(|answer| answer.status != 503)
    })
    .await;
    refused.is_error(409, "behind").names("follower-1");
    cluster.nodes[1].direct("/cluster/lead", json!({})).await.ok();
    cluster.nodes[1].put("c", "1").await.ok();
    cluster.nodes[2].wait_applied(22).await;
    cluster.nodes[2].get("/key/b").await.is(200, r#"{"key":"b","value":19,"version":20}"#);
}

#[tokio::test]
async fn a_directive_for_somebody_else_is_refused() {
    let cluster = Cluster::manual().await;
    for wrong in [
        json!({"cluster_id": "another"}),
        json!({"target_member_id": "00000000000000ab"}),
        json!({"if_config_id": 999}),
    ] {
        let answer = cluster.nodes[1].direct("/cluster/lead", wrong).await;
        assert_eq!(answer.status, 409, "{answer}");
        assert_eq!(answer.header("x-kv-error"), Some("identity_mismatch"), "{answer}");
    }
    assert_eq!(cluster.leader().await, 0);
}

#[tokio::test]
async fn when_the_leader_is_killed_another_leads_and_the_old_one_follows() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    for _ in 0..3 {
        let old = cluster.leader().await;
        cluster.nodes[old].put("a", "1").await.ok();
        cluster.nodes[old].kill();
        let other = (old + 1) % 3;
        wait_until("another node takes writes", 30, || async {
            cluster.nodes[other].put("b", "1").await.status == 200
        })
        .await;
        let new = cluster.leader().await;
        assert_ne!(new, old);
        cluster.nodes[old].start_again().await;
        cluster.settle().await;
        assert_eq!(cluster.nodes[old].status().await["role"], "follower");
        let expected = cluster.nodes[new].get("/key/b/history").await.text();
        cluster.nodes[old].get("/key/b/history").await.is(200, &expected);
    }
}

#[tokio::test]
async fn a_leader_cut_off_from_the_majority_stops_answering() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    cluster.nodes[0].put("a", "1").await.ok();
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for other in &others {
        cluster.nodes[*other].pause();
    }
    wait_until("default reads stop with the lease", 20, || async {
        cluster.nodes[leader].get("/key/a").await.status == 503
    })
    .await;
    let write = cluster.nodes[leader].put("a", "2").await;
    assert!([503, 504].contains(&write.status), "{write}");
    wait_until("it steps down", 20, || async { cluster.nodes[leader].status().await["role"] != "leader" }).await;
    for _ in 0..5 {
        cluster.nodes[leader].get("/key/a").await.is_error(503, "no_leader");
    }
    for other in &others {
        cluster.nodes[*other].resume();
    }
    wait_until("writes come back", 30, || async { cluster.nodes[leader].put("b", "1").await.status == 200 }).await;
    cluster.settle().await;
    let expected = cluster.nodes[0].get("/key/a").await.ok().text();
    for node in &cluster.nodes {
        node.get("/key/a").await.is(200, &expected);
    }
}

#[tokio::test]
async fn sigterm_under_load_loses_no_request_that_retries() {
    let mut cluster = Cluster::automatic().await;
    let load = load(&cluster, 8);
    cluster.roll(&[0, 1, 2, 0], async || load.progress(100).await).await;
    let report = load.stop().await;
    cluster.settle().await;
    report.nothing_lost();
    for node in &cluster.nodes {
        report.check(node).await;
    }
}

#[tokio::test]
async fn a_second_sigterm_ends_a_drain_at_once() {
    let node = kv_tests::Site::new().node("leader", 0).fast().arg("--drain-delay", "60");
    let mut node = node.start().await;
    node.allow("");
    node.terminate();
    wait_until("it drains", 20, || async { node.try_get("/readyz").await.is_some_and(|a| a.status == 503) }).await;
    node.put("a", "1").await.ok();
    node.terminate();
    node.wait_exit().await;
}

#[tokio::test]
async fn kill_9_in_a_loop_loses_no_acknowledged_write() {
    let mut cluster = ClusterSpec::new(3).automatic().arg("--max-segment-size", 65536).start().await;
    cluster.allow("");
    let load = load(&cluster, 8);
    for round in 0..9 {
        load.progress(150).await;
        let leader = cluster.leader().await;
        // Leader, follower, then both followers of a majority that must wait.
        let victims = match round % 3 {
            0 => vec![leader],
            1 => vec![(leader + 1) % 3],
            _ => vec![leader, (leader + 2) % 3],
        };
        for victim in &victims {
            cluster.nodes[*victim].kill();
        }
        if victims.len() == 1 {
            load.progress(50).await;
        }
        for victim in &victims {
            cluster.nodes[*victim].spawn_again();
        }
    }
    load.progress(150).await;
    let report = load.stop().await;
    report.nothing_lost();
    for node in &mut cluster.nodes {
        node.wait_ready().await;
    }
    cluster.settle().await;
    for node in &cluster.nodes {
        report.check(node).await;
    }
}

#[tokio::test]
async fn all_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    let load = load(&cluster, 8);
    for _ in 0..3 {
        load.progress(200).await;
        for node in &mut cluster.nodes {
            node.kill();
        }
        for node in &mut cluster.nodes {
            node.spawn_again();
        }
    }
    load.progress(200).await;
    let report = load.stop().await;
    cluster.settle().await;
    for node in &cluster.nodes {
        report.nothing_lost().check(node).await;
    }
}
