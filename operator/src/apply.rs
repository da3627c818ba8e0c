//! Carries a plan out: the only writer besides `report`, in a fixed order. Each part stops at its first
//! error, and keeps only those waiting that need it: a volume that cannot grow must not keep the leader's
//! label from moving, or a pod from its restart. Every write can be repeated, so a process that ends between
//! any two of them leaves nothing that the next plan does not finish. Decides nothing.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kv_core::group::MemberInfo;
use serde_json::{Value, json};

use crate::crd::{KvCluster, KvClusterStatus, MemberReport};
use crate::error::{Error, NodeError};
use crate::names::FIELD_MANAGER;
use crate::node_client::Nodes;
use crate::observe::Sources;
use crate::plan::{Assignment, Directive, Growth, Labelled, Memory, Plan, Progress, Relabel};
use crate::resources::{Child, Kind};
use crate::watches::api;

/// The eviction API's way of saying that the budget has no room now.
const TOO_MANY_REQUESTS: u16 = 429;

/// What came of a plan; a report needs one, so that nothing is reported before it was tried.
#[derive(Debug)]
pub struct Applied {
    /// The cluster as it is stored now.
    pub cluster: KvCluster,
    pub progress: Option<Progress>,
    pub leadership: Option<Progress>,
    pub image: String,
    pub updated: u32,
    pub memory: Memory,
    /// Leadership was moved by a directive.
    pub switched: Option<Switched>,
    /// The pod that was evicted, to be restarted.
    pub restarted: Option<String>,
    /// The first that went wrong.
    pub error: Option<Error>,
}

/// A directive to lead that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    pub to: String,
    pub why: &'static str,
    pub took: Duration,
}

/// Must not be cancelled between a write and its successor without need; if it is, the next plan goes on.
pub async fn apply(sources: &Sources, cluster: &KvCluster, token: Option<String>, plan: Plan) -> Applied {
    let Plan {
        ensure,
        remove,
        grow,
        replace_set,
        labels,
        assignment,
        tune,
        directive,
        progress,
        leadership,
        image,
        updated,
        memory,
        next: _, // the controller's
    } = plan;
    let mut applied = Applied {
        cluster: cluster.clone(),
        progress,
        leadership,
        image,
        updated,
        memory,
        switched: None,
        restarted: None,
        error: None,
    };
    let writer =
        Writer { client: &sources.client, namespace: cluster.metadata.namespace.as_deref().unwrap_or_default() };
    applied.note(writer.label_all(&labels).await);
    // A restart needs its template; a quota that refuses a child must not keep a group without a leader.
    let has_children = applied.note(writer.write_children(&remove, &ensure).await).is_some();
    let has_volumes = applied.note(writer.grow_all(&grow).await).is_some();
    if has_children && has_volumes && replace_set {
        applied.note(writer.delete_set_without_pods(cluster).await);
    }
    if let Some(assignment) = assignment.filter(|_| has_children)
        && let Some(assigned) = applied.note(writer.assign(cluster, &assignment).await)
    {
        applied.cluster = assigned;
    }
    let nodes = sources.nodes.with_token(token);
    for tuned in join_all(tune.iter().map(|tuning| nodes.tune(tuning))).await {
        applied.note(tuned.map_err(Error::from));
    }
    let needs_children = |directive: &Directive| matches!(directive, Directive::Restart { .. });
    if let Some(directive) = directive.filter(|directive| has_children || !needs_children(directive)) {
        let began = Instant::now();
        if applied.note(writer.direct(&nodes, directive.clone()).await).is_some() {
            applied.done(directive, began.elapsed());
        }
    }
    applied
}

impl Applied {
    /// The first error is kept; those that come after it mostly follow from it.
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(done) => Some(done),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// What people are told of.
    fn done(&mut self, directive: Directive, took: Duration) {
        match directive {
            Directive::Lead { node, why } => self.switched = Some(Switched { to: node.pod, why, took }),
            Directive::Restart { pod, uid: _ } => self.restarted = Some(pod),
            _ => {}
        }
    }
}

