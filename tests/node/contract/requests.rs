//! The page "Idempotent receiver".

use kv_tests::{Cluster, Node, Site};
use serde_json::json;

use super::{has, on_any_node};

#[tokio::test]
async fn the_same_request_gets_the_first_result_again() {
    on_any_node(async |node| {
        let path = "/key/testkey?client_id=client1&request_id=req123";
        let first = node.put_body(path, r#"{"value":"testvalue"}"#).await;
        first.is(200, r#"{"status":"ok","id":1,"key":"testkey","version":1}"#);
        assert_eq!(first.header("idempotent-replay"), None);
        node.put("testkey", "\"other\"").await.ok();
        let again = node.put_body(path, r#"{"value":"testvalue"}"#).await;
        again.is(200, r#"{"status":"ok","id":1,"key":"testkey","version":1}"#);
        assert_eq!(again.header("idempotent-replay"), Some("true"));
        let deleted = node.delete(path).await;
        deleted.is(200, r#"{"status":"ok","id":3}"#);
        assert_eq!(deleted.header("idempotent-replay"), None);
        let deleted_again = node.delete(path).await;
        deleted_again.is(200, r#"{"status":"ok","id":3}"#);
        assert_eq!(deleted_again.header("idempotent-replay"), Some("true"));
    })
    .await;
}

#[tokio::test]
async fn a_request_id_is_not_reused_for_something_else() {
    on_any_node(async |node| {
        let query = "client_id=c&request_id=1";
        node.put_body(&format!("/key/a?{query}"), r#"{"value":1}"#).await.ok();
        node.put_body(&format!("/key/a?{query}"), r#"{"value":2}"#).await.is_error(422, "request_reused");
        node.put_body(&format!("/key/b?{query}"), r#"{"value":1}"#).await.is_error(422, "request_reused");
        node.put_body(&format!("/key/a?{query}"), r#"{"value":1,"version":0}"#).await.is_error(422, "request_reused");
        node.put_body("/key/a?client_id=d&request_id=1", r#"{"value":2}"#).await.ok();
        node.get("/key/a").await.is(200, r#"{"key":"a","value":2,"version":2}"#);
    })
    .await;
}

#[tokio::test]
async fn failures_are_evaluated_afresh() {
    on_any_node(async |node| {
        let path = "/key/a?client_id=c&request_id=1";
        node.delete(path).await.is_error(404, "not_found");
        let conflict = node.put_body(path, r#"{"value":1,"version":1}"#).await;
        assert_eq!(conflict.status, 409, "{conflict}");
        node.put("a", "0").await.ok();
        node.put_body(path, r#"{"value":1,"version":1}"#).await.ok();
        node.delete(path).await.ok();
    })
    .await;
}

#[tokio::test]
async fn results_of_get_are_remembered_by_the_node_that_gave_them() {
    on_any_node(async |node| {
        node.put("a", "1").await.ok();
        let path = "/key/a?client_id=c&request_id=1";
        node.get(path).await.is(200, r#"{"key":"a","value":1,"version":1}"#);
        node.put("a", "2").await.ok();
        let again = node.get(path).await;
        again.is(200, r#"{"key":"a","value":1,"version":1}"#);
        assert_eq!(again.header("idempotent-replay"), Some("true"));
        node.get("/key/a").await.is(200, r#"{"key":"a","value":2,"version":2}"#);
    })
    .await;
}

#[tokio::test]
async fn copies_in_flight_share_one_result() {
    on_any_node(async |node| {
        let path = "/key/a?client_id=c&request_id=1";
        let copies = (0..16).map(|_| node.put_body(path, r#"{"value":1}"#));
        for answer in futures::future::join_all(copies).await {
            answer.is(200, r#"{"status":"ok","id":1,"key":"a","version":1}"#);
        }
        node.get("/key/a/versions").await.is(200, r#"{"key":"a","versions":[1],"latest_version":1}"#);
    })
    .await;
}

#[tokio::test]
async fn a_replay_is_known_on_every_node_and_after_a_restart() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    let path = "/key/a?client_id=c&request_id=1";
    let result = r#"{"status":"ok","id":1,"key":"a","version":1}"#;
    cluster.nodes[0].put_body(path, r#"{"value":1}"#).await.is(200, result);
    for node in &cluster.nodes {
        is_replay(node, path, result).await;
    }
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.spawn_again();
    }
    cluster.leader().await;
    for node in &mut cluster.nodes {
        node.wait_ready().await;
    }
    for node in &cluster.nodes {
        is_replay(node, path, result).await;
    }
}

async fn is_replay(node: &Node, path: &str, result: &str) {
    let again = node.put_body(path, r#"{"value":1}"#).await;
    again.is(200, result);
    assert_eq!(again.header("idempotent-replay"), Some("true"), "on {}", node.name());
}

#[tokio::test]
async fn statistics_show_the_numbers_of_the_example() {
    let single = Site::new().node("leader", 0).fast().start().await;
    shows_the_example(&single).await;
    let cluster = Cluster::manual().await;
    shows_the_example(&cluster.nodes[0]).await;
}

#[tokio::test]
async fn statistics_count_what_was_given_through_this_node() {
    let cluster = Cluster::manual().await;
    let follower = &cluster.nodes[1];
    let path = "/key/testkey?client_id=client1&request_id=req123";
    follower.put_body(path, r#"{"value":"testvalue"}"#).await.ok();
    follower.put_body(path, r#"{"value":"testvalue"}"#).await.ok();
    cluster.settle().await;
    follower.delete(path).await.ok();
    let stats = follower.get("/deduplication_stats").await.ok().json();
    has(
        &stats,
        &json!({"total_duplicates_detected":1,"same_operation_duplicates":1,"different_operation_duplicates":1}),
    );
}

#[tokio::test]
async fn results_of_reads_expire_by_the_group_s_setting_of_the_moment() {
    let node = Site::new().node("leader", 0).fast().start().await;
    node.put("a", "1").await.ok();
    let first = r#"{"key":"a","value":1,"version":1}"#;
    let path = "/key/a?client_id=c&request_id=1";
    node.get(path).await.is(200, first);
    node.put("a", "2").await.ok();
    node.get(path).await.is(200, first);
    node.post("/cluster/settings", r#"{"settings":{"dedup_expiry_seconds":1}}"#).await.ok();
    kv_tests::wait_until("the result is forgotten", 20, || async {
        node.get(path).await.text() == r#"{"key":"a","value":2,"version":2}"#
    })
    .await;
}

async fn shows_the_example(node: &Node) {
    let path = "/key/testkey?client_id=client1&request_id=req123";
    node.put_body(path, r#"{"value":"testvalue"}"#).await.ok();
    node.put_body(path, r#"{"value":"testvalue"}"#).await.ok();
    node.delete(path).await.ok();
    let stats = node.get("/deduplication_stats").await.ok().json();
    has(
        &stats,
        &json!({"service_name":"leader","current_cache_size":2,"unique_request_ids":1,"total_client_count":1,
            "total_requests_cached":2,"total_duplicates_detected":1,"same_operation_duplicates":1,
            "different_operation_duplicates":1,"total_cache_cleanups":0}),
    );
}

#[tokio::test]
async fn a_request_s_fate_can_be_asked() {
    on_any_node(async |node| {
        let ask = async |operation: &str| {
            node.get(&format!("/request_status?client_id=c&request_id=1&operation={operation}")).await
        };
        ask("SET").await.is(200, r#"{"processed":false}"#);
        node.put_body("/key/a?client_id=c&request_id=1", r#"{"value":1}"#).await.ok();
        ask("SET").await.is(200, r#"{"processed":true,"result":{"status":"ok","id":1,"key":"a","version":1}}"#);
        ask("DELETE").await.is(200, r#"{"processed":false}"#);
        node.delete("/key/a?client_id=c&request_id=1").await.ok();
        ask("DELETE").await.is(200, r#"{"processed":true,"result":{"status":"ok","id":2}}"#);
        ask("GET").await.is(200, r#"{"processed":false}"#);
    })
    .await;
}

#[tokio::test]
async fn requests_expire_and_the_oldest_goes_first() {
    let site = Site::new();
    let node = site.node("leader", 0).fast().arg("--dedup-limit", "3").start().await;
    for n in 1..=5 {
        node.put_body(&format!("/key/a?client_id=c&request_id={n}"), "{\"value\":1}").await.ok();
    }
    let stats = node.get("/deduplication_stats").await.json();
    assert_eq!(stats["current_cache_size"], 3, "{stats}");
    node.get("/request_status?client_id=c&request_id=2&operation=SET").await.is(200, r#"{"processed":false}"#);
    let held = node.get("/request_status?client_id=c&request_id=3&operation=SET").await.json();
    assert_eq!(held["processed"], true, "{held}");

    let short = site.node("short", 1).fast().arg("--dedup-expiry", "1").start().await;
    short.put_body("/key/a?client_id=c&request_id=1", "{\"value\":1}").await.ok();
    kv_tests::wait_until("the request expires on an idle store", 20, || async {
        short.get("/request_status?client_id=c&request_id=1&operation=SET").await.text() == r#"{"processed":false}"#
    })
    .await;
    kv_tests::wait_until("its copy is a new request", 20, || async {
        let again = short.put_body("/key/a?client_id=c&request_id=1", "{\"value\":1}").await;
        again.json()["version"] == 2
    })
    .await;
}
