//! The StatefulSet: all pods start at once, and none is restarted but by the operator.

use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Choices, metadata, pod_template, pods};
use crate::crd::RetainPolicy;
use crate::names::VOLUME;
use crate::validate::Desired;

pub(super) fn build(desired: &Desired, choices: &Choices) -> StatefulSet {
    let retain = match desired.spec.storage.retain_policy {
        RetainPolicy::Retain => "Retain",
        RetainPolicy::Delete => "Delete",
    };
    let spec = StatefulSetSpec {
        replicas: Some(i32::try_from(choices.set_replicas).expect("a handful")),
        service_name: Some(desired.identity.nodes_service()),
        selector: pods(&desired.identity),
        pod_management_policy: Some("Parallel".to_owned()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("OnDelete".to_owned()),
            ..StatefulSetUpdateStrategy::default()
        }),
        persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some(retain.to_owned()),
            when_scaled: Some(retain.to_owned()),
        }),
        template: pod_template::build(desired, choices),
        volume_claim_templates: Some(vec![claim(desired, &choices.claim_size)]),
        ..StatefulSetSpec::default()
    };
    StatefulSet {
        metadata: metadata(desired, desired.identity.name.clone()),
        spec: Some(spec),
        ..StatefulSet::default()
    }
}

/// Kubernetes forbids changing it: only what never changes, or what the volumes' growth replaces the set for.
fn claim(desired: &Desired, size: &str) -> PersistentVolumeClaim {
    let requests = [("storage".to_owned(), Quantity(size.to_owned()))].into();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(VOLUME.to_owned()),
            labels: Some(desired.identity.labels()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: desired.spec.storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(requests),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
