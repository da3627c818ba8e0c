//! A byte flips, a file goes, a volume is emptied: the group puts it right by itself, all nodes are equal
//! again, and nobody was ever given a wrong answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_tests::{Cluster, ClusterSpec, Load, Node, Site, flip_byte, kv_node, sealed_files, wait_until};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Longer than any repair, hand-over and election.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_SECONDS: u64 = 60;
const KEYS: u64 = 8;
const KINDS: [&str; 4] = ["log", "live", "history", "sessions"];

/// A group whose sealed files are gone through several times a second, unless reads are to find the damage.
fn spec(scrub: bool) -> ClusterSpec {
    let spec = ClusterSpec::new(3).automatic().arg("--max-segment-size", 600).arg("--compaction-enabled", "false");
    if scrub { spec.arg("--scrub-interval", "0.2") } else { spec }
}

/// Each key has several versions; every node has files of all kinds, and sealed segments above them.
async fn written(spec: ClusterSpec) -> Cluster {
    let mut cluster = spec.start().await;
    cluster.allow("");
    write(&cluster, 0..40).await;
    cluster.settle().await;
    for node in &cluster.nodes {
        let compacted = node.post("/compaction/run?force=true", "").await.ok().json();
        assert_eq!(compacted["status"], "success", "{compacted}");
    }
    write(&cluster, 40..80).await;
    cluster.settle().await;
    for node in &cluster.nodes {
        for kind in KINDS {
            assert!(!sealed(node, kind).is_empty(), "{} has files of kind {kind}", node.name());
        }
    }
    cluster
}

async fn write(cluster: &Cluster, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let path = format!("/key/key-{}?client_id=c&request_id={n}", n % KEYS);
        cluster.nodes[0].put_body(&path, &format!("{{\"value\":{n}}}")).await.ok();
    }
}

