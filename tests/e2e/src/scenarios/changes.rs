//! What a user changes in a spec while the cluster serves: image, size, settings, and what is wrong.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::load::IMAGE as NO_NODE;
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store, because};
use crate::suite::{Suite, namespace};
use crate::trial::Trial;

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
    scaled(&suite, name, 3, &[5, 3]).await
}

pub(crate) async fn scaled_through_all_sizes(suite: Arc<Suite>, name: &'static str) -> Report {
    scaled(&suite, name, 1, &[3, 5, 3, 1]).await
}

async fn scaled(suite: &Suite, name: &str, from: i32, sizes: &[i32]) -> Report {
    let mut trial = Trial::start(suite, name, json!({ "replicas": from })).await;
    for size in sizes {
        trial.open().await;
        trial.store.patch(json!({ "replicas": size })).await;
        trial.store.healthy(180).await;
        let pause_ms = trial.close(30, Target::Planned).await.pause_ms;
        trial.note(format!("to {size}: pause {pause_ms} ms"));
        assert_eq!(trial.store.pods().await.len(), usize::try_from(*size).expect("a few"));
    }
    trial.end().await
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

/// Refused before anything is stored, with words that a person understands: the member and its value, then the words.
const REFUSED: [(&str, &str, &str); 10] = [
    ("/spec/replicas", "0", "should be greater than or equal to 1"),
    ("/spec/replicas", "-3", "should be greater than or equal to 1"),
    ("/spec/replicas", "9", "should be less than or equal to 7"),
    ("/spec/replicas", "\"three\"", "must be of type integer"),
    ("/spec/replcas", "3", "unknown field"),
    ("/spec/storage/size", "\"much\"", "size must be a quantity"),
    ("/spec/heartbeat", "{\"interval\": \"2s\", \"timeout\": \"1s\"}", "timeout must be longer than interval"),
    ("/spec/failover", "\"Sometimes\"", "Unsupported value"),
    ("/spec/dedupExpiry", "\"soon\"", "dedupExpiry must be a duration"),
    ("/metadata/name", "\"a-name-that-is-longer-than-any-that-pods-could-have\"", "at most 45 characters"),
];

/// Accepted by the schema, and then reported by the operator: the spec, condition and reason.
const REPORTED: [(&str, &str, &str); 5] = [
    (r#"{"replicas": 3, "leader": "demo-7"}"#, "SpecInvalid", "UnknownLeader"),
    (r#"{"recovery": {"forceLeader": "demo-9", "acceptDataLossAtEpoch": 1}}"#, "SpecInvalid", "UnknownLeader"),
    (r#"{"replicas": 1, "image": "127.0.0.1:1/no-such-image:1"}"#, "Available", "WaitingForMembers"),
    (r#"{"replicas": 2}"#, "SpecInvalid", "EvenReplicas"),
    (
        r#"{"replicas": 1, "storage": {"size": "1Gi", "storageClassName": "no-such-class"}}"#,
        "Available",
        "WaitingForMembers",
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
    for (spec, condition, reason) in REPORTED {
        store.create(serde_json::from_str(spec).expect("the table is JSON")).await;
        store.wait(&format!("{spec} is reported"), 60, |_, status| because(status, condition, reason)).await;
        store.delete().await;
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
