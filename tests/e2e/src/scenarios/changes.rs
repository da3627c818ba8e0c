//! What a user changes in a spec while the cluster serves: image, size, settings.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DeleteParams;
use kv_operator::crd::KvClusterStatus;
use kv_tests::pass;
use serde_json::{Value, json};

use crate::load::IMAGE as NO_NODE;
use crate::operator::REPLICAS;
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store, because, condition, is};
use crate::suite::{Suite, namespace};
use crate::trial::{Trial, timed};
use crate::waiting::eventually;

pub(crate) async fn rolled(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let before = trial.store.lives().await;
    trial.open().await;
    let image = suite.next_node_image();
    trial.store.patch(json!({ "image": image })).await;
    trial.store.wait("all pods run the new image", 180, |_, status| status.updated_replicas == 3).await;
    trial.close(60, Target::Planned).await;
    let after = trial.store.lives().await;
    assert!(before.iter().all(|(pod, life)| after.get(pod) != Some(life)), "all were restarted: {before:?} {after:?}");
    for pod in trial.store.pods().await {
        let runs = pod.spec.and_then(|spec| spec.containers.first()?.image.clone());
        assert_eq!(runs, Some(image.clone()));
    }
    let told = ["get", "events", "--field-selector=reason=PodRestarted", "--output=name", "--namespace"];
    let told = suite.kube.must("kubectl", &[&told[..], &[&trial.store.namespace]].concat()).await;
    assert!(told.lines().count() >= 3, "each restarted pod is told: {told}");
    trial.end().await
}

pub(crate) async fn scaled_to_five_and_back(suite: Arc<Suite>, name: &'static str) -> Report {
    scaled(&suite, name, 3, &[5, 3]).await.end().await
}

pub(crate) async fn scaled_through_all_sizes(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = scaled(&suite, name, 1, &[3, 5]).await;
    evicted(&mut trial).await;
    resized(&mut trial, 3).await;
    evicted(&mut trial).await;
    match suite.kube.volumes_grow().await {
        true => grown(&mut trial).await,
        false => trial.note("growth was not tried: volumes of the default class cannot"),
    }
    resized(&mut trial, 1).await;
    evicted(&mut trial).await;
    trial.end().await
}

/// The budget is right for the size that the cluster has now: one pod may go, and no other before it is back. A
/// single one may always go.
async fn evicted(trial: &mut Trial) {
    trial.open().await;
    let status = trial.store.status().await;
    let pods = if status.replicas == 1 { vec!["demo-0".to_owned()] } else { status.followers };
    let old = trial.store.pod(&pods[0]).await.uid();
    trial.store.evict(&pods[0]).await.expect("one pod may go");
    if let Some(second) = pods.get(1) {
        trial.store.evicts_no_other(second).await;
    }
    trial.store.replaced(&pods[0], old).await;
    trial.close(60, if pods.len() == 1 { Target::Outage } else { Target::Planned }).await;
}

/// The kept claims of pods that are gone are waited for by nobody.
async fn grown(trial: &mut Trial) {
    trial.open().await;
    trial.store.patch(json!({"storage": {"size": "2Gi"}})).await;
    trial.store.healthy(60).await;
    let sizes = [trial.store.claim_size("data-demo-2").await, trial.store.claim_size("data-demo-4").await];
    assert_eq!(sizes, ["2Gi", "1Gi"], "what no pod uses grows when it is used");
    trial.close(30, Target::Planned).await;
}

async fn scaled(suite: &Suite, name: &str, from: i32, sizes: &[i32]) -> Trial {
    let mut trial = Trial::start(suite, name, json!({ "replicas": from })).await;
    for size in sizes {
        resized(&mut trial, *size).await;
    }
    trial
}

async fn resized(trial: &mut Trial, size: i32) {
    trial.open().await;
    trial.store.patch(json!({ "replicas": size })).await;
    trial.store.healthy(180).await;
    let pause_ms = trial.close(30, Target::Planned).await.pause_ms;
    trial.note(format!("to {size}: pause {pause_ms} ms"));
    assert_eq!(trial.store.pods().await.len(), usize::try_from(size).expect("a few"));
}

/// Nobody listens there.
const NO_IMAGE: &str = "127.0.0.1:1/no-such-image:1";

pub(crate) async fn crashing_image(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let image = trial.store.status().await.image.expect("the image is reported");
    let before = trial.store.lives().await;
    trial.open().await;
    for bad in [NO_NODE, NO_IMAGE] {
        trial.store.patch(json!({ "image": bad })).await;
        trial.store.wait("the roll is stuck", 120, |_, status| because(status, "Progressing", "RolloutStuck")).await;
        let after = trial.store.lives().await;
        let untouched = before.iter().filter(|(pod, life)| after.get(*pod) == Some(life)).count();
        assert_eq!(untouched, 2, "a single pod was touched: {before:?} {after:?}");
    }
    trial.store.patch(json!({ "image": image })).await;
    trial.store.wait("all pods run the old image", 180, |_, status| status.updated_replicas == 3).await;
    trial.close(60, Target::Planned).await;
    trial.end().await
}

pub(crate) async fn settings(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let before = trial.store.lives().await;
    trial.open().await;
    let changed = json!({
        "heartbeat": {"interval": "200ms", "timeout": "2s"},
        "failover": "Manual",
        "compaction": {"enabled": false, "interval": "2h", "minInterval": "5m"},
        "historyLimit": 7,
        "dedupExpiry": "90m",
    });
    trial.store.patch(changed).await;
    trial.store.healthy(30).await;
    for ordinal in 0..3 {
        has_settings(&trial.store, &format!("{NAME}-{ordinal}")).await;
    }
    trial.close(30, Target::Planned).await;
    assert_eq!(trial.store.lives().await, before, "no pod was restarted");
    // What a node starts with, before anybody tells it anything.
    suite.operator.scale(0).await;
    trial.open().await;
    let follower = trial.store.follower().await;
    trial.store.replace_pod(&follower, &DeleteParams::default()).await;
    has_settings(&trial.store, &follower).await;
    suite.operator.scale(REPLICAS).await;
    trial.close(60, Target::Planned).await;
    trial.end().await
}

