//! Others in the same Kubernetes: objects of somebody else, hands that edit ours, clusters beside the cluster.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kv_operator::crd::KvClusterStatus;
use serde_json::json;

use crate::kube::from_json;
use crate::load::IMAGE;
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store, because, condition, is, names};
use crate::suite::{Suite, namespace};
use crate::trial::Trial;
use crate::waiting::eventually;

/// A pod and a claim of names that the cluster needs: nothing is written until they are gone.
pub(crate) async fn names_taken(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.operator_runs().await;
    suite.kube.namespace(&namespace(name)).await;
    let store = Store::new(&suite.kube, &namespace(name));
    let post = PostParams::default();
    let pod: Pod = from_json(somebodys_pod());
    let pod = store.pod_api().create(&post, &pod).await.expect("the pod is accepted");
    let claim: PersistentVolumeClaim = from_json(somebodys_claim("data-demo-2"));
    let claim = store.claim_api().create(&post, &claim).await.expect("the claim is accepted");
    store.create(json!({})).await;
    store.wait("both names are taken", 30, |_, status| because(status, "SpecInvalid", "NameTaken")).await;
    let conditions = store.status().await.conditions;
    let said = &conditions.iter().find(|c| c.type_ == "SpecInvalid").expect("it was just seen").message;
    assert!(said.contains("Pod demo-1") && said.contains("PersistentVolumeClaim data-demo-2"), "{said}");
    let written = "statefulsets,services,configmaps,secrets,poddisruptionbudgets,networkpolicies";
    let ours = ["get", written, "--namespace", &store.namespace, "--selector", "app.kubernetes.io/name=kvcluster"];
    let ours = suite.kube.must("kubectl", &[&ours[..], &["--output=name"]].concat()).await;
    assert_eq!(ours, "", "nothing is written");
    assert_eq!(store.pod("demo-1").await.uid(), pod.uid(), "the pod is as it was");
    let kept = store.claim_api().get("data-demo-2").await.expect("the claim is there");
    assert_eq!((kept.uid(), kept.labels().len()), (claim.uid(), 0), "the claim is as it was");
    store.delete_pod("demo-1", &DeleteParams::default().grace_period(0)).await;
    store.claim_api().delete("data-demo-2", &DeleteParams::default()).await.expect("the claim is deleted");
    store.healthy(90).await;
    taken_while_scaling(&store).await;
    Report::default()
}

/// Nothing is made of the new size, but leadership, and the labels that follow it, go on.
async fn taken_while_scaling(store: &Store) {
    let claim: PersistentVolumeClaim = from_json(somebodys_claim("data-demo-4"));
    store.claim_api().create(&PostParams::default(), &claim).await.expect("the claim is accepted");
    let next = store.follower().await;
    store.patch(json!({"replicas": 5, "leader": next})).await;
    let is_told = |status: &KvClusterStatus| {
        because(status, "SpecInvalid", "NameTaken")
            && condition(status, "SpecInvalid").is_some_and(|c| c.message.contains("PersistentVolumeClaim data-demo-4"))
    };
    store.wait("the claim is named", 30, |_, status| is_told(status)).await;
    store.wait("leadership is handed over", 30, |_, s| s.leader.as_deref() == Some(next.as_str()) && is_told(s)).await;
    store.replace_pod(&next, &DeleteParams::default()).await;
    store.wait("another leads", 60, |_, s| s.leader.as_ref().is_some_and(|leader| *leader != next) && is_told(s)).await;
    eventually("the leader has the label", 30, || async {
        let leads = ListParams::default().labels("kvcluster.dev/role=leader");
        let labelled = names(&store.pod_api().list(&leads).await.map_err(|error| error.to_string())?.items);
        if labelled == [store.leader().await] { Ok(()) } else { Err(format!("{labelled:?}")) }
    })
    .await;
    assert_eq!(store.pods().await.len(), 3, "nothing is made of the new size");
    store.claim_api().delete("data-demo-4", &DeleteParams::default()).await.expect("the claim is deleted");
    store.healthy(120).await;
}

