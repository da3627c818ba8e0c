//! The operator under test, installed with the chart as the README says: helm alone changes it.

use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::kube::{Kube, repository};
use crate::waiting::eventually;

/// As in the README.
pub(crate) const RELEASE: &str = "kv-operator";
pub(crate) const NAMESPACE: &str = "kv-system";
/// The chart's default.
pub(crate) const REPLICAS: i32 = 2;

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

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        let api: Api<Pod> = Api::namespaced(self.kube.client.clone(), NAMESPACE);
        eventually("the operator's pods can be listed", 15, || async {
            let listed = api.list(&ListParams::default()).await;
            listed.map(|pods| pods.items).map_err(|error| error.to_string())
        })
        .await
    }
}

/// A copy of the chart with another appVersion, and so with other default images.
pub(crate) fn chart_with_version(dir: &Path, version: &str) {
    let chart = repository().join("charts/kv-operator");
    let copied = std::process::Command::new("cp").args(["-r".as_ref(), chart.as_os_str(), dir.as_os_str()]).status();
    assert!(copied.is_ok_and(|status| status.success()), "the chart is copied");
    let manifest = dir.join("Chart.yaml");
    let text = std::fs::read_to_string(&manifest).expect("a chart has a Chart.yaml");
    let bumped = text.lines().map(|line| match line.split_once(": ") {
        Some((key @ ("version" | "appVersion"), _)) => format!("{key}: {version}\n"),
        _ => format!("{line}\n"),
    });
    std::fs::write(&manifest, bumped.collect::<String>()).expect("the copy can be written");
}