struct Writer<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Writer<'_> {
    async fn label_all(&self, labels: &[Relabel]) -> Result<(), Error> {
        for label in labels {
            self.label(label).await?;
        }
        Ok(())
    }

    async fn write_children(&self, remove: &[(Kind, String)], ensure: &[Child]) -> Result<(), Error> {
        for (kind, name) in remove {
            self.remove(*kind, name).await?;
        }
        for child in ensure {
            self.ensure(child).await?;
        }
        Ok(())
    }

    async fn grow_all(&self, growths: &[Growth]) -> Result<(), Error> {
        for growth in growths {
            self.grow(growth).await?;
        }
        Ok(())
    }

    async fn ensure(&self, child: &Child) -> Result<(), Error> {
        let Child { kind, name, object } = child;
        // What we own is ours alone: another manager's edits of our members are undone.
        let (api, what) = (api(self.client, *kind, self.namespace), format!("{} {name}", kind.as_str()));
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let stored = api.patch(name, &parameters, &Patch::Apply(object)).await.map_err(Error::child(what.clone()))?;
        let version = stored.metadata.resource_version.clone();
        let stored = serde_json::to_value(stored).expect("it was JSON when it came");
        let Some(mut patch) = child.surplus(&stored) else { return Ok(()) };
        // Of what was just seen and nothing else.
        patch["metadata"]["resourceVersion"] = json!(version);
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(Error::child(what))
    }

    async fn remove(&self, kind: Kind, name: &str) -> Result<(), Error> {
        let deleted = api(self.client, kind, self.namespace).delete(name, &DeleteParams::default()).await;
        absent_is_fine(deleted.map(drop)).map_err(Error::write(format!("{} {name}", kind.as_str())))
    }

    async fn grow(&self, growth: &Growth) -> Result<(), Error> {
        let Growth { claim, size } = growth;
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let patched = self.claims().patch(claim, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop).map_err(Error::growth(format!("claim {claim}")))
    }

    /// Its pods run on; the next plan writes the set again, which adopts them.
    async fn delete_set_without_pods(&self, cluster: &KvCluster) -> Result<(), Error> {
        let name = cluster.metadata.name.as_deref().unwrap_or_default();
        let orphan = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        let deleted = api(self.client, Kind::StatefulSet, self.namespace).delete(name, &orphan).await;
        absent_is_fine(deleted.map(drop)).map_err(Error::write(format!("StatefulSet {name}")))
    }

    async fn label(&self, relabel: &Relabel) -> Result<(), Error> {
        let Relabel { what, name, labels } = relabel;
        let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
        let parameters = PatchParams::default();
        let patched = match what {
            Labelled::Pod => self.pods().patch(name, &parameters, &patch).await.map(drop),
            Labelled::Claim => self.claims().patch(name, &parameters, &patch).await.map(drop),
        };
        absent_is_fine(patched).map_err(Error::write(format!("labels of {name}")))
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    /// By compare-and-swap: two operators, or one with an old view, cannot assign twice.
    async fn assign(&self, cluster: &KvCluster, assignment: &Assignment) -> Result<KvCluster, Error> {
        let Assignment { cluster_id, voters } = assignment;
        let mut cluster = cluster.clone();
        let status = cluster.status.get_or_insert_with(KvClusterStatus::default);
        status.cluster_id = Some(cluster_id.to_string());
        status.members = voters.iter().map(voter).collect();
        write_status(self.client, &cluster).await
    }

    async fn direct(&self, nodes: &Nodes<'_>, directive: Directive) -> Result<(), Error> {
        match directive {
            Directive::Bootstrap { nodes: founders, assignment, settings } => {
                for founder in &founders {
                    nodes.bootstrap(founder, &assignment, settings).await?;
                }
            }
            Directive::Join { leader, member, voter } => {
                nodes.add_learner(&leader, &member).await?;
                if voter {
                    nodes.promote(&leader, &member).await?;
                }
            }
            Directive::Remove { leader, member_id, name: _ } => nodes.remove(&leader, member_id).await?,
            Directive::Lead { node, why: _ } => nodes.lead(&node).await?,
            Directive::ChangeSettings { leader, change } => nodes.change_settings(&leader, &change).await?,
            Directive::Recover { node, epoch, new_cluster_id } => nodes.recover(&node, epoch, &new_cluster_id).await?,
            Directive::Restart { pod, uid } => self.evict(&pod, uid).await?,
        }
        Ok(())
    }

    /// Of the pod that was seen and no other: one that came since has the same name.
    async fn evict(&self, pod: &str, uid: String) -> Result<(), Error> {
        let preconditions = Preconditions { uid: Some(uid), resource_version: None };
        let eviction = Eviction {
            metadata: ObjectMeta { name: Some(pod.to_owned()), ..ObjectMeta::default() },
            delete_options: Some(DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() }),
        };
        // Not by the client's own call: it misspells the options, and the API server would not see the uid.
        let parameters = PostParams::default();
        let evicted: kube::Result<Value> =
            self.pods().create_subresource("eviction", pod, &parameters, &eviction).await;
        match evicted {
            Err(kube::Error::Api(status)) if status.code == TOO_MANY_REQUESTS => {
                let detail = status.message.clone();
                Err(NodeError::Refused { pod: pod.to_owned(), code: "disruption_budget".to_owned(), detail }.into())
            }
            evicted => absent_is_fine(evicted.map(drop)).map_err(Error::write(format!("eviction of pod {pod}"))),
        }
    }
}

/// Whoever wrote since `cluster` was read makes this a conflict.
pub(crate) async fn write_status(client: &Client, cluster: &KvCluster) -> Result<KvCluster, Error> {
    let namespace = cluster.metadata.namespace.as_deref().unwrap_or_default();
    let name = cluster.metadata.name.as_deref().unwrap_or_default();
    let api: Api<KvCluster> = Api::namespaced(client.clone(), namespace);
    api.replace_status(name, &PostParams::default(), cluster).await.map_err(Error::write("the status"))
}

fn voter(info: &MemberInfo) -> MemberReport {
    MemberReport {
        name: info.name.to_string(),
        member_id: Some(info.member_id.to_string()),
        voter: true,
        ..MemberReport::default()
    }
}

fn absent_is_fine(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => result,
    }
}
