//! Bad input: specs that the schema refuses or the operator reports, and calls that lack the token; beside them the
//! smallest, the largest and the longest that must be taken.

use std::sync::Arc;

use kv_operator::crd::KvClusterStatus;
use serde_json::{Value, json};

use crate::extremes;
use crate::scenario::Report;
use crate::store::{NAME, Store, because, condition};
use crate::suite::{Suite, namespace};

/// Refused before anything is stored, with words that a person understands: the member and its value, then the words.
const REFUSED: [(&str, &str, &str); 17] = [
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
    ("/spec/heartbeat", "{\"interval\": \"5ms\"}", "durations from 10ms to 24h"),
    ("/spec/wal", "{\"maxSegmentSize\": \"1Ki\"}", "from 4Ki to 1Gi"),
    ("/spec/compaction", "{\"minInterval\": \"10000h\"}", "up to 8760h"),
    ("/spec/historyLimit", "100001", "should be less than or equal to 100000"),
    ("/metadata/name", "\"a-name-of-forty-six-letters-one-more-than-pods\"", "at most 45 characters"),
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
    for (place, value, words) in REFUSED {
        let said = apply(&store, &spec_with(place, value), &[]).await.expect_err("the spec is refused");
        assert!(said.contains(words), "{place} = {value} should be refused with {words:?}: {said}");
    }
    for spec in [extremes::smallest(), extremes::largest()] {
        let mut object = spec_with("/spec/replicas", "1");
        object["spec"] = spec;
        apply(&store, &object, &["--dry-run=server"]).await.expect("the smallest and the largest are taken");
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
    longest_name(&store).await;
    Report::default()
}

async fn apply(store: &Store, object: &Value, options: &[&str]) -> Result<String, String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("kvcluster.json");
    std::fs::write(&file, object.to_string()).expect("a temporary directory is writable");
    let file = file.to_str().expect("the path is text");
    let apply = ["apply", "--namespace", &store.namespace, "--filename", file];
    store.kube.program("kubectl", &[&apply[..], options].concat()).await
}

/// What only the operator, and whoever has the cluster's Secret, may ask of nodes.
const NEEDS_TOKEN: [(&str, &str, &str); 8] = [
    ("POST", "cluster/lead", "{}"),
    ("POST", "cluster/settings", r#"{"settings": {"history_limit": 1}}"#),
    ("POST", "cluster/recover", r#"{"accept_data_loss_at_epoch": 1}"#),
    ("POST", "cluster/bootstrap", r#"{"cluster_id": "x", "voters": []}"#),
    ("POST", "cluster/members", r#"{"name": "x", "member_id": "x", "peer_url": "http://x:9000", "role": "voter"}"#),
    ("DELETE", "cluster/members/x", ""),
    ("POST", "settings", r#"{"heartbeat_interval": 5}"#),
    ("GET", "snapshot", ""),
];

/// A cluster with the longest name that there can be serves, and does nothing for strangers who reach its Service.
async fn longest_name(store: &Store) {
    let name = format!("{:a<45}", "longest-");
    store.create_named(&name, json!({"replicas": 1})).await;
    let available = ["wait", "kvcluster", &name, "--for=condition=Available", "--timeout=90s"];
    store.kube.must("kubectl", &[&available[..], &["--namespace", &store.namespace]].concat()).await;
    let service = format!("{name}:8000");
    let ask = async |method: &str, path: &str, body: &str| {
        store.kube.service_http(method, &store.namespace, &service, path, body.as_bytes().to_vec()).await
    };
    let status = async || -> Value {
        let told = ask("GET", "status", "").await.expect("the node answers");
        let told: Value = serde_json::from_str(&told).expect("a status is JSON");
        ["leader", "epoch", "cluster_id", "config_id", "settings", "tuning"].map(|of| told[of].clone()).into()
    };
    ask("PUT", "key/ours", r#"{"value": 1}"#).await.expect("clients need no token");
    let before = status().await;
    for (method, path, body) in NEEDS_TOKEN {
        let refused = ask(method, path, body).await;
        assert!(refused.as_ref().is_err_and(|said| said.starts_with("401")), "{method} /{path}: {refused:?}");
    }
    assert_eq!(status().await, before, "nothing was done");
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
