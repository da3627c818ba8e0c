//! A full disk: writes are refused with 507 before anything is proposed, reads go on, and writes come
//! back by themselves.

use kv_tests::{Answer, ClusterSpec, Node, Site, SmallVolume, wait_until};

/// Values that fill a small volume quickly.
const VALUE_BYTES: usize = 64 * 1024;

fn large_value() -> String {
    format!("\"{}\"", "v".repeat(VALUE_BYTES))
}

/// Over the node's reserve, with room for some 8 MiB of values.
const VOLUME_MEGABYTES: u32 = 40;
const GROWN_MEGABYTES: u32 = 200;

/// Writes until the node refuses; the refusal.
async fn fill(node: &Node) -> Answer {
    for n in 0..400 {
        let answer = node.put(&format!("large-{n}"), &large_value()).await;
        if answer.status != 200 {
            return answer;
        }
    }
    panic!("the volume never fills");
}

async fn writes_come_back(node: &Node) {
    wait_until("writes come back by themselves", 30, || async { node.put("after", "1").await.status == 200 }).await;
}

#[tokio::test]
async fn a_full_volume_refuses_writes_and_comes_back() {
    let site = Site::new();
    let Some(volume) = SmallVolume::mount(site.path("volume"), VOLUME_MEGABYTES) else {
        eprintln!("SKIPPED: mounting a small volume needs root; the test with --storage-limit stands in for it");
        return;
    };
    let mut node = site.node("leader", 0).fast().data_dir(volume.path().join("data")).start().await;
    node.allow("");
    node.put("small", "1").await.ok();
    fill(&node).await.is_error(507, "storage_full");
    node.get("/key/small").await.is(200, r#"{"key":"small","value":1,"version":1}"#);
    node.get("/key/large-0").await.ok();
    assert_eq!(node.put("more", &large_value()).await.status, 507);
    volume.grow(GROWN_MEGABYTES);
    writes_come_back(&node).await;
    node.put("more", &large_value()).await.ok();
    node.kill();
    node.start_again().await;
    node.get("/key/small").await.is(200, r#"{"key":"small","value":1,"version":1}"#);
    node.get("/key/more").await.ok();
    all_acknowledged(&node).await;
    drop(node);
    drop(volume);
}

/// What [`fill`] was answered 200 for is there.
async fn all_acknowledged(node: &Node) {
    let held = node.get("/keys?prefix=large-").await.ok().json();
    for key in held["keys"].as_array().unwrap() {
        let read = node.get(&format!("/key/{}", key.as_str().unwrap())).await;
        assert!(read.ok().body.len() > VALUE_BYTES, "{read}");
    }
}

#[tokio::test]
async fn over_the_storage_limit_writes_are_refused_until_it_is_raised() {
    let mut node = Site::new().node("leader", 0).fast().arg("--storage-limit", 2 * 1024 * 1024).start().await;
    node.allow("");
    node.put("small", "1").await.ok();
    fill(&node).await.is_error(507, "storage_full");
    node.get("/key/small").await.ok();
    node.post("/settings", r#"{"storage_limit":67108864}"#).await.ok();
    writes_come_back(&node).await;
}

#[tokio::test]
async fn a_storage_limit_is_in_force_when_it_was_answered() {
    let mut node = Site::new().node("leader", 0).fast().start().await;
    node.allow("");
    for n in 0..20 {
        node.put(&format!("large-{n}"), &large_value()).await.ok();
    }
    for _ in 0..5 {
        node.post("/settings", r#"{"storage_limit":1048576}"#).await.ok();
        node.put("small", "1").await.is_error(507, "storage_full");
        node.post("/settings", r#"{"storage_limit":null}"#).await.ok();
        node.put("small", "1").await.ok();
    }
}

/// With segments of the usual size the deletes are in the active one, which compaction leaves alone while there is room.
#[tokio::test]
async fn deletes_alone_bring_a_full_node_back() {
    let mut node = Site::new().node("leader", 0).fast().arg("--storage-limit", 2 * 1024 * 1024).start().await;
    node.allow("");
    node.put("small", "1").await.ok();
    node.post("/compaction/run?force=true", "")
        .await
        .is(200, r#"{"status":"success","segments_compacted":0,"entries_removed":0}"#);
    fill(&node).await.is_error(507, "storage_full");
    let held = node.get("/keys?prefix=large-").await.ok().json();
    for key in held["keys"].as_array().unwrap() {
        node.delete(&format!("/key/{}", key.as_str().unwrap())).await.ok();
    }
    writes_come_back(&node).await;
    node.kill();
    node.start_again().await;
    node.get("/key/small").await.is(200, r#"{"key":"small","value":1,"version":1}"#);
    assert_eq!(node.get("/keys?prefix=large-").await.ok().json()["keys"], serde_json::json!([]));
}

#[tokio::test]
async fn a_read_only_volume_is_refused_with_a_clear_message_and_taken_once_it_is_writable() {
    let site = Site::new();
    let Some(volume) = SmallVolume::mount(site.path("volume"), VOLUME_MEGABYTES) else {
        eprintln!(
            "SKIPPED: mounting a small volume needs root; the log's own tests have a volume that becomes read-only"
        );
        return;
    };
    let spec = site.node("leader", 0).fast().data_dir(volume.path().join("data"));
    let mut node = spec.clone().start().await;
    node.put("small", "1").await.ok();
    assert!(node.stop().await.status.success());
    volume.remount("ro");
    let exit = spec.refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains("data directory") && exit.log.contains("Read-only file system"), "{}", exit.log);
    volume.remount("rw");
    node.allow("");
    node.start_again().await;
    node.get("/key/small").await.ok();
    node.put("small", "2").await.ok();
    drop(node);
}

#[tokio::test]
async fn deletes_and_a_compaction_make_room_again() {
    // Small segments: the deletes must be in sealed ones, since compaction leaves the active one alone.
    let node = Site::new().node("leader", 0).fast();
    let node = node.arg("--storage-limit", 2 * 1024 * 1024).arg("--max-segment-size", 1000).arg("--history-limit", 0);
    let mut node = node.start().await;
    node.allow("");
    fill(&node).await.is_error(507, "storage_full");
    let held = node.get("/keys").await.ok().json();
    for key in held["keys"].as_array().unwrap() {
        node.delete(&format!("/key/{}", key.as_str().unwrap())).await.ok();
    }
    node.post("/compaction/run?force=true", "").await.ok();
    writes_come_back(&node).await;
}

#[tokio::test]
async fn a_follower_with_a_full_volume_does_not_stop_the_majority() {
    let mut cluster = ClusterSpec::new(3).start().await;
    cluster.allow("");
    cluster.nodes[2].post("/settings", r#"{"storage_limit":1000}"#).await.ok();
    for n in 0..40 {
        cluster.nodes[0].put(&format!("large-{n}"), &large_value()).await.ok();
    }
    cluster.nodes[1].post("/settings", r#"{"storage_limit":1000}"#).await.ok();
    wait_until("too few voters can write", 30, || async { cluster.nodes[0].put("a", "1").await.status == 507 }).await;
    cluster.nodes[0].get("/key/large-0").await.ok();
    cluster.nodes[1].post("/settings", r#"{"storage_limit":1000000000}"#).await.ok();
    cluster.nodes[2].post("/settings", r#"{"storage_limit":1000000000}"#).await.ok();
    writes_come_back(&cluster.nodes[0]).await;
    cluster.settle().await;
}
