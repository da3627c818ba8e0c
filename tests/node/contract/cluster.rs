//! The page "Cluster", and the documents that describe a node.

use kv_tests::{Cluster, Node, Site, wait_until};
use serde_json::json;

use super::{has, has_members};

#[tokio::test]
async fn both_sides_show_each_other_s_health() {
    let cluster = Cluster::manual().await;
    for other in [1, 2] {
        cluster.wait_seen(0, other, "healthy").await;
        cluster.wait_seen(other, 0, "healthy").await;
    }
    let leader = cluster.nodes[0].get("/cluster_status").await.ok().json();
    has(
        &leader,
        &json!({"leader":{"id":"leader","url":cluster.nodes[0].url(),"status":"healthy"},"heartbeat_interval":0.1}),
    );
    for follower in &cluster.nodes[1..] {
        let seen = &leader["followers"][follower.name()];
        has(seen, &json!({"url": follower.url(), "status": "healthy"}));
        let (at, ago) = (&seen["last_heartbeat"], &seen["seconds_since_last_heartbeat"]);
        assert!(at.as_f64() > Some(1.6e9) && ago.as_f64() < Some(2.0), "{seen}");
        let document = follower.get("/cluster_status").await.ok().json();
        has(
            &document,
            &json!({"follower":{"id":follower.name(),"url":follower.url(),"status":"healthy"},"heartbeat_interval":0.1}),
        );
        has(&document["leader"], &json!({"id":"leader","url":cluster.nodes[0].url(),"status":"healthy"}));
        has_members(&document["leader"], &["last_heartbeat", "seconds_since_last_heartbeat"]);
    }
    assert_eq!(leader["followers"].as_object().unwrap().len(), 2, "{leader}");
}

#[tokio::test]
async fn a_member_never_heard_is_down_without_times() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    for node in &mut cluster.nodes {
        node.kill();
    }
    cluster.nodes[0].spawn_again();
    kv_tests::wait_until("it shows nobody but itself", 20, || async {
        let Some(answer) = cluster.nodes[0].try_get("/cluster_status").await else { return false };
        let document = answer.json();
        let never = json!({"status":"down","last_heartbeat":null,"seconds_since_last_heartbeat":null});
        let is_never = |name: &str| {
            let seen = &document["followers"][name];
            let listed = cluster.nodes.iter().find(|node| node.name() == name).map(Node::url);
            assert!(seen.is_null() || seen["url"].as_str() == listed.as_deref(), "the cluster file's URL: {seen}");
            never.as_object().unwrap().iter().all(|(member, value)| &seen[member] == value && seen.is_object())
        };
        document["leader"].is_null() && is_never("follower-1") && is_never("follower-2")
    })
    .await;
}

#[tokio::test]
async fn a_heartbeat_came_at_one_time_however_often_it_is_shown() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    cluster.nodes[1].kill();
    cluster.wait_seen(0, 1, "down").await;
    let shown = async || {
        let seen = cluster.nodes[0].get("/cluster_status").await.json()["followers"]["follower-1"].clone();
        (seen["last_heartbeat"].clone(), seen["seconds_since_last_heartbeat"].clone())
    };
    let (at, ago) = shown().await;
    for _ in 0..20 {
        assert_eq!(shown().await.0, at);
    }
    assert!(shown().await.1.as_f64() > ago.as_f64());
}

#[tokio::test]
async fn a_group_that_is_not_complete_is_not_ready_and_takes_no_writes() {
    let site = Site::new();
    let mut node = {
        let spec = site.node("one", 0);
        let absent = site.node("two", 1);
        let members = json!([
            {"id":"one","url":spec.url(),"peer_url":spec.peer_url()},
            {"id":"two","url":absent.url(),"peer_url":absent.peer_url()}
        ]);
        let file = site.path("cluster.yaml");
        std::fs::write(&file, json!({"members":members,"leader":"one","failover":"manual"}).to_string()).unwrap();
        spec.fast().arg("--cluster", file.display()).spawn()
    };
    node.allow("");
    kv_tests::wait_until("it answers before it is ready", 20, || async { node.try_get("/livez").await.is_some() })
        .await;
    kv_tests::wait_until("it says that it is not ready", 20, || async {
        node.try_get("/readyz").await.is_some_and(|a| a.status == 503)
    })
    .await;
    let write = node.put("a", "1").await;
    assert_eq!(write.status, 503, "{write}");
    assert!(write.header("retry-after").is_some(), "{write}");
}

#[tokio::test]
async fn status_says_who_and_where() {
    let cluster = Cluster::manual().await;
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
    let leader = cluster.nodes[0].status().await;
    has_members(
        &leader,
        &[
            "role",
            "epoch",
            "member_id",
            "leader",
            "last_id",
            "durable_id",
            "committed_id",
            "applied_id",
            "lag",
            "members",
        ],
    );
    has(&leader, &json!({"role":"leader","last_id":1,"durable_id":1,"committed_id":1,"applied_id":1,"lag":0}));
    let follower = cluster.nodes[1].status().await;
    has(
        &follower,
        &json!({"role":"follower","applied_id":1,"epoch":leader["epoch"],"cluster_id":leader["cluster_id"]}),
    );
    assert_eq!(follower["leader"]["name"], "leader");
    assert_ne!(follower["member_id"], leader["member_id"]);
}

