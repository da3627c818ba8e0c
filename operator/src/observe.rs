//! Reads what there is: children, pods, claims, hosts, and each node's own status. Writes nothing, and
//! decides nothing but whose an object is. What cannot be read of Kubernetes fails the reconcile; a node
//! that does not answer is unknown.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource, DynamicObject, GetParams, ListParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};

use crate::crd::KvCluster;
use crate::error::Error;
use crate::names::{FIELD_MANAGER, INSTANCE_LABEL, Identity, MANAGER_LABEL, ROLE_LABEL, SPEC_HASH};
use crate::node_client::NodeClient;
use crate::observed::{Answer, ClaimSeen, Foreign, Observed, PodSeen};
use crate::resources::{self, Child, Kind};
use crate::units;
use crate::validate;

/// Taints that announce the end of a host, besides `spec.unschedulable`.
const LEAVING_TAINTS: [&str; 5] = [
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// States of a container that has not failed but only begun.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// Where everything is read from.
#[derive(Clone)]
pub struct Sources {
    pub client: Client,
    pub nodes: NodeClient,
    /// Whether the PodMonitor kind is installed.
    pub pod_monitors: bool,
}

/// May be cancelled: reads only.
pub async fn observe(sources: &Sources, cluster: &KvCluster) -> Result<Observed, Error> {
    let identity = validate::identity(cluster);
    let (children, foreign) = children(sources, &identity).await?;
    Ok(Observed {
        generation: cluster.metadata.generation.unwrap_or_default(),
        status: cluster.status.clone().unwrap_or_default(),
        children,
        foreign,
        pods: pods(sources, &identity).await?,
        claims: claims(sources, &identity).await?,
        pod_monitors: sources.pod_monitors,
    })
}

/// The API of one kind of children.
pub(crate) fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    let (group, version, plural) = kind.api();
    let kind = GroupVersionKind::gvk(group, version, kind.as_str());
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, plural))
}

async fn children(sources: &Sources, identity: &Identity) -> Result<(Vec<Child>, Vec<Foreign>), Error> {
    let names = resources::names(identity).into_iter();
    let readable = names.filter(|(kind, _)| *kind != Kind::PodMonitor || sources.pod_monitors);
    let reads = readable.map(|(kind, name)| async move {
        let api = api(&sources.client, kind, &identity.namespace);
        let object = get(&api, &name).await.map_err(Error::read(format!("{} {name}", kind.as_str())))?;
        Ok::<_, Error>(object.map(|object| (kind, name, object)))
    });
    let (mut ours, mut foreign) = (Vec::new(), Vec::new());
    for (kind, name, object) in try_join_all(reads).await?.into_iter().flatten() {
        match owner(identity, &object.metadata) {
            Owner::Us => ours.push(Child { kind, name, object: value(&object) }),
            Owner::FormerCluster => foreign.push(Foreign { kind: kind.as_str(), name, former: true }),
            Owner::SomebodyElse => foreign.push(Foreign { kind: kind.as_str(), name, former: false }),
        }
    }
    Ok((ours, foreign))
}

/// From the API server's cache: what is late there is written again, which changes nothing.
async fn get(api: &Api<DynamicObject>, name: &str) -> kube::Result<Option<DynamicObject>> {
    match api.get_with(name, &GetParams::any()).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn value(object: &DynamicObject) -> serde_json::Value {
    serde_json::to_value(object).expect("it was JSON when it came")
}

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Us,
    FormerCluster,
    SomebodyElse,
}

/// Children that nobody controls and that carry our labels are adopted.
fn owner(identity: &Identity, metadata: &ObjectMeta) -> Owner {
    let mut owners = metadata.owner_references.iter().flatten();
    let Some(controller) = owners.find(|owner| owner.controller == Some(true)) else {
        let label = |key| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let labelled = label(INSTANCE_LABEL) == Some(&identity.name) && label(MANAGER_LABEL) == Some(FIELD_MANAGER);
        return if labelled { Owner::Us } else { Owner::SomebodyElse };
    };
    let of_this_name = controller.kind == "KvCluster" && controller.name == identity.name;
    match () {
        () if controller.uid == identity.uid => Owner::Us,
        () if of_this_name => Owner::FormerCluster,
        () => Owner::SomebodyElse,
    }
}

async fn pods(sources: &Sources, identity: &Identity) -> Result<BTreeMap<u32, PodSeen>, Error> {
    let api: Api<Pod> = Api::namespaced(sources.client.clone(), &identity.namespace);
    let pods = api.list(&ours(identity)).await.map_err(Error::read("pods"))?.items;
    let pods = pods.into_iter().filter_map(|pod| Some((identity.ordinal(&pod.name_any())?, pod_seen(&pod))));
    let mut pods: BTreeMap<u32, PodSeen> = pods.collect();
    let nodes = sources.nodes.with_token(None);
    let questions = pods.values_mut().map(|pod| async {
        pod.answer = match pod.url() {
            None => Answer::Unknown("it has no address yet".to_owned()),
            Some(url) => match nodes.status(&pod.name, &url).await {
                Ok(status) => Answer::Status(Box::new(status)),
                Err(error) => Answer::Unknown(error.to_string()),
            },
        };
        pod.cordoned = match &pod.host {
            Some(host) => is_leaving(&sources.client, host).await?,
            None => false,
        };
        Ok::<(), Error>(())
    });
    for asked in join_all(questions).await {
        asked?;
    }
    Ok(pods)
}

