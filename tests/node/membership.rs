//! Who belongs to the group: bootstrap, learners, voters, lost volumes, and the last resort.

use kv_tests::{Answer, Cluster, Node, Site, wait_until};
use serde_json::{Value, json};

/// Three empty nodes that wait to be bootstrapped.
async fn three_empty(site: &Site) -> Vec<Node> {
    let mut nodes = Vec::new();
    for index in 0..3 {
        let mut node = site.node(&format!("node-{index}"), index).fast().arg("--join", "true").spawn();
        node.allow("");
        nodes.push(node);
    }
    for node in &nodes {
        node.wait_role("uninitialised").await;
    }
    nodes
}

async fn member_id(node: &Node) -> Value {
    node.status().await["member_id"].clone()
}

async fn voters(nodes: &[Node]) -> Value {
    let mut voters = Vec::new();
    for node in nodes {
        voters.push(json!({"name": node.name(), "member_id": member_id(node).await, "peer_url": node.spec.peer_url()}));
    }
    Value::Array(voters)
}

async fn bootstrap(node: &Node, cluster_id: &str, voters: &Value) -> Answer {
    let body = json!({"cluster_id": cluster_id, "target_member_id": member_id(node).await, "voters": voters});
    node.post("/cluster/bootstrap", &body.to_string()).await
}

