//! Whose an object is: the one decision of `observe`, and the one that keeps the operator's hands off what is
//! somebody else's. By what controls an object, and by labels alone where nobody does. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::names::{APP, APP_LABEL, FIELD_MANAGER, INSTANCE_LABEL, Identity, MANAGER_LABEL, SPEC_HASH};
use crate::resources::Kind;

/// What tells our pods and claims from others.
pub(super) struct Scope<'a> {
    pub(super) identity: &'a Identity,
    pub(super) set_uid: Option<&'a str>,
    /// No child of this very cluster exists yet.
    pub(super) is_new: bool,
    /// Pods and claims with lower ordinals are to exist.
    pub(super) expected: u32,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Us,
    FormerCluster,
    SomebodyElse,
}

/// Children that nobody controls and that carry our labels are adopted.
pub(super) fn owner(identity: &Identity, metadata: &ObjectMeta) -> Owner {
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

/// By the uid of the set that controls it. One that nobody controls is left by a set that was deleted without
/// its pods, or let go because its labels were edited; what our set once wrote on it tells it from a stranger.
pub(super) fn owner_of_pod(scope: &Scope<'_>, pod: &Pod) -> Owner {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    match owners.find(|owner| owner.controller == Some(true)) {
        None if pod.annotations().contains_key(SPEC_HASH) && !scope.is_new => Owner::Us,
        None => Owner::SomebodyElse,
        Some(set) if set.kind != Kind::StatefulSet.as_str() || set.name != scope.identity.name => Owner::SomebodyElse,
        Some(set) if Some(set.uid.as_str()) == scope.set_uid || !scope.is_new => Owner::Us,
        Some(_) => Owner::FormerCluster,
    }
}

/// Claims have no owner when they are kept; their labels are those of the cluster's name, for it to come back.
/// One that a pod of ours uses is ours whatever its labels say.
pub(super) fn is_our_claim(identity: &Identity, claim: &PersistentVolumeClaim) -> bool {
    let labels = claim.labels();
    let has = |key: &str, value: &str| labels.get(key).map(String::as_str) == Some(value);
    has(INSTANCE_LABEL, &identity.name) && has(APP_LABEL, APP)
}

/// Our labels that are missing or were edited.
pub(super) fn wrong_labels(identity: &Identity, metadata: &ObjectMeta) -> BTreeMap<String, String> {
    let present = metadata.labels.clone().unwrap_or_default();
    identity.labels().into_iter().filter(|(key, value)| present.get(key) != Some(value)).collect()
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
}
