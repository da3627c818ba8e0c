//! The `KvCluster` resource: what people ask for, and the words in which the operator answers. Schema,
//! defaults, rules with their messages and columns; `crds/` is generated from it. Decides nothing.

mod status;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, LocalObjectReference, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::core::CustomResourceExt;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

pub use status::{ConditionType, KvClusterStatus, MemberReport, PodRole, Reason};

/// API group of the resource, and prefix of all labels and annotations.
pub const GROUP: &str = "kvcluster.dev";

/// A replicated key-value store.
// 45 characters: a pod's name, and the label that Kubernetes makes of the StatefulSet's with a hash, have 63 at most.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kvcluster.dev",
    version = "v1alpha1",
    kind = "KvCluster",
    namespaced,
    status = "KvClusterStatus",
    derive = "PartialEq",
    shortname = "kvc",
    category = "all",
    doc = "A durable, replicated key-value store: one pod for each replica, led by one of them.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Available")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1),
    printcolumn(name = "Updated", type_ = "integer", json_path = ".status.updatedReplicas", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Available")].message"#,
        priority = 1
    ),
    validation = Rule::new("self.metadata.name.size() <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name must have at most 45 characters: lower-case letters, digits and '-', with a letter first and no '-' last"),
)]
#[serde(rename_all = "camelCase")]
pub struct KvClusterSpec {
    /// How many nodes hold the data. Odd numbers are better: an even one survives no more losses than the odd one below it.
    #[serde(default = "default::replicas")]
    #[schemars(range(min = 1, max = 7))]
    pub replicas: i32,

    /// The pod that is to lead, for example `demo-0`. Changing it hands leadership over. With failover
    /// Automatic it is a preference, with Manual an order: no other pod is told to lead, except when a roll
    /// restarts this one. Unset: any.
    #[schemars(length(max = 63))]
    pub leader: Option<String>,

    /// Automatic: the nodes elect a leader by themselves when theirs is lost. Manual: a leader is only
    /// ever assigned, by `spec.leader` or, when that is unset, by the operator.
    #[serde(default)]
    pub failover: Failover,

    /// The image of the nodes. Unset: the operator's default when the cluster is created, kept from then on.
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// Secrets with which the image is pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,

    /// The volume of each node.
    pub storage: Storage,

    /// CPU and memory of each node.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,

    /// How the Service for clients is published.
    #[serde(default)]
    pub service: ServiceOptions,

    /// How quickly silence is noticed. Changed without a restart.
    #[serde(default)]
    pub heartbeat: Heartbeat,

    /// The write-ahead log.
    #[serde(default)]
    pub wal: Wal,

    /// When superseded lines are dropped from the log. Changed without a restart.
    #[serde(default)]
    pub compaction: Compaction,

    /// Earlier versions kept for each key. Changed without a restart.
    #[serde(default = "default::history_limit")]
    #[schemars(range(min = 0, max = 100_000))]
    pub history_limit: i32,

    /// How long a request is remembered, so that it can be repeated safely. Changed without a restart.
    #[serde(default = "default::dedup_expiry")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('8760h')")
        .message("dedupExpiry must be a duration from 1s to 8760h, such as 1h or 90m"))]
    pub dedup_expiry: String,

    /// True: the operator changes nothing, neither Kubernetes objects nor leadership. Status and role labels go on.
    #[serde(default)]
    pub paused: bool,

    /// Automatic: pods are replaced one by one, the leader last, after a hand-over. Supervised: the
    /// followers are, then the operator waits until a person moves `spec.leader`.
    #[serde(default)]
    pub update_strategy: UpdateStrategy,

    /// Where and how the pods run.
    #[serde(default, skip_serializing_if = "PodOptions::is_empty")]
    pub pod: PodOptions,

    /// What is set up for Prometheus.
    #[serde(default)]
    pub monitoring: Monitoring,

    /// For a person, when a majority of the volumes is lost for good. See docs/operations.md first.
    pub recovery: Option<Recovery>,
}

/// Who decides that another node leads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Failover {
    #[default]
    Automatic,
    Manual,
}

/// As the nodes call it.
impl From<Failover> for kv_core::status::Failover {
    fn from(failover: Failover) -> Self {
        match failover {
            Failover::Automatic => Self::Automatic,
            Failover::Manual => Self::Manual,
        }
    }
}

/// Whether the leader is restarted by the operator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdateStrategy {
    #[default]
    Automatic,
    Supervised,
}

/// What becomes of volumes that are not used any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetainPolicy {
    #[default]
    Retain,
    Delete,
}