#[tokio::test]
async fn bootstrap_is_idempotent_and_happens_once() {
    let site = Site::new();
    let nodes = three_empty(&site).await;
    let write = nodes[0].put("a", "1").await;
    assert_eq!(write.status, 503, "{write}");
    let voters = voters(&nodes).await;
    for node in &nodes {
        bootstrap(node, "blue", &voters).await.ok();
    }
    for node in &nodes {
        bootstrap(node, "blue", &voters).await.ok();
    }
    let other = bootstrap(&nodes[0], "green", &voters).await;
    assert_eq!(other.status, 409, "{other}");
    let fewer = Value::Array(voters.as_array().unwrap()[..2].to_vec());
    let other = bootstrap(&nodes[0], "blue", &fewer).await;
    assert_eq!(other.status, 409, "{other}");
    nodes[0].direct("/cluster/lead", json!({})).await.ok();
    nodes[1].put("a", "1").await.is(200, r#"{"status":"ok","id":1,"key":"a","version":1}"#);
    assert_eq!(nodes[2].status().await["cluster_id"], "blue");
}

#[tokio::test]
async fn bootstrap_of_a_node_that_is_not_meant_is_refused() {
    let site = Site::new();
    let nodes = three_empty(&site).await;
    let voters = voters(&nodes).await;
    let body = json!({"cluster_id": "blue", "target_member_id": member_id(&nodes[1]).await, "voters": voters});
    let answer = nodes[0].post("/cluster/bootstrap", &body.to_string()).await;
    assert_eq!((answer.status, answer.header("x-kv-error")), (409, Some("identity_mismatch")), "{answer}");
    let strangers = Value::Array(voters.as_array().unwrap()[1..].to_vec());
    let answer = bootstrap(&nodes[0], "blue", &strangers).await;
    assert!([409, 422].contains(&answer.status), "{answer}");
    let mut body = json!({"cluster_id": "blue", "voters": voters, "if_config_id": 1});
    let answer = nodes[0].post("/cluster/bootstrap", &body.to_string()).await;
    assert_eq!((answer.status, answer.header("x-kv-error")), (409, Some("identity_mismatch")), "{answer}");
    body["voters"][0]["name"] = json!("another");
    body["if_config_id"] = json!(0);
    let answer = nodes[0].post("/cluster/bootstrap", &body.to_string()).await;
    answer.is_error(422, "invalid_request").names("node-0");
    assert_eq!(nodes[0].status().await["role"], "uninitialised");
    body["voters"] = voters;
    nodes[0].post("/cluster/bootstrap", &body.to_string()).await.ok();
}

#[tokio::test]
async fn a_group_of_one_is_not_bootstrapped_again() {
    let node = Site::new().node("leader", 0).fast().start().await;
    node.put("a", "1").await.ok();
    let voters = json!([{"name":"leader","member_id":member_id(&node).await,"peer_url":node.spec.peer_url()}]);
    let answer = bootstrap(&node, "blue", &voters).await;
    assert_eq!(answer.status, 409, "{answer}");
    node.get("/key/a").await.ok();
}

/// The member of this name in the leader's `/status`.
async fn member(leader: &Node, name: &str) -> Value {
    let status = leader.status().await;
    let members = status["members"].as_array().unwrap();
    members.iter().find(|m| m["name"] == name).cloned().unwrap_or(Value::Null)
}

/// Sends a membership call until it is accepted: one change at a time, and each needs the configuration's id.
async fn change(leader: &Node, method: &str, path: &str, body: Value) {
    wait_until(&format!("{method} {path} {body} is accepted"), 30, || async {
        let answer = leader.send_directive(method, path, body.clone()).await;
        assert!(answer.status == 200 || answer.status == 409 || answer.status == 503, "{answer}");
        answer.status == 200
    })
    .await;
}

async fn membership_body(node: &Node, role: &str) -> Value {
    json!({"name": node.name(), "member_id": member_id(node).await, "peer_url": node.spec.peer_url(), "role": role})
}

async fn is_voter(leader: &Node, name: &str, voter: bool) {
    wait_until(&format!("{name} is a voter: {voter}"), 30, || async { member(leader, name).await["voter"] == voter })
        .await;
}

#[tokio::test]
async fn a_learner_is_added_promoted_and_removed() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    for n in 0..50 {
        cluster.nodes[0].put(&format!("key-{n}"), "1").await.ok();
    }
    let mut fourth = cluster.site.node("follower-3", 3).fast().arg("--join", "true").spawn();
    fourth.allow("");
    fourth.wait_role("uninitialised").await;
    let leader = &cluster.nodes[0];
    change(leader, "POST", "/cluster/members", membership_body(&fourth, "learner").await).await;
    fourth.wait_role("learner").await;
    fourth.wait_applied(50).await;
    let answer = fourth.direct("/cluster/lead", json!({})).await;
    assert!(answer.status == 409 && answer.header("retry-after").is_none(), "no waiting helps a learner: {answer}");
    is_voter(leader, "follower-3", false).await;
    change(leader, "POST", "/cluster/members", membership_body(&fourth, "voter").await).await;
    is_voter(leader, "follower-3", true).await;
    fourth.wait_role("follower").await;
    fourth.put("through-the-fourth", "1").await.ok();
    let id = member_id(&cluster.nodes[2]).await;
    let path = format!("/cluster/members/{}", id.as_str().unwrap());
    change(leader, "DELETE", &path, json!({})).await;
    wait_until("the removed member is no voter", 30, || async { member(leader, "follower-2").await["voter"] != true })
        .await;
    cluster.nodes[2].kill();
    cluster.nodes[0].put("after", "1").await.ok();
    fourth.direct("/cluster/lead", json!({})).await.ok();
    fourth.get("/key/after?consistency=linearizable").await.ok();
}

#[tokio::test]
async fn a_learner_registers_again_with_a_new_leader() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    let mut fourth = cluster.site.node("follower-3", 3).fast().arg("--join", "true").spawn();
    fourth.allow("");
    fourth.wait_role("uninitialised").await;
    change(&cluster.nodes[0], "POST", "/cluster/members", membership_body(&fourth, "learner").await).await;
    fourth.wait_role("learner").await;
    cluster.nodes[1].direct("/cluster/lead", json!({})).await.ok();
    let id = cluster.nodes[1].put("by-the-new-leader", "1").await.ok().json()["id"].as_u64().unwrap();
    fourth.wait_applied(id).await;
    fourth.stop().await;
    cluster.nodes[2].direct("/cluster/lead", json!({})).await.ok();
    fourth.spawn_again();
    fourth.wait_role("learner").await;
    let leader = &cluster.nodes[2];
    change(leader, "POST", "/cluster/members", membership_body(&fourth, "voter").await).await;
    is_voter(leader, "follower-3", true).await;
    fourth.wait_role("follower").await;
}

