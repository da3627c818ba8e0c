//! What stands on disk, and what happens when it is damaged: found, reported, repaired or refused, and
//! never believed.

use std::path::Path;
use std::time::Duration;

use kv_tests::{Cluster, ClusterSpec, Load, Node, NodeSpec, Site, kv_node, wait_until};
use serde_json::Value;

/// Keys of a damaged store; one line each, so that each is right or missing.
const KEYS: u64 = 60;

fn single(site: &Site) -> NodeSpec {
    site.node("leader", 0).fast().arg("--max-segment-size", 600)
}

/// A stopped store of [`KEYS`] keys in about twelve segments.
async fn written() -> Node {
    let mut node = single(&Site::new()).start().await;
    for n in 0..KEYS {
        node.put(&format!("key-{n}"), &n.to_string()).await.ok();
    }
    assert!(node.stop().await.status.success());
    node
}

/// The segment files in order of their numbers.
fn segments(data_dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<(u64, std::path::PathBuf)> = std::fs::read_dir(data_dir)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let number = path.file_name()?.to_str()?.strip_prefix("wal.log.segment.")?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

/// The CRC-32 of a line as the documents define it.
fn crc_of(line: &str) -> (u32, u32) {
    let at = line.rfind(",\"crc\":").unwrap();
    let stored = line[at + 7..line.len() - 1].parse().unwrap();
    (stored, crc32fast::hash(format!("{}}}", &line[..at]).as_bytes()))
}

#[tokio::test]
async fn a_line_is_json_with_its_crc_last() {
    let node = Site::new().node("leader", 0).fast().start().await;
    node.put("key6", "\"myvalue\"").await.ok();
    node.delete("/key/key6").await.ok();
    node.put_body("/key/a?client_id=c&request_id=1", "{\"value\":{\"b\":[1, 2]}}").await.ok();
    let text = std::fs::read_to_string(node.spec.data_dir.join("wal.log.segment.1")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let open = |line: &str| line[..line.rfind(",\"crc\"").unwrap()].to_owned();
    let epoch = node.status().await["epoch"].clone();
    assert_eq!(
        open(lines[0]),
        format!(r#"{{"id":1,"epoch":{epoch},"operation":"SET","key":"key6","value":"myvalue","version":1"#)
    );
    assert_eq!(open(lines[1]), format!(r#"{{"id":2,"epoch":{epoch},"operation":"DELETE","key":"key6","value":null"#));
    assert!(lines[2].contains(r#""key":"a","value":{"b":[1,2]},"version":1,"client_id":"c","request_id":"1","ts":"#));
    for line in lines {
        let (stored, computed) = crc_of(line);
        assert_eq!(stored, computed, "{line}");
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let mut node = single(&Site::new()).start().await;
    let mut reports = Vec::new();
    for _ in 0..4 {
        let load = Load::start(node.site(), &[node.url()], 8, Duration::from_secs(30));
        load.progress(300).await;
        node.kill();
        node.spawn_again();
        reports.push(load.stop().await);
        node.wait_ready().await;
    }
    for report in reports {
        report.nothing_lost().check(&node).await;
    }
}

#[tokio::test]
async fn history_and_requests_survive_a_restart_and_a_compaction() {
    let mut node = single(&Site::new()).start().await;
    for n in 1..=30 {
        node.put_body(&format!("/key/a?client_id=c&request_id={n}"), &format!("{{\"value\":{n}}}")).await.ok();
    }
    let history = node.get("/key/a/history").await.ok().text();
    for compact in [false, true] {
        if compact {
            node.post("/compaction/run?force=true", "").await.ok();
        }
        node.kill();
        node.start_again().await;
        node.get("/key/a/history").await.is(200, &history);
        node.get("/key/a?version=7").await.is(200, r#"{"key":"a","value":7,"version":7}"#);
        let replay = node.put_body("/key/a?client_id=c&request_id=3", "{\"value\":3}").await;
        replay.is(200, r#"{"status":"ok","id":3,"key":"a","version":3}"#);
        assert_eq!(replay.header("idempotent-replay"), Some("true"));
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_kept_aside() {
    let mut node = written().await;
    let last = segments(&node.spec.data_dir).pop().unwrap();
    let mut text = std::fs::read(&last).unwrap();
    text.extend_from_slice(b"{\"id\":61,\"epoch\":1,\"operation\":\"SET\",\"key\":\"torn");
    std::fs::write(&last, &text).unwrap();
    node.allow("torn");
    node.allow("tail");
    node.start_again().await;
    has_all(&node).await;
    node.put("after", "1").await.ok();
    node.get("/key/torn").await.is_error(404, "not_found");
    node.kill();
    node.start_again().await;
    node.get("/key/after").await.ok();
    has_all(&node).await;
}

async fn has_all(node: &Node) {
    for n in 0..KEYS {
        node.get(&format!("/key/key-{n}")).await.is(200, &format!(r#"{{"key":"key-{n}","value":{n},"version":1}}"#));
    }
}

/// Damages a stopped store. `verify` says so; a start refuses or reports it; no answer is ever wrong.
async fn never_believed(what: &str, damage: impl Fn(&Path)) {
    let mut node = written().await;
    node.allow("");
    let clean = kv_node(node.site(), &["verify".as_ref(), node.spec.data_dir.as_os_str()]);
    assert!(clean.success, "verify of an undamaged directory: {}", clean.text);
    damage(&node.spec.data_dir);
    let verified = kv_node(node.site(), &["verify".as_ref(), node.spec.data_dir.as_os_str()]);
    assert!(!verified.success, "verify does not see {what}: {}", verified.text);
    node.spawn_again();
    wait_until(&format!("the node starts or refuses with {what}"), 30, || async {
        node.is_ready().await || node.has_ended()
    })
    .await;
    if node.has_ended() {
        let exit = node.wait_exit().await;
        assert!(!exit.status.success(), "{what}: it ends without an error");
        return;
    }
    let status = node.status().await;
    assert!(!is_clean(&status), "{what} is not reported: {status}");
    for n in 0..KEYS {
        let answer = node.get(&format!("/key/key-{n}")).await;
        if answer.status == 200 {
            answer.is(200, &format!(r#"{{"key":"key-{n}","value":{n},"version":1}}"#));
        }
    }
    node.put("after", "1").await.ok();
    node.get("/key/after").await.ok();
}

/// Whether a `/status` document reports no damage.
fn is_clean(status: &Value) -> bool {
    match &status["corruption"] {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(report) => {
            report.values().all(|v| v.as_u64() == Some(0) || v.is_null() || *v == serde_json::json!([]))
        }
        _ => false,
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_flipped_byte_is_never_believed() {
    never_believed("a flipped byte in the middle", |dir| flip(&segments(dir)[3], 75)).await;
    never_believed("a flipped byte in the first line", |dir| flip(&segments(dir)[0], 2)).await;
    never_believed("a flipped byte in the last segment", |dir| flip(segments(dir).last().unwrap(), 20)).await;
}

#[tokio::test]
async fn a_truncated_or_empty_segment_is_never_believed() {
    let truncate =
        |path: &Path, bytes: u64| std::fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    never_believed("a truncated segment", |dir| truncate(&segments(dir)[4], 100)).await;
    never_believed("a segment cut after a whole line", |dir| {
        let path = segments(dir)[4].clone();
        let first = std::fs::read_to_string(&path).unwrap().find('\n').unwrap() + 1;
        truncate(&path, first as u64);
    })
    .await;
    never_believed("an empty segment", |dir| truncate(&segments(dir)[2], 0)).await;
}

#[tokio::test]
async fn a_missing_or_unreadable_segment_is_never_believed() {
    never_believed("a missing segment", |dir| std::fs::remove_file(&segments(dir)[2]).unwrap()).await;
    never_believed("a directory in a segment's place", |dir| {
        let path = segments(dir)[2].clone();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
    })
    .await;
}

#[tokio::test]
async fn swapped_duplicated_and_foreign_segments_are_never_believed() {
    never_believed("two swapped segments", |dir| {
        let (a, b) = (segments(dir)[1].clone(), segments(dir)[3].clone());
        let (text_a, text_b) = (std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        std::fs::write(&a, text_b).unwrap();
        std::fs::write(&b, text_a).unwrap();
    })
    .await;
    never_believed("a duplicated segment", |dir| {
        std::fs::copy(&segments(dir)[1], &segments(dir)[3]).unwrap();
    })
    .await;
    never_believed("a foreign segment", |dir| {
        let open = "{\"id\":15,\"epoch\":1,\"operation\":\"SET\",\"key\":\"key-14\",\"value\":666,\"version\":1";
        let crc = crc32fast::hash(format!("{open}}}").as_bytes());
        std::fs::write(&segments(dir)[2], format!("{open},\"crc\":{crc}}}\n")).unwrap();
    })
    .await;
}

/// The manifest's file name.
fn manifest(dir: &Path) -> std::path::PathBuf {
    let named = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut manifests: Vec<_> =
        named.filter(|p| p.file_name().unwrap().to_str().unwrap().to_lowercase().starts_with("manifest")).collect();
    manifests.sort();
    manifests.swap_remove(0)
}

#[tokio::test]
async fn a_damaged_manifest_is_never_believed() {
    never_believed("an empty manifest", |dir| std::fs::write(manifest(dir), "").unwrap()).await;
    never_believed("a truncated manifest", |dir| {
        let text = std::fs::read(manifest(dir)).unwrap();
        std::fs::write(manifest(dir), &text[..text.len() / 2]).unwrap();
    })
    .await;
    never_believed("a flipped byte in the manifest", |dir| {
        let at = std::fs::read(manifest(dir)).unwrap().len() / 3;
        flip(&manifest(dir), at);
    })
    .await;
    never_believed("a foreign manifest", |dir| std::fs::write(manifest(dir), "{\"hello\":1}\n").unwrap()).await;
    never_believed("a missing manifest", |dir| std::fs::remove_file(manifest(dir)).unwrap()).await;
}

#[tokio::test]
async fn files_that_the_manifest_does_not_list_are_not_read() {
    let mut node = written().await;
    let open = "{\"id\":61,\"epoch\":9,\"operation\":\"SET\",\"key\":\"orphan\",\"value\":1,\"version\":1";
    let crc = crc32fast::hash(format!("{open}}}").as_bytes());
    std::fs::write(node.spec.data_dir.join("wal.log.segment.999"), format!("{open},\"crc\":{crc}}}\n")).unwrap();
    node.allow("");
    node.start_again().await;
    node.get("/key/orphan").await.is_error(404, "not_found");
    has_all(&node).await;
}

#[tokio::test]
async fn asked_to_refuse_a_node_stops_at_damage() {
    let node = written().await;
    flip(&segments(&node.spec.data_dir)[3], 75);
    let exit = node.spec.clone().arg("--on-corruption", "refuse").refused().await;
    assert!(!exit.status.success());
    assert!(exit.log.contains("wal.log.segment."), "the segment is named: {}", exit.log);
}

#[tokio::test]
async fn verify_names_the_damaged_line() {
    let node = written().await;
    let target = segments(&node.spec.data_dir)[3].clone();
    flip(&target, 75);
    let before = std::fs::read(&target).unwrap();
    let verified = kv_node(node.site(), &["verify".as_ref(), node.spec.data_dir.as_os_str()]);
    assert!(!verified.success);
    assert!(verified.text.contains(target.file_name().unwrap().to_str().unwrap()), "{}", verified.text);
    assert_eq!(before, std::fs::read(&target).unwrap(), "verify only reads");
}

#[tokio::test]
async fn a_follower_s_damaged_line_is_repaired_from_its_leader() {
    let mut cluster = ClusterSpec::new(3).arg("--max-segment-size", 600).start().await;
    cluster.allow("");
    for n in 0..KEYS {
        cluster.nodes[0].put(&format!("key-{n}"), &n.to_string()).await.ok();
    }
    cluster.settle().await;
    assert!(cluster.nodes[1].stop().await.status.success());
    flip(&segments(&cluster.nodes[1].spec.data_dir)[3], 75);
    cluster.nodes[1].start_again().await;
    cluster.nodes[0].put("after", "1").await.ok();
    cluster.settle().await;
    has_all(&cluster.nodes[1]).await;
    repaired_on_disk(&mut cluster).await;
}

/// Stopped, the damaged member's directory is whole again.
async fn repaired_on_disk(cluster: &mut Cluster) {
    assert!(cluster.nodes[1].stop().await.status.success());
    let data_dir = cluster.nodes[1].spec.data_dir.clone();
    let verified = kv_node(&cluster.site, &["verify".as_ref(), data_dir.as_os_str()]);
    assert!(verified.success, "{}", verified.text);
}
