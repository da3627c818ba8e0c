//! Reads what there is: children, pods, claims, hosts, and each node's own status. Writes nothing, and
//! decides nothing but whose an object is, in `ownership`. What cannot be read of Kubernetes fails the
//! reconcile; a node that does not answer is unknown.

mod ownership;

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::future::{join_all, try_join_all};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DynamicObject};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::crd::{KvCluster, KvClusterSpec};
use crate::error::Error;
use crate::names::{Identity, ROLE_LABEL, SERVES_LABEL, SPEC_HASH};
use crate::node_client::{NodeClient, Nodes};
use crate::observed::{Answer, ClaimSeen, Foreign, Observed, PodSeen, Trouble, VolumeHost};
use crate::resources::{self, Child, Kind};
use crate::units;
use crate::validate;
use crate::watches::{Caches, api};
use ownership::{Owner, Scope, is_our_claim, owner, owner_of_pod, wrong_labels};

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
        trouble: Trouble::of(pod),
        answer: Answer::Unknown("it was not asked".to_owned()),
    }
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
