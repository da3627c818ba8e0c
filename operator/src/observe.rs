//! Reads what there is: children, pods, claims, hosts, and each node's own status. Writes nothing, and
//! decides nothing but whose an object is. What cannot be read of Kubernetes fails the reconcile; a node
//! that does not answer is unknown.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::future::{join_all, try_join_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DynamicObject};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::crd::{KvCluster, KvClusterSpec};
use crate::error::Error;
use crate::names::{
    APP, APP_LABEL, FIELD_MANAGER, INSTANCE_LABEL, Identity, MANAGER_LABEL, ROLE_LABEL, SERVES_LABEL, SPEC_HASH,
};
use crate::node_client::{NodeClient, Nodes};
use crate::observed::{Answer, ClaimSeen, Foreign, Observed, PodSeen, Trouble, VolumeHost};
use crate::resources::{self, Child, Kind};
use crate::units;
use crate::validate;
use crate::watches::{Caches, api};

/// States of a container that has not failed but only begun.
const STARTING: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// On a claim whose volume is made when the first pod wants it.
const SELECTED_HOST: &str = "volume.kubernetes.io/selected-node";

/// Where everything is read from.
#[derive(Clone)]
pub struct Sources {
    pub client: Client,
    pub nodes: NodeClient,
    pub caches: Caches,
}

/// May be cancelled: reads only.
pub async fn observe(sources: &Sources, cluster: &KvCluster) -> Result<Observed, Error> {
    let identity = Identity::of(cluster);
    let (children, mut foreign) = children(sources, &identity, &cluster.spec).await?;
    let set = children.iter().find(|child| child.kind == Kind::StatefulSet).map(|child| &child.object);
    let scope = Scope {
        identity: &identity,
        set_uid: set.and_then(|set| set["metadata"]["uid"].as_str()),
        is_new: children.is_empty(),
        expected: expected(&cluster.spec, set),
    };
    let mut pods = pods(sources, &scope, &mut foreign).await?;
    let claims = claims(sources, &scope, &pods, &mut foreign).await?;
    ask(&sources.nodes.with_token(None), &mut pods).await;
    Ok(Observed {
        generation: cluster.metadata.generation.unwrap_or_default(),
        status: cluster.status.clone().unwrap_or_default(),
        children,
        foreign,
        pods,
        claims,
        pod_monitors: sources.caches.pod_monitors(),
    })
}

/// What tells our pods and claims from others.
struct Scope<'a> {
    identity: &'a Identity,
    set_uid: Option<&'a str>,
    /// No child of this very cluster exists yet.
    is_new: bool,
    /// Pods and claims with lower ordinals are to exist.
    expected: u32,
}

fn expected(spec: &KvClusterSpec, set: Option<&serde_json::Value>) -> u32 {
    let present = set.and_then(|set| u32::try_from(set["spec"]["replicas"].as_u64()?).ok());
    u32::try_from(spec.replicas).unwrap_or_default().min(validate::REPLICAS_MAX).max(present.unwrap_or_default())
}

/// What a cache does not hold, and should, is looked up: it may be there without our label.
async fn look_up<K>(api: &Api<K>, what: &str, name: &str) -> Result<Option<K>, Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    api.get_opt(name).await.map_err(Error::read(format!("{what} {name}")))
}

