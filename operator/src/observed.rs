//! What was seen of a cluster, as plain data: its children, its pods and what each node says of itself.
//! "Unknown" is a value: a node that did not answer is neither healthy nor dead. Filled by `observe`,
//! read by `plan` and `report`.

mod trouble;

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use kv_core::group::ClusterId;
use kv_core::status::{NodeStatus, Role};
use serde_json::Value;

use crate::crd::KvClusterStatus;
use crate::names::{CLIENT_PORT, CONTAINER, Identity, SPEC_HASH, TOKEN_KEY};
use crate::resources::{Child, Kind};

pub use trouble::Trouble;

/// Everything that a plan is made from, besides what is desired.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub generation: i64,
    /// What was reported last.
    pub status: KvClusterStatus,
    /// The children that are ours, or that nobody controls and that carry our labels.
    pub children: Vec<Child>,
    /// What has the name of a child and belongs to somebody else.
    pub foreign: Vec<Foreign>,
    /// By ordinal.
    pub pods: BTreeMap<u32, PodSeen>,
    /// By ordinal.
    pub claims: BTreeMap<u32, ClaimSeen>,
    /// Whether the PodMonitor kind is installed.
    pub pod_monitors: bool,
}

/// An object in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    pub kind: &'static str,
    pub name: String,
    /// It is a child of a former cluster of the same name, and about to go.
    pub former: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PodSeen {
    pub name: String,
    pub uid: String,
    pub ip: Option<String>,
    /// The Kubernetes node that it runs on.
    pub host: Option<String>,
    /// That host takes no new pods: it is being drained.
    pub cordoned: bool,
    pub ready: bool,
    pub terminating: bool,
    /// Of the settings that it was started with.
    pub spec_hash: Option<String>,
    pub role_label: Option<String>,
    /// Of the label that sends clients to it.
    pub serves_label: Option<String>,
    /// Our labels that are missing or were edited, as they should be.
    pub relabel: BTreeMap<String, String>,
    /// Why it does not run: unschedulable, its image cannot be pulled, it crashes.
    pub trouble: Option<Trouble>,
    pub answer: Answer,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It did not answer, or not in time, or nothing that makes sense; the text says which.
    Unknown(String),
    Status(Box<NodeStatus>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimSeen {
    pub name: String,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes that it has; None: not bound yet.
    pub capacity: Option<u64>,
    /// The host that its volume was made for, if that was said.
    pub host: Option<VolumeHost>,
    /// Our labels that are missing or were edited, as they should be.
    pub relabel: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHost {
    pub name: String,
    /// It was removed, or does not answer.
    pub is_gone: bool,
}

/// What was seen of the StatefulSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetSeen {
    pub replicas: u32,
    pub image: String,
    pub claim_size: String,
    /// Of the settings that its pods start with.
    pub spec_hash: String,
}

impl PodSeen {
    pub fn status(&self) -> Option<&NodeStatus> {
        match &self.answer {
            Answer::Status(status) => Some(status),
            Answer::Unknown(_) => None,
        }
    }

    /// What it says as a member of this group; None: it does not answer, or is in none or another.
    pub fn status_in(&self, cluster_id: &ClusterId) -> Option<&NodeStatus> {
        self.status().filter(|status| status.replica.cluster_id.as_ref() == Some(cluster_id))
    }

    /// The node answers, and its volume belongs to no group yet.
    pub fn is_empty(&self) -> bool {
        self.status().is_some_and(|status| status.replica.role == Role::Uninitialised)
    }

    /// Where the node is reached.
    pub fn url(&self) -> Option<String> {
        let ip = self.ip.as_ref()?;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        Some(format!("http://{host}:{CLIENT_PORT}"))
    }
}

impl Observed {
    pub fn child(&self, kind: Kind, name: &str) -> Option<&Child> {
        self.children.iter().find(|child| child.kind == kind && child.name == name)
    }

    /// Where to look for the reason why a pod was not made: a quota or an admission that refuses it says so on
    /// the StatefulSet alone. None: it is there, or not to be.
    pub fn why_not_made(&self, identity: &Identity, ordinal: u32) -> Option<String> {
        let is_missing = self.set()?.replicas > ordinal && !self.pods.contains_key(&ordinal);
        let Identity { name, namespace, .. } = identity;
        is_missing.then(|| format!("kubectl describe statefulset {name} --namespace {namespace} says why"))
    }

    /// The token in the Secret, if there is one.
    pub fn token(&self) -> Option<String> {
        let secret = self.children.iter().find(|child| child.kind == Kind::Secret)?;
        let bytes: ByteString = serde_json::from_value(secret.object["data"][TOKEN_KEY].clone()).ok()?;
        String::from_utf8(bytes.0).ok().filter(|token| !token.is_empty())
    }

    pub fn set(&self) -> Option<SetSeen> {
        let set = &self.children.iter().find(|child| child.kind == Kind::StatefulSet)?.object["spec"];
        let containers = set["template"]["spec"]["containers"].as_array()?;
        let node = containers.iter().find(|container| container["name"] == CONTAINER)?;
        let claim = &set["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"];
        Some(SetSeen {
            replicas: u32::try_from(set["replicas"].as_u64()?).ok()?,
            image: text(&node["image"]),
            claim_size: text(claim),
            spec_hash: text(&set["template"]["metadata"]["annotations"][SPEC_HASH]),
        })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
