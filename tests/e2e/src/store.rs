//! A KvCluster in a namespace of its own: created, changed and watched as users do it, through the API
//! server alone.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kv_operator::crd::{KvCluster, KvClusterStatus};
use serde_json::{Value, json};

use crate::kube::{Kube, from_json};
use crate::waiting::eventually;

/// As in the README; every scenario has one, in its own namespace.
pub(crate) const NAME: &str = "demo";

#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) kube: Kube,
    pub(crate) namespace: String,
}

/// What tells one life of a pod's process from the next.
pub(crate) type Lives = BTreeMap<String, String>;

impl Store {
    pub(crate) fn new(kube: &Kube, namespace: &str) -> Self {
        Self { kube: kube.clone(), namespace: namespace.to_owned() }
    }

    pub(crate) fn api(&self) -> Api<KvCluster> {
        Api::namespaced(self.kube.client.clone(), &self.namespace)
    }

    pub(crate) fn pod_api(&self) -> Api<Pod> {
        Api::namespaced(self.kube.client.clone(), &self.namespace)
    }

    pub(crate) fn claim_api(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.kube.client.clone(), &self.namespace)
    }

    /// Makes the KvCluster; the spec is the user's, so nothing is filled in but a size.
    pub(crate) async fn create(&self, spec: Value) {
        self.create_named(NAME, spec).await;
    }

    /// One beside it.
    pub(crate) async fn create_named(&self, name: &str, mut spec: Value) {
        let members = spec.as_object_mut().expect("a spec is an object");
        members.entry("storage").or_insert_with(|| json!({"size": "1Gi"}));
        let object = from_json(json!({
            "apiVersion": "kvcluster.dev/v1alpha1", "kind": "KvCluster", "metadata": {"name": name}, "spec": spec,
        }));
        self.api().create(&PostParams::default(), &object).await.expect("the spec is accepted");
    }

    /// A merge patch, as `kubectl patch --type merge` sends it.
    pub(crate) async fn patch(&self, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        eventually("the patch is taken", 15, || async {
            let patched = self.api().patch(NAME, &PatchParams::default(), &patch).await;
            patched.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }

    pub(crate) async fn delete(&self) {
        self.api().delete(NAME, &DeleteParams::default()).await.expect("the KvCluster is deleted");
        eventually("the pods of a deleted cluster are gone", 90, || async {
            let pods = self.pods().await;
            if pods.is_empty() { Ok(()) } else { Err(format!("there are {:?}", names(&pods))) }
        })
        .await;
    }

    pub(crate) async fn status(&self) -> KvClusterStatus {
        eventually("the status can be read", 15, || async { Ok(self.try_status().await?.1) }).await
    }

    /// The generation of the spec, and the status.
    async fn try_status(&self) -> Result<(KvCluster, KvClusterStatus), String> {
        let mut cluster = self.api().get(NAME).await.map_err(|error| error.to_string())?;
        let status = cluster.status.take().unwrap_or_default();
        Ok((cluster, status))
    }

    /// Waits until the status, which must be about the present spec, is as wanted.
    pub(crate) async fn wait(&self, what: &str, seconds: u64, wanted: impl Fn(&KvCluster, &KvClusterStatus) -> bool) {
        let wanted = &wanted;
        eventually(what, seconds, || async move {
            let (cluster, status) = self.try_status().await?;
            let is_present = status.observed_generation == cluster.metadata.generation;
            if is_present && wanted(&cluster, &status) { Ok(()) } else { Err(told(&status)) }
        })
        .await;
    }

    /// Everybody is there, and nothing is under way.
    pub(crate) async fn healthy(&self, seconds: u64) {
        self.wait("the cluster is healthy", seconds, |cluster, status| {
            status.ready_replicas == cluster.spec.replicas
                && status.replicas == cluster.spec.replicas
                && is(status, "Available", "True")
                && (cluster.spec.replicas < 3 || is(status, "QuorumHealthy", "True"))
                && is(status, "Progressing", "False")
                && is(status, "Degraded", "False")
                && status.members.len() == usize::try_from(cluster.spec.replicas).expect("at least one")
                && status.members.iter().all(|member| member.voter && member.ready)
        })
        .await;
    }

    /// The pod that leads, as the status says it.
    pub(crate) async fn leader(&self) -> String {
        eventually("somebody leads", 30, || async {
            let (_, status) = self.try_status().await?;
            status.leader.ok_or_else(|| "nobody leads".to_owned())
        })
        .await
    }

    /// Some pod that does not lead.
    pub(crate) async fn follower(&self) -> String {
        let status = self.status().await;
        status.followers.first().cloned().expect("there is a follower")
    }

    pub(crate) async fn pods(&self) -> Vec<Pod> {
        let selected = ListParams::default().labels(&format!("app.kubernetes.io/instance={NAME}"));
        eventually("pods can be listed", 15, || async {
            self.pod_api().list(&selected).await.map(|pods| pods.items).map_err(|error| error.to_string())
        })
        .await
    }

    pub(crate) async fn pod(&self, name: &str) -> Pod {
        self.pod_api().get(name).await.expect("the pod is there")
    }

    /// A host that the leader is not on; None: there is none with a follower.
    pub(crate) async fn quiet_host(&self) -> Option<String> {
        let status = self.status().await;
        let host = |name: &String| status.members.iter().find(|member| member.name == *name)?.node.clone();
        let leader = status.leader.as_ref().and_then(host);
        status.followers.iter().filter_map(host).find(|found| leader.as_ref() != Some(found))
    }

    /// The host that a pod runs on.
    pub(crate) async fn host(&self, pod: &str) -> String {
        let spec = self.pod(pod).await.spec;
        spec.and_then(|spec| spec.node_name).expect("a pod that runs has a host")
    }

    /// Each pod with its uid, the number of its restarts and the moment of its last start.
    pub(crate) async fn lives(&self) -> Lives {
        let pods = self.pods().await;
        pods.iter().map(|pod| (pod.name_any(), life(pod))).collect()
    }

    pub(crate) async fn delete_pod(&self, name: &str, parameters: &DeleteParams) {
        self.pod_api().delete(name, parameters).await.expect("the pod is deleted");
    }

    /// Deletes a pod and waits until another has its name: until then the old one may still be ready.
    pub(crate) async fn replace_pod(&self, name: &str, parameters: &DeleteParams) {
        let old = self.pod(name).await.uid();
        self.delete_pod(name, parameters).await;
        self.replaced(name, old).await;
    }

    /// Waits until another pod than the one with this uid has the name.
    pub(crate) async fn replaced(&self, name: &str, old: Option<String>) {
        eventually("another pod has the name", 60, || async {
            let pod = self.pod_api().get_opt(name).await.map_err(|error| error.to_string())?;
            pod.filter(|pod| pod.uid() != old).map(|_| ()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }

    /// Takes a pod's volume and then the pod, as when its host is lost for good.
    pub(crate) async fn lose_volume(&self, pod: &str) {
        let claim = format!("data-{pod}");
        self.claim_api().delete(&claim, &DeleteParams::default()).await.expect("the claim is deleted");
        self.delete_pod(pod, &DeleteParams::default().grace_period(0)).await;
    }

    /// What a claim asks for.
    pub(crate) async fn claim_size(&self, claim: &str) -> String {
        let claim = self.claim_api().get(claim).await.expect("the claim is there");
        let requests = claim.spec.and_then(|spec| spec.resources?.requests);
        requests.and_then(|mut requests| requests.remove("storage")).expect("every claim asks for a size").0
    }

    /// As `kubectl drain` asks for it. Err: with the status.
    pub(crate) async fn evict(&self, pod: &str) -> Result<(), String> {
        match self.pod_api().evict(pod, &EvictParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(format!("{}: {}", status.code, status.message)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The budget is used up.
    pub(crate) async fn evicts_no_other(&self, pod: &str) {
        let refused = self.evict(pod).await;
        assert!(refused.as_ref().is_err_and(|said| said.starts_with("429")), "no second one may go: {refused:?}");
    }

    /// The `/status` of a node.
    pub(crate) async fn node_status(&self, pod: &str) -> Result<Value, String> {
        let told = self.kube.pod_get(&self.namespace, &format!("{pod}:8000"), "status").await?;
        serde_json::from_str(&told).map_err(|error| error.to_string())
    }

    /// A node has not heard another one for the time-out.
    pub(crate) async fn misses(&self, pod: &str, other: &str) -> Result<(), String> {
        let members = self.node_status(pod).await?["members"].take();
        let is_other = |member: &&Value| member["name"] == other;
        let found = members.as_array().and_then(|members| members.iter().find(is_other));
        if found.is_some_and(|member| member["health"] == "down") { Ok(()) } else { Err(members.to_string()) }
    }

    /// The Service of the leader holds the pod that leads and no other, even one that led before and still counts as
    /// ready; and takes a write.
    pub(crate) async fn leader_service(&self) {
        let api: Api<EndpointSlice> = Api::namespaced(self.kube.client.clone(), &self.namespace);
        let slices = ListParams::default().labels(&format!("kubernetes.io/service-name={NAME}-leader"));
        eventually("the leader's Service holds the leader alone", 10, || async {
            let leader = self.try_status().await?.1.leader.ok_or("nobody leads")?;
            let pod = self.pod_api().get(&leader).await.map_err(|error| error.to_string())?;
            let wanted: Vec<String> = pod.status.and_then(|status| status.pod_ip).into_iter().collect();
            let found = api.list(&slices).await.map_err(|error| error.to_string())?;
            let endpoints = found.items.into_iter().flat_map(|slice| slice.endpoints);
            let found: Vec<String> = endpoints.flat_map(|endpoint| endpoint.addresses).collect();
            if !found.is_empty() && found == wanted { Ok(()) } else { Err(format!("{found:?} and not {wanted:?}")) }
        })
        .await;
        eventually("a write through it is taken", 20, || async {
            let (service, body) = (format!("{NAME}-leader:8000"), json!({"value": 1}).to_string());
            self.kube.service_http("PUT", &self.namespace, &service, "key/to-the-leader", body.into_bytes()).await
        })
        .await;
    }

    /// `kubectl describe` shows Events of these reasons: they are written after the status is.
    pub(crate) async fn describes(&self, reasons: &[&str]) {
        let describe = ["describe", "kvcluster", NAME, "--namespace", &self.namespace];
        eventually(&format!("{reasons:?} are described"), 15, || async {
            let told = self.kube.program("kubectl", &describe).await?;
            let events = told.split_once("Events:").map_or("", |(_, events)| events);
            let is_told = |reason: &&str| events.split_whitespace().any(|word| word == *reason);
            if reasons.iter().all(is_told) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    /// The member id that a pod's volume has, as it was reported last.
    pub(crate) async fn member_id(&self, pod: &str) -> Option<String> {
        let members = self.status().await.members;
        members.into_iter().find(|member| member.name == pod)?.member_id
    }
}

fn life(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let restarts: i32 = containers.iter().map(|container| container.restart_count).sum();
    let started = containers.iter().find_map(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref());
    format!("{} restarted {restarts} times, started at {started:?}", pod.uid().unwrap_or_default())
}

pub(crate) fn names(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

pub(crate) fn condition<'a>(status: &'a KvClusterStatus, name: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == name)
}

pub(crate) fn is(status: &KvClusterStatus, name: &str, wanted: &str) -> bool {
    condition(status, name).is_some_and(|condition| condition.status == wanted)
}

/// Whether a condition has this reason.
pub(crate) fn because(status: &KvClusterStatus, name: &str, reason: &str) -> bool {
    condition(status, name).is_some_and(|condition| condition.reason == reason)
}

/// A status for the reader of a failure.
fn told(status: &KvClusterStatus) -> String {
    let conditions = status.conditions.iter().map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message));
    format!(
        "leader {:?}, {} of {} ready, {} updated; {}",
        status.leader,
        status.ready_replicas,
        status.replicas,
        status.updated_replicas,
        conditions.collect::<Vec<_>>().join("; ")
    )
}