async fn children(
    sources: &Sources,
    identity: &Identity,
    spec: &KvClusterSpec,
) -> Result<(Vec<Child>, Vec<Foreign>), Error> {
    let needed = |kind: Kind| match kind {
        Kind::PodDisruptionBudget => spec.replicas > 1,
        Kind::PodMonitor => spec.monitoring.pod_monitor && sources.caches.pod_monitors(),
        _ => true,
    };
    let reads = resources::names(identity).into_iter().map(|(kind, name)| async move {
        let cached = sources.caches.child(kind, &identity.namespace, &name);
        let object: Option<DynamicObject> = match cached {
            None if needed(kind) => {
                look_up(&api(&sources.client, kind, &identity.namespace), kind.as_str(), &name).await?
            }
            cached => cached,
        };
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

/// Those in the cache, and those that are to exist and are not there, by ordinal.
async fn by_ordinal<K>(
    sources: &Sources,
    scope: &Scope<'_>,
    cached: Vec<K>,
    ordinal_of: impl Fn(&str) -> Option<u32>,
    name_of: impl Fn(u32) -> String,
) -> Result<BTreeMap<u32, K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let cached = cached.into_iter().filter_map(|object| Some((ordinal_of(&object.name_any())?, object)));
    let mut found: BTreeMap<u32, K> = cached.collect();
    let api: Api<K> = Api::namespaced(sources.client.clone(), &scope.identity.namespace);
    for ordinal in (0..scope.expected).filter(|ordinal| !found.contains_key(ordinal)).collect::<Vec<_>>() {
        if let Some(object) = look_up(&api, &K::kind(&()), &name_of(ordinal)).await? {
            found.insert(ordinal, object);
        }
    }
    Ok(found)
}

async fn pods(
    sources: &Sources,
    scope: &Scope<'_>,
    foreign: &mut Vec<Foreign>,
) -> Result<BTreeMap<u32, PodSeen>, Error> {
    let identity = scope.identity;
    let cached = sources.caches.pods(&identity.namespace, |name| identity.ordinal(name).is_some());
    let ordinal_of = |name: &str| identity.ordinal(name);
    let all = by_ordinal(sources, scope, cached, ordinal_of, |ordinal| identity.pod(ordinal)).await?;
    let mut pods = BTreeMap::new();
    for (ordinal, pod) in all {
        match owner_of_pod(scope, &pod) {
            Owner::Us => {
                let seen = pod_seen(identity, &pod);
                let cordoned = seen.host.as_ref().is_some_and(|host| sources.caches.is_leaving(host));
                pods.insert(ordinal, PodSeen { cordoned, ..seen });
            }
            Owner::FormerCluster => foreign.push(Foreign { kind: "Pod", name: pod.name_any(), former: true }),
            Owner::SomebodyElse if ordinal < scope.expected => {
                foreign.push(Foreign { kind: "Pod", name: pod.name_any(), former: false });
            }
            Owner::SomebodyElse => {}
        }
    }
    Ok(pods)
}

/// By the uid of the set that controls it. One that nobody controls is left by a set that was deleted without
/// its pods, or let go because its labels were edited; what our set once wrote on it tells it from a stranger.
fn owner_of_pod(scope: &Scope<'_>, pod: &Pod) -> Owner {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    match owners.find(|owner| owner.controller == Some(true)) {
        None if pod.annotations().contains_key(SPEC_HASH) && !scope.is_new => Owner::Us,
        None => Owner::SomebodyElse,
        Some(set) if set.kind != Kind::StatefulSet.as_str() || set.name != scope.identity.name => Owner::SomebodyElse,
        Some(set) if Some(set.uid.as_str()) == scope.set_uid || !scope.is_new => Owner::Us,
        Some(_) => Owner::FormerCluster,
    }
}

/// Each node about itself, all at once.
async fn ask(nodes: &Nodes<'_>, pods: &mut BTreeMap<u32, PodSeen>) {
    let questions = pods.values_mut().map(|pod| async {
        pod.answer = match pod.url() {
            None => Answer::Unknown("it has no address yet".to_owned()),
            Some(url) => match nodes.status(&pod.name, &url).await {
                Ok(status) => Answer::Status(Box::new(status)),
                Err(error) => Answer::Unknown(error.to_string()),
            },
        };
    });
    join_all(questions).await;
}

fn pod_seen(identity: &Identity, pod: &Pod) -> PodSeen {
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
        serves_label: pod.labels().get(SERVES_LABEL).cloned(),
        relabel: wrong_labels(identity, &pod.metadata),
        trouble: trouble(pod),
        answer: Answer::Unknown("it was not asked".to_owned()),
    }
}

/// Why a pod does not run: not scheduled, or a container that waits for more than its start.
fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let mut failed = waiting.filter_map(|waiting| {
        let reason = waiting.reason.clone().filter(|reason| !STARTING.contains(&reason.as_str()))?;
        Some(Trouble::Waiting { reason, message: waiting.message.clone() })
    });
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unscheduled = unscheduled.and_then(|condition| condition.message.clone().or(condition.reason.clone()));
    failed.next().or(unscheduled.map(|message| Trouble::Unscheduled { message }))
}

/// Our labels that are missing or were edited.
fn wrong_labels(identity: &Identity, metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let present = metadata.labels.clone().unwrap_or_default();
    identity.labels().into_iter().filter(|(key, value)| present.get(key) != Some(value)).collect()
}

