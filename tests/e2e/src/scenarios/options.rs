//! Options of a spec that clients, Prometheus and whoever pays for volumes notice, and not the nodes.

use std::sync::Arc;

use kube::ResourceExt;
use serde_json::json;

use crate::kube::{Kube, LABEL};
use crate::scenario::Report;
use crate::store::{NAME, Store, condition, is};
use crate::suite::Suite;
use crate::trial::Trial;
use crate::waiting::eventually;

/// How the Service of clients is published, a PodMonitor where there can be one, and claims that go with their pods.
pub(crate) async fn changed(suite: Arc<Suite>, name: &'static str) -> Report {
    let spec = json!({
        "storage": {"size": "300Mi", "retainPolicy": "Delete"},
        "service": {"type": "NodePort", "annotations": {"e2e.kvcluster.dev/pool": "one"}},
        "monitoring": {"podMonitor": true},
    });
    let (mut report, store) = Trial::cluster(&suite, name, spec).await;
    published(&store).await;
    match monitored(&suite.kube, &store).await {
        Ok(()) => {}
        Err(why) => report.note(why),
    }
    assert_eq!(claims(&store).await.len(), 3);
    store.patch(json!({ "replicas": 1 })).await;
    store.healthy(90).await;
    claims_are(&store, &["data-demo-0"]).await;
    store.delete().await;
    claims_are(&store, &[]).await;
    report
}

async fn published(store: &Store) {
    let shown = "{.spec.type} {.spec.ports[0].nodePort} {.metadata.annotations.e2e\\.kvcluster\\.dev/pool}";
    let service = async || field(store, &format!("service/{NAME}"), shown).await;
    let found = service().await;
    let port = found.split(' ').nth(1).and_then(|port| port.parse::<u16>().ok());
    assert!(port.is_some() && found.starts_with("NodePort ") && found.ends_with(" one"), "{found}");
    let lives = store.lives().await;
    for (wanted, annotations) in [("LoadBalancer", json!({})), ("ClusterIP", json!(null))] {
        store.patch(json!({"service": {"type": wanted, "annotations": annotations}})).await;
        eventually(&format!("the Service is a {wanted}"), 30, || async {
            let found = service().await;
            let has_port = found.split(' ').nth(1).is_some_and(|port| !port.is_empty());
            let is_wanted = found.starts_with(&format!("{wanted} ")) && has_port == (wanted != "ClusterIP");
            if is_wanted && found.ends_with(" one") == annotations.is_object() { Ok(()) } else { Err(found) }
        })
        .await;
    }
    store.healthy(30).await;
    assert_eq!(store.lives().await, lives, "no pod was restarted");
}

const POD_MONITORS: &str = "podmonitors.monitoring.coreos.com";
const MONITOR: &str = "podmonitors.monitoring.coreos.com/demo";

/// Without the kind it is told and nothing fails, also when the kind goes; with it the object comes, and goes when it
/// is switched off. Err: somebody else's kind is installed, and is left alone.
async fn monitored(kube: &Kube, store: &Store) -> Result<(), String> {
    if kube.program("kubectl", &["get", "crd", POD_MONITORS]).await.is_ok() {
        return Err("PodMonitors were not tried: somebody else has their kind".to_owned());
    }
    told_that_none_is_made(store).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("definition.json");
    std::fs::write(&file, definition().to_string()).expect("a temporary directory is writable");
    kube.must("kubectl", &["create", "--filename", file.to_str().expect("the path is text")]).await;
    monitor_is_made(store).await;
    store.patch(json!({"monitoring": {"podMonitor": false}})).await;
    eventually("the PodMonitor goes", 30, || async {
        let found = try_field(store, MONITOR, "{.metadata.name}").await;
        found.map_or_else(|said| if said.contains("NotFound") { Ok(()) } else { Err(said) }, Err)
    })
    .await;
    store.patch(json!({"monitoring": {"podMonitor": true}})).await;
    monitor_is_made(store).await;
    kube.must("kubectl", &["delete", "crd", POD_MONITORS]).await;
    told_that_none_is_made(store).await;
    Ok(())
}

async fn told_that_none_is_made(store: &Store) {
    store
        .wait("it is told that nothing is made", 30, |_, status| {
            let said = condition(status, "SpecInvalid").map(|c| c.message.as_str()).unwrap_or_default();
            is(status, "SpecInvalid", "False") && said.contains("PodMonitor is not installed")
        })
        .await;
    store.healthy(30).await;
}

async fn monitor_is_made(store: &Store) {
    eventually("the PodMonitor is made", 60, || async {
        let port = try_field(store, MONITOR, "{.spec.podMetricsEndpoints[0].port}").await?;
        if port == "http" { Ok(()) } else { Err(port) }
    })
    .await;
    store.healthy(30).await;
}

/// As little of it as an API server takes.
fn definition() -> serde_json::Value {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": POD_MONITORS, "labels": {LABEL: "true"}},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": "PodMonitor", "plural": "podmonitors", "singular": "podmonitor"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    })
}

async fn claims(store: &Store) -> Vec<String> {
    eventually("claims can be listed", 15, || async {
        let listed = store.claim_api().list(&kube::api::ListParams::default()).await;
        listed.map(|claims| claims.items.iter().map(ResourceExt::name_any).collect()).map_err(|error| error.to_string())
    })
    .await
}

async fn claims_are(store: &Store, wanted: &[&str]) {
    eventually(&format!("the claims are {wanted:?}"), 60, || async {
        let found = claims(store).await;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

async fn field(store: &Store, object: &str, path: &str) -> String {
    try_field(store, object, path).await.expect("the object is there")
}

async fn try_field(store: &Store, object: &str, path: &str) -> Result<String, String> {
    let output = format!("--output=jsonpath={path}");
    store.kube.program("kubectl", &["get", object, &output, "--namespace", &store.namespace]).await
}
