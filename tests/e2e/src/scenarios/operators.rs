//! What befalls the operator: upgraded, absent, killed, doubled, uninstalled. The data must not notice.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kv_tests::pass;
use serde_json::json;

use crate::faults::{Signal, signal};
use crate::kube::{Kube, repository};
use crate::operator::{Counters, NAMESPACE, REPLICAS, chart_with_version, chart_without_field};
use crate::scenario::{Report, Target};
use crate::store::{NAME, Store};
use crate::suite::{Suite, namespace};
use crate::trial::{Trial, timed};
use crate::waiting::eventually;

/// On the pods of every release.
const OPERATOR_LABEL: &str = "app.kubernetes.io/name=kv-operator";

/// The bumped chart has another default image for nodes, too: clusters that name none keep theirs.
pub(crate) async fn upgraded(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let before = trial.store.lives().await;
    trial.open().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let chart = dir.path().join("kv-operator");
    chart_with_version(&chart, &suite.next_version);
    suite.operator.upgrade(&chart).await;
    let images: Vec<_> = suite.operator.pods().await.iter().filter_map(operator_image).collect();
    assert!(images.iter().any(|image| image.ends_with(&suite.next_version)), "the new operator runs: {images:?}");
    // The new operator has worked on the cluster once it has seen a change of it.
    trial.store.patch(json!({"historyLimit": 50})).await;
    trial.store.healthy(60).await;
    assert_eq!(trial.store.lives().await, before, "no data pod was restarted by the upgrade");
    suite.operator.roll_back().await;
    trial.store.patch(json!({"historyLimit": 60})).await;
    trial.close(60, Target::Planned).await;
    assert_eq!(trial.store.lives().await, before, "no data pod was restarted by the roll-back");
    trial.end().await
}

fn operator_image(pod: &k8s_openapi::api::core::v1::Pod) -> Option<String> {
    pod.spec.as_ref()?.containers.first()?.image.clone()
}

pub(crate) async fn absent(suite: Arc<Suite>, name: &'static str) -> Report {
    without_operator(&suite, name, Signal::Kill, Target::Crash).await
}

pub(crate) async fn absent_in_silence(suite: Arc<Suite>, name: &'static str) -> Report {
    without_operator(&suite, name, Signal::Stop, Target::Silence).await
}

async fn without_operator(suite: &Suite, name: &str, to_leader: Signal, target: Target) -> Report {
    let mut trial = Trial::start(suite, name, json!({})).await;
    suite.operator.scale(0).await;
    trial.open().await;
    let leader = trial.store.leader().await;
    signal(&trial.store, &leader, to_leader).await;
    trial.load.flows(30).await;
    if to_leader == Signal::Stop {
        signal(&trial.store, &leader, Signal::Cont).await;
    }
    suite.operator.scale(REPLICAS).await;
    trial.another_leads(&leader).await;
    trial.close(60, target).await;
    trial.end().await
}

pub(crate) async fn killed_while_rolling(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    trial.open().await;
    trial.store.patch(json!({ "image": suite.next_node_image() })).await;
    for updated in 1..=2 {
        trial.store.wait("the roll has begun", 120, |_, status| status.updated_replicas >= updated).await;
        suite.operator.kill().await;
    }
    trial.store.wait("all pods run the new image", 180, |_, status| status.updated_replicas == 3).await;
    trial.close(60, Target::Planned).await;
    trial.end().await
}

/// How long a cluster at rest is watched, once its status has been written for the last time.
const AT_REST: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(30));
/// What the operator writes with, besides the KvCluster's status. Nobody else patches these kinds.
const CHILDREN: [&str; 6] =
    ["statefulsets", "services", "configmaps", "secrets", "poddisruptionbudgets", "networkpolicies"];

/// Nothing to do means no write, as the API server counts it.
pub(crate) async fn idle(suite: Arc<Suite>, name: &'static str) -> Report {
    let (mut report, store) = Trial::cluster(&suite, name, json!({})).await;
    pass(AT_REST.0).await;
    let before = writes(&store.kube).await;
    let asked = requests_at_rest(&suite).await;
    let after = writes(&store.kube).await;
    assert!(!before.is_empty(), "founding the cluster was counted");
    assert_eq!(after, before, "an idle reconcile writes nothing");
    let of = |verb: &str| asked[&format!("{{verb=\"{verb}\"}}")];
    let others = ["create", "patch", "delete"].map(of);
    assert_eq!(others, [0, 0, 0], "no Event, label or claim is written either: {asked:?}");
    let renewals = AT_REST.1.as_secs() / LEASE_SECONDS + 1;
    assert!((1..=renewals).contains(&of("update")), "nothing but the Lease is updated: {asked:?}");
    report.note(format!(
        "no write in {} s; {} requests per minute, the Lease's included",
        AT_REST.1.as_secs(),
        minutely(&asked)
    ));
    report
}

