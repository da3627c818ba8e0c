//! The operator under test, installed with the chart as the README says: helm alone changes it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::kube::{Kube, repository};
use crate::waiting::eventually;

/// As in the README.
pub(crate) const RELEASE: &str = "kv-operator";
pub(crate) const NAMESPACE: &str = "kv-system";
/// Selects its pods.
const OPERATOR: &str = "app.kubernetes.io/name=kv-operator,app.kubernetes.io/instance=kv-operator";
/// The chart's default.
pub(crate) const REPLICAS: i32 = 2;

/// By labels.
pub(crate) type Counters = BTreeMap<String, u64>;

#[derive(Clone)]
pub(crate) struct Operator {
    kube: Kube,
}

impl Operator {
    pub(crate) fn new(kube: &Kube) -> Self {
        Self { kube: kube.clone() }
    }

    /// Installs the chart into a restricted namespace, unless the operator runs as it should.
    pub(crate) async fn install(&self) {
        let api: Api<Deployment> = Api::namespaced(self.kube.client.clone(), NAMESPACE);
        let deployment = api.get_opt(RELEASE).await.ok().flatten();
        let ready = deployment.and_then(|deployment| deployment.status?.ready_replicas);
        if ready != Some(REPLICAS) {
            self.kube.namespace(NAMESPACE).await;
            self.upgrade(&repository().join("charts/kv-operator")).await;
        }
    }

    /// Installs this chart over whatever is there.
    pub(crate) async fn upgrade(&self, chart: &Path) {
        let chart = chart.to_str().expect("the path is text");
        self.kube.must("helm", &["upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE, "--wait"]).await;
    }

    pub(crate) async fn roll_back(&self) {
        self.kube.must("helm", &["rollback", RELEASE, "--namespace", NAMESPACE, "--wait"]).await;
    }

    /// The CRD stays.
    pub(crate) async fn uninstall(&self) {
        let _ = self.kube.program("helm", &["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"]).await;
    }

    /// As a person would do it who wants no operator for a while.
    pub(crate) async fn scale(&self, replicas: i32) {
        let api: Api<Deployment> = Api::namespaced(self.kube.client.clone(), NAMESPACE);
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        api.patch(RELEASE, &PatchParams::default(), &patch).await.expect("the Deployment is scaled");
        eventually("the operator is scaled", 60, || async {
            let pods = self.pods().await;
            if pods.len() == usize::try_from(replicas).expect("a few") {
                Ok(())
            } else {
                Err(format!("{}", pods.len()))
            }
        })
        .await;
    }

    /// All of it at once, without a word.
    pub(crate) async fn kill(&self) {
        let at_once = DeleteParams::default().grace_period(0);
        for pod in self.pods().await {
            let _ = self.pod_api().delete(&pod.name_any(), &at_once).await;
        }
    }

    /// Kills it, and waits until another is there.
    pub(crate) async fn restart(&self) {
        self.kill().await;
        let rollout = ["rollout", "status", "deployment", RELEASE, "--timeout=60s", "--namespace", NAMESPACE];
        self.kube.must("kubectl", &rollout).await;
    }

    /// A counter by its labels as they are written (`{verb="get"}`), each of all operators together.
    pub(crate) async fn counters(&self, name: &str) -> Counters {
        let mut counters = Counters::new();
        for pod in self.pods().await {
            let told = self.kube.pod_get(NAMESPACE, &format!("{}:8080", pod.name_any()), "metrics").await;
            let told = told.expect("an operator tells its metrics");
            let series = told.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
            for (labels, value) in series.filter(|(labels, _)| labels.is_empty() || labels.starts_with('{')) {
                let value: u64 = value.parse().expect("a counter is a whole number");
                *counters.entry(labels.to_owned()).or_default() += value;
            }
        }
        assert!(!counters.is_empty(), "an operator tells {name}");
        counters
    }

    /// One of them.
    pub(crate) async fn counter(&self, name: &str, labels: &str) -> u64 {
        self.counters(name).await.get(labels).copied().unwrap_or_default()
    }

    /// Of the operator that needs most, in bytes, as the kubelets tell it.
    pub(crate) async fn memory_bytes(&self) -> f64 {
        let mut most = 0.0_f64;
        for pod in self.pods().await {
            let host = pod.spec.and_then(|spec| spec.node_name).expect("a pod that runs has a host");
            let path = format!("/api/v1/nodes/{host}/proxy/metrics/resource");
            let told = self.kube.must("kubectl", &["get", "--raw", &path]).await;
            let of_operator = told.lines().filter(|line| {
                line.starts_with("container_memory_working_set_bytes{") && line.contains("container=\"kv-operator\"")
            });
            let bytes = of_operator.filter_map(|line| line.split("} ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
            most = bytes.fold(most, f64::max);
        }
        most
    }

    fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.kube.client.clone(), NAMESPACE)
    }

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        let api = self.pod_api();
        eventually("the operator's pods can be listed", 15, || async {
            let listed = api.list(&ListParams::default().labels(OPERATOR)).await;
            listed.map(|pods| pods.items).map_err(|error| error.to_string())
        })
        .await
    }
}

/// A copy of the chart with another appVersion, and so with other default images.
pub(crate) fn chart_with_version(dir: &Path, version: &str) {
    copy_chart(dir);
    let manifest = dir.join("Chart.yaml");
    let text = std::fs::read_to_string(&manifest).expect("a chart has a Chart.yaml");
    let bumped = text.lines().map(|line| match line.split_once(": ") {
        Some((key @ ("version" | "appVersion"), _)) => format!("{key}: {version}\n"),
        _ => format!("{line}\n"),
    });
    std::fs::write(&manifest, bumped.collect::<String>()).expect("the copy can be written");
}

/// A copy of the chart whose definition lacks a field of the spec, as that of a release before it does.
pub(crate) fn chart_without_field(dir: &Path, field: &str) {
    copy_chart(dir);
    let definition = dir.join("files/kvclusters.kvcluster.dev.yaml");
    let text = std::fs::read_to_string(&definition).expect("the chart has the definition");
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut field_depth = None;
    let kept = text.lines().filter(|line| {
        field_depth = field_depth.filter(|of_field| depth(line) > *of_field);
        if line.trim() == format!("{field}:") {
            field_depth = Some(depth(line));
        }
        field_depth.is_none()
    });
    let kept: String = kept.map(|line| format!("{line}\n")).collect();
    assert!(kept.len() < text.len(), "the definition has the field {field}");
    std::fs::write(&definition, kept).expect("the copy can be written");
}

fn copy_chart(dir: &Path) {
    let chart = repository().join("charts/kv-operator");
    let copied = std::process::Command::new("cp").args(["-r".as_ref(), chart.as_os_str(), dir.as_os_str()]).status();
    assert!(copied.is_ok_and(|status| status.success()), "the chart is copied");
}
