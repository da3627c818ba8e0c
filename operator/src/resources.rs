//! The children of a cluster: one pure builder for each kind, and what they have in common. Knows
//! neither a client nor what exists; `plan` compares, `apply` writes.

mod config_map;
mod disruption_budget;
mod network_policy;
mod pod_monitor;
mod pod_template;
mod same;
mod secret;
mod services;
mod stateful_set;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use serde::Serialize;
use serde_json::Value;

use crate::crd::KvCluster;
use crate::names::{APPLIED_HASH, Identity, hex_digest};
use crate::validate::Desired;

pub(crate) use pod_template::spec_hash;

/// Hexadecimal digits of a hash in an annotation.
const HASH_DIGITS: usize = 16;

/// Kinds of children, in the order in which they are written: what pods mount comes before them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Secret,
    ConfigMap,
    Service,
    NetworkPolicy,
    PodDisruptionBudget,
    StatefulSet,
    PodMonitor,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Secret,
        Self::ConfigMap,
        Self::Service,
        Self::NetworkPolicy,
        Self::PodDisruptionBudget,
        Self::StatefulSet,
        Self::PodMonitor,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Service => "Service",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::StatefulSet => "StatefulSet",
            Self::PodMonitor => "PodMonitor",
        }
    }

    /// Group, version and plural.
    pub(crate) fn api(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Secret => ("", "v1", "secrets"),
            Self::ConfigMap => ("", "v1", "configmaps"),
            Self::Service => ("", "v1", "services"),
            Self::NetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies"),
            Self::PodDisruptionBudget => ("policy", "v1", "poddisruptionbudgets"),
            Self::StatefulSet => ("apps", "v1", "statefulsets"),
            Self::PodMonitor => ("monitoring.coreos.com", "v1", "podmonitors"),
        }
    }
}

/// A child as it is to be, or as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    pub kind: Kind,
    pub name: String,
    pub object: Value,
}

impl Child {
    /// Marks the object with the hash of what it says, so that a member that is not said any more is noticed.
    fn new(kind: Kind, object: impl Serialize) -> Self {
        let mut object = serde_json::to_value(object).expect("children are plain data");
        let hash = short_hash(&object);
        let name = object["metadata"]["name"].as_str().expect("every builder names its child").to_owned();
        object["metadata"]["annotations"][APPLIED_HASH] = Value::String(hash);
        Self { kind, name, object }
    }

    /// Whether `seen` already is as this child is to be.
    pub(crate) fn is_met_by(&self, seen: &Self) -> bool {
        let is_this = self.kind == seen.kind && self.name == seen.name;
        is_this && same::contains(&seen.object, &self.object) && self.surplus(&seen.object).is_none()
    }

    /// What must go from the object as it is stored, as a merge patch; None: nothing.
    pub(crate) fn surplus(&self, stored: &Value) -> Option<Value> {
        same::surplus(stored, &self.object)
    }
}

/// What a builder needs besides the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// Of the nodes: the spec's, or the one chosen when the cluster was created.
    pub image: String,
    /// Pods that the StatefulSet is to hold; more than the spec's while a voter waits to be removed.
    pub set_replicas: u32,
    /// Size in the claim template; behind the spec's while volumes grow.
    pub claim_size: String,
    pub token: String,
    /// For a spec without any.
    pub pull_secrets: Vec<String>,
    /// Whether the PodMonitor kind is installed.
    pub pod_monitors: bool,
}