/// How often the holder of the Lease renews it.
const LEASE_SECONDS: u64 = 3;

/// Of all operators to the API server by verb, while nothing happens.
async fn requests_at_rest(suite: &Suite) -> Counters {
    let requests = "kv_operator_api_requests_total";
    let before = suite.operator.counters(requests).await;
    pass(AT_REST.1).await;
    let after = suite.operator.counters(requests).await;
    after.into_iter().map(|(verb, count)| (verb.clone(), count - before[&verb])).collect()
}

fn minutely(asked: &Counters) -> u64 {
    asked.values().sum::<u64>() * 60 / AT_REST.1.as_secs()
}

/// How many clusters an operator is to look after within so much memory.
const MANY: (usize, f64) = (50, 64.0);

/// Each of one node, so that the machine can hold them.
pub(crate) async fn many(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.operator_runs().await;
    let namespace = namespace(name);
    suite.kube.namespace(&namespace).await;
    let alone = minutely(&requests_at_rest(&suite).await);
    let store = Store::new(&suite.kube, &namespace);
    for number in 0..MANY.0 {
        store.create_named(&format!("many-{number}"), json!({"replicas": 1, "storage": {"size": "300Mi"}})).await;
    }
    let took = timed(async {
        let all = ["kvcluster", "--all", "--for=condition=Available", "--timeout=300s", "--namespace", &namespace];
        suite.kube.must("kubectl", &[&["wait"][..], &all].concat()).await;
    });
    let mut report = Report::default();
    report.note(format!("{} clusters available {:.0} s after the last was made", MANY.0, took.await.as_secs_f64()));
    pass(AT_REST.0).await;
    let minutely = minutely(&requests_at_rest(&suite).await);
    let mebibytes = suite.operator.memory_bytes().await / f64::from(1 << 20);
    assert!(mebibytes > 1.0 && mebibytes < MANY.1, "the operator needs {mebibytes:.1} MiB");
    report.note(format!("{mebibytes:.1} MiB; {minutely} requests per minute, {alone} of them without any cluster"));
    report
}

/// The API server's counts of requests that only the operator makes, and that write.
async fn writes(kube: &Kube) -> Vec<String> {
    let told = kube.must("kubectl", &["get", "--raw", "/metrics"]).await;
    let is_write = |line: &&str| {
        ["APPLY", "PATCH", "POST", "PUT", "DELETE"].iter().any(|v| line.contains(&format!("verb=\"{v}\"")))
    };
    let of = |line: &str, resource: &str| line.contains(&format!("resource=\"{resource}\""));
    let patched = |line: &str| line.contains("verb=\"APPLY\"") && CHILDREN.iter().any(|child| of(line, child));
    let counts = told.lines().filter(|line| line.starts_with("apiserver_request_total{")).filter(is_write);
    counts.filter(|line| of(line, "kvclusters") || patched(line)).map(str::to_owned).collect()
}

/// Each with a Lease of its own, so that both work: the worst that a broken Lease could do.
pub(crate) async fn two(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let chart = repository().join("charts/kv-operator");
    let chart = chart.to_str().expect("the path is text");
    let here = trial.store.namespace.clone();
    let install = ["install", "kv-second", chart, "--set", "crds.install=false", "--wait", "--namespace", &here];
    suite.kube.must("helm", &install).await;
    trial.open().await;
    let next = trial.store.follower().await;
    trial.store.patch(json!({ "leader": next })).await;
    trial.store.wait("the wished leader leads", 30, |_, s| s.leader.as_ref() == Some(&next)).await;
    trial.store.patch(json!({ "image": suite.next_node_image(), "replicas": 5 })).await;
    trial.store.wait("all pods run the new image", 300, |_, status| status.updated_replicas == 5).await;
    trial.close(120, Target::Planned).await;
    suite.kube.must("helm", &["uninstall", "kv-second", "--wait", "--namespace", &here]).await;
    trial.end().await
}

/// The release that looks after two namespaces alone.
const FEW: &str = "kv-few";

