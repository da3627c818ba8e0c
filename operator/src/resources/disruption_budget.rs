//! The PodDisruptionBudget: one pod at a time, however many there are. Counted as "unavailable" and not
//! as a number that must stay: it is right for every size, and follows no change of it late. A pod that is not
//! ready counts for nothing: one that crashes could otherwise be neither replaced nor drained while others are down.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, pods};
use crate::validate::Desired;

pub(super) fn build(desired: &Desired) -> PodDisruptionBudget {
    let spec = PodDisruptionBudgetSpec {
        max_unavailable: Some(IntOrString::Int(1)),
        selector: Some(pods(&desired.identity)),
        unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        ..PodDisruptionBudgetSpec::default()
    };
    PodDisruptionBudget {
        metadata: metadata(desired, desired.identity.name.clone()),
        spec: Some(spec),
        ..PodDisruptionBudget::default()
    }
}
