//! What the operator watches, and the caches that the watches keep: every read of Kubernetes is answered
//! from them, so that a cluster at rest costs the API server nothing. Says which cluster a change is
//! about. Writes nothing; `controller` runs it, `observe` reads it.
//!
//! Children, pods and claims are watched by our label. Whoever misses one looks it up by name: it may
//! have lost the label, or belong to somebody else.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::stream::{self, BoxStream, StreamExt, select_all};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::controller::Guarded;
use crate::crd::KvCluster;
use crate::names::{APP, APP_LABEL, INSTANCE_LABEL, VOLUME};
use crate::resources::Kind;

/// Taints that announce the end of a host, besides `spec.unschedulable`.
const LEAVING_TAINTS: [&str; 5] = [
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
];

/// Taints of a host that does not answer any more.
const GONE_TAINTS: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service"];

/// The definition of the one kind that may be missing, and come later.
const POD_MONITORS: &str = "podmonitors.monitoring.coreos.com";

/// The objects of all namespaces, or of one, as the watches last told them. Clones are the same.
#[derive(Clone)]
pub struct Caches {
    children: BTreeMap<Kind, Store<DynamicObject>>,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    hosts: Store<Node>,
    /// Whether the PodMonitor kind is installed.
    pod_monitors: watch::Receiver<bool>,
}

/// Which cluster something was about.
pub(crate) type Triggers = BoxStream<'static, ObjectRef<Guarded>>;

/// The triggers must be polled for the caches to be filled.
pub(crate) fn start(client: &Client, namespace: Option<&str>) -> (Caches, Triggers) {
    let ours = || watcher::Config::default().labels(&format!("{APP_LABEL}={APP}"));
    let mut triggers: Vec<Triggers> = Vec::new();
    let (installed, pod_monitors) = watch::channel(false);
    triggers.push(definitions(client, installed));
    let mut children = BTreeMap::new();
    for kind in Kind::ALL {
        let (reader, writer) = store_of(kind);
        let changes = follow(kind.as_str(), api_in(client, kind, namespace), ours(), strip, writer);
        let changes = if kind == Kind::PodMonitor { once_installed(pod_monitors.clone(), changes) } else { changes };
        triggers.push(changes.filter_map(async |object| cluster_of_child(&object)).boxed());
        children.insert(kind, reader);
    }
    let (pods, writer) = store::<Pod>();
    let changes = follow("pods", namespaced(client, namespace), ours(), strip, writer);
    triggers.push(changes.filter_map(async |pod| cluster_of_pod(&pod.name_any(), pod.namespace()?)).boxed());
    let (claims, writer) = store();
    let changes = follow("claims", namespaced(client, namespace), ours(), strip, writer);
    triggers.push(changes.filter_map(async |claim: PersistentVolumeClaim| cluster_of_claim(&claim)).boxed());
    let (hosts, writer) = store();
    let changes = follow("nodes", Api::all(client.clone()), watcher::Config::default(), strip_host, writer);
    triggers.push(drains(changes, pods.clone()));
    (Caches { children, pods, claims, hosts, pod_monitors }, select_all(triggers).boxed())
}

impl Caches {
    /// Everything has been listed once. Hosts are not waited for: who may not read them takes them to stay.
    pub(crate) fn are_filled(&self) -> bool {
        let Self { children, pods, claims, hosts: _, pod_monitors: _ } = self;
        let mut needed = children.iter().filter(|(kind, _)| **kind != Kind::PodMonitor);
        needed.all(|(_, store)| is_filled(store)) && is_filled(pods) && is_filled(claims)
    }

    /// As they would be after watches that showed these objects.
    #[cfg(test)]
    pub(crate) fn of(
        children: [(Kind, Vec<DynamicObject>); Kind::ALL.len()],
        pods: Vec<Pod>,
        claims: Vec<PersistentVolumeClaim>,
        has_pod_monitors: bool,
    ) -> Self {
        fn filled<K>((reader, mut writer): (Store<K>, Writer<K>), objects: Vec<K>) -> Store<K>
        where
            K: Resource + Clone + 'static,
            K::DynamicType: Eq + Hash + Clone,
        {
            let found = objects.into_iter().map(watcher::Event::InitApply);
            let events = std::iter::once(watcher::Event::Init).chain(found).chain([watcher::Event::InitDone]);
            events.for_each(|event| writer.apply_watcher_event(&event));
            reader
        }
        let children = children.into_iter().map(|(kind, objects)| (kind, filled(store_of(kind), objects)));
        Self {
            children: children.collect(),
            pods: filled(store(), pods),
            claims: filled(store(), claims),
            hosts: filled(store(), Vec::new()),
            pod_monitors: watch::channel(has_pod_monitors).1,
        }
    }