/// With a Role in each of two namespaces it does all that an operator does, and leaves a third namespace alone.
pub(crate) async fn few_namespaces(suite: Arc<Suite>, name: &'static str) -> Report {
    // The definition stays; nobody else works meanwhile.
    suite.operator_runs().await;
    suite.operator.scale(0).await;
    let stores = ["", "-other", "-elsewhere"].map(|end| Store::new(&suite.kube, &format!("{}{end}", namespace(name))));
    for store in &stores {
        suite.kube.namespace(&store.namespace).await;
    }
    let [own, other, elsewhere] = &stores;
    install_for(&suite, own, &[own, other]).await;
    elsewhere.create(json!({"replicas": 1})).await;
    for store in [own, other] {
        store.create(json!({})).await;
    }
    for store in [own, other] {
        store.healthy(120).await;
    }
    let mut trial = Trial::over(own).await;
    trial.open().await;
    own.patch(json!({"image": suite.next_node_image(), "historyLimit": 7})).await;
    own.wait("all pods run the new image", 180, |_, status| status.updated_replicas == 3).await;
    trial.close(120, Target::Planned).await;
    other.patch(json!({"replicas": 1})).await;
    other.healthy(120).await;
    let left = elsewhere.api().get(NAME).await.expect("the KvCluster is there");
    assert!(left.status.is_none() && elsewhere.pods().await.is_empty(), "nobody looks after it: {:?}", left.status);
    let all = ["logs", "--selector", OPERATOR_LABEL, "--prefix", "--tail=-1", "--namespace", &own.namespace];
    let said = suite.kube.must("kubectl", &all).await;
    let refused: Vec<&str> = said.lines().filter(|line| line.contains("forbidden")).collect();
    assert!(said.contains("works from now on") && refused.is_empty(), "its Roles suffice: {refused:#?}");
    let report = trial.end().await;
    for store in [own, other] {
        store.delete().await;
    }
    suite.kube.must("helm", &["uninstall", FEW, "--wait", "--namespace", &own.namespace]).await;
    for store in [other, elsewhere] {
        suite.kube.delete_namespace(&store.namespace).await;
    }
    suite.operator.scale(REPLICAS).await;
    report
}

/// Into the first one's namespace.
async fn install_for(suite: &Suite, into: &Store, watched: &[&Store]) {
    let names: Vec<&str> = watched.iter().map(|store| store.namespace.as_str()).collect();
    let watched = format!("watchNamespaces={{{}}}", names.join(","));
    let chart = repository().join("charts/kv-operator");
    let chart = chart.to_str().expect("the path is text");
    let options = ["--set", "crds.install=false", "--set", &watched, "--wait", "--namespace", &into.namespace];
    suite.kube.must("helm", &[&["install", FEW, chart], &options[..]].concat()).await;
}

/// Of `spec.pod`: a definition without it is a release older than one with it.
const FIELD: &str = "priorityClassName";

async fn knows_field(store: &Store, known: bool) {
    let patch = json!({"spec": {"pod": {FIELD: "high"}}}).to_string();
    let output = format!("--output=jsonpath={{.spec.pod.{FIELD}}}");
    let tried = ["patch", "kvcluster", NAME, "--type=merge", "--patch", &patch, "--dry-run=server", &output];
    eventually(&format!("{FIELD} is known: {known}"), 30, || async {
        let kept = store.kube.program("kubectl", &[&tried[..], &["--namespace", &store.namespace]].concat()).await?;
        if (kept == "high") == known { Ok(()) } else { Err(kept) }
    })
    .await;
}

/// Over the kept definition of a release before, which an upgrade brings up to date.
pub(crate) async fn reinstalled(suite: Arc<Suite>, name: &'static str) -> Report {
    let mut trial = Trial::start(&suite, name, json!({})).await;
    let before = trial.store.lives().await;
    trial.open().await;
    suite.operator.uninstall().await;
    let leases: Api<Lease> = Api::namespaced(suite.kube.client.clone(), NAMESPACE);
    eventually("the Lease goes with the chart", 60, || async {
        let left = leases.get_opt("kv-operator").await.map_err(|error| error.to_string())?;
        left.map_or(Ok(()), |lease| Err(format!("{lease:?}")))
    })
    .await;
    trial.load.flows(30).await;
    knows_field(&trial.store, true).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let older = dir.path().join("kv-operator");
    chart_without_field(&older, FIELD);
    suite.operator.upgrade(&older).await;
    knows_field(&trial.store, false).await;
    suite.operator.upgrade(&repository().join("charts/kv-operator")).await;
    knows_field(&trial.store, true).await;
    trial.store.patch(json!({"historyLimit": 50})).await;
    trial.close(60, Target::Planned).await;
    assert_eq!(trial.store.lives().await, before, "no data pod was restarted");
    trial.end().await
}
