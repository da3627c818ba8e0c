//! The pods: one container that may do nothing but write to its volume. Also says which settings need a
//! restart: a hash of what the user asked for, so that neither an operator's upgrade nor a default that
//! it brings restarts anything.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapEnvSource, Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource,
    HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity, PodSecurityContext,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
    TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::{Choices, pods, short_hash};
use crate::crd::Resources;
use crate::names::{CLIENT_PORT, CONTAINER, Identity, PEER_PORT, SERVES_LABEL, SPEC_HASH, VOLUME, is_ours};
use crate::validate::Desired;

const MOUNT: &str = "/data";
/// Below the mount, which may hold a directory of the file system's own.
pub(super) const DATA_DIR: &str = "/data/node";
pub(super) const TOKEN_DIR: &str = "/etc/kvcluster/auth";
const TOKEN_VOLUME: &str = "auth";
/// Whoever the image says, a node runs as this user, and its volume belongs to this group.
const USER: i64 = 65_532;
/// Drain delay (5 s), hand-over (3 s), requests in flight (5 s), flushing, and as much again.
const GRACE_SECONDS: i64 = 30;

pub(super) fn build(desired: &Desired, choices: &Choices) -> PodTemplateSpec {
    let options = &desired.spec.pod;
    let mut annotations = foreign(&options.annotations);
    annotations.insert(SPEC_HASH.to_owned(), spec_hash(desired, &choices.image));
    let mut labels = foreign(&options.labels);
    labels.extend(desired.identity.labels());
    labels.insert(SERVES_LABEL.to_owned(), true.to_string());
    let metadata = ObjectMeta { annotations: Some(annotations), labels: Some(labels), ..ObjectMeta::default() };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(pod(desired, choices)) }
}

/// A pod that carries another hash needs a restart.
pub(crate) fn spec_hash(desired: &Desired, image: &str) -> String {
    let spec = &desired.spec;
    let mut asked = json!({
        "image": image,
        "imagePullSecrets": spec.image_pull_secrets,
        "maxSegmentSize": desired.segment_bytes,
        "pod": spec.pod,
        "resources": spec.resources,
    });
    // What is not set says nothing: a later version may know more settings.
    if let Some(members) = asked.as_object_mut() {
        members.retain(|_, value| !value.is_null() && *value != json!({}) && *value != json!([]));
    }
    short_hash(&asked)
}

fn foreign(pairs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    pairs.iter().filter(|(key, _)| !is_ours(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn pod(desired: &Desired, choices: &Choices) -> PodSpec {
    let options = &desired.spec.pod;
    PodSpec {
        affinity: Some(options.affinity.clone().unwrap_or_else(|| hosts_of_their_own(&desired.identity))),
        automount_service_account_token: Some(false),
        containers: vec![container(desired, &choices.image)],
        enable_service_links: Some(false),
        image_pull_secrets: pull_secrets(desired, choices),
        node_selector: (!options.node_selector.is_empty()).then(|| options.node_selector.clone()),
        priority_class_name: options.priority_class_name.clone(),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        tolerations: (!options.tolerations.is_empty()).then(|| options.tolerations.clone()),
        topology_spread_constraints: Some(spread(desired)),
        volumes: Some(vec![token_volume(&desired.identity)]),
        ..PodSpec::default()
    }
}

fn pull_secrets(desired: &Desired, choices: &Choices) -> Option<Vec<LocalObjectReference>> {
    let named = |name: &String| LocalObjectReference { name: name.clone() };
    let default = || choices.pull_secrets.iter().map(named).collect();
    let own = &desired.spec.image_pull_secrets;
    Some(if own.is_empty() { default() } else { own.clone() }).filter(|secrets| !secrets.is_empty())
}

fn container(desired: &Desired, image: &str) -> Container {
    let identity = &desired.identity;
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        args: Some(vec!["serve".to_owned()]),
        env: Some(own_name(identity)),
        env_from: Some(vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: identity.name.clone(), optional: None }),
            ..EnvFromSource::default()
        }]),
        ports: Some(vec![port("http", CLIENT_PORT), port("peer", PEER_PORT)]),
        resources: resources(&desired.spec.resources),
        liveness_probe: Some(probe("/livez", 10, 5)),
        readiness_probe: Some(probe("/readyz", 1, 1)),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![mount(VOLUME, MOUNT, None), mount(TOKEN_VOLUME, TOKEN_DIR, Some(true))]),
        ..Container::default()
    }
}

/// A node is called as its pod, and reached by the name that the headless Service gives it.
fn own_name(identity: &Identity) -> Vec<EnvVar> {
    let host = format!("$(NODE_ID).{}.{}.svc", identity.nodes_service(), identity.namespace);
    let field = ObjectFieldSelector { field_path: "metadata.name".to_owned(), ..ObjectFieldSelector::default() };
    let from_pod = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    let fixed = |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), value_from: None };
    vec![
        EnvVar { name: "NODE_ID".to_owned(), value: None, value_from: Some(from_pod) },
        fixed("NODE_URL", format!("http://{host}:{CLIENT_PORT}")),
        fixed("PEER_URL", format!("http://{host}:{PEER_PORT}")),
    ]
}

fn resources(asked: &Resources) -> Option<ResourceRequirements> {
    let part = |quantities: &BTreeMap<_, _>| (!quantities.is_empty()).then(|| quantities.clone());
    let (requests, limits) = (part(&asked.requests), part(&asked.limits));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn mount(name: &str, path: &str, read_only: Option<bool>) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), read_only, ..VolumeMount::default() }
}

fn token_volume(identity: &Identity) -> Volume {
    let secret = SecretVolumeSource { secret_name: Some(identity.secret()), ..SecretVolumeSource::default() };
    Volume { name: TOKEN_VOLUME.to_owned(), secret: Some(secret), ..Volume::default() }
}

fn probe(path: &str, period_seconds: i32, timeout_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(timeout_seconds),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..SeccompProfile::default() }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// Preferred, not required: a cluster with fewer hosts than replicas still starts.
fn hosts_of_their_own(identity: &Identity) -> Affinity {
    let term = PodAffinityTerm {
        label_selector: Some(pods(identity)),
        topology_key: "kubernetes.io/hostname".to_owned(),
        ..PodAffinityTerm::default()
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                pod_affinity_term: term,
                weight: 100,
            }]),
            ..PodAntiAffinity::default()
        }),
        ..Affinity::default()
    }
}

fn spread(desired: &Desired) -> Vec<TopologySpreadConstraint> {
    let asked = &desired.spec.pod.topology_spread_constraints;
    if !asked.is_empty() {
        return asked.clone();
    }
    vec![TopologySpreadConstraint {
        label_selector: Some(pods(&desired.identity)),
        max_skew: 1,
        topology_key: "topology.kubernetes.io/zone".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    }]
}
