//! What no client, peer or administrator should send: each gets a clear error and changes nothing.

use kv_tests::{Answer, Node, Site, heads};
use serde_json::json;

/// A group of one that holds one key under id 1.
async fn node_with_one_key() -> Node {
    let node = Site::new().node("leader", 0).fast().start().await;
    node.put("a", "1").await.ok();
    node
}

/// Nothing has changed since [`node_with_one_key`], and the node still works.
async fn is_unchanged(node: &Node) {
    node.get("/keys").await.is(200, r#"{"keys":["a"],"count":1}"#);
    node.get("/key/a").await.is(200, r#"{"key":"a","value":1,"version":1}"#);
    assert_eq!(node.applied_id().await, 1);
    node.put("a", "2").await.is(200, r#"{"status":"ok","id":2,"key":"a","version":2}"#);
}

async fn put_bytes(node: &Node, path: &str, body: Vec<u8>) -> Answer {
    let request = node.request("PUT", path).header("content-type", "application/json").body(body);
    node.try_request(request).await.expect("an answer")
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let node = node_with_one_key().await;
    let bodies = ["{\"value\":", "value", "{\"value\":1}x", "{'value':1}", "[1]", "\"text\"", "7", "{\"value\":01}"];
    for body in bodies {
        node.put_body("/key/b", body).await.is_error(422, "invalid_request");
    }
    let empty = node.try_request(node.request("PUT", "/key/b")).await.unwrap();
    empty.is_error(422, "invalid_request");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_wrong_member_is_named() {
    let node = node_with_one_key().await;
    node.put_body("/key/b", "{}").await.is_error(422, "invalid_request").names("value");
    node.put_body("/key/b", r#"{"version":1}"#).await.is_error(422, "invalid_request").names("value");
    for version in ["\"1\"", "1.5", "-1", "true", "99999999999999999999999", "1e300", "[]"] {
        let body = format!("{{\"value\":1,\"version\":{version}}}");
        node.put_body("/key/b", &body).await.is_error(422, "invalid_request").names("version");
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn nan_and_infinity_are_no_json() {
    let node = node_with_one_key().await;
    for value in ["NaN", "Infinity", "-Infinity", "[1,NaN]", "{\"a\":-NaN}"] {
        node.put("b", value).await.is_error(422, "invalid_request").names(r#"["body","value"]"#);
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn deep_nesting_is_refused_and_harmless() {
    let node = node_with_one_key().await;
    for depth in [129, 500, 100_000, 400_000] {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        node.put("b", &value).await.is_error(422, "invalid_request");
        let objects = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let answer = node.put("b", &objects).await;
        assert!([413, 422].contains(&answer.status), "{answer}");
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let node = node_with_one_key().await;
    let over = format!("\"{}\"", "v".repeat(1024 * 1024));
    node.put("b", &over).await.is_error(413, "too_large");
    let far_over = vec![b' '; 12 * 1024 * 1024];
    put_bytes(&node, "/key/b", far_over).await.is_error(413, "too_large");
    let key = node.put(&"k".repeat(1025), "1").await;
    assert!([413, 414, 422].contains(&key.status), "{key}");
    assert!(key.text().contains("1024"), "the limit is named: {key}");
    let request_id = "r".repeat(257);
    let answer = node.put_body(&format!("/key/b?client_id=c&request_id={request_id}"), r#"{"value":1}"#).await;
    answer.is_error(422, "invalid_request").names("request_id");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_value_of_the_limit_is_taken() {
    let node = node_with_one_key().await;
    let longest = format!("\"{}\"", "v".repeat(1024 * 1024 - 2));
    node.put("b", &longest).await.ok();
    let read = node.get("/key/b").await;
    assert_eq!(read.ok().body.len(), longest.len() + r#"{"key":"b","value":,"version":1}"#.len());
}

#[tokio::test]
async fn what_is_not_utf8_is_refused() {
    let node = node_with_one_key().await;
    put_bytes(&node, "/key/b", b"{\"value\":\"\xff\xfe\"}".to_vec()).await.is_error(422, "invalid_request");
    put_bytes(&node, "/key/b", b"{\"value\":\"\\ud800\xc3\"}".to_vec()).await.is_error(422, "invalid_request");
    node.put("%FF", "1").await.is_error(422, "invalid_request");
    node.get("/key/a?client_id=%FF&request_id=1").await.is_error(422, "invalid_request");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn an_empty_key_is_refused() {
    let node = node_with_one_key().await;
    let answer = node.put("", "1").await;
    assert!([404, 422].contains(&answer.status), "{answer}");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn unknown_query_values_are_named() {
    let node = node_with_one_key().await;
    for (path, part) in [
        ("/key/a?version=-1", "version"),
        ("/key/a?version=x", "version"),
        ("/key/a?version=99999999999999999999999", "version"),
        ("/key/a?consistency=strong", "consistency"),
        ("/key/a?min_id=now", "min_id"),
        ("/key/a?versoin=1", "versoin"),
        ("/keys?limit=0", "limit"),
        ("/keys?limit=-5", "limit"),
        ("/keys?limit=ten", "limit"),
        ("/key/a?client_id=c", "request_id"),
        ("/key/a?request_id=r", "client_id"),
        ("/request_status?client_id=c&request_id=1&operation=PATCH", "operation"),
        ("/request_status?client_id=c&request_id=1&operation=set", "operation"),
        ("/request_status?client_id=c&request_id=1", "operation"),
        ("/request_status?operation=SET", "client_id"),
    ] {
        node.get(path).await.is_error(422, "invalid_request").names(part);
    }
    node.post("/compaction/run?force=perhaps", "").await.is_error(422, "invalid_request").names("force");
    node.post("/compaction/configure?enabled=7", "").await.is_error(422, "invalid_request").names("enabled");
    for (query, part) in [
        ("interval=-1", "interval"),
        ("interval=18446744073709551615", "interval"),
        ("min_interval=31536001", "min_interval"),
    ] {
        let answer = node.post(&format!("/compaction/configure?{query}"), "").await;
        answer.is_error(422, "invalid_request").names(part);
    }
    node.post("/settings", r#"{"failover":"sometimes"}"#).await.is_error(422, "invalid_request").names("failover");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_peer_url_that_nobody_could_dial_is_refused() {
    let node = node_with_one_key().await;
    let empty = node.site().node("empty", 1).fast().arg("--join", "true").spawn();
    empty.wait_role("uninitialised").await;
    let member_id = empty.status().await["member_id"].clone();
    let too_long = format!("http://{}:9000", "h".repeat(200_000));
    for peer_url in ["", "not a url", "http://127.0.0.1", "127.0.0.1:0", "https://127.0.0.1:9000", &too_long] {
        let voters = json!([{"name": "empty", "member_id": member_id, "peer_url": peer_url}]);
        let founding = json!({"cluster_id": "blue", "voters": voters});
        let answer = empty.post("/cluster/bootstrap", &founding.to_string()).await;
        answer.is_error(422, "invalid_request").names("peer_url");
        let joining = json!({"name": "empty", "member_id": member_id, "peer_url": peer_url, "role": "learner"});
        node.direct("/cluster/members", joining).await.is_error(422, "invalid_request").names("peer_url");
    }
    assert_eq!(empty.status().await["role"], "uninitialised");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn unreadable_etags_are_refused() {
    let node = node_with_one_key().await;
    for tag in ["1", "\"x\"", "\"1", "W/\"1\""] {
        let answer = node.send("PUT", "/key/a", &[("If-Match", tag)], r#"{"value":2}"#).await;
        assert!([412, 422].contains(&answer.status), "If-Match: {tag}: {answer}");
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused() {
    let node = node_with_one_key().await;
    node.get("/nothing").await.is_error(404, "not_found");
    assert_eq!(node.send("PATCH", "/key/a", &[], "{}").await.status, 405);
    assert_eq!(node.post("/key/a", "{}").await.status, 405);
    assert_eq!(node.put_body("/keys", "{}").await.status, 405);
    is_unchanged(&node).await;
}

#[tokio::test]
async fn head_and_options_are_answered_without_a_body() {
    let node = node_with_one_key().await;
    let head = node.send("HEAD", "/key/a", &[], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0), "{head}");
    assert_eq!(head.header("etag"), Some("\"1\""));
    assert_eq!(node.send("HEAD", "/key/absent", &[], "").await.status, 404);
    let options = node.send("OPTIONS", "/key/a", &[], "").await;
    assert!([200, 204, 405].contains(&options.status), "{options}");
    assert!(options.header("allow").is_some_and(|allow| allow.contains("PUT")), "{options}");
    is_unchanged(&node).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let node = node_with_one_key().await;
    let mut raw = node.raw().await;
    let mut requests = String::new();
    for n in 1..=20 {
        let body = format!("{{\"value\":{n}}}");
        requests += &format!("PUT /key/p HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        requests += "GET /key/p HTTP/1.1\r\nHost: x\r\n\r\n";
    }
    raw.send(requests.as_bytes()).await;
    let answers = String::from_utf8(raw.read_answers(40).await).unwrap();
    assert_eq!(heads(answers.as_bytes()), 40);
    let mut rest = answers.as_str();
    for n in 1..=20 {
        for part in
            [format!("\"key\":\"p\",\"version\":{n}}}"), format!("{{\"key\":\"p\",\"value\":{n},\"version\":{n}}}")]
        {
            let at = rest.find(&part).unwrap_or_else(|| panic!("{part} is not next in {rest}"));
            rest = &rest[at + part.len()..];
        }
    }
}

#[tokio::test]
async fn slow_and_half_open_clients_disturb_nobody() {
    let node = node_with_one_key().await;
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut raw = node.raw().await;
        raw.send(
            ["", "PUT /key/b HT", "PUT /key/b HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{\"va"][n % 3]
                .as_bytes(),
        )
        .await;
        slow.push(raw);
    }
    node.get("/key/a").await.ok();
    for raw in &mut slow {
        raw.finish().await;
    }
    for raw in &mut slow {
        let answer = raw.read_to_end().await;
        assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 2"), "half a request succeeded");
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn garbage_on_the_client_port_is_answered_or_closed() {
    let node = node_with_one_key().await;
    let long_head = format!("GET /key/a HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_heads = format!("GET /key/a HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(5000));
    let garbage: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"PUT /key/b HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{\"value\":1}",
        long_head.as_bytes(),
        many_heads.as_bytes(),
    ];
    for bytes in garbage {
        let mut raw = node.raw().await;
        raw.send(bytes).await;
        raw.finish().await;
        let answer = raw.read_to_end().await;
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 OK"), "{}", String::from_utf8_lossy(&answer));
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_peer_that_speaks_garbage_is_cut_off() {
    let mut node = node_with_one_key().await;
    node.allow("");
    let mut noise: Vec<u8> = (0..100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let over_the_limit = [0xff_u8; 64];
    noise[0] = 0;
    let garbage: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\n\r\n", &over_the_limit, &noise, b"\0\0\0\0\0\0\0\0", b"\0\0\0\x05{\"a\":"];
    for bytes in garbage {
        let mut raw = node.raw_peer().await;
        raw.send(bytes).await;
        raw.finish().await;
        raw.read_to_end().await;
    }
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused() {
    let node = node_with_one_key().await;
    let second = node.site().node("second", 1).data_dir(node.spec.data_dir.clone());
    let exit = second.refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains("in use") && exit.log.contains("--data-dir"), "{}", exit.log);
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_port_in_use_is_refused() {
    let node = node_with_one_key().await;
    let mut second = node.site().node("second", 1);
    second.client_port = node.spec.client_port;
    let exit = second.refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains(&node.spec.client_port.to_string()), "{}", exit.log);
    is_unchanged(&node).await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_made_is_refused() {
    let site = Site::new();
    std::fs::write(site.path("file"), "").unwrap();
    let exit = site.node("leader", 0).data_dir(site.path("file").join("data")).refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains("file/data"), "{}", exit.log);
}

#[tokio::test]
async fn an_unknown_setting_in_the_config_file_is_named() {
    let site = Site::new();
    let config = site.path("config.yaml");
    std::fs::write(&config, "history_limit: 5\nhistroy_limit: 6\n").unwrap();
    let exit = site.node("leader", 0).arg("--config", config.display()).refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains("histroy_limit"), "{}", exit.log);
}

#[tokio::test]
async fn a_value_out_of_range_names_flag_and_variable() {
    let site = Site::new();
    for (index, (flag, variable, value)) in [
        ("--heartbeat-interval", "HEARTBEAT_INTERVAL", "-1"),
        ("--max-value-size", "MAX_VALUE_SIZE", "999999999999"),
        ("--api-timeout", "API_TIMEOUT", "soon"),
        ("--compaction-interval", "COMPACTION_INTERVAL", "0"),
        ("--history-limit", "HISTORY_LIMIT", "x"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("node-{index}");
        let exit = site.node(&name, 0).env(variable, value).refused().await;
        assert!(!exit.status.success(), "{variable}={value} is taken");
        assert!(exit.log.contains(flag) && exit.log.contains(variable), "{variable}={value}: {}", exit.log);
    }
}