fn somebodys_pod() -> serde_json::Value {
    json!({
        "metadata": {"name": "demo-1"},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "other", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["load", "--url", "http://nowhere", "--seed", "0"],
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

fn somebodys_claim(name: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    })
}

/// What is edited, or added where nothing but the operator's may be: the object, and a merge patch.
const EDITED: [(&str, &str); 13] = [
    ("pod/demo-0", r#"{"metadata": {"labels": {"kvcluster.dev/role": "leader", "kvcluster.dev/serves": "no"}}}"#),
    ("pod/demo-1", r#"{"metadata": {"labels": {"app.kubernetes.io/instance": "other", "kvcluster.dev/role": null}}}"#),
    ("pvc/data-demo-2", r#"{"metadata": {"labels": {"app.kubernetes.io/name": null}}}"#),
    ("service/demo", r#"{"spec": {"selector": {"app.kubernetes.io/instance": "other"}}}"#),
    ("configmap/demo", r#"{"data": {"HEARTBEAT_TIMEOUT": "600"}}"#),
    ("networkpolicy/demo", r#"{"spec": {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "other"}}}}"#),
    ("service/demo", r#"{"spec": {"selector": {"x": "y"}}}"#),
    ("service/demo-leader", r#"{"spec": {"selector": {"x": "y"}}}"#),
    ("configmap/demo", r#"{"data": {"MAX_VALUE_SIZE": "1"}}"#),
    ("secret/demo-auth", r#"{"data": {"more": "eQ=="}}"#),
    ("networkpolicy/demo", r#"{"spec": {"podSelector": {"matchLabels": {"x": "y"}}}}"#),
    ("poddisruptionbudget/demo", r#"{"spec": {"selector": {"matchLabels": {"x": "y"}}}}"#),
    ("statefulset/demo", r#"{"spec": {"template": {"spec": {"nodeSelector": {"x": "y"}}}}}"#),
];
const DELETED: [&str; 8] = [
    "service/demo",
    "service/demo-leader",
    "service/demo-nodes",
    "configmap/demo",
    "secret/demo-auth",
    "networkpolicy/demo",
    "poddisruptionbudget/demo",
    "statefulset/demo",
];
/// A status that nobody but the operator should write.
const FORGED: &str =
    r#"{"status": {"leader": "demo-9", "epoch": 999, "clusterId": "forged", "replicas": 0, "members": []}}"#;

/// All of it is as it was soon after, no pod was restarted, and clients that are connected notice nothing.
pub(crate) async fn edited(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let store = trial.store.clone();
    let (lives, epoch) = (store.lives().await, store.status().await.epoch);
    let (before, token) = (children(&store).await, token(&store).await);
    trial.open().await;
    let here = ["--namespace", store.namespace.as_str()];
    for (object, patch) in EDITED {
        let arguments = ["patch", object, "--type=merge", "--patch", patch];
        store.kube.must("kubectl", &[&arguments[..], &here].concat()).await;
    }
    repaired(&store, &before, "what was edited").await;
    // A wish that names no pod keeps nothing from being repaired.
    store.patch(json!({ "leader": "demo-7" })).await;
    let unknown = |status: &KvClusterStatus| because(status, "SpecInvalid", "UnknownLeader");
    store.wait("the wish is reported", 30, |_, status| unknown(status) && is(status, "Available", "True")).await;
    for object in DELETED {
        let cascade = if object.starts_with("statefulset") { "--cascade=orphan" } else { "--cascade=background" };
        store.kube.must("kubectl", &[&["delete", object, cascade, "--wait=false"][..], &here].concat()).await;
    }
    repaired(&store, &before, "what was deleted").await;
    store.wait("the wish is still reported", 5, |_, status| unknown(status) && is(status, "Available", "True")).await;
    store.patch(json!({ "leader": null })).await;
    assert_eq!(self::token(&store).await, token, "the nodes know one token");
    let forge = ["patch", "kvcluster", NAME, "--subresource=status", "--type=merge", "--patch", FORGED];
    store.kube.must("kubectl", &[&forge[..], &here].concat()).await;
    store.wait("the status is true again", 30, |_, status| status.epoch == epoch && status.members.len() == 3).await;
    trial.close(60, Target::Planned).await;
    assert_eq!(store.lives().await, lives, "no pod was restarted");
    trial.end().await
}

/// What people may edit of the children, and the labels of pods and claims.
async fn children(store: &Store) -> Vec<String> {
    let spec = "{range .items[*]}{.kind}/{.metadata.name} {.metadata.labels} {.spec.selector} {.spec.podSelector} {.spec.template.spec.nodeSelector} {.data}{\"\\n\"}{end}";
    let kinds =
        "services,configmaps,secrets,networkpolicies,poddisruptionbudgets,statefulsets,pods,persistentvolumeclaims";
    let output = format!("--output=jsonpath={spec}");
    let told = store.kube.program("kubectl", &["get", kinds, "--namespace", &store.namespace, &output]).await;
    let mut told: Vec<String> = told.unwrap_or_else(|said| said).lines().map(str::to_owned).collect();
    told.retain(|line| line.contains("kvcluster"));
    told.sort();
    told
}

async fn repaired(store: &Store, before: &[String], what: &str) {
    eventually(&format!("{what} is repaired"), 30, || async {
        let now = children(store).await;
        let differ: Vec<&String> = before.iter().filter(|line| !now.contains(line)).collect();
        if differ.is_empty() { Ok(()) } else { Err(format!("{differ:#?} and now {now:#?}")) }
    })
    .await;
}

async fn token(store: &Store) -> Option<Vec<u8>> {
    let api: Api<Secret> = Api::namespaced(store.kube.client.clone(), &store.namespace);
    let secret = api.get(&format!("{NAME}-auth")).await.expect("the Secret is there");
    secret.data?.remove("token").map(|token| token.0)
}

/// One more of the same name in another namespace, made by an operator that has just begun: what it is asked for by
/// those that are there already keeps none from being looked after.
pub(crate) async fn neighbours(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let beside = Store::new(&suite.kube, &format!("{}-beside", namespace(name)));
    suite.kube.namespace(&beside.namespace).await;
    trial.open().await;
    suite.operator.restart().await;
    beside.create(json!({"replicas": 1})).await;
    beside.wait("the new cluster is available", 60, |_, status| is(status, "Available", "True")).await;
    let ids = [trial.store.status().await.cluster_id, beside.status().await.cluster_id];
    assert!(ids[0].is_some() && ids[0] != ids[1], "two groups: {ids:?}");
    let body = json!({"value": "beside"}).to_string().into_bytes();
    let pod = format!("{NAME}-0:8000");
    let written = beside.kube.pod_http("PUT", &beside.namespace, &pod, "key/whose", body).await;
    written.expect("the new cluster takes a write");
    let found = trial.store.kube.pod_get(&trial.store.namespace, &pod, "key/whose").await;
    assert!(found.as_ref().is_err_and(|said| said.starts_with("404")), "the other one has it: {found:?}");
    beside.delete().await;
    suite.kube.delete_namespace(&beside.namespace).await;
    trial.close(60, Target::Planned).await;
    trial.end().await
}
