//! How everything that belongs to a cluster is called and labelled. One place, since names are how
//! children are found again. Pure.

use std::collections::BTreeMap;

use kube::ResourceExt;
use sha2::{Digest, Sha256};

use crate::crd::{GROUP, KvCluster};

/// Port of a node for clients.
pub(crate) const CLIENT_PORT: i32 = 8000;
/// Port of a node for its peers.
pub(crate) const PEER_PORT: i32 = 9000;
/// The one container of a pod.
pub(crate) const CONTAINER: &str = "kv-node";
/// The volume of a pod, and the first part of its claim's name.
pub(crate) const VOLUME: &str = "data";
/// The key of the Secret that holds the token.
pub(crate) const TOKEN_KEY: &str = "token";
/// Who writes, as server-side apply records it.
pub(crate) const FIELD_MANAGER: &str = "kv-operator";

pub(crate) const APP_LABEL: &str = "app.kubernetes.io/name";
pub(crate) const APP: &str = "kvcluster";
pub(crate) const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
pub(crate) const MANAGER_LABEL: &str = "app.kubernetes.io/managed-by";
/// Drives the Service of the leader; never anybody's safety.
pub(crate) const ROLE_LABEL: &str = "kvcluster.dev/role";
/// "true" on pods that clients are sent to, "false" on those whose volume belongs to another group.
pub(crate) const SERVES_LABEL: &str = "kvcluster.dev/serves";
/// Of the settings that need a restart; on pods.
pub(crate) const SPEC_HASH: &str = "kvcluster.dev/spec-hash";
/// Of what was last applied; on every child.
pub(crate) const APPLIED_HASH: &str = "kvcluster.dev/applied-hash";

/// Whose children are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub namespace: String,
    /// Of the KvCluster object; tells it from a former one of the same name.
    pub uid: String,
}

impl Identity {
    pub(crate) fn of(cluster: &KvCluster) -> Self {
        Self {
            name: cluster.name_any(),
            namespace: cluster.namespace().unwrap_or_default(),
            uid: cluster.uid().unwrap_or_default(),
        }
    }

    pub(crate) fn pod(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.name)
    }

    /// The ordinal in a pod's name; None: not a pod of this cluster.
    pub(crate) fn ordinal(&self, pod: &str) -> Option<u32> {
        let digits = pod.strip_prefix(&self.name)?.strip_prefix('-')?;
        let ordinal: u32 = digits.parse().ok()?;
        (self.pod(ordinal) == pod).then_some(ordinal)
    }

    pub(crate) fn claim(&self, ordinal: u32) -> String {
        format!("{VOLUME}-{}", self.pod(ordinal))
    }

    pub(crate) fn claim_ordinal(&self, claim: &str) -> Option<u32> {
        self.ordinal(claim.strip_prefix(VOLUME)?.strip_prefix('-')?)
    }

    pub(crate) fn nodes_service(&self) -> String {
        format!("{}-nodes", self.name)
    }

    pub(crate) fn leader_service(&self) -> String {
        format!("{}-leader", self.name)
    }

    pub(crate) fn secret(&self) -> String {
        format!("{}-auth", self.name)
    }

    /// Where peers reach a pod, also after it has moved: by name, resolved at each connection.
    pub(crate) fn peer_url(&self, ordinal: u32) -> String {
        format!("http://{}.{}.{}.svc:{PEER_PORT}", self.pod(ordinal), self.nodes_service(), self.namespace)
    }

    /// What selects the pods of this cluster. Never changes: a StatefulSet's selector cannot.
    pub(crate) fn selector(&self) -> BTreeMap<String, String> {
        labels([(APP_LABEL, APP), (INSTANCE_LABEL, &self.name)])
    }

    /// What all children carry.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert(MANAGER_LABEL.to_owned(), FIELD_MANAGER.to_owned());
        labels
    }

    /// The selector in text, as `kubectl` takes it.
    pub(crate) fn selector_text(&self) -> String {
        let pairs: Vec<String> = self.selector().iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.join(",")
    }
}

/// The first hexadecimal digits of SHA-256.
pub(crate) fn hex_digest(text: &str, digits: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()[..digits].to_owned()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The prefix that people may not use for labels and annotations of their own.
pub(crate) fn is_ours(key: &str) -> bool {
    key.split('/').next() == Some(GROUP) || [APP_LABEL, INSTANCE_LABEL, MANAGER_LABEL].contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_pod_would_get_have_an_ordinal() {
        let identity = Identity { name: "demo".into(), namespace: "apps".into(), uid: "u".into() };
        assert_eq!(identity.ordinal("demo-2"), Some(2));
        for strange in ["demo", "demo-", "demo-02", "demo-x", "other-1", "demo-1-2", "demo-+1"] {
            assert_eq!(identity.ordinal(strange), None, "{strange}");
        }
        assert_eq!(identity.peer_url(1), "http://demo-1.demo-nodes.apps.svc:9000");
    }
}
