//! What a user changes in a spec while the cluster serves: image, size, settings, and what is wrong.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DeleteParams;
use kv_operator::crd::KvClusterStatus;
use kv_tests::pass;
use serde_json::{Value, json};

use crate::load::IMAGE as NO_NODE;
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store, because, condition, is};
use crate::suite::{Suite, namespace};
use crate::trial::{Trial, timed};

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
    let mut trial = scaled(&suite, name, 1, &[3, 5, 3]).await;
    match suite.kube.volumes_grow().await {
        true => grown(&mut trial).await,
        false => trial.note("growth was not tried: volumes of the default class cannot"),
    }
    resized(&mut trial, 1).await;
    trial.end().await
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
        "compaction": {"enabled": false},
        "historyLimit": 7,
        "dedupExpiry": "90m",
    });
    trial.store.patch(changed).await;
    trial.store.healthy(30).await;
    for ordinal in 0..3 {
        has_settings(&trial.store, ordinal).await;
    }
    trial.close(30, Target::Planned).await;
    assert_eq!(trial.store.lives().await, before, "no pod was restarted");
    trial.end().await
}

async fn has_settings(store: &Store, ordinal: u32) {
    let pod = format!("{NAME}-{ordinal}:8000");
    crate::waiting::eventually("the node has the new settings", 30, || async {
        let ask = async |path: &str| -> Result<Value, String> {
            let told = store.kube.pod_get(&store.namespace, &pod, path).await?;
            serde_json::from_str(&told).map_err(|error| error.to_string())
        };
        let (heartbeat, compaction) = (ask("cluster_status").await?, ask("compaction/status").await?);
        let told = (heartbeat["heartbeat_interval"].as_f64(), compaction["enabled"].as_bool());
        if told == (Some(0.2), Some(false)) { Ok(()) } else { Err(format!("{told:?}")) }
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
    crate::waiting::eventually("the leader has the label", 30, || async {
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

/// Refused before anything is stored, with words that a person understands: the member and its value, then the words.
const REFUSED: [(&str, &str, &str); 13] = [
    ("/spec/replicas", "0", "should be greater than or equal to 1"),
    ("/spec/replicas", "-3", "should be greater than or equal to 1"),
    ("/spec/replicas", "9", "should be less than or equal to 7"),
    ("/spec/replicas", "\"three\"", "must be of type integer"),
    ("/spec/replcas", "3", "unknown field"),
    ("/spec/storage/size", "\"much\"", "size must be a quantity"),
    ("/spec/storage/size", "\"1Mi\"", "from 2Mi to 1Pi"),
    ("/spec/resources", "{\"requests\": {\"cpu\": \"lots\"}}", "each must be a quantity"),
    ("/spec/compaction", "{\"interval\": \"10000h\"}", "from 60s to 8760h"),
    ("/spec/heartbeat", "{\"interval\": \"2s\", \"timeout\": \"1s\"}", "timeout must be longer than interval"),
    ("/spec/failover", "\"Sometimes\"", "Unsupported value"),
    ("/spec/dedupExpiry", "\"soon\"", "dedupExpiry must be a duration"),
    ("/metadata/name", "\"a-name-that-is-longer-than-any-that-pods-could-have\"", "at most 45 characters"),
];

/// Accepted by the schema, and then reported by the operator: the spec, condition, reason, and words of the message.
const REPORTED: [(&str, &str, &str, &str); 8] = [
    (r#"{"replicas": 3, "leader": "demo-7"}"#, "SpecInvalid", "UnknownLeader", "demo-7"),
    (
        r#"{"recovery": {"forceLeader": "demo-9", "acceptDataLossAtEpoch": 1}}"#,
        "SpecInvalid",
        "UnknownLeader",
        "demo-9",
    ),
    (
        r#"{"replicas": 1, "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}"#,
        "SpecInvalid",
        "BadValue",
        "StatefulSet demo is refused",
    ),
    (r#"{"replicas": 1, "pod": {"labels": {"not a label": "x"}}}"#, "SpecInvalid", "BadValue", "not a label"),
    (
        r#"{"replicas": 1, "pod": {"priorityClassName": "no-such-class"}}"#,
        "Available",
        "WaitingForMembers",
        "kubectl describe statefulset demo",
    ),
    (r#"{"replicas": 1, "image": "127.0.0.1:1/no-such-image:1"}"#, "Available", "WaitingForMembers", "no-such-image"),
    (r#"{"replicas": 2}"#, "SpecInvalid", "EvenReplicas", "odd number"),
    (
        r#"{"replicas": 1, "storage": {"size": "1Gi", "storageClassName": "no-such-class"}}"#,
        "Degraded",
        "VolumeUnavailable",
        "kubectl describe pvc data-demo-0",
    ),
];

pub(crate) async fn bad_specs(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.operator_runs().await;
    suite.kube.namespace(&namespace(name)).await;
    let store = Store::new(&suite.kube, &namespace(name));
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (place, value, words) in REFUSED {
        let file = dir.path().join("kvcluster.json");
        std::fs::write(&file, spec_with(place, value).to_string()).expect("a temporary directory is writable");
        let file = file.to_str().expect("the path is text");
        let applied =
            suite.kube.program("kubectl", &["apply", "--namespace", &store.namespace, "--filename", file]).await;
        let said = applied.expect_err("the spec is refused");
        assert!(said.contains(words), "{place} = {value} should be refused with {words:?}: {said}");
    }
    for (spec, kind, reason, words) in REPORTED {
        store.create(serde_json::from_str(spec).expect("the table is JSON")).await;
        let is_told = |status: &KvClusterStatus| condition(status, kind).is_some_and(|c| c.message.contains(words));
        let reported = format!("{spec} is reported with {words:?}");
        store.wait(&reported, 60, |_, status| because(status, kind, reason) && is_told(status)).await;
        store.delete().await;
        // The next spec is to be that of a new cluster, and not to find the volumes of this one.
        suite.kube.must("kubectl", &["delete", "pvc", "--all", "--namespace", &store.namespace]).await;
    }
    Report::default()
}

fn spec_with(place: &str, value: &str) -> Value {
    let mut object = json!({
        "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster",
        "metadata": {"name": NAME}, "spec": {"storage": {"size": "1Gi"}},
    });
    let (parent, member) = place.rsplit_once('/').expect("the table has paths");
    object.pointer_mut(parent).expect("the table has paths")[member] =
        serde_json::from_str(value).expect("the table is JSON");
    object
}
