//! The page "Log, compaction".

use std::path::Path;
use std::time::Duration;

use kv_tests::{Load, Node, Site};
use serde_json::{Value, json};

/// Small enough that a handful of lines fill a segment.
const SEGMENT_BYTES: u64 = 300;

async fn small_segments() -> Node {
    Site::new().node("leader", 0).fast().arg("--max-segment-size", SEGMENT_BYTES).start().await
}

/// The lines of every file of the log whose name begins with this, by file number.
pub(crate) fn lines(data_dir: &Path, prefix: &str) -> Vec<String> {
    let mut files: Vec<(u64, String)> = std::fs::read_dir(data_dir)
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let number = name.strip_prefix(prefix)?.parse().ok()?;
            Some((number, std::fs::read_to_string(data_dir.join(&name)).unwrap()))
        })
        .collect();
    files.sort();
    files.iter().flat_map(|(_, text)| text.lines().map(str::to_owned)).collect()
}

#[tokio::test]
async fn segments_are_listed_with_path_and_size() {
    let node = small_segments().await;
    let first = node.get("/segments").await.ok().json();
    assert_eq!(first["max_segment_size"], SEGMENT_BYTES);
    for n in 0..20 {
        node.put("a", &n.to_string()).await.ok();
    }
    let document = node.get("/segments").await.ok().json();
    let segments = document["segments"].as_array().unwrap();
    assert_eq!(document["total_segments"], segments.len());
    assert!(segments.len() > 3, "{document}");
    let names: Vec<&String> = document.as_object().unwrap().keys().collect();
    assert_eq!(names, ["max_segment_size", "segments", "total_segments"]);
    for (index, segment) in segments.iter().enumerate() {
        let path = segment["path"].as_str().unwrap();
        assert!(path.starts_with(node.spec.data_dir.to_str().unwrap()) && path.contains("/wal.log.segment."), "{path}");
        assert_eq!(segment["size"], std::fs::metadata(path).unwrap().len(), "{segment}");
        assert_eq!(segment["is_active"], index + 1 == segments.len(), "{document}");
        assert_eq!(segment.as_object().unwrap().len(), 3, "{segment}");
    }
    let text = node.get("/segments").await.text();
    assert!(text.starts_with(r#"{"segments":[{"path":""#), "{text}");
}

#[tokio::test]
async fn the_example_compacts_to_the_lines_of_ids_5_and_6() {
    let node = small_segments().await;
    node.put("user1", "\"initial-value\"").await.ok();
    node.put("user2", "\"hello\"").await.ok();
    node.put("user1", "\"updated-value\"").await.ok();
    node.delete("/key/user2").await.ok();
    node.put("user3", "\"new-entry\"").await.ok();
    node.put("user1", "\"final-value\"").await.is(200, r#"{"status":"ok","id":6,"key":"user1","version":3}"#);
    let written = lines(&node.spec.data_dir, "wal.log.segment.");
    assert_eq!(written.len(), 6);
    fill_the_segment(&node, &written[5]).await;
    let answer = node.post("/compaction/run?force=true", "").await;
    let document = answer.ok().json();
    assert_eq!(document["status"], "success", "{answer}");
    assert!(document["segments_compacted"].as_u64() >= Some(2), "{answer}");
    let kept = lines(&node.spec.data_dir, "wal.log.segment.");
    assert_eq!(kept[..2], written[4..], "the lines of ids 5 and 6, byte for byte");
    assert!(!kept.iter().any(|line| written[..4].contains(line)), "{kept:?}");
    node.get("/key/user1/history").await.is(
        200,
        concat!(
            r#"{"key":"user1","versions":[1,2,3],"history":[{"version":1,"value":"initial-value"},"#,
            r#"{"version":2,"value":"updated-value"},{"version":3,"value":"final-value"}]}"#
        ),
    );
    node.get("/key/user2").await.is_error(404, "not_found");
    node.get("/key/user3").await.is(200, r#"{"key":"user3","value":"new-entry","version":1}"#);
}

/// Writes until the segment that holds this line is sealed.
async fn fill_the_segment(node: &Node, line: &str) {
    for n in 0..10 {
        let segments = node.get("/segments").await.json();
        let active = segments["segments"].as_array().unwrap().iter().find(|s| s["is_active"] == true).unwrap().clone();
        let text = std::fs::read_to_string(active["path"].as_str().unwrap()).unwrap();
        if !text.contains(line) {
            return;
        }
        node.put("filler", &n.to_string()).await.ok();
    }
    panic!("the segment never rolls");
}

#[tokio::test]
async fn compaction_answers_as_shown_and_reports_itself() {
    let node = small_segments().await;
    let before = node.get("/compaction/status").await;
    before.is_json(
        200,
        &json!({"enabled":true,"compaction_interval_seconds":3600,"min_compaction_interval_seconds":600,
            "last_compaction":null,"compaction_running":false,"compaction_history":[]}),
    );
    node.post("/compaction/run?force=true", "")
        .await
        .is(200, r#"{"status":"success","segments_compacted":0,"entries_removed":0}"#);
    for n in 0..20 {
        node.put("a", &n.to_string()).await.ok();
    }
    let run = node.post("/compaction/run?force=true", "").await.ok().json();
    assert_eq!(run["status"], "success");
    assert!(run["entries_removed"].as_u64() > Some(0), "{run}");
    node.post("/compaction/run", "")
        .await
        .is(200, r#"{"status":"skipped","segments_compacted":0,"entries_removed":0}"#);
    let after = node.get("/compaction/status").await.json();
    let last = after["compaction_history"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(after["last_compaction"], last["timestamp"], "{after}");
    assert!(is_timestamp(&after["last_compaction"]), "{after}");
    assert_eq!(last["segments_compacted"], run["segments_compacted"]);
    assert_eq!(last["entries_removed"], run["entries_removed"]);
    assert!(last["duration_seconds"].is_number() && last.as_object().unwrap().len() == 4, "{last}");
}

/// `2023-08-25T14:30:45.123456`
fn is_timestamp(value: &Value) -> bool {
    let shape: String =
        value.as_str().unwrap_or_default().chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    shape == "9999-99-99T99:99:99.999999"
}

#[tokio::test]
async fn compaction_is_configured_at_run_time() {
    let node = small_segments().await;
    node.post("/compaction/configure?enabled=true&interval=7200", "")
        .await
        .is(200, r#"{"status":"success","changes":{"enabled":true,"interval":7200}}"#);
    node.post("/compaction/configure?enabled=false", "")
        .await
        .is(200, r#"{"status":"success","changes":{"enabled":false}}"#);
    node.post("/compaction/configure?min_interval=30", "")
        .await
        .is(200, r#"{"status":"success","changes":{"min_interval":30}}"#);
    node.post("/compaction/configure?interval=59", "").await.is_error(422, "invalid_request").names("interval");
    let status = node.get("/compaction/status").await.json();
    assert_eq!((&status["enabled"], &status["compaction_interval_seconds"]), (&json!(false), &json!(7200)));
    assert_eq!(status["min_compaction_interval_seconds"], 30);
    let shown = node.status().await["compaction"].clone();
    assert_eq!(shown, json!({"enabled": false, "interval_seconds": 7200, "min_interval_seconds": 30}));
}

#[tokio::test]
async fn compaction_runs_beside_writers_and_changes_no_answer() {
    let node = small_segments().await;
    let load = Load::start(node.site(), &[node.url()], 4, Duration::from_secs(20));
    for _ in 0..5 {
        load.progress(200).await;
        let run = node.post("/compaction/run?force=true", "").await.ok().json();
        assert_eq!(run["status"], "success", "{run}");
    }
    let report = load.stop().await;
    report.nothing_lost().check(&node).await;
}