/// All children, in the order in which they are written.
pub(crate) fn children(desired: &Desired, choices: &Choices) -> Vec<Child> {
    let mut children = vec![
        Child::new(Kind::Secret, secret::build(desired, &choices.token)),
        Child::new(Kind::ConfigMap, config_map::build(desired)),
        Child::new(Kind::Service, services::nodes(desired)),
        Child::new(Kind::Service, services::clients(desired)),
        Child::new(Kind::Service, services::leader(desired)),
        Child::new(Kind::NetworkPolicy, network_policy::build(desired)),
    ];
    // While pods wait to be removed, the budget still holds for them.
    if desired.replicas.max(choices.set_replicas) > 1 {
        children.push(Child::new(Kind::PodDisruptionBudget, disruption_budget::build(desired)));
    }
    children.push(Child::new(Kind::StatefulSet, stateful_set::build(desired, choices)));
    if desired.spec.monitoring.pod_monitor && choices.pod_monitors {
        children.push(Child::new(Kind::PodMonitor, pod_monitor::build(desired)));
    }
    children
}

/// With what nodes start, as environment variables.
pub fn node_settings(desired: &Desired) -> BTreeMap<String, String> {
    config_map::settings(desired)
}

/// The names that children of a cluster can have.
pub(crate) fn names(identity: &Identity) -> Vec<(Kind, String)> {
    vec![
        (Kind::Secret, identity.secret()),
        (Kind::ConfigMap, identity.name.clone()),
        (Kind::Service, identity.nodes_service()),
        (Kind::Service, identity.name.clone()),
        (Kind::Service, identity.leader_service()),
        (Kind::NetworkPolicy, identity.name.clone()),
        (Kind::PodDisruptionBudget, identity.name.clone()),
        (Kind::StatefulSet, identity.name.clone()),
        (Kind::PodMonitor, identity.name.clone()),
    ]
}

fn metadata(desired: &Desired, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(desired.identity.namespace.clone()),
        labels: Some(desired.identity.labels()),
        annotations: Some(BTreeMap::new()),
        owner_references: Some(vec![owner(&desired.identity)]),
        ..ObjectMeta::default()
    }
}