async fn claims(
    sources: &Sources,
    scope: &Scope<'_>,
    pods: &BTreeMap<u32, PodSeen>,
    foreign: &mut Vec<Foreign>,
) -> Result<BTreeMap<u32, ClaimSeen>, Error> {
    let identity = scope.identity;
    let ordinal_of = |name: &str| identity.claim_ordinal(name);
    let cached = sources.caches.claims(&identity.namespace, |name| ordinal_of(name).is_some());
    let all = by_ordinal(sources, scope, cached, ordinal_of, |ordinal| identity.claim(ordinal)).await?;
    let mut claims = BTreeMap::new();
    for (ordinal, claim) in all {
        if is_our_claim(identity, &claim) || pods.contains_key(&ordinal) {
            let host = volume_host(&sources.caches, &claim);
            claims.extend(claim_seen(identity, &claim).map(|seen| (ordinal, ClaimSeen { host, ..seen })));
        } else if ordinal < scope.expected {
            foreign.push(Foreign { kind: "PersistentVolumeClaim", name: claim.name_any(), former: false });
        }
    }
    Ok(claims)
}

/// Claims have no owner when they are kept; their labels are those of the cluster's name, for it to come back.
/// One that a pod of ours uses is ours whatever its labels say.
fn is_our_claim(identity: &Identity, claim: &PersistentVolumeClaim) -> bool {
    let labels = claim.labels();
    let has = |key: &str, value: &str| labels.get(key).map(String::as_str) == Some(value);
    has(INSTANCE_LABEL, &identity.name) && has(APP_LABEL, APP)
}

/// The scheduler writes down for which host it has a volume made.
fn volume_host(caches: &Caches, claim: &PersistentVolumeClaim) -> Option<VolumeHost> {
    let name = claim.annotations().get(SELECTED_HOST)?.clone();
    Some(VolumeHost { is_gone: caches.is_gone(&name), name })
}

/// None: it asks for nothing that can be read, which Kubernetes does not allow.
fn claim_seen(identity: &Identity, claim: &PersistentVolumeClaim) -> Option<ClaimSeen> {
    let bytes = |quantities: Option<&BTreeMap<String, _>>| {
        let quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity = quantities?.get("storage")?;
        units::quantity(&quantity.0)
    };
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let capacity = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    Some(ClaimSeen {
        name: claim.name_any(),
        requested: bytes(requests)?,
        capacity: bytes(capacity),
        host: None,
        relabel: wrong_labels(identity, &claim.metadata),
    })
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
    fn pods_are_told_apart_by_the_set_that_controls_them_and_not_by_their_labels() {
        let identity = identity();
        let of = |set_uid: Option<&str>, is_new: bool, metadata: ObjectMeta| {
            let scope = Scope { identity: &identity, set_uid, is_new, expected: 3 };
            owner_of_pod(&scope, &Pod { metadata, ..Pod::default() })
        };
        let by = |uid: &str| controlled_by("StatefulSet", "demo", uid);
        assert_eq!(of(Some("set"), false, by("set")), Owner::Us);
        assert_eq!(of(None, true, by("old")), Owner::FormerCluster, "of a cluster that was deleted");
        assert_eq!(of(None, false, by("old")), Owner::Us, "the set was deleted by hand");
        assert_eq!(of(Some("set"), false, controlled_by("StatefulSet", "other", "set")), Owner::SomebodyElse);
        let labelled = ObjectMeta { labels: Some(identity.labels()), ..ObjectMeta::default() };
        assert_eq!(of(Some("set"), false, labelled), Owner::SomebodyElse, "labels alone make nothing ours");
        let annotations = [(SPEC_HASH.to_owned(), "1".to_owned())].into();
        let orphan = ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() };
        assert_eq!(of(None, false, orphan.clone()), Owner::Us);
        assert_eq!(of(None, true, orphan), Owner::SomebodyElse);
    }

    #[test]
    fn claims_are_ours_by_the_cluster_s_name_and_what_was_edited_is_known() {
        let identity = identity();
        let claim = |labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let metadata = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
            PersistentVolumeClaim { metadata, ..PersistentVolumeClaim::default() }
        };
        let kept = claim(&[(APP_LABEL, APP), (INSTANCE_LABEL, "demo")]);
        assert!(is_our_claim(&identity, &kept));
        assert_eq!(wrong_labels(&identity, &kept.metadata).into_keys().collect::<Vec<_>>(), [MANAGER_LABEL]);
        assert!(!is_our_claim(&identity, &claim(&[(APP_LABEL, APP), (INSTANCE_LABEL, "other")])));
        assert!(!is_our_claim(&identity, &claim(&[])));
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
        let crash = Trouble::Waiting { reason: "CrashLoopBackOff".to_owned(), message: None };
        assert_eq!(trouble(&pod("CrashLoopBackOff")), Some(crash));
    }
}