async fn has_settings(store: &Store, pod: &str) {
    let wanted = json!({
        "tuning": {"heartbeat_interval_ms": 200, "heartbeat_timeout_ms": 2000, "failover": "manual"},
        "settings": {"history_limit": 7, "dedup_expiry_seconds": 5400, "dedup_limit": 1_000_000},
        "compaction": {"enabled": false, "interval_seconds": 7200, "min_interval_seconds": 300},
    });
    eventually(&format!("{pod} has the new settings"), 60, || async {
        let mut told = store.node_status(pod).await?;
        let told = json!({
            "tuning": told["tuning"].take(), "settings": told["settings"].take(), "compaction": told["compaction"].take(),
        });
        if told == wanted { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
}

/// A first spec that lets no pod start is put right, and nothing is deleted by hand: what is wrong, words that tell it,
/// and the patch. The second cluster comes back over the volumes of the first.
pub(crate) async fn mended(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.operator_runs().await;
    suite.kube.namespace(&namespace(name)).await;
    let store = Store::new(&suite.kube, &namespace(name));
    let mut report = Report::default();
    for (wrong, words, right) in [
        (json!({ "image": NO_IMAGE }), "no-such-image", json!({ "image": suite.next_node_image() })),
        (cpu("1000"), "Insufficient cpu", cpu("10m")),
    ] {
        store.create(wrong).await;
        let is_told =
            |status: &KvClusterStatus| condition(status, "Available").is_some_and(|c| c.message.contains(words));
        store.wait(&format!("{words:?} is told"), 60, |_, status| is_told(status)).await;
        let took = timed(async {
            store.patch(right).await;
            store.wait("the mended cluster is available", 60, |_, status| is(status, "Available", "True")).await;
        });
        report.note(format!("available {:.1} s after {words:?} was put right", took.await.as_secs_f64()));
        store.healthy(60).await;
        store.delete().await;
    }
    report
}

fn cpu(each: &str) -> Value {
    json!({ "resources": { "requests": { "cpu": each } } })
}

/// For how long nothing is done that must not be done.
const STANDING: Duration = Duration::from_secs(5);

/// The followers are restarted, and the leader when a person has moved leadership. While the cluster is paused nothing
/// is changed, but who leads is still shown.
pub(crate) async fn supervised(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({ "updateStrategy": "Supervised" })).await;
    let store = trial.store.clone();
    let (leader, before) = (store.leader().await, store.lives().await);
    trial.open().await;
    store.patch(json!({ "image": suite.next_node_image() })).await;
    let waits = |status: &KvClusterStatus| because(status, "Progressing", "WaitingForSwitchover");
    store.wait("the roll waits for a person", 120, |_, s| waits(s) && s.updated_replicas == 2).await;
    pass(STANDING).await;
    store.wait("it still waits", 5, |_, s| waits(s) && s.leader.as_ref() == Some(&leader)).await;
    assert_eq!(store.lives().await.get(&leader), before.get(&leader), "the leader was not restarted");
    let next = store.follower().await;
    store.patch(json!({ "leader": next })).await;
    store.wait("all pods run the new image", 120, |_, status| status.updated_replicas == 3).await;
    trial.close(60, Target::Planned).await;
    assert_eq!(store.leader().await, next);
    trial.open().await;
    paused(&store).await;
    scale(&store, 3).await;
    store.healthy(180).await;
    trial.close(30, Target::Planned).await;
    trial.end().await
}

const LEADER_SERVICE: &str = "service/demo-leader";

/// What is asked for and deleted meanwhile is done afterwards.
async fn paused(store: &Store) {
    store.patch(json!({ "paused": true, "leader": null })).await;
    store.wait("it is paused", 30, |_, status| because(status, "Paused", "PausedBySpec")).await;
    scale(store, 5).await;
    let here = ["--namespace", store.namespace.as_str()];
    store.kube.must("kubectl", &[&["delete", LEADER_SERVICE][..], &here].concat()).await;
    let leader = store.leader().await;
    store.replace_pod(&leader, &DeleteParams::default()).await;
    store.wait("another leads", 60, |_, s| s.leader.as_ref().is_some_and(|now| *now != leader)).await;
    eventually("the leader has the label", 30, || async {
        let now = store.leader().await;
        let label = store.pod(&now).await.labels().get("kvcluster.dev/role").cloned();
        if label.as_deref() == Some("leader") { Ok(()) } else { Err(format!("{now}: {label:?}")) }
    })
    .await;
    pass(STANDING).await;
    assert_eq!(store.pods().await.len(), 3, "nothing is scaled while it is paused");
    let found = store.kube.program("kubectl", &[&["get", LEADER_SERVICE][..], &here].concat()).await;
    assert!(found.is_err(), "nothing is written while it is paused");
    store.patch(json!({ "paused": false })).await;
    store.healthy(180).await;
    assert_eq!(store.pods().await.len(), 5);
    store.kube.must("kubectl", &[&["get", LEADER_SERVICE][..], &here].concat()).await;
}

/// As people and autoscalers do it.
async fn scale(store: &Store, replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    store.kube.must("kubectl", &["scale", "kvcluster", NAME, &replicas, "--namespace", &store.namespace]).await;
}
