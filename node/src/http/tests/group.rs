//! Whole nodes in this process, asked by a real client: the pages of the contract that need a log,
//! and what is forwarded.

use std::sync::Arc;

use kv_core::contract::{Failover, Tuning};
use kv_core::group::MemberId;
use kv_core::status::CompactionSchedule;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::compactor::{CompactionJob, CompactionOutcome};
use crate::driver;
use crate::wal::{FileStorage, NewVolume, Options};

/// Longest wait for anything in these tests.
const PATIENCE: Duration = Duration::from_secs(10);

struct NothingToCompact;

impl CompactionJob for NothingToCompact {
    fn run(&self) -> Result<CompactionOutcome, String> {
        Ok(CompactionOutcome::default())
    }

    fn pressed_at(&self) -> Option<u64> {
        None
    }
}

struct Node {
    url: String,
    handle: Handle,
    stop: CancellationToken,
    server: JoinHandle<()>,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let handle = start_driver(dir.path(), name, &url).await;
        let schedule = CompactionSchedule { enabled: false, interval_seconds: 3600, min_interval_seconds: 600 };
        let compactor = Compactor::start(Arc::new(NothingToCompact), schedule, Arc::default());
        let slot = Slot::default();
        slot.set(Running { handle: handle.clone(), compactor }).ok().unwrap();
        let config = HttpConfig {
            name: NodeName::new(name).unwrap(),
            url: url.clone(),
            api_timeout: Duration::from_secs(3),
            auth_token: None,
            ..config()
        };
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, config, slot, Arc::new(Metrics::new()), stop.clone()));
        Self { url, handle, stop, server, client: reqwest::Client::new(), _dir: dir }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.ask_with(method, path, body, &[]).await
    }

    async fn ask_with(&self, method: Method, path: &str, body: Option<Value>, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.text().await.unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, None).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::PUT, path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask(Method::DELETE, path, None).await
    }

    async fn member(&self) -> Value {
        let status: Value = serde_json::from_str(&self.get("/status").await.body).unwrap();
        json!({"name": status["name"], "member_id": status["member_id"], "peer_url": status["peer_url"]})
    }

    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap();
        let handle = self.handle.clone();
        self.handle.stop();
        handle.stopped().await;
    }
}

async fn start_driver(dir: &std::path::Path, name: &str, url: &str) -> Handle {
    let storage = Arc::new(FileStorage::open(dir).unwrap());
    let name = NodeName::new(name).unwrap();
    let volume = NewVolume { name, member_id: MemberId(driver::random_u64()), settings: Settings::default() };
    let opened = crate::wal::open(storage, &Options::default(), &volume).unwrap();
    let peer_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tuning = Tuning { heartbeat_interval_ms: 20, heartbeat_timeout_ms: 400, failover: Failover::Manual };
    driver::tests::start_opened(opened, url, peer_listener, tuning).await
}

struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Answer {
    #[track_caller]
    fn is(&self, status: u16, body: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.body.as_str()), (status, body));
        self
    }

    #[track_caller]
    fn fails(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status.as_u16(), self.header("x-kv-error")), (status, Some(code)), "{}", self.body);
        self
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Bootstraps the nodes as voters and lets the first lead, all over HTTP.
async fn found(nodes: &[&Node]) {
    let mut voters = Vec::new();
    for node in nodes {
        voters.push(node.member().await);
    }
    for node in nodes {
        let body = json!({"cluster_id": "test", "voters": voters});
        node.ask(Method::POST, "/cluster/bootstrap", Some(body)).await.is(200, r#"{"status":"ok","config_id":0}"#);
    }
    lead(nodes[0]).await;
}

/// Told again until it is ready to: voters have to see each other first.
async fn lead(node: &Node) {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let answer = node.ask(Method::POST, "/cluster/lead", None).await;
        if answer.status == 200 {
            return;
        }
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert!(Instant::now() < give_up_at, "{}", answer.body);
        let view = node.handle.view();
        node.handle.wait_view(Instant::now() + Duration::from_millis(20), |now| *now != *view).await;
    }
}

async fn group_of_one() -> Node {
    let node = Node::start("leader").await;
    found(&[&node]).await;
    node
}

