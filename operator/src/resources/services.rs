//! The three Services: for clients, for the leader alone, and the headless one that gives pods names.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;
use crate::crd::PodRole;
use crate::names::{CLIENT_PORT, PEER_PORT, ROLE_LABEL, SERVES_LABEL};
use crate::validate::Desired;

/// All ready nodes, for reads and writes: any node forwards to the leader, so that a failover needs
/// neither the operator nor the API server. Pods begin with the label; only what proves to be another group's loses it.
pub(super) fn clients(desired: &Desired) -> Service {
    let mut metadata = metadata(desired, desired.identity.name.clone());
    metadata.annotations = Some(desired.spec.service.annotations.clone());
    let mut selector = desired.identity.selector();
    selector.insert(SERVES_LABEL.to_owned(), true.to_string());
    let spec = ServiceSpec {
        selector: Some(selector),
        ports: Some(vec![port("http", CLIENT_PORT)]),
        type_: Some(desired.spec.service.r#type.as_str().to_owned()),
        ..ServiceSpec::default()
    };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// The leader alone, by its label: one hop less for writes.
pub(super) fn leader(desired: &Desired) -> Service {
    let mut selector = desired.identity.selector();
    selector.insert(ROLE_LABEL.to_owned(), PodRole::Leader.as_str().to_owned());
    let spec = ServiceSpec {
        selector: Some(selector),
        ports: Some(vec![port("http", CLIENT_PORT)]),
        type_: Some("ClusterIP".to_owned()),
        ..ServiceSpec::default()
    };
    Service { metadata: metadata(desired, desired.identity.leader_service()), spec: Some(spec), ..Service::default() }
}

/// Names for all pods, ready or not: peers must find each other before anybody can be ready.
pub(super) fn nodes(desired: &Desired) -> Service {
    let spec = ServiceSpec {
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        selector: Some(desired.identity.selector()),
        ports: Some(vec![port("http", CLIENT_PORT), port("peer", PEER_PORT)]),
        ..ServiceSpec::default()
    };
    Service { metadata: metadata(desired, desired.identity.nodes_service()), spec: Some(spec), ..Service::default() }
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
