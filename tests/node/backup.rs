//! Moving data: a snapshot and its restoration, and the import of the original's directories.

use std::path::Path;

use kv_tests::{Cluster, Node, Site, kv_node};
use serde_json::Value;

/// What the tests may read of the repository.
fn fixtures() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

#[tokio::test]
async fn a_snapshot_restores_values_history_and_requests() {
    let cluster = Cluster::manual().await;
    let source = &cluster.nodes[1];
    for n in 0..30 {
        source.put(&format!("key-{}", n % 10), &format!("{{\"n\":{n}}}")).await.ok();
    }
    source.delete("/key/key-3").await.ok();
    source.put_body("/key/once?client_id=c&request_id=1", "{\"value\":1}").await.ok();
    let snapshot = source.get("/snapshot").await;
    assert!(snapshot.ok().kv_id() >= 32);
    let file = cluster.site.path("backup.kv");
    std::fs::write(&file, &snapshot.body).unwrap();

    let data_dir = cluster.site.path("restored");
    let to = ["--data-dir".as_ref(), data_dir.as_os_str(), "--id".as_ref(), "restored".as_ref()];
    let restored = kv_node(&cluster.site, &[&["restore".as_ref(), file.as_os_str()], &to[..]].concat());
    assert!(restored.success, "{}", restored.text);
    let copy = cluster.site.node("restored", 5).fast().start().await;
    are_equal(source, &copy).await;
    assert_ne!(copy.status().await["cluster_id"], source.status().await["cluster_id"]);
    let replay = copy.put_body("/key/once?client_id=c&request_id=1", "{\"value\":1}").await;
    assert_eq!(replay.header("idempotent-replay"), Some("true"), "{replay}");
    copy.put("new", "1").await.ok();
}

async fn are_equal(one: &Node, other: &Node) {
    let keys = one.get("/keys").await.ok().text();
    other.get("/keys").await.is(200, &keys);
    let document: Value = serde_json::from_str(&keys).unwrap();
    for key in document["keys"].as_array().unwrap() {
        let path = format!("/key/{}/history", key.as_str().unwrap());
        let expected = one.get(&path).await.ok().text();
        other.get(&path).await.is(200, &expected);
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_not_restored() {
    let node = Site::new().node("leader", 0).fast().start().await;
    for n in 0..20 {
        node.put(&format!("key-{n}"), "1").await.ok();
    }
    let good = node.get("/snapshot").await.ok().body.clone();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let damaged =
        [flipped, good[..good.len() - 10].to_vec(), good[..good.len() / 2].to_vec(), Vec::new(), b"{}\n".to_vec()];
    for (index, bytes) in damaged.iter().enumerate() {
        let file = node.site().path("damaged.kv");
        std::fs::write(&file, bytes).unwrap();
        let data_dir = node.site().path(&format!("restored-{index}"));
        let arguments = ["restore".as_ref(), file.as_os_str(), "--data-dir".as_ref(), data_dir.as_os_str()];
        let restored = kv_node(node.site(), &arguments);
        assert!(!restored.success, "damage {index} is restored: {}", restored.text);
    }
}

#[tokio::test]
async fn nothing_is_restored_over_data() {
    let mut node = Site::new().node("leader", 0).fast().start().await;
    node.put("a", "1").await.ok();
    let file = node.site().path("backup.kv");
    std::fs::write(&file, &node.get("/snapshot").await.ok().body).unwrap();
    node.stop().await;
    let data_dir = node.spec.data_dir.clone();
    let arguments = ["restore".as_ref(), file.as_os_str(), "--data-dir".as_ref(), data_dir.as_os_str()];
    let restored = kv_node(node.site(), &arguments);
    assert!(!restored.success, "{}", restored.text);
    node.start_again().await;
    node.get("/key/a").await.ok();
}

#[tokio::test]
async fn the_original_s_data_is_imported_exactly() {
    let site = Site::new();
    let data_dir = site.path("leader");
    let source = fixtures().join("python-wal");
    let arguments = ["import".as_ref(), source.as_os_str(), "--data-dir".as_ref(), data_dir.as_os_str()];
    let imported = kv_node(&site, &arguments);
    assert!(imported.success, "{}", imported.text);
    let node = site.node("leader", 0).fast().start().await;
    let expected: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("python-wal.expected.json")).unwrap()).unwrap();
    let expected = expected["keys"].as_object().unwrap();
    let listed = node.get("/keys?limit=10000").await.ok().json();
    let names: Vec<&String> = expected.keys().collect();
    assert_eq!(listed["keys"], serde_json::json!(names));
    for (key, wanted) in expected {
        let encoded: String = key.bytes().map(|b| format!("%{b:02X}")).collect();
        let current = node.get(&format!("/key/{encoded}")).await.ok().json();
        assert_eq!((&current["value"], &current["version"]), (&wanted["value"], &wanted["version"]), "{key}");
        let history = node.get(&format!("/key/{encoded}/history")).await.ok().json();
        let earlier = wanted["history"].as_object().unwrap();
        assert_eq!(history["history"].as_array().unwrap().len(), earlier.len() + 1, "{key}: {history}");
        for version in history["history"].as_array().unwrap() {
            let held = earlier.get(&version["version"].to_string()).unwrap_or(&wanted["value"]);
            assert_eq!(&version["value"], held, "{key}: {version}");
        }
    }
}

#[tokio::test]
async fn a_damaged_line_of_the_original_stops_the_import() {
    let site = Site::new();
    let source = site.path("python-wal");
    std::fs::create_dir(&source).unwrap();
    for entry in std::fs::read_dir(fixtures().join("python-wal")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
    }
    let segment = source.join("wal.log.segment.2");
    let text = std::fs::read_to_string(&segment).unwrap();
    let third: usize = text.split_inclusive('\n').take(2).map(str::len).sum();
    let damaged = format!("{}{}", &text[..third], text[third..].replacen("\"operation\"", "\"operatiom\"", 1));
    std::fs::write(&segment, damaged).unwrap();
    let import = |target: &str, skip: bool| {
        let data_dir = site.path(target);
        let mut arguments = vec!["import".as_ref(), source.as_os_str(), "--data-dir".as_ref(), data_dir.as_os_str()];
        if skip {
            arguments.push("--skip-corrupt".as_ref());
        }
        kv_node(&site, &arguments)
    };
    let stopped = import("stopped", false);
    assert!(!stopped.success, "{}", stopped.text);
    assert!(stopped.text.contains("wal.log.segment.2") && stopped.text.contains('3'), "{}", stopped.text);
    let skipped = import("skipped", true);
    assert!(skipped.success, "{}", skipped.text);
}
