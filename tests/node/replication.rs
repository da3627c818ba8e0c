//! Followers: how they register, what they forward, how they are seen, and how they catch up.

use kv_tests::{Cluster, ClusterSpec, Node, NodeSpec, Site, wait_until};
use serde_json::{Value, json};

/// A group of one that learners may register with.
fn leader(site: &Site) -> NodeSpec {
    site.node("leader", 0).fast().arg("--max-segment-size", 600)
}

/// A learner of `leader`, standalone, as the original starts it.
fn learner(leader: &Node, index: u16) -> NodeSpec {
    let spec = leader.site().node(&format!("follower-{index}"), index).fast();
    spec.arg("--max-segment-size", 600).arg("--leader-url", leader.url())
}

async fn sees(node: &Node, name: &str, health: &str) {
    wait_until(&format!("{} sees {name} {health}", node.name()), 30, || async {
        let document = node.get("/cluster_status").await.json();
        document["followers"][name]["status"] == health
    })
    .await;
}

#[tokio::test]
async fn writes_sent_to_a_follower_are_forwarded_and_read_back_there() {
    let cluster = Cluster::manual().await;
    for (n, node) in (1..=30).zip(cluster.nodes.iter().cycle()) {
        let written = node.put("a", &n.to_string()).await;
        written.is(200, &format!(r#"{{"status":"ok","id":{n},"key":"a","version":{n}}}"#));
        let read = node.get("/key/a").await;
        read.is(200, &format!(r#"{{"key":"a","value":{n},"version":{n}}}"#));
        assert!(read.kv_id() >= n, "{} answers at {}", node.name(), read.kv_id());
    }
    cluster.settle().await;
    let logs: Vec<String> = cluster.nodes.iter().map(log_text).collect();
    assert!(logs.iter().all(|log| *log == logs[0]), "the logs of all nodes are equal, byte for byte");
}

fn log_text(node: &Node) -> String {
    std::fs::read_to_string(node.spec.data_dir.join("wal.log.segment.1")).unwrap()
}

#[tokio::test]
async fn keys_that_no_url_can_carry_are_forwarded_like_others() {
    let cluster = Cluster::manual().await;
    let body = r#"{"value":7}"#;
    for (key, path) in [(".", "."), ("..", "%2e%2E"), ("a\\b", "a\\b")] {
        let put = format!("PUT /key/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let get = |what: &str| format!("GET /key/{path}{what}?consistency=linearizable HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut follower = cluster.nodes[1].raw().await;
        follower.send(format!("{put}{}{}", get(""), get("/versions")).as_bytes()).await;
        let answers = String::from_utf8(follower.read_answers(3).await).unwrap();
        let key = serde_json::to_string(key).unwrap();
        assert!(answers.contains(&format!(r#""key":{key},"version":1}}"#)), "{answers}");
        assert!(answers.contains(&format!(r#"{{"key":{key},"value":7,"version":1}}"#)), "{answers}");
        assert!(answers.contains(&format!(r#"{{"key":{key},"versions":[1],"latest_version":1}}"#)), "{answers}");
    }
}

#[tokio::test]
async fn a_follower_registers_itself_and_follows() {
    let leader = leader(&Site::new()).start().await;
    leader.put("before", "1").await.ok();
    let follower = learner(&leader, 1).start().await;
    follower.get("/key/before").await.is(200, r#"{"key":"before","value":1,"version":1}"#);
    let written = follower.put("after", "2").await;
    written.is(200, r#"{"status":"ok","id":2,"key":"after","version":1}"#);
    follower.get("/key/after?min_id=2").await.is(200, r#"{"key":"after","value":2,"version":1}"#);
    sees(&leader, "follower-1", "healthy").await;
    let status = follower.status().await;
    assert_eq!(status["role"], "learner", "{status}");
    assert_eq!(status["cluster_id"], leader.status().await["cluster_id"]);
}

#[tokio::test]
async fn nodes_reach_each_other_directly_whatever_proxy_the_environment_names() {
    let site = Site::new();
    let nowhere = format!("http://{}:9", site.host());
    let behind_a_proxy = |spec: NodeSpec| spec.env("HTTP_PROXY", &nowhere).env("http_proxy", &nowhere);
    let leader = behind_a_proxy(leader(&site)).start().await;
    let follower = behind_a_proxy(learner(&leader, 1)).start().await;
    follower.put("a", "1").await.ok();
}

#[tokio::test]
async fn a_follower_may_be_started_before_its_leader() {
    let site = Site::new();
    let mut early = leader(&site).start().await;
    // Its own URL is no use to it, and no news: the log is to name the leader's.
    let mut follower = learner(&early, 1).arg("--url", format!("http://{}:9", site.host())).spawn();
    follower.allow("");
    early.stop().await;
    follower.kill();
    std::fs::remove_dir_all(&follower.spec.data_dir).ok();
    follower.spawn_again();
    wait_until("the follower answers", 20, || async { follower.try_get("/livez").await.is_some() }).await;
    let named = format!("{} cannot be reached", early.url());
    wait_until("the leader that is missing is named", 20, || async { follower.log().contains(&named) }).await;
    assert!(!follower.log().contains(":9 cannot be reached"), "{}", follower.log());
    early.start_again().await;
    early.put("a", "1").await.ok();
    follower.wait_ready().await;
    follower.wait_applied(1).await;
    follower.get("/key/a").await.ok();
}

#[tokio::test]
async fn a_removed_learner_stays_away_until_it_is_started_again() {
    let mut leader = leader(&Site::new()).start().await;
    leader.allow("");
    let mut removed = learner(&leader, 1).start().await;
    removed.allow("");
    leader.put("a", "1").await.ok();
    removed.wait_applied(1).await;
    let path = format!("/cluster/members/{}", removed.status().await["member_id"].as_str().unwrap());
    leader.send_directive("DELETE", &path, json!({})).await.ok();
    // Time for several tries to register: another one comes, goes down and comes back.
    let mut other = learner(&leader, 2).start().await;
    other.allow("");
    other.kill();
    sees(&leader, "follower-2", "down").await;
    other.start_again().await;
    sees(&leader, "follower-2", "healthy").await;
    leader.put("b", "1").await.ok();
    other.wait_applied(2).await;
    assert_eq!(removed.applied_id().await, 1, "it came back");
    removed.stop().await;
    removed.start_again().await;
    removed.wait_applied(2).await;
}

#[tokio::test]
async fn a_stopped_follower_is_down_and_healthy_again_when_it_returns() {
    let leader = leader(&Site::new()).start().await;
    let mut first = learner(&leader, 1).start().await;
    let second = learner(&leader, 2).start().await;
    sees(&leader, "follower-1", "healthy").await;
    sees(&leader, "follower-2", "healthy").await;
    first.kill();
    sees(&leader, "follower-1", "down").await;
    for n in 1..=20 {
        leader.put("a", &n.to_string()).await.ok();
    }
    second.wait_applied(20).await;
    first.start_again().await;
    sees(&leader, "follower-1", "healthy").await;
    first.wait_applied(20).await;
    first.get("/key/a/history").await.is(200, &leader.get("/key/a/history").await.text());
}

#[tokio::test]
async fn a_paused_node_is_down_on_both_sides() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    cluster.wait_seen(0, 1, "healthy").await;
    cluster.nodes[1].pause();
    cluster.wait_seen(0, 1, "down").await;
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.nodes[1].resume();
    cluster.wait_seen(0, 1, "healthy").await;
    cluster.nodes[0].pause();
    cluster.wait_seen(1, 0, "down").await;
    cluster.nodes[0].resume();
    cluster.wait_seen(1, 0, "healthy").await;
    cluster.nodes[0].put("b", "1").await.ok();
    cluster.settle().await;
}

/// Writes, overwrites and deletes, then compacts all of it.
async fn change_and_compact(node: &Node) {
    for round in 0..4 {
        for n in 0..20 {
            node.put(&format!("key-{n}"), &format!("{{\"round\":{round}}}")).await.ok();
        }
    }
    for n in 0..5 {
        node.delete(&format!("/key/key-{n}")).await.ok();
    }
    node.put_body("/key/once?client_id=c&request_id=compacted", "{\"value\":1}").await.ok();
    for n in 0..20 {
        node.put("filler", &n.to_string()).await.ok();
    }
    let run = node.post("/compaction/run?force=true", "").await.ok().json();
    assert!(run["segments_compacted"].as_u64() > Some(0), "{run}");
}

/// Values, versions, history and deduplication are the same on both.
async fn are_equal(one: &Node, other: &Node) {
    let keys = one.get("/keys").await.ok().text();
    other.get("/keys").await.is(200, &keys);
    let document: Value = serde_json::from_str(&keys).unwrap();
    for key in document["keys"].as_array().unwrap() {
        let key = key.as_str().unwrap();
        for path in [format!("/key/{key}"), format!("/key/{key}/history")] {
            let expected = one.get(&path).await.ok().text();
            other.get(&path).await.is(200, &expected);
        }
    }
    let status = "/request_status?client_id=c&request_id=compacted&operation=SET";
    let expected = one.get(status).await.ok().text();
    other.get(status).await.is(200, &expected);
}

#[tokio::test]
async fn a_learner_below_the_compaction_horizon_gets_a_snapshot() {
    let leader = leader(&Site::new()).start().await;
    let mut follower = learner(&leader, 1).start().await;
    follower.allow("");
    for n in 0..20 {
        leader.put(&format!("key-{n}"), "0").await.ok();
    }
    follower.wait_applied(20).await;
    follower.kill();
    change_and_compact(&leader).await;
    follower.start_again().await;
    follower.wait_applied(leader.applied_id().await).await;
    are_equal(&leader, &follower).await;
    follower.kill();
    follower.start_again().await;
    follower.wait_applied(leader.applied_id().await).await;
    are_equal(&leader, &follower).await;
}

#[tokio::test]
async fn a_voter_below_the_compaction_horizon_gets_a_snapshot() {
    let mut cluster = ClusterSpec::new(3).arg("--max-segment-size", 600).start().await;
    cluster.allow("");
    for n in 0..20 {
        cluster.nodes[0].put(&format!("key-{n}"), "0").await.ok();
    }
    cluster.settle().await;
    cluster.nodes[2].kill();
    cluster.wait_seen(0, 2, "down").await;
    change_and_compact(&cluster.nodes[0]).await;
    cluster.nodes[2].start_again().await;
    cluster.settle().await;
    are_equal(&cluster.nodes[0], &cluster.nodes[2]).await;
    cluster.nodes[0].put("after", "1").await.ok();
    cluster.settle().await;
    are_equal(&cluster.nodes[0], &cluster.nodes[2]).await;
}

#[tokio::test]
async fn a_new_learner_of_a_compacted_leader_is_equal() {
    let leader = leader(&Site::new()).start().await;
    change_and_compact(&leader).await;
    let follower = learner(&leader, 1).start().await;
    follower.wait_applied(leader.applied_id().await).await;
    are_equal(&leader, &follower).await;
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused() {
    let site = Site::new();
    let mut first = leader(&site).start().await;
    first.put("a", "\"first\"").await.ok();
    let mut member = learner(&first, 1).start().await;
    member.wait_applied(1).await;
    member.kill();
    first.kill();
    let mut second = site.node("other", 5).fast().start().await;
    second.allow("");
    second.put("a", "\"second\"").await.ok();
    second.put("b", "\"second\"").await.ok();
    let mut stray = site.node("follower-1", 1).fast().arg("--leader-url", second.url()).spawn();
    stray.allow("");
    wait_until("it says why it does not follow", 30, || async {
        let log = stray.log();
        let said =
            log.lines().any(|line| line.contains("cluster") && (line.contains("WARN") || line.contains("ERROR")));
        said || stray.has_ended()
    })
    .await;
    if let Some(answer) = stray.try_get("/key/b").await {
        assert_ne!(answer.status, 200, "{answer}");
    }
    assert!(second.get("/cluster_status").await.json()["followers"]["follower-1"].is_null());
    stray.kill();
    first.start_again().await;
    member.start_again().await;
    first.put("c", "\"first\"").await.ok();
    member.wait_applied(first.applied_id().await).await;
    member.get("/key/a").await.is(200, r#"{"key":"a","value":"first","version":1}"#);
    member.get("/key/b").await.is_error(404, "not_found");
}
