//! The ways in which the operator writes, as its requests show them. A request that none of them makes fails the
//! test: whoever teaches the operator to write something new names it here, and breaks it.

use axum::http::Method;
use serde_json::Value;

use crate::plan::Labelled;
use crate::resources::Kind;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Write {
    Apply(Kind),
    /// Takes away what somebody added to a child, after it was applied.
    Trim,
    Remove(Kind),
    /// Deletes the set without its pods.
    Orphan,
    Grow,
    Label(Labelled),
    /// Who founds the group.
    Assign,
    Report,
    Evict,
    Bootstrap,
    AddLearner,
    Promote,
    RemoveMember,
    Lead,
    ChangeSettings,
    Recover,
    Tune,
    ConfigureCompaction,
}

/// A write of an object.
pub(super) struct OfObject<'a> {
    pub(super) method: &'a Method,
    pub(super) plural: &'a str,
    pub(super) subresource: Option<&'a str>,
    pub(super) is_apply: bool,
    pub(super) body: &'a Value,
    pub(super) present: Option<&'a Value>,
}

impl Write {
    /// None: it is not about a cluster.
    pub(super) fn of_object(write: &OfObject<'_>) -> Option<Self> {
        let OfObject { method, plural, subresource, is_apply, body, present } = write;
        let kind = Kind::ALL.into_iter().find(|kind| kind.api().2 == *plural);
        let is_founded = |cluster: &Value| !cluster["status"]["clusterId"].is_null();
        Some(match (method.as_str(), *plural, *subresource, kind) {
            (_, "leases", None, _) => return None,
            ("PATCH", _, None, Some(kind)) => match *is_apply {
                true => Self::Apply(kind),
                false => Self::Trim,
            },
            ("DELETE", _, None, Some(Kind::StatefulSet)) if body["propagationPolicy"] == "Orphan" => Self::Orphan,
            ("DELETE", _, None, Some(kind)) => Self::Remove(kind),
            ("PATCH", "pods", None, None) => Self::Label(Labelled::Pod),
            ("PATCH", "persistentvolumeclaims", None, None) if body["spec"].is_null() => Self::Label(Labelled::Claim),
            ("PATCH", "persistentvolumeclaims", None, None) => Self::Grow,
            ("POST", "pods", Some("eviction"), None) => Self::Evict,
            ("PUT", "kvclusters", Some("status"), None) => match present.is_some_and(is_founded) || !is_founded(body) {
                true => Self::Report,
                false => Self::Assign,
            },
            _ => panic!("no test knows of {method} {plural} {subresource:?}"),
        })
    }

    /// A directive to a node.
    pub(super) fn of_node(method: &str, path: &str, body: &Value) -> Self {
        match (method, path) {
            ("POST", "/cluster/bootstrap") => Self::Bootstrap,
            ("POST", "/cluster/members") if body["role"] == "learner" => Self::AddLearner,
            ("POST", "/cluster/members") if body["role"] == "voter" => Self::Promote,
            ("DELETE", path) if path.starts_with("/cluster/members/") => Self::RemoveMember,
            ("POST", "/cluster/lead") => Self::Lead,
            ("POST", "/cluster/settings") => Self::ChangeSettings,
            ("POST", "/cluster/recover") => Self::Recover,
            ("POST", "/settings") => Self::Tune,
            ("POST", "/compaction/configure") => Self::ConfigureCompaction,
            _ => panic!("no test knows of {method} {path}: {body}"),
        }
    }
}