#[tokio::test]
async fn a_change_decided_on_an_old_configuration_is_refused() {
    let cluster = Cluster::manual().await;
    let body = json!({"name":"x","member_id":"00000000000000ab","peer_url":"http://127.0.0.1:9","role":"learner","if_config_id":77});
    let answer = cluster.nodes[0].direct("/cluster/members", body).await;
    assert_eq!((answer.status, answer.header("x-kv-error")), (409, Some("identity_mismatch")), "{answer}");
    let without = cluster.nodes[0].post("/cluster/members", r#"{"name":"x"}"#).await;
    assert_eq!(without.status, 422, "{without}");
}

#[tokio::test]
async fn a_name_in_use_is_not_given_to_another_volume() {
    let mut cluster = Cluster::manual().await;
    cluster.allow("");
    let mut impostor = cluster.site.node("impostor", 7).fast().arg("--join", "true").spawn();
    impostor.allow("");
    impostor.wait_role("uninitialised").await;
    let body = json!({"name":"follower-1","member_id":member_id(&impostor).await,
        "peer_url":impostor.spec.peer_url(),"role":"learner"});
    let answer = cluster.nodes[0].direct("/cluster/members", body).await;
    assert_eq!((answer.status, answer.header("x-kv-error")), (409, Some("name_taken")), "{answer}");
    assert_eq!(impostor.status().await["role"], "uninitialised");
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
}

#[tokio::test]
async fn a_lost_volume_is_replaced_under_its_name() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    for n in 0..50 {
        cluster.nodes[0].put(&format!("key-{n}"), "1").await.ok();
    }
    cluster.settle().await;
    let old = member_id(&cluster.nodes[1]).await;
    let leader = cluster.leader().await;
    assert_eq!(leader, 0);
    cluster.nodes[1].kill();
    std::fs::remove_dir_all(&cluster.nodes[1].spec.data_dir).unwrap();
    cluster.wait_seen(0, 1, "down").await;
    cluster.nodes[1].spawn_again();
    wait_until("the new volume is a voter", 30, || async {
        let found = member(&cluster.nodes[0], "follower-1").await;
        found["voter"] == true && found["member_id"] != old
    })
    .await;
    cluster.nodes[1].wait_ready().await;
    cluster.nodes[0].put("after", "1").await.ok();
    cluster.settle().await;
    cluster.nodes[1].get("/key/key-49").await.ok();
    // The new voter counts: with the third node gone, it and the leader are the majority.
    cluster.nodes[2].kill();
    cluster.nodes[0].put("majority", "1").await.ok();
}

#[tokio::test]
async fn the_last_survivor_is_recovered_by_hand() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    let survivor = &cluster.nodes[2];
    wait_until("the majority is gone", 20, || async { survivor.put("b", "1").await.status == 503 }).await;
    let status = survivor.status().await;
    let epoch = status["epoch"].as_u64().unwrap();
    let wrong = survivor.direct("/cluster/recover", json!({"accept_data_loss_at_epoch": epoch + 5})).await;
    wrong.is_error(409, "identity_mismatch").names(", epoch ");
    wait_until("recovery is accepted", 20, || async {
        let epoch = survivor.status().await["epoch"].clone();
        let body = json!({"accept_data_loss_at_epoch": epoch, "new_cluster_id": "after-the-fire"});
        survivor.direct("/cluster/recover", body).await.status == 200
    })
    .await;
    wait_until("it takes writes alone", 20, || async { survivor.put("b", "1").await.status == 200 }).await;
    survivor.get("/key/a").await.ok();
    assert_eq!(survivor.status().await["cluster_id"], "after-the-fire");
    cluster.nodes[0].spawn_again();
    wait_until("the old member is up", 20, || async { cluster.nodes[0].try_status().await.is_some() }).await;
    cluster.nodes[2].put("c", "1").await.ok();
    assert_eq!(cluster.nodes[0].status().await["cluster_id"], status["cluster_id"]);
    assert_ne!(cluster.nodes[0].get("/key/c").await.status, 200, "a member of the old group was let in");
}