/// The API server's cache is good enough for what is asked again in seconds.
fn ours(identity: &Identity) -> ListParams {
    ListParams::default().labels(&identity.selector_text()).match_any()
}

fn pod_seen(pod: &Pod) -> PodSeen {
    let status = pod.status.clone().unwrap_or_default();
    let has = |kind: &str| status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
    PodSeen {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        ip: status.pod_ip.clone().filter(|ip| !ip.is_empty()),
        host: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        cordoned: false,
        ready: has("Ready"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        spec_hash: pod.annotations().get(SPEC_HASH).cloned(),
        role_label: pod.labels().get(ROLE_LABEL).cloned(),
        trouble: trouble(pod),
        answer: Answer::Unknown("it was not asked".to_owned()),
    }
}

/// Why a pod does not run: not scheduled, or a container that waits for more than its start.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let mut failed = waiting.filter_map(|waiting| {
        let reason = waiting.reason.clone().filter(|reason| !STARTING.contains(&reason.as_str()))?;
        Some(waiting.message.as_ref().map_or(reason.clone(), |message| format!("{reason}: {message}")))
    });
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unscheduled = unscheduled.and_then(|condition| condition.message.clone().or(condition.reason.clone()));
    failed.next().or(unscheduled)
}

/// A host that was removed has nothing left to drain; one that may not be read is taken to stay.
async fn is_leaving(client: &Client, host: &str) -> Result<bool, Error> {
    let api: Api<Node> = Api::all(client.clone());
    let node = match api.get_with(host, &GetParams::any()).await {
        Ok(node) => node,
        Err(kube::Error::Api(status)) if status.is_not_found() || status.code == 403 => return Ok(false),
        Err(error) => return Err(Error::read(format!("node {host}"))(error)),
    };
    let spec = node.spec.unwrap_or_default();
    let mut taints = spec.taints.iter().flatten();
    Ok(spec.unschedulable == Some(true) || taints.any(|taint| LEAVING_TAINTS.contains(&taint.key.as_str())))
}

async fn claims(sources: &Sources, identity: &Identity) -> Result<BTreeMap<u32, ClaimSeen>, Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(sources.client.clone(), &identity.namespace);
    let claims = api.list(&ours(identity)).await.map_err(Error::read("claims"))?.items;
    Ok(claims.iter().filter_map(|claim| claim_seen(identity, claim)).collect())
}

fn claim_seen(identity: &Identity, claim: &PersistentVolumeClaim) -> Option<(u32, ClaimSeen)> {
    let name = claim.name_any();
    let ordinal = identity.ordinal(name.strip_prefix(crate::names::VOLUME)?.strip_prefix('-')?)?;
    let bytes = |quantities: Option<&BTreeMap<String, _>>| {
        let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = quantities?.get("storage")?;
        units::quantity(&quantity.0)
    };
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    Some((ordinal, ClaimSeen { name, requested: bytes(requests)?, capacity: bytes(capacity) }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn identity() -> Identity {
        Identity { name: "demo".into(), namespace: "apps".into(), uid: "new".into() }
    }

    fn controlled_by(kind: &str, name: &str, uid: &str) -> ObjectMeta {
        let owner = OwnerReference {
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() }
    }

    #[test]
    fn children_are_told_from_leftovers_and_from_what_is_somebody_elses() {
        let us = |metadata: &ObjectMeta| owner(&identity(), metadata);
        assert_eq!(us(&controlled_by("KvCluster", "demo", "new")), Owner::Us);
        assert_eq!(us(&controlled_by("KvCluster", "demo", "old")), Owner::FormerCluster);
        assert_eq!(us(&controlled_by("KvCluster", "other", "old")), Owner::SomebodyElse);
        assert_eq!(us(&controlled_by("Deployment", "demo", "old")), Owner::SomebodyElse);
        assert_eq!(us(&ObjectMeta::default()), Owner::SomebodyElse);
        let orphan = ObjectMeta { labels: Some(identity().labels()), ..ObjectMeta::default() };
        assert_eq!(us(&orphan), Owner::Us, "a set that was deleted without its pods leaves such");
    }

    #[test]
    fn a_container_that_starts_is_no_trouble_and_one_that_crashes_is() {
        let pod = |reason: &str| {
            let text = format!(
                "{{status: {{containerStatuses: [{{name: a, image: a, imageID: a, ready: false, restartCount: 0, state: {{waiting: {{reason: {reason}}}}}}}]}}}}"
            );
            serde_yaml::from_str::<Pod>(&text).unwrap()
        };
        assert_eq!(trouble(&pod("ContainerCreating")), None);
        assert_eq!(trouble(&pod("CrashLoopBackOff")).as_deref(), Some("CrashLoopBackOff"));
    }
}