#[tokio::test]
async fn the_group_s_settings_change_by_an_entry() {
    let cluster = Cluster::manual().await;
    let changed = cluster.nodes[0].post("/cluster/settings", r#"{"settings":{"history_limit":2}}"#).await;
    changed.ok();
    for n in 1..=5 {
        cluster.nodes[0].put("a", &n.to_string()).await.ok();
    }
    cluster.settle().await;
    for node in &cluster.nodes {
        node.get("/key/a/versions").await.is(200, r#"{"key":"a","versions":[3,4,5],"latest_version":5}"#);
        assert_eq!(node.status().await["settings"]["history_limit"], 2);
    }
}

#[tokio::test]
async fn a_node_s_settings_change_until_it_restarts() {
    let node = Site::new().node("leader", 0).fast().start().await;
    node.post("/settings", r#"{"heartbeat_interval":0.5,"heartbeat_timeout":5,"failover":"Automatic"}"#).await.ok();
    assert_eq!(node.get("/cluster_status").await.json()["heartbeat_interval"], 0.5);
    node.post("/settings", r#"{"storage_limit":67108864}"#).await.ok();
    let shown = node.status().await;
    let tuning = json!({"heartbeat_interval_ms": 500, "heartbeat_timeout_ms": 5000, "failover": "automatic"});
    assert_eq!((&shown["tuning"], &shown["disk"]["limit_bytes"]), (&tuning, &json!(67_108_864)));
    node.post("/settings", r#"{"unknown":1}"#).await.is_error(422, "invalid_request").names("unknown");
}

#[tokio::test]
async fn probes_metrics_and_documentation_are_there() {
    let node = Site::new().node("leader", 0).fast().start().await;
    for path in ["/livez", "/readyz"] {
        node.get(path).await.ok();
    }
    let metrics = node.get("/metrics").await;
    assert!(metrics.ok().text().lines().any(|line| line.starts_with("kv_")), "{metrics}");
    let openapi = node.get("/openapi.json").await.ok().json();
    for path in [
        "/key/{key}",
        "/key/{key}/history",
        "/key/{key}/versions",
        "/keys",
        "/deduplication_stats",
        "/request_status",
        "/segments",
        "/compaction/run",
        "/compaction/status",
        "/compaction/configure",
        "/cluster_status",
        "/status",
        "/cluster/lead",
        "/cluster/bootstrap",
        "/cluster/members",
        "/cluster/members/{member_id}",
        "/cluster/settings",
        "/cluster/recover",
        "/settings",
        "/snapshot",
        "/livez",
        "/readyz",
        "/metrics",
    ] {
        assert!(openapi["paths"].get(path).is_some(), "{path} is not described");
    }
    node.get("/docs/nothing.js").await.is(404, r#"{"detail":"Not Found"}"#).is_error(404, "not_found");
    let docs = node.get("/docs/").await;
    assert!(docs.ok().text().contains("<html"), "{docs}");
}

#[tokio::test]
async fn with_a_token_mutating_calls_need_it() {
    let site = Site::new();
    let token = site.path("token");
    std::fs::write(&token, "secret\n").unwrap();
    let node = site.node("leader", 0).fast().arg("--auth-token-file", token.display()).start().await;
    let settings = r#"{"settings":{"history_limit":5}}"#;
    node.post("/cluster/settings", settings).await.is_error(401, "unauthorized");
    node.get("/snapshot").await.is_error(401, "unauthorized");
    node.post("/settings", r#"{"failover":"manual"}"#).await.is_error(401, "unauthorized");
    let wrong = node.send("GET", "/snapshot", &[("authorization", "Bearer wrong")], "").await;
    wrong.is_error(401, "unauthorized");
    node.send("GET", "/snapshot", &[("authorization", "Bearer secret")], "").await.ok();
    let mut body = node.target().await;
    body["settings"] = json!({"history_limit": 5});
    node.send("POST", "/cluster/settings", &[("authorization", "Bearer secret")], &body.to_string()).await.ok();
    node.put("a", "1").await.ok();
}

#[tokio::test]
async fn a_token_that_changes_under_running_nodes_is_taken_up_by_all_of_them() {
    let site = Site::new();
    let token = site.path("token");
    std::fs::write(&token, "first").unwrap();
    let leader = site.node("leader", 0).fast().arg("--auth-token-file", token.display()).start().await;
    let follower = site.node("follower-1", 1).fast().arg("--auth-token-file", token.display());
    let mut follower = follower.arg("--leader-url", leader.url()).start().await;
    leader.put("a", "1").await.ok();
    std::fs::write(&token, "second").unwrap();
    let accepts = async |node: &Node, token: &str| {
        node.send("GET", "/snapshot", &[("authorization", &format!("Bearer {token}"))], "").await.status == 200
    };
    for node in [&leader, &follower] {
        wait_until("the new token is asked for", 20, || async { accepts(node, "second").await }).await;
        assert!(!accepts(node, "first").await);
    }
    follower.kill();
    follower.spawn_again();
    wait_until("it is up again", 20, || async { follower.try_status().await.is_some() }).await;
    leader.put("b", "2").await.ok();
    wait_until("peers prove the new one", 20, || async { follower.get("/key/b").await.status == 200 }).await;
}