async fn group_of_three() -> [Node; 3] {
    let nodes = [Node::start("a").await, Node::start("b").await, Node::start("c").await];
    found(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    nodes
}

#[tokio::test]
async fn values_have_versions_and_preconditions() {
    let node = group_of_one().await;
    let put = node.put("/key/config", json!({"value": "initial-setting"})).await;
    put.is(200, r#"{"status":"ok","id":1,"key":"config","version":1}"#);
    assert_eq!((put.header("etag"), put.header("x-kv-id")), (Some("\"1\""), Some("1")));
    node.put("/key/config", json!({"value": "updated-setting"}))
        .await
        .is(200, r#"{"status":"ok","id":2,"key":"config","version":2}"#);
    node.get("/key/config").await.is(200, r#"{"key":"config","value":"updated-setting","version":2}"#);
    node.get("/key/config?version=1").await.is(200, r#"{"key":"config","value":"initial-setting","version":1}"#);
    node.get("/key/config?version=9").await.is(404, r#"{"detail":"Key not found or version 9 not available"}"#);
    node.put("/key/config", json!({"value": 3, "version": 1})).await.fails(409, "version_conflict").is(
        409,
        r#"{"status":"error","message":"Version conflict: provided version 1 is outdated","current_version":2}"#,
    );
    node.put("/key/new", json!({"value": 3, "version": 9}))
        .await
        .is(409, r#"{"status":"error","message":"Version conflict: provided version 9 is ahead","current_version":0}"#);
    node.get("/key/config/history").await.is(
        200,
        r#"{"key":"config","versions":[1,2],"history":[{"version":1,"value":"initial-setting"},{"version":2,"value":"updated-setting"}]}"#,
    );
    node.get("/key/config/versions").await.is(200, r#"{"key":"config","versions":[1,2],"latest_version":2}"#);
    for path in ["/key/none", "/key/none/history", "/key/none/versions"] {
        node.get(path).await.fails(404, "not_found").is(404, r#"{"detail":"Key not found"}"#);
    }

    let with = |tag: &'static str| [("If-Match", tag)];
    let set = || Some(json!({"value": 3}));
    node.ask_with(Method::PUT, "/key/config", set(), &with("\"1\"")).await.fails(412, "precondition_failed");
    node.ask_with(Method::PUT, "/key/config", set(), &with("W/\"2\"")).await.fails(412, "precondition_failed");
    node.ask_with(Method::PUT, "/key/config", set(), &with("2")).await.fails(422, "invalid_request");
    assert_eq!(node.ask_with(Method::PUT, "/key/config", set(), &with("\"2\"")).await.status, 200);
    node.ask_with(Method::PUT, "/key/config", set(), &[("If-None-Match", "*")]).await.fails(412, "precondition_failed");
    let known = node.ask_with(Method::GET, "/key/config", None, &[("If-None-Match", "\"3\"")]).await;
    known.is(304, "");
    assert_eq!(known.header("etag"), Some("\"3\""));
    assert_eq!(node.ask(Method::HEAD, "/key/config", None).await.is(200, "").header("etag"), Some("\"3\""));
    node.delete("/key/config").await.is(200, r#"{"status":"ok","id":4}"#);
    node.delete("/key/config").await.is(404, r#"{"detail":"Key not found"}"#);
    node.end().await;
}

#[tokio::test]
async fn keys_are_any_text_and_are_listed_by_pages() {
    let node = group_of_one().await;
    for key in ["b", "a%2Fb%20%00", "%C3%A9", "prefix-1", "prefix-2", "prefix-3"] {
        assert_eq!(node.put(&format!("/key/{key}"), json!({"value": null})).await.status, 200);
    }
    node.get("/key/a%2fb%20%00").await.is(200, r#"{"key":"a/b \u0000","value":null,"version":1}"#);
    let first = node.get("/keys?prefix=prefix&limit=2").await;
    first.is(200, r#"{"keys":["prefix-1","prefix-2"],"count":2}"#);
    let cursor = first.header("x-kv-cursor").unwrap();
    let rest = node.get(&format!("/keys?prefix=prefix&limit=2&cursor={cursor}")).await;
    assert_eq!(rest.is(200, r#"{"keys":["prefix-3"],"count":1}"#).header("x-kv-cursor"), None);
    assert!(node.get("/keys").await.body.ends_with(r#""count":6}"#));
    node.end().await;
}

#[tokio::test]
async fn a_request_with_ids_is_carried_out_once() {
    let node = group_of_one().await;
    let path = "/key/k?client_id=c&request_id=r";
    let set = || json!({"value": "testvalue"});
    let first = node.put(path, set()).await;
    let again = node.put(path, set()).await;
    again.is(200, &first.body);
    assert_eq!((first.header("idempotent-replay"), again.header("idempotent-replay")), (None, Some("true")));
    node.put(path, json!({"value": "other"})).await.fails(422, "request_reused");
    assert_eq!(node.delete(path).await.status, 200);
    node.get("/deduplication_stats").await.is(
        200,
        concat!(
            r#"{"service_name":"leader","current_cache_size":2,"unique_request_ids":1,"total_client_count":1,"#,
            r#""total_requests_cached":2,"total_duplicates_detected":1,"same_operation_duplicates":1,"#,
            r#""different_operation_duplicates":1,"total_cache_cleanups":0}"#
        ),
    );
    node.get(&format!("/key/k?{}", "client_id=c&request_id=g")).await.fails(404, "not_found");
    node.put("/key/k", json!({"value": 1})).await;
    let read = node.get("/key/k?client_id=c&request_id=g").await;
    node.put("/key/k", json!({"value": 2})).await;
    let reread = node.get("/key/k?client_id=c&request_id=g").await;
    assert_eq!(reread.is(200, &read.body).header("idempotent-replay"), Some("true"));
    node.get("/key/other?client_id=c&request_id=g").await.fails(422, "request_reused");
    let status = |operation: &str| format!("/request_status?client_id=c&request_id=r&operation={operation}");
    node.get(&status("SET")).await.is(200, &format!(r#"{{"processed":true,"result":{}}}"#, first.body));
    node.get(&status("GET")).await.is(200, r#"{"processed":false}"#);
    node.end().await;
}

#[tokio::test]
async fn a_long_history_is_streamed_whole() {
    let node = group_of_one().await;
    let large = "x".repeat(900);
    for n in 0..100 {
        assert_eq!(node.put("/key/k", json!({"value": format!("{n}{large}")})).await.status, 200);
    }
    let history: Value = serde_json::from_str(&node.get("/key/k/history").await.body).unwrap();
    assert_eq!(history["versions"].as_array().unwrap().len(), 100);
    for (n, shown) in history["history"].as_array().unwrap().iter().enumerate() {
        assert_eq!(shown["value"], format!("{n}{large}"));
    }
    node.end().await;
}

#[tokio::test]
async fn settings_and_directives_are_strict() {
    let node = group_of_one().await;
    let post = |path: &'static str, body: Value| node.ask(Method::POST, path, Some(body));
    post("/settings", json!({"heartbeat_interval": 0.03})).await.is(200, r#"{"status":"ok"}"#);
    post("/settings", json!({"heartbeat_interval": 5})).await.fails(422, "invalid_request");
    post("/settings", json!({"heartbeat": 5})).await.fails(422, "invalid_request");
    assert!(node.get("/cluster_status").await.body.ends_with(r#""followers":{},"heartbeat_interval":0.03}"#));
    let changed = post("/cluster/settings", json!({"settings": {"history_limit": 3}})).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    post("/cluster/settings", json!({"settings": {"history_limit": "3"}})).await.fails(422, "invalid_request");
    let mismatch = json!({"cluster_id": "x", "target_member_id": "00000000000000ab", "if_config_id": 0});
    post("/cluster/lead", mismatch).await.fails(409, "identity_mismatch");
    post("/cluster/recover", json!({"accept_data_loss_at_epoch": 1})).await.fails(422, "invalid_request");
    let status: Value = serde_json::from_str(&node.get("/status").await.body).unwrap();
    assert_eq!((&status["role"], &status["settings"]["history_limit"]), (&json!("leader"), &json!(3)));
    assert!(node.get("/metrics").await.body.contains("kv_role{role=\"leader\"} 1"));
    node.get("/readyz").await.is(200, r#"{"status":"ok"}"#);
    let snapshot = node.get("/snapshot").await;
    assert_eq!(snapshot.header("x-kv-id").map(str::to_owned), status["applied_id"].as_u64().map(|id| id.to_string()));
    assert!(snapshot.body.starts_with("{\"kvcluster_snapshot\":") && snapshot.body.ends_with("}\n"));
    node.end().await;
}

#[tokio::test]
async fn any_node_answers_what_only_the_leader_can_do() {
    let [a, b, c] = group_of_three().await;
    let put = b.put("/key/k", json!({"value": 1})).await;
    put.is(200, r#"{"status":"ok","id":1,"key":"k","version":1}"#);
    b.get("/key/k").await.is(200, r#"{"key":"k","value":1,"version":1}"#);
    c.get("/key/k?consistency=linearizable").await.is(200, r#"{"key":"k","value":1,"version":1}"#);
    c.get("/key/k?min_id=1").await.is(200, r#"{"key":"k","value":1,"version":1}"#);
    let conflict = c.put("/key/k", json!({"value": 2, "version": 5})).await;
    conflict.fails(409, "version_conflict");
    let path = "/key/k?client_id=c&request_id=r";
    let first = b.put(path, json!({"value": 2})).await;
    assert_eq!(c.put(path, json!({"value": 2})).await.is(200, &first.body).header("idempotent-replay"), Some("true"));
    b.get("/request_status?client_id=c&request_id=r&operation=SET").await;
    let body = c.get("/cluster_status").await.body;
    assert!(
        body.starts_with(r#"{"follower":{"id":"c","url":"#) && body.contains(r#""leader":{"id":"a","url":"#),
        "{body}"
    );

    // A switchover: writes go on, asked of any node.
    lead(&b).await;
    for node in [&a, &b, &c] {
        assert_eq!(node.put("/key/k", json!({"value": 3})).await.status, 200);
    }
    a.delete("/key/k").await;
    a.get("/key/k").await.fails(404, "not_found");
    let silent = c.get("/key/k?min_id=1000000").await;
    silent.fails(504, "timeout");
    for node in [a, b, c] {
        node.end().await;
    }
}

#[tokio::test]
async fn without_a_leader_nothing_is_written_and_reads_go_on() {
    let [a, b, c] = group_of_three().await;
    b.put("/key/k", json!({"value": 1})).await;
    a.end().await;
    let refused = b.put("/key/k", json!({"value": 2})).await;
    assert_eq!(refused.fails(503, "no_leader").header("retry-after"), Some("1"));
    b.get("/key/k").await.is(200, r#"{"key":"k","value":1,"version":1}"#);
    let waiting = tokio::spawn(async move {
        let answer = c.put("/key/k", json!({"value": 3})).await;
        (c, answer)
    });
    lead(&b).await;
    let (c, answer) = waiting.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    b.end().await;
    c.end().await;
}