/// The volume of each node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)")
    .message("storageClassName cannot be changed: create another cluster and copy the data"))]
pub struct Storage {
    /// Size of each volume, for example `10Gi`. It can grow and never shrink.
    #[schemars(schema_with = "quantity")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('2Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1Pi')) <= 0")
        .message("size must be a quantity from 2Mi to 1Pi, such as 10Gi"))]
    #[x_kube(validation = Rule::new("!isQuantity(string(self)) || !isQuantity(string(oldSelf)) || !quantity(string(self)).isLessThan(quantity(string(oldSelf)))")
        .message("size can grow and never shrink"))]
    pub size: Quantity,

    /// The StorageClass of the volumes. Unset: the default class. It cannot be changed.
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,

    /// What happens to volumes when the cluster is deleted or scaled down. Retain keeps them: a cluster
    /// that is created again under the same name comes back with its data.
    #[serde(default)]
    pub retain_policy: RetainPolicy,
}

/// CPU and memory of each node, as in any pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// What is set aside for each node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What each node may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How the Service for clients is published.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceOptions {
    /// Type of the Service `<name>`.
    #[serde(default, rename = "type")]
    pub r#type: ServiceType,
    /// Annotations of the Service `<name>`, for example for a load balancer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// From where the Service can be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    #[default]
    ClusterIP,
    NodePort,
    LoadBalancer,
}

impl ServiceType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIP => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
        }
    }
}

/// How quickly silence is noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("[self.interval, self.timeout].all(d, d.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(d) >= duration('10ms') && duration(d) <= duration('24h'))")
    .message("interval and timeout must be durations from 10ms to 24h, such as 100ms or 1.5s"))]
#[x_kube(validation = Rule::new("![self.interval, self.timeout].all(d, d.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$')) || duration(self.timeout) > duration(self.interval)")
    .message("timeout must be longer than interval"))]
pub struct Heartbeat {
    /// Pause between two heartbeats.
    #[serde(default = "default::heartbeat_interval")]
    #[schemars(length(max = 32))]
    pub interval: String,
    /// A node that was silent for this long counts as down.
    #[serde(default = "default::heartbeat_timeout")]
    #[schemars(length(max = 32))]
    pub timeout: String,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: default::heartbeat_interval(), timeout: default::heartbeat_timeout() }
    }
}

/// The write-ahead log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wal {
    /// A segment of the log is sealed at this size. Changing it restarts the pods one by one.
    #[serde(default = "default::segment_size")]
    #[schemars(schema_with = "quantity")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('4Ki')) >= 0 && quantity(string(self)).compareTo(quantity('1Gi')) <= 0")
        .message("maxSegmentSize must be a quantity from 4Ki to 1Gi, such as 1Mi"))]
    pub max_segment_size: Quantity,
}

impl Default for Wal {
    fn default() -> Self {
        Self { max_segment_size: default::segment_size() }
    }
}

/// When superseded lines are dropped from the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.interval.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self.interval) >= duration('60s') && duration(self.interval) <= duration('8760h')")
    .message("interval must be a duration from 60s to 8760h, such as 1h"))]
#[x_kube(validation = Rule::new("self.minInterval.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self.minInterval) <= duration('8760h')")
    .message("minInterval must be a duration up to 8760h, such as 10m"))]
pub struct Compaction {
    /// False: the log is compacted only when a person asks for it.
    #[serde(default = "default::compaction_enabled")]
    pub enabled: bool,
    /// Pause between two compactions.
    #[serde(default = "default::compaction_interval")]
    #[schemars(length(max = 32))]
    pub interval: String,
    /// A compaction that is asked for earlier than this after the last one is skipped, unless forced.
    #[serde(default = "default::min_compaction_interval")]
    #[schemars(length(max = 32))]
    pub min_interval: String,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            enabled: default::compaction_enabled(),
            interval: default::compaction_interval(),
            min_interval: default::min_compaction_interval(),
        }
    }
}

/// Where and how the pods run. Changing any of it restarts the pods one by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOptions {
    /// Replaces the default, which prefers a host of its own for each pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints of nodes that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Replaces the default, which spreads the pods over zones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Importance of the pods to the scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Further annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Further labels of the pods; the operator's own cannot be replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl PodOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is set up for Prometheus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    /// True: a PodMonitor for the Prometheus operator, where its CRD is installed.
    #[serde(default)]
    pub pod_monitor: bool,
}

/// A person's decision to go on with less than a majority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// The surviving pod. What it does not hold is lost.
    #[schemars(length(min = 1, max = 63))]
    pub force_leader: String,
    /// A copy of `status.epoch`; nothing is done unless it is equal.
    #[schemars(range(min = 0))]
    pub accept_data_loss_at_epoch: i64,
}

fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-int-or-string": true, "anyOf": [{ "type": "integer" }, { "type": "string" }], "maxLength": 32 })
}

fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "maxLength": 32,
        },
        "x-kubernetes-validations": [{
            "rule": "self.all(name, isQuantity(string(self[name])))",
            "message": "each must be a quantity, such as 100m or 1Gi",
        }],
    })
}

/// The defaults that the schema shows.
mod default {
    use super::Quantity;

    pub(super) fn replicas() -> i32 {
        3
    }

    pub(super) fn history_limit() -> i32 {
        100
    }

    pub(super) fn dedup_expiry() -> String {
        "1h".to_owned()
    }

    pub(super) fn heartbeat_interval() -> String {
        "100ms".to_owned()
    }

    pub(super) fn heartbeat_timeout() -> String {
        "1s".to_owned()
    }

    pub(super) fn segment_size() -> Quantity {
        Quantity("1Mi".to_owned())
    }

    pub(super) fn compaction_enabled() -> bool {
        true
    }

    pub(super) fn compaction_interval() -> String {
        "1h".to_owned()
    }

    pub(super) fn min_compaction_interval() -> String {
        "10m".to_owned()
    }
}

/// The CustomResourceDefinition, as `crds/` holds it.
pub fn definition() -> String {
    serde_yaml::to_string(&KvCluster::crd()).expect("a definition made of plain values is YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_definitions_are_fresh() {
        for place in ["crds", "charts/kv-operator/files"] {
            let path = format!("{}/../{place}/kvclusters.kvcluster.dev.yaml", env!("CARGO_MANIFEST_DIR"));
            let stored = std::fs::read_to_string(path).unwrap();
            assert!(
                stored == definition(),
                "{place} is stale: write what `cargo run -p kv-operator -- crd` prints there"
            );
        }
    }

    #[test]
    fn operations_says_what_to_do_about_every_condition_and_reason() {
        let path = format!("{}/../docs/operations.md", env!("CARGO_MANIFEST_DIR"));
        let operations = std::fs::read_to_string(path).unwrap();
        let conditions = ConditionType::ALL.iter().map(|condition| format!("\n### {}\n", condition.as_str()));
        let reasons = Reason::ALL.iter().map(|reason| format!("\n| `{}` |", reason.as_str()));
        let silent: Vec<String> = conditions.chain(reasons).filter(|entry| !operations.contains(entry)).collect();
        assert!(silent.is_empty(), "docs/operations.md has no entry for {silent:?}");
    }

    #[test]
    fn the_examples_are_valid() {
        let dir = std::fs::read_dir(format!("{}/../charts/examples", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for path in dir.map(|entry| entry.unwrap().path()) {
            let cluster: KvCluster = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let problems = crate::validate::validate(&cluster).problems;
            assert_eq!(problems, [], "{}", path.display());
        }
    }

    #[test]
    fn every_field_has_a_description() {
        let definition = serde_json::to_value(KvCluster::crd()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let mut bare = Vec::new();
        for part in ["spec", "status"] {
            undescribed(part, &schema[part], &mut bare);
        }
        assert!(bare.is_empty(), "without a description: {bare:?}");
    }

    fn undescribed(path: &str, schema: &serde_json::Value, bare: &mut Vec<String>) {
        if schema["description"].as_str().is_none_or(str::is_empty) {
            bare.push(path.to_owned());
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            undescribed(&format!("{path}.{name}"), member, bare);
        }
    }

    #[test]
    fn a_spec_with_nothing_but_a_size_has_the_defaults() {
        let spec: KvClusterSpec = serde_json::from_str(r#"{"storage":{"size":"1Gi"}}"#).unwrap();
        assert_eq!((spec.replicas, spec.failover, spec.history_limit), (3, Failover::Automatic, 100));
        assert_eq!((spec.heartbeat.interval.as_str(), spec.heartbeat.timeout.as_str()), ("100ms", "1s"));
        assert_eq!(spec.storage.retain_policy, RetainPolicy::Retain);
        assert_eq!(spec.wal.max_segment_size.0, "1Mi");
    }

    #[test]
    fn quantities_may_be_numbers() {
        let text = r#"{"storage":{"size":1073741824},"resources":{"requests":{"cpu":1}}}"#;
        let spec: KvClusterSpec = serde_json::from_str(text).unwrap();
        assert_eq!(spec.storage.size.0, "1073741824");
        assert_eq!(spec.resources.requests["cpu"].0, "1");
    }
}
