//! The PodMonitor of the Prometheus operator; written only where its kind is installed.

use serde_json::{Value, json};

use super::{metadata, pods};
use crate::validate::Desired;

pub(super) fn build(desired: &Desired) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(desired, desired.identity.name.clone()),
        "spec": {
            "selector": pods(&desired.identity),
            "podMetricsEndpoints": [{
                "port": "http",
                "path": "/metrics",
                // By this label alerts and dashboard tell clusters apart.
                "relabelings": [{
                    "sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"],
                    "targetLabel": "kvcluster",
                }],
            }],
        },
    })
}