fn manifest(node: &Node) -> Value {
    let text = std::fs::read_to_string(node.spec.data_dir.join("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Names of the sealed files of a kind, as the manifest lists them.
fn sealed(node: &Node, kind: &str) -> Vec<String> {
    let files = sealed_files(&node.spec.data_dir).into_iter().filter(|(found, _)| found == kind);
    files.map(|(_, name)| name).collect()
}

/// Changes one byte in place, as a disk does.
fn flip(dir: &Path, name: &str, at: u64) {
    flip_byte(&dir.join(name), at).unwrap();
}

/// Some places in a file, different ones for each `n`.
fn place(n: u64) -> u64 {
    n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) >> 33
}

async fn corruption(node: &Node) -> Value {
    node.try_status().await.map_or(Value::Null, |status| status["corruption"].clone())
}

/// Waits until the node has found more than `before` damaged places and put all of them right.
async fn repaired(node: &Node, before: u64) -> u64 {
    wait_until(&format!("{} finds and repairs the damage", node.name()), PATIENCE_SECONDS, || async {
        let report = corruption(node).await;
        report["damaged_places"].as_u64() > Some(before) && report["unrepaired"] == json!([])
    })
    .await;
    corruption(node).await["damaged_places"].as_u64().unwrap()
}

fn whole_on_disk(node: &Node) {
    let verified = kv_node(node.site(), &["verify".as_ref(), node.spec.data_dir.as_os_str()]);
    assert!(verified.success, "{}: {}", node.name(), verified.text);
}

/// What each node answers about every key, all versions included.
async fn histories(node: &Node) -> BTreeMap<String, String> {
    let mut histories = BTreeMap::new();
    for key in 0..KEYS {
        let path = format!("/key/key-{key}/history");
        histories.insert(path.clone(), node.get(&path).await.ok().text());
    }
    histories
}

fn expected(writes: u64) -> BTreeMap<String, String> {
    let mut histories = BTreeMap::new();
    for key in 0..KEYS {
        let values: Vec<u64> = (0..writes).filter(|n| n % KEYS == key).collect();
        let versions: Vec<_> = (1..=values.len()).collect();
        let history: Vec<_> = values
            .iter()
            .zip(1..)
            .map(|(value, version)| format!("{{\"version\":{version},\"value\":{value}}}"))
            .collect();
        let text = format!("{{\"key\":\"key-{key}\",\"versions\":{versions:?},\"history\":[{}]}}", history.join(","));
        histories.insert(format!("/key/key-{key}/history"), text.replace(", ", ","));
    }
    histories
}

async fn all_equal(cluster: &Cluster) {
    cluster.settle().await;
    for node in &cluster.nodes {
        assert_eq!(histories(node).await, expected(80), "{}", node.name());
    }
}

#[tokio::test]
async fn a_flipped_byte_of_any_sealed_file_of_a_follower_is_repaired() {
    let cluster = written(spec(true)).await;
    let follower = &cluster.nodes[(cluster.leader().await + 1) % 3];
    let mut found = 0;
    for (round, kind) in KINDS.into_iter().cycle().take(12).enumerate() {
        let files = sealed(follower, kind);
        let name = &files[round % files.len()];
        flip(&follower.spec.data_dir, name, place(round as u64));
        found = repaired(follower, found).await;
        let kept = std::fs::read_dir(follower.spec.data_dir.join("quarantine")).unwrap();
        let mut kept = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(kept.any(|file| file.starts_with(&format!("{name}.offset."))), "{name} is in quarantine/");
    }
    all_equal(&cluster).await;
    whole_on_disk(follower);
    assert!(follower.get("/metrics").await.ok().text().contains("kv_repaired_files_total"));
    let told = follower.log().lines().filter(|line| line.contains("WARN") || line.contains("\"WARN\"")).count();
    assert!(told as u64 <= found, "each damage is told once: {told} of {found}");
}

#[tokio::test]
async fn a_flipped_byte_on_the_leader_is_repaired_after_it_has_handed_over() {
    let mut cluster = written(spec(true)).await;
    let load = Load::start(&cluster.site, &cluster.urls(), 4, PATIENCE);
    let mut found = [0; 3];
    for (round, kind) in KINDS.into_iter().cycle().take(8).enumerate() {
        load.progress(20).await;
        let leader = cluster.leader().await;
        let node = &cluster.nodes[leader];
        let name = sealed(node, kind)[0].clone();
        flip(&node.spec.data_dir, &name, place(round as u64));
        found[leader] = repaired(node, found[leader]).await;
        // It knows its deduplication records itself.
        assert_eq!(cluster.leader().await == leader, kind == "sessions", "round {round}, {kind}: it hands over");
    }
    let report = load.stop().await;
    report.nothing_lost();
    all_equal(&cluster).await;
    for node in &cluster.nodes {
        report.check(node).await;
        whole_on_disk(node);
    }
    for node in &mut cluster.nodes {
        assert!(node.stop().await.status.success());
        whole_on_disk(node);
    }
}

#[tokio::test]
async fn files_removed_from_a_running_node_come_back() {
    let cluster = written(spec(true)).await;
    let leader = cluster.leader().await;
    for node in [leader, (leader + 1) % 3] {
        let node = &cluster.nodes[node];
        let names: Vec<String> = KINDS.iter().flat_map(|kind| sealed(node, kind)).collect();
        for name in &names {
            std::fs::remove_file(node.spec.data_dir.join(name)).unwrap();
        }
        wait_until("all files are back", PATIENCE_SECONDS, || async {
            names.iter().all(|name| node.spec.data_dir.join(name).exists())
                && corruption(node).await["unrepaired"] == json!([])
        })
        .await;
        whole_on_disk(node);
    }
    all_equal(&cluster).await;
}

/// Reads histories without pause until it is stopped: each answer is right or says that there is none now.
fn watch(cluster: &Cluster, stop: &Arc<AtomicBool>) -> JoinSet<u64> {
    let mut readers = JoinSet::new();
    for url in cluster.urls() {
        let (client, stop, histories) = (cluster.site.client().clone(), Arc::clone(stop), expected(80));
        readers.spawn(async move {
            let mut right = 0;
            while !stop.load(Ordering::Relaxed) {
                for (path, whole) in &histories {
                    let Ok(answer) = client.get(format!("{url}{path}")).send().await else { continue };
                    let status = answer.status();
                    let Ok(text) = answer.text().await else { continue };
                    assert!(status == 200 || status == 503, "{url}{path}: {status} {text}");
                    if status == 200 {
                        assert_eq!(text, *whole, "{url}{path}");
                        right += 1;
                    }
                }
            }
            right
        });
    }
    readers
}

#[tokio::test]
async fn damage_everywhere_under_load_leads_to_no_wrong_answer() {
    let cluster = written(spec(true)).await;
    let load = Load::start(&cluster.site, &cluster.urls(), 4, PATIENCE);
    let stop = Arc::new(AtomicBool::new(false));
    let readers = watch(&cluster, &stop);
    let mut found = [0; 3];
    for round in 0..12_u64 {
        load.progress(10).await;
        // Two members at once, and the third stays whole: a majority of the volumes survives.
        for victim in [round % 3, (round + 1) % 3] {
            let node = &cluster.nodes[victim as usize];
            let files = sealed(node, KINDS[(round + victim) as usize % KINDS.len()]);
            let Some(name) = files.get(place(round) as usize % files.len().max(1)) else { continue };
            match place(round + victim) % 4 {
                0 => std::fs::remove_file(node.spec.data_dir.join(name)).unwrap(),
                _ => flip(&node.spec.data_dir, name, place(round * 3 + victim)),
            }
        }
        for victim in [round % 3, (round + 1) % 3] {
            found[victim as usize] = repaired(&cluster.nodes[victim as usize], found[victim as usize]).await;
        }
    }
    let report = load.stop().await;
    stop.store(true, Ordering::Relaxed);
    assert!(readers.join_all().await.into_iter().all(|right| right > 0));
    report.nothing_lost();
    all_equal(&cluster).await;
    for node in &cluster.nodes {
        report.check(node).await;
        whole_on_disk(node);
    }
}

#[tokio::test]
async fn what_no_line_can_repair_a_snapshot_replaces() {
    let cluster = written(spec(true)).await;
    let leader = cluster.leader().await;
    // The leader forgets the lines of the follower's segments.
    write(&cluster, 80..96).await;
    cluster.settle().await;
    cluster.nodes[leader].post("/compaction/run?force=true", "").await.ok();
    let follower = &cluster.nodes[(leader + 1) % 3];
    let live = sealed(follower, "live")[0].clone();
    let file = std::fs::File::options().write(true).open(follower.spec.data_dir.join(&live)).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(0).unwrap();
    file.set_len(len).unwrap();
    repaired(follower, 0).await;
    cluster.settle().await;
    for node in &cluster.nodes {
        assert_eq!(histories(node).await, expected(96), "{}", node.name());
    }
    wait_until("it is a full member again", PATIENCE_SECONDS, || async {
        follower.try_status().await.is_some_and(|status| status["quarantined"].is_null())
    })
    .await;
    whole_on_disk(follower);
}

#[tokio::test]
async fn a_read_that_meets_damage_is_answered_right() {
    let cluster = written(spec(false)).await;
    let leader = cluster.leader().await;
    for node in [(leader + 1) % 3, leader] {
        let node = &cluster.nodes[node];
        for kind in ["log", "history"] {
            for (n, name) in sealed(node, kind).into_iter().enumerate() {
                flip(&node.spec.data_dir, &name, place(n as u64));
            }
        }
        assert_eq!(histories(node).await, expected(80), "{}", node.name());
        assert!(corruption(node).await["damaged_places"].as_u64() > Some(0));
    }
    all_equal(&cluster).await;
}

#[tokio::test]
async fn without_anybody_to_ask_damage_is_told_and_never_served() {
    let mut cluster = written(spec(true)).await;
    let leader = cluster.leader().await;
    for other in [(leader + 1) % 3, (leader + 2) % 3] {
        cluster.nodes[other].kill();
    }
    let follower = (leader + 1) % 3;
    cluster.nodes[leader].kill();
    cluster.nodes[follower].spawn_again();
    let node = &cluster.nodes[follower];
    wait_until("it answers alone", PATIENCE_SECONDS, || async {
        node.try_get("/key/key-0").await.is_some_and(|answer| answer.status == 200)
    })
    .await;
    for name in sealed(node, "history") {
        flip(&node.spec.data_dir, &name, 40);
    }
    let mut refused = 0;
    for (path, whole) in expected(80) {
        let answer = node.get(&path).await;
        match answer.status {
            200 => assert_eq!(answer.text(), whole),
            _ => refused += usize::from(answer.is_error(503, "not_ready").status == 503),
        }
    }
    assert!(refused > 0, "a damaged version is not served");
    assert_ne!(corruption(node).await["unrepaired"], json!([]));
    for other in [leader, (leader + 2) % 3] {
        cluster.nodes[other].spawn_again();
    }
    repaired(&cluster.nodes[follower], 0).await;
    all_equal(&cluster).await;
}

#[tokio::test]
async fn a_stopped_node_s_damage_of_any_kind_is_repaired_when_it_starts() {
    let mut cluster = written(spec(true)).await;
    for (round, kind) in KINDS.into_iter().enumerate() {
        let leader = cluster.leader().await;
        for victim in [leader, (cluster.leader().await + 1) % 3] {
            cluster.nodes[victim].kill();
            let files = sealed(&cluster.nodes[victim], kind);
            let Some(name) = files.first() else { continue }; // it took a snapshot that has none of the kind
            let dir = cluster.nodes[victim].spec.data_dir.clone();
            if victim == leader {
                flip(&dir, name, place(round as u64));
            } else {
                std::fs::remove_file(dir.join(name)).unwrap();
            }
            cluster.nodes[victim].start_again().await;
            assert!(corruption(&cluster.nodes[victim]).await["damaged_places"].as_u64() > Some(0), "{kind} {name}");
            all_equal(&cluster).await;
        }
    }
    for node in &mut cluster.nodes {
        assert!(node.stop().await.status.success());
        whole_on_disk(node);
    }
}

#[tokio::test]
async fn a_group_that_was_stopped_as_a_whole_repairs_a_damaged_member_when_it_starts() {
    let mut cluster = written(spec(true)).await;
    for (round, kind) in KINDS.into_iter().enumerate() {
        for node in &mut cluster.nodes {
            node.kill();
        }
        let victim = round % 3;
        if let Some(name) = sealed(&cluster.nodes[victim], kind).first() {
            flip(&cluster.nodes[victim].spec.data_dir, name, place(round as u64));
        }
        for node in &mut cluster.nodes {
            node.spawn_again();
        }
        for node in &mut cluster.nodes {
            node.wait_ready().await;
        }
        // What the next start will know: two members in quarantine would wait for each other.
        wait_until("the refill is remembered", PATIENCE_SECONDS, || async {
            manifest(&cluster.nodes[victim])["hard"]["quarantine"].is_null()
        })
        .await;
        all_equal(&cluster).await;
    }
}

#[tokio::test]
async fn two_members_damaged_at_the_same_start_do_not_wait_for_each_other() {
    let mut cluster = written(spec(true)).await;
    for kind in ["log", "live", "history"] {
        for node in &mut cluster.nodes {
            node.kill();
        }
        for victim in [1, 2] {
            let node = &cluster.nodes[victim];
            let files = sealed(node, kind);
            flip(&node.spec.data_dir, &files[0], place(victim as u64));
        }
        for node in &mut cluster.nodes {
            node.spawn_again();
        }
        for node in &mut cluster.nodes {
            node.wait_ready().await;
        }
        for node in &cluster.nodes[1..] {
            assert!(corruption(node).await["damaged_places"].as_u64() > Some(0), "{kind} of {}", node.name());
            assert!(manifest(node)["hard"]["quarantine"].is_null(), "{kind} of {}", node.name());
        }
        all_equal(&cluster).await;
    }
    for node in &mut cluster.nodes {
        assert!(node.stop().await.status.success());
        whole_on_disk(node);
    }
}

#[tokio::test]
async fn an_emptied_volume_is_filled_again_under_load() {
    let mut cluster = written(spec(true)).await;
    let load = Load::start(&cluster.site, &cluster.urls(), 4, PATIENCE);
    for round in 0..3 {
        load.progress(20).await;
        let victim = (cluster.leader().await + round) % 3;
        cluster.nodes[victim].kill();
        std::fs::remove_dir_all(&cluster.nodes[victim].spec.data_dir).unwrap();
        cluster.nodes[victim].start_again().await;
        let name = cluster.nodes[victim].name().to_owned();
        let new_id = cluster.nodes[victim].status().await["member_id"].clone();
        wait_until("the new member votes", PATIENCE_SECONDS, || async {
            let leader = cluster.leader().await;
            let Some(status) = cluster.nodes[leader].try_status().await else { return false };
            let members = status["members"].as_array().cloned().unwrap_or_default();
            members.iter().any(|m| m["name"] == name.as_str() && m["member_id"] == new_id && m["voter"] == true)
        })
        .await;
    }
    let report = load.stop().await;
    report.nothing_lost();
    all_equal(&cluster).await;
    for node in &cluster.nodes {
        report.check(node).await;
    }
}

#[tokio::test]
async fn a_directory_emptied_under_a_running_node_is_filled_by_it() {
    let mut cluster = written(spec(true)).await;
    let leader = cluster.leader().await;
    for victim in [(leader + 1) % 3, leader] {
        emptied_while_it_runs(&mut cluster, victim).await;
        all_equal(&cluster).await;
    }
}

async fn emptied_while_it_runs(cluster: &mut Cluster, victim: usize) {
    let dir = cluster.nodes[victim].spec.data_dir.clone();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    wait_until("all that the manifest lists is back", PATIENCE_SECONDS, || async {
        dir.join("manifest.json").exists()
            && KINDS.iter().all(|kind| sealed(&cluster.nodes[victim], kind).iter().all(|name| dir.join(name).exists()))
            && corruption(&cluster.nodes[victim]).await["unrepaired"] == json!([])
    })
    .await;
    whole_on_disk(&cluster.nodes[victim]);
    let member_id = cluster.nodes[victim].status().await["member_id"].clone();
    cluster.nodes[victim].kill();
    cluster.nodes[victim].start_again().await;
    assert_eq!(cluster.nodes[victim].status().await["member_id"], member_id);
    assert_eq!(corruption(&cluster.nodes[victim]).await["damaged_places"], 0);
}

#[tokio::test]
async fn the_same_line_bad_on_two_nodes_is_taken_from_the_third() {
    let cluster = written(spec(false)).await;
    let leader = cluster.leader().await;
    let name = sealed(&cluster.nodes[leader], "log")[0].clone();
    let victims = [leader, (leader + 1) % 3];
    for victim in victims {
        flip(&cluster.nodes[victim].spec.data_dir, &name, 30);
    }
    for victim in victims {
        assert_eq!(histories(&cluster.nodes[(victim + 2) % 3]).await, expected(80));
        wait_until("a read has it repaired", PATIENCE_SECONDS, || async {
            for path in expected(80).keys() {
                cluster.nodes[victim].get(path).await;
            }
            let report = corruption(&cluster.nodes[victim]).await;
            report["damaged_places"].as_u64() > Some(0) && report["unrepaired"] == json!([])
        })
        .await;
        whole_on_disk(&cluster.nodes[victim]);
    }
    all_equal(&cluster).await;
}

/// A group of one with four versions of each of its keys in sealed segments.
async fn alone(site: &Site) -> Node {
    let spec = site.node("leader", 0).fast().arg("--max-segment-size", 600).arg("--scrub-interval", "0.2");
    let mut node = spec.start().await;
    node.allow("");
    for n in 0..4 * KEYS {
        node.put(&format!("key-{}", n % KEYS), &n.to_string()).await.ok();
    }
    node
}

#[tokio::test]
async fn a_running_group_of_one_takes_its_lines_from_a_learner() {
    let site = Site::new();
    let leader = alone(&site).await;
    let learner = site.node("follower-1", 1).fast().arg("--leader-url", leader.url()).start().await;
    learner.wait_applied(leader.applied_id().await).await;
    let mut found = 0;
    for (n, name) in sealed(&leader, "log").iter().take(3).enumerate() {
        flip(&leader.spec.data_dir, name, place(n as u64));
        found = repaired(&leader, found).await;
    }
    whole_on_disk(&leader);
    assert_eq!(histories(&leader).await, histories(&learner).await);
}

#[tokio::test]
async fn a_group_of_one_without_a_learner_serves_what_it_has_and_tells_what_it_lacks() {
    let site = Site::new();
    let mut node = alone(&site).await;
    let name = sealed(&node, "log")[0].clone();
    flip(&node.spec.data_dir, &name, 30);
    wait_until("it is told", PATIENCE_SECONDS, || async { corruption(&node).await["unrepaired"] == json!([name]) })
        .await;
    for key in 0..KEYS {
        let whole = format!(r#"{{"key":"key-{key}","value":{},"version":4}}"#, 3 * KEYS + key);
        node.get(&format!("/key/key-{key}")).await.is(200, &whole);
    }
    node.get("/key/key-0?version=1").await.is_error(503, "not_ready");
    assert!(node.stop().await.status.success());
    node.start_again().await;
    assert_ne!(corruption(&node).await["missing"], json!([]), "the next start declares the line lost");
    node.put("key-0", "1").await.ok();
}