    pub(crate) fn child(&self, kind: Kind, namespace: &str, name: &str) -> Option<DynamicObject> {
        let key = ObjectRef::new_with(name, resource(kind)).within(namespace);
        let mut object = (*self.children[&kind].get(&key)?).clone();
        // A list says the kind once for all.
        object.types.get_or_insert_with(|| kube::core::TypeMeta {
            api_version: resource(kind).api_version,
            kind: kind.as_str().to_owned(),
        });
        Some(object)
    }

    pub(crate) fn pods(&self, namespace: &str, is_meant: impl Fn(&str) -> bool) -> Vec<Pod> {
        named(&self.pods, namespace, is_meant)
    }

    pub(crate) fn claims(&self, namespace: &str, is_meant: impl Fn(&str) -> bool) -> Vec<PersistentVolumeClaim> {
        named(&self.claims, namespace, is_meant)
    }

    /// It is being drained. A host that was removed has nothing left to drain.
    pub(crate) fn is_leaving(&self, host: &str) -> bool {
        self.hosts.get(&ObjectRef::new(host)).is_some_and(|host| is_leaving(&host))
    }

    /// It was removed, or does not answer. Who may not list hosts takes them to be there.
    pub(crate) fn is_gone(&self, host: &str) -> bool {
        let is_silent = |host: &Node| has_taint(host, &GONE_TAINTS);
        is_filled(&self.hosts) && self.hosts.get(&ObjectRef::new(host)).is_none_or(|host| is_silent(&host))
    }

    pub(crate) fn pod_monitors(&self) -> bool {
        *self.pod_monitors.borrow()
    }
}

fn is_filled<K>(store: &Store<K>) -> bool
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store.wait_until_ready().now_or_never().is_some()
}

fn named<K>(store: &Store<K>, namespace: &str, is_meant: impl Fn(&str) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let found = store.state_filter(|object| {
        let meta = object.meta();
        meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref().is_some_and(&is_meant)
    });
    found.into_iter().map(|object| (*object).clone()).collect()
}

/// The API of one kind of children.
pub(crate) fn api(client: &Client, kind: Kind, namespace: &str) -> Api<DynamicObject> {
    api_in(client, kind, Some(namespace))
}

fn api_in(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
        None => Api::all_with(client.clone(), &resource(kind)),
    }
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = kind.api();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.as_str()), plural)
}

fn store_of(kind: Kind) -> (Store<DynamicObject>, Writer<DynamicObject>) {
    let writer = Writer::new(resource(kind));
    (writer.as_reader(), writer)
}

fn namespaced<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

/// Keeps a store filled, and tells what changed. A watch that fails is begun anew, with pauses.
fn follow<K>(
    what: &'static str,
    api: Api<K>,
    config: watcher::Config,
    strip: fn(&mut K),
    writer: Writer<K>,
) -> BoxStream<'static, K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Send + Sync,
{
    let changes = watcher(api, config).default_backoff().modify(strip).reflect(writer).touched_objects();
    changes
        .filter_map(move |change| {
            let failed = |error: &watcher::Error| tracing::warn!(what, %error, "a watch failed and begins anew");
            std::future::ready(change.inspect_err(failed).ok())
        })
        .boxed()
}

/// Nobody here reads who wrote what.
fn strip<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Of hosts there may be many, and most of what they say is long.
fn strip_host(host: &mut Node) {
    strip(host);
    (host.status, host.metadata.annotations) = (None, None);
}

/// Whether the kind is there is told to `installed`; no cluster is named. A list is complete at its end only: a
/// store would not hold yet what is being listed.
fn definitions(client: &Client, installed: watch::Sender<bool>) -> Triggers {
    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk_with_plural(&kind, "customresourcedefinitions");
    let config = watcher::Config::default().fields(&format!("metadata.name={POD_MONITORS}"));
    let changes = watcher(Api::<DynamicObject>::all_with(client.clone(), &resource), config).default_backoff();
    let mut listed = false;
    let told = changes.filter_map(move |change| {
        match change {
            Ok(watcher::Event::Init) => listed = false,
            Ok(watcher::Event::InitApply(_)) => listed = true,
            Ok(watcher::Event::InitDone) => drop(installed.send_replace(listed)),
            Ok(watcher::Event::Apply(_)) => drop(installed.send_replace(true)),
            Ok(watcher::Event::Delete(_)) => drop(installed.send_replace(false)),
            Err(error) => tracing::warn!(%error, "the watch of the PodMonitor kind failed and begins anew"),
        }
        std::future::ready(None)
    });
    told.boxed()
}

