//! The NetworkPolicy: the peers' port for this cluster's pods alone, the clients' port for everybody.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, pods};
use crate::names::{CLIENT_PORT, PEER_PORT};
use crate::validate::Desired;

pub(super) fn build(desired: &Desired) -> NetworkPolicy {
    let peers = NetworkPolicyPeer { pod_selector: Some(pods(&desired.identity)), ..NetworkPolicyPeer::default() };
    let spec = NetworkPolicySpec {
        pod_selector: Some(pods(&desired.identity)),
        policy_types: Some(vec!["Ingress".to_owned()]),
        ingress: Some(vec![
            NetworkPolicyIngressRule { from: Some(vec![peers]), ports: Some(vec![port(PEER_PORT)]) },
            NetworkPolicyIngressRule { from: None, ports: Some(vec![port(CLIENT_PORT)]) },
        ]),
        ..NetworkPolicySpec::default()
    };
    NetworkPolicy { metadata: metadata(desired, desired.identity.name.clone()), spec: Some(spec) }
}

fn port(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    }
}
