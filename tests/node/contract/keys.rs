//! The page "Keys".

use std::sync::atomic::{AtomicBool, Ordering};

use kv_tests::{Node, Site};
use serde_json::json;

use super::on_any_node;

#[tokio::test]
async fn a_put_answers_with_id_key_version_and_etag() {
    on_any_node(async |node| {
        let first = node.put("config", "\"initial-setting\"").await;
        first.is(200, r#"{"status":"ok","id":1,"key":"config","version":1}"#);
        assert_eq!(first.header("etag"), Some("\"1\""));
        assert_eq!(first.header("content-type"), Some("application/json"));
        assert!(first.kv_id() >= 1);
        let second = node.put("config", "\"updated-setting\"").await;
        second.is(200, r#"{"status":"ok","id":2,"key":"config","version":2}"#);
        assert_eq!(second.header("etag"), Some("\"2\""));
    })
    .await;
}

#[tokio::test]
async fn a_get_shows_the_value_and_its_version() {
    on_any_node(async |node| {
        node.put("config", "\"initial-setting\"").await.ok();
        node.put("config", "\"updated-setting\"").await.ok();
        let current = node.get("/key/config").await;
        current.is(200, r#"{"key":"config","value":"updated-setting","version":2}"#);
        assert_eq!(current.header("etag"), Some("\"2\""));
        assert!(current.kv_id() >= 2);
        let earlier = node.get("/key/config?version=1").await;
        earlier.is(200, r#"{"key":"config","value":"initial-setting","version":1}"#);
        assert_eq!(earlier.header("etag"), Some("\"1\""));
        node.get("/key/config?version=9").await.is(404, r#"{"detail":"Key not found or version 9 not available"}"#);
        node.get("/key/absent").await.is(404, r#"{"detail":"Key not found"}"#).is_error(404, "not_found");
        node.get("/key/absent?version=1").await.is_error(404, "not_found");
    })
    .await;
}

#[tokio::test]
async fn a_version_is_a_precondition() {
    on_any_node(async |node| {
        let put = async |key: &str, body: &str| node.put_body(&format!("/key/{key}"), body).await;
        put("config", r#"{"value":"a"}"#).await.ok();
        put("config", r#"{"value":"b","version":1}"#)
            .await
            .is(200, r#"{"status":"ok","id":2,"key":"config","version":2}"#);
        let conflict = put("config", r#"{"value":"c","version":1}"#).await;
        conflict.is(
            409,
            r#"{"status":"error","message":"Version conflict: provided version 1 is outdated","current_version":2}"#,
        );
        assert_eq!(conflict.header("x-kv-error"), Some("version_conflict"));
        put("config", r#"{"value":"c","version":9}"#).await.is(
            409,
            r#"{"status":"error","message":"Version conflict: provided version 9 is ahead","current_version":2}"#,
        );
        put("config", r#"{"value":"c","version":0}"#).await.is(
            409,
            r#"{"status":"error","message":"Version conflict: provided version 0 is outdated","current_version":2}"#,
        );
        put("absent", r#"{"value":"c","version":3}"#).await.is(
            409,
            r#"{"status":"error","message":"Version conflict: provided version 3 is ahead","current_version":0}"#,
        );
        put("new", r#"{"version":0,"value":1}"#).await.is(200, r#"{"status":"ok","id":3,"key":"new","version":1}"#);
        node.get("/key/config").await.is(200, r#"{"key":"config","value":"b","version":2}"#);
    })
    .await;
}

#[tokio::test]
async fn etags_are_preconditions_that_no_recreation_fools() {
    on_any_node(async |node| {
        let put = async |key: &str, header: &str, value: &str| {
            node.send("PUT", &format!("/key/{key}"), &[(header, value)], r#"{"value":1}"#).await
        };
        put("a", "If-None-Match", "*").await.is(200, r#"{"status":"ok","id":1,"key":"a","version":1}"#);
        put("a", "If-None-Match", "*").await.is_error(412, "precondition_failed");
        put("a", "If-Match", "\"1\"").await.is(200, r#"{"status":"ok","id":2,"key":"a","version":2}"#);
        put("a", "If-Match", "\"1\"").await.is_error(412, "precondition_failed");
        put("absent", "If-Match", "*").await.is_error(412, "precondition_failed");
        node.delete("/key/a").await.is(200, r#"{"status":"ok","id":3}"#);
        node.put("a", "1").await.is(200, r#"{"status":"ok","id":4,"key":"a","version":1}"#);
        put("a", "If-Match", "\"1\"").await.is_error(412, "precondition_failed");
        let stale = node.send("DELETE", "/key/a", &[("If-Match", "\"2\"")], "").await;
        stale.is_error(412, "precondition_failed");
        let fresh = node.send("DELETE", "/key/a", &[("If-Match", "\"4\"")], "").await;
        fresh.is(200, r#"{"status":"ok","id":5}"#);
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_holds_the_value_gets_304() {
    on_any_node(async |node| {
        node.put("a", "1").await.ok();
        let same = node.send("GET", "/key/a", &[("If-None-Match", "\"1\"")], "").await;
        assert_eq!((same.status, same.body.len()), (304, 0), "{same}");
        assert_eq!(same.header("etag"), Some("\"1\""));
        node.put("a", "2").await.ok();
        let changed = node.send("GET", "/key/a", &[("If-None-Match", "\"1\"")], "").await;
        changed.is(200, r#"{"key":"a","value":2,"version":2}"#);
    })
    .await;
}

#[tokio::test]
async fn values_are_kept_exactly_apart_from_whitespace() {
    on_any_node(async |node| {
        let body = "{ \"other\": 0,\n \"value\" : {\"b\": 1.0e+10, \"a\" : 12345678901234567890123,\t\"c\": [ null , \" x \" ] } }";
        node.put_body("/key/exact", body).await.ok();
        let kept = r#"{"b":1.0e+10,"a":12345678901234567890123,"c":[null," x "]}"#;
        node.get("/key/exact").await.is(200, &format!(r#"{{"key":"exact","value":{kept},"version":1}}"#));
        node.put("nothing", "null").await.ok();
        node.get("/key/nothing").await.is(200, r#"{"key":"nothing","value":null,"version":1}"#);
    })
    .await;
}

#[tokio::test]
async fn keys_are_percent_decoded_and_may_hold_anything() {
    on_any_node(async |node| {
        let put = node.put("a%2Fb%20%C3%BC%22", "1").await;
        put.is_json(200, &json!({"status":"ok","id":1,"key":"a/b ü\"","version":1}));
        node.get("/key/a%2Fb%20%C3%BC%22").await.is_json(200, &json!({"key":"a/b ü\"","value":1,"version":1}));
        let longest = "k".repeat(1024);
        node.put(&longest, "2").await.ok();
        node.get(&format!("/key/{longest}")).await.ok();
        node.put("history", "3").await.ok();
        node.get("/key/history").await.is(200, r#"{"key":"history","value":3,"version":1}"#);
    })
    .await;
}

#[tokio::test]
async fn a_delete_takes_the_key_with_all_its_versions() {
    on_any_node(async |node| {
        node.put("a", "1").await.ok();
        node.put("a", "2").await.ok();
        node.delete("/key/a").await.is(200, r#"{"status":"ok","id":3}"#);
        node.get("/key/a").await.is(404, r#"{"detail":"Key not found"}"#);
        node.get("/key/a?version=1").await.is_error(404, "not_found");
        node.get("/key/a/history").await.is(404, r#"{"detail":"Key not found"}"#);
        node.get("/key/a/versions").await.is(404, r#"{"detail":"Key not found"}"#);
        node.delete("/key/a").await.is(404, r#"{"detail":"Key not found"}"#).is_error(404, "not_found");
        node.put("a", "3").await.is(200, r#"{"status":"ok","id":4,"key":"a","version":1}"#);
    })
    .await;
}

#[tokio::test]
async fn history_and_versions_list_what_is_held() {
    on_any_node(async |node| {
        node.put("config", "\"initial-setting\"").await.ok();
        node.put("config", "\"updated-setting\"").await.ok();
        node.get("/key/config/history").await.is(
            200,
            concat!(
                r#"{"key":"config","versions":[1,2],"history":[{"version":1,"value":"initial-setting"},"#,
                r#"{"version":2,"value":"updated-setting"}]}"#
            ),
        );
        node.get("/key/config/versions").await.is(200, r#"{"key":"config","versions":[1,2],"latest_version":2}"#);
    })
    .await;
}

#[tokio::test]
async fn keys_come_in_order_and_in_pages() {
    on_any_node(async |node| {
        for key in ["b%261", "a1", "c", "b2", "a2"] {
            node.put(key, "0").await.ok();
        }
        node.delete("/key/c").await.ok();
        node.get("/keys").await.is(200, r#"{"keys":["a1","a2","b&1","b2"],"count":4}"#);
        node.get("/keys?prefix=b").await.is(200, r#"{"keys":["b&1","b2"],"count":2}"#);
        node.get("/keys?prefix=zz").await.is(200, r#"{"keys":[],"count":0}"#);
        let first = node.get("/keys?limit=3").await;
        first.is(200, r#"{"keys":["a1","a2","b&1"],"count":3}"#);
        let cursor = first.header("x-kv-cursor").expect("more follow").to_owned();
        let encoded: String = cursor.bytes().map(|b| format!("%{b:02X}")).collect();
        let last = node.get(&format!("/keys?limit=3&cursor={encoded}")).await;
        last.is(200, r#"{"keys":["b2"],"count":1}"#);
        assert_eq!(last.header("x-kv-cursor"), None);
        let relayed = node.get("/keys?limit=3&consistency=linearizable").await;
        relayed.is(200, r#"{"keys":["a1","a2","b&1"],"count":3}"#);
        assert_eq!(relayed.header("x-kv-cursor"), Some(&*cursor));
    })
    .await;
}

#[tokio::test]
async fn read_your_writes_and_linearizable_reads() {
    let cluster = kv_tests::Cluster::manual().await;
    let (leader, follower) = (&cluster.nodes[0], &cluster.nodes[2]);
    for n in 1..=50 {
        let id = leader.put("a", &n.to_string()).await.kv_id();
        let expected = format!(r#"{{"key":"a","value":{n},"version":{n}}}"#);
        if n % 2 == 0 {
            follower.get("/key/a?consistency=linearizable").await.is(200, &expected);
        } else {
            let read = follower.get(&format!("/key/a?min_id={id}")).await;
            assert!(read.is(200, &expected).kv_id() >= id);
        }
    }
}

#[tokio::test]
async fn waiting_for_an_id_that_does_not_come_ends_in_a_timeout() {
    let node = kv_tests::Site::new().node("leader", 0).fast().arg("--api-timeout", "0.3").start().await;
    node.put("a", "1").await.ok();
    let answer = node.get("/key/a?min_id=1000000").await;
    assert_eq!(answer.header("x-kv-error"), Some("timeout"), "{answer}");
    assert!([503, 504].contains(&answer.status), "{answer}");
}

/// Reads of the key until the writer is done: the id shown, and whether the key was there.
async fn watch(node: &Node, writing: &AtomicBool) -> Vec<(u64, bool)> {
    let mut seen = Vec::new();
    while writing.load(Ordering::Relaxed) {
        let answer = node.get("/key/a").await;
        seen.push((answer.kv_id(), answer.status == 200));
    }
    seen
}

#[tokio::test]
async fn the_id_of_an_answer_is_one_at_which_it_is_true() {
    let node = Site::new().node("leader", 0).fast().start().await;
    let writing = AtomicBool::new(true);
    let write = async {
        let mut changes = vec![(0, false)];
        for _ in 0..400 {
            changes.push((node.put("a", "1").await.ok().kv_id(), true));
            changes.push((node.delete("/key/a").await.ok().kv_id(), false));
        }
        writing.store(false, Ordering::Relaxed);
        changes
    };
    let watchers = futures::future::join_all((0..6).map(|_| watch(&node, &writing)));
    let (changes, seen) = tokio::join!(write, watchers);
    for (id, there) in seen.into_iter().flatten() {
        let last = changes[changes.partition_point(|(changed, _)| *changed <= id) - 1];
        assert_eq!(there, last.1, "at id {id}, after the change at {}", last.0);
    }
}