fn owner(identity: &Identity) -> OwnerReference {
    OwnerReference {
        api_version: KvCluster::api_version(&()).into_owned(),
        kind: KvCluster::kind(&()).into_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn pods(identity: &Identity) -> LabelSelector {
    LabelSelector { match_labels: Some(identity.selector()), ..LabelSelector::default() }
}

fn short_hash(value: &Value) -> String {
    hex_digest(&value.to_string(), HASH_DIGITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::{tests::cluster, validate};

    const FULL: &str = r#"
        replicas: 5
        leader: demo-1
        failover: Manual
        image: registry.example/kv-node:2
        imagePullSecrets: [{name: pull}]
        storage: {size: 10Gi, storageClassName: fast, retainPolicy: Delete}
        resources: {requests: {cpu: 1, memory: 1Gi}, limits: {memory: 2Gi}}
        service: {type: LoadBalancer, annotations: {example.com/internal: "true"}}
        heartbeat: {interval: 200ms, timeout: 2s}
        wal: {maxSegmentSize: 4Mi}
        compaction: {enabled: false, interval: 2h, minInterval: 5m}
        historyLimit: 7
        dedupExpiry: 30m
        monitoring: {podMonitor: true}
        pod:
          nodeSelector: {disk: ssd}
          tolerations: [{key: dedicated, operator: Exists}]
          priorityClassName: high
          annotations: {example.com/team: storage, kvcluster.dev/spec-hash: forged}
          labels: {team: storage, app.kubernetes.io/name: forged}
    "#;

    fn built(spec: &str) -> Vec<Child> {
        let desired = validate(&cluster(spec)).desired.unwrap();
        children(&desired, &choices(&desired))
    }

    fn choices(desired: &Desired) -> Choices {
        Choices {
            image: desired.spec.image.clone().unwrap_or_else(|| "kvcluster/kv-node:1".to_owned()),
            set_replicas: desired.replicas,
            claim_size: desired.spec.storage.size.0.clone(),
            token: "secret".to_owned(),
            pull_secrets: Vec::new(),
            pod_monitors: true,
        }
    }

    fn yaml(children: &[Child]) -> String {
        let documents = children.iter().map(|child| serde_yaml::to_string(&child.object).unwrap());
        documents.collect::<Vec<_>>().join("---\n")
    }

    #[test]
    fn the_children_of_the_smallest_spec_are_as_reviewed() {
        insta::assert_snapshot!(yaml(&built("{storage: {size: 1Gi}}")));
    }

    #[test]
    fn the_children_of_a_spec_with_everything_are_as_reviewed() {
        insta::assert_snapshot!(yaml(&built(FULL)));
    }

    #[test]
    fn one_replica_has_no_disruption_budget() {
        assert!(built("{replicas: 1, storage: {size: 1Gi}}").iter().all(|c| c.kind != Kind::PodDisruptionBudget));
    }

    #[test]
    fn the_budget_stays_while_more_pods_run_than_are_asked_for() {
        let desired = validate(&cluster("{replicas: 1, storage: {size: 1Gi}}")).desired.unwrap();
        let choices = Choices { set_replicas: 3, ..choices(&desired) };
        assert!(children(&desired, &choices).iter().any(|child| child.kind == Kind::PodDisruptionBudget));
    }

    #[test]
    fn every_child_has_a_name_by_which_it_is_found_again() {
        let full = built(FULL);
        let identity = validate(&cluster(FULL)).desired.unwrap().identity;
        let found: Vec<(Kind, String)> = full.iter().map(|child| (child.kind, child.name.clone())).collect();
        assert_eq!(found, names(&identity).into_iter().filter(|name| found.contains(name)).collect::<Vec<_>>());
        assert_eq!(found.len(), names(&identity).len());
    }

    /// These stand on the pods of clusters that run. Whatever changes them, in the types of the spec or in how
    /// the hash is made, restarts every pod of every cluster as soon as its operator is upgraded.
    #[test]
    fn an_upgrade_of_the_operator_restarts_no_pod() {
        let some = r#"{replicas: 1, wal: {maxSegmentSize: 4Mi}, resources: {limits: {memory: 1Gi}}, storage: {size: 1Gi},
            pod: {nodeSelector: {disk: ssd}, affinity: {nodeAffinity: {}}, topologySpreadConstraints: []}}"#;
        for (spec, digits) in
            [("{storage: {size: 1Gi}}", "7f1a1c7b831ab934"), (FULL, "e53b9584c132c7c3"), (some, "da253950041b99ac")]
        {
            let desired = validate(&cluster(spec)).desired.unwrap();
            assert_eq!(spec_hash(&desired, &choices(&desired).image), digits, "{spec}");
        }
    }

    #[test]
    fn only_settings_that_need_a_restart_change_the_hash_of_pods() {
        let hash = |spec: &str| {
            let desired = validate(&cluster(spec)).desired.unwrap();
            spec_hash(&desired, &choices(&desired).image)
        };
        let plain = hash("{storage: {size: 1Gi}}");
        for live in [
            "{storage: {size: 2Gi}}",
            "{replicas: 5, leader: demo-4, failover: Manual, storage: {size: 1Gi}}",
            "{historyLimit: 3, dedupExpiry: 5m, storage: {size: 1Gi}}",
            "{heartbeat: {interval: 1s, timeout: 9s}, compaction: {enabled: false}, storage: {size: 1Gi}}",
            "{resources: {}, pod: {}, image: 'kvcluster/kv-node:1', storage: {size: 1Gi}}",
        ] {
            assert_eq!(hash(live), plain, "{live}");
        }
        for restarting in [
            "{image: other, storage: {size: 1Gi}}",
            "{wal: {maxSegmentSize: 2Mi}, storage: {size: 1Gi}}",
            "{resources: {limits: {memory: 1Gi}}, storage: {size: 1Gi}}",
            "{pod: {labels: {a: b}}, storage: {size: 1Gi}}",
        ] {
            assert_ne!(hash(restarting), plain, "{restarting}");
        }
    }
}