fn once_installed<K: Send + 'static>(
    mut installed: watch::Receiver<bool>,
    changes: BoxStream<'static, K>,
) -> BoxStream<'static, K> {
    let ready = async move { installed.wait_for(|installed| *installed).await.is_ok() };
    stream::once(ready)
        .filter(|known| std::future::ready(*known))
        .flat_map({
            let mut changes = Some(changes);
            move |_| changes.take().unwrap_or_else(|| stream::empty().boxed())
        })
        .boxed()
}

/// A host that is to be drained, or is not any more, is about the clusters with a pod on it.
fn drains(changes: BoxStream<'static, Node>, pods: Store<Pod>) -> Triggers {
    let known: Mutex<HashMap<String, bool>> = Mutex::default();
    let changed = move |host: &Node| {
        let leaving = is_leaving(host);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(host.name_any(), leaving).unwrap_or_default() != leaving
    };
    changes
        .filter(move |host| std::future::ready(changed(host)))
        .flat_map(move |host| {
            let name = host.name_any();
            let on_it = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&name);
            let clusters = pods.state_filter(on_it);
            stream::iter(clusters.into_iter().filter_map(|pod| cluster_of_pod(&pod.name_any(), pod.namespace()?)))
        })
        .boxed()
}

fn is_leaving(host: &Node) -> bool {
    let is_cordoned = host.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    is_cordoned || has_taint(host, &LEAVING_TAINTS)
}

fn has_taint(host: &Node, keys: &[&str]) -> bool {
    let mut taints = host.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.any(|taint| keys.contains(&taint.key.as_str()))
}

/// By owner, else by label: either may have been edited.
fn cluster_of_child(object: &DynamicObject) -> Option<ObjectRef<Guarded>> {
    let owners = object.metadata.owner_references.iter().flatten();
    let mut ours = owners.filter(|owner| owner.kind == KvCluster::kind(&()));
    let name = ours.next().map(|owner| owner.name.clone()).or_else(|| object.labels().get(INSTANCE_LABEL).cloned())?;
    Some(ObjectRef::new(&name).within(&object.namespace()?))
}

/// By name: labels may have been edited.
fn cluster_of_pod(pod: &str, namespace: String) -> Option<ObjectRef<Guarded>> {
    let (cluster, _) = pod.rsplit_once('-')?;
    Some(ObjectRef::new(cluster).within(&namespace))
}

fn cluster_of_claim(claim: &PersistentVolumeClaim) -> Option<ObjectRef<Guarded>> {
    let name = claim.name_any();
    cluster_of_pod(name.strip_prefix(VOLUME)?.strip_prefix('-')?, claim.namespace()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_about_the_cluster_by_name_whatever_the_labels_say() {
        let pod = cluster_of_pod("demo-x-2", "apps".to_owned()).unwrap();
        assert_eq!((pod.name.as_str(), pod.namespace.as_deref()), ("demo-x", Some("apps")));
        let claim = |name: &str| {
            let mut claim = PersistentVolumeClaim::default();
            (claim.metadata.name, claim.metadata.namespace) = (Some(name.to_owned()), Some("apps".to_owned()));
            cluster_of_claim(&claim).map(|cluster| cluster.name)
        };
        assert_eq!(claim("data-demo-0").as_deref(), Some("demo"));
        assert_eq!((claim("other-demo-0"), claim("data")), (None, None));
    }

    #[test]
    fn a_host_is_leaving_when_it_is_cordoned_or_tainted_for_its_end() {
        let host = |spec: &str| serde_yaml::from_str::<Node>(&format!("{{spec: {spec}}}")).unwrap();
        assert!(is_leaving(&host("{unschedulable: true}")));
        assert!(is_leaving(&host("{taints: [{key: karpenter.sh/disrupted, effect: NoSchedule}]}")));
        assert!(!is_leaving(&host("{taints: [{key: node.kubernetes.io/not-ready, effect: NoExecute}]}")));
    }

    #[tokio::test]
    async fn only_a_host_that_begins_or_ceases_to_leave_wakes_the_clusters_on_it() {
        let (pods, mut writer) = store::<Pod>();
        let pod = "{metadata: {name: demo-1, namespace: apps}, spec: {nodeName: n1, containers: []}}";
        writer.apply_watcher_event(&watcher::Event::Apply(serde_yaml::from_str(pod).unwrap()));
        let host = |name: &str, unschedulable: bool| {
            let text = format!("{{metadata: {{name: {name}}}, spec: {{unschedulable: {unschedulable}}}}}");
            serde_yaml::from_str::<Node>(&text).unwrap()
        };
        let seen = [host("n1", false), host("n1", true), host("n1", true), host("n2", true), host("n1", false)];
        let woken: Vec<String> = drains(stream::iter(seen).boxed(), pods).map(|cluster| cluster.name).collect().await;
        assert_eq!(woken, ["demo", "demo"]);
    }
}
