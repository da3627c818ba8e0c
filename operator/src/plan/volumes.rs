//! Growing volumes: first every claim, then the StatefulSet, whose claim template cannot be changed, is
//! deleted without its pods and written again. Comes before any guard of health: a full disk must be able
//! to grow. No claim is ever deleted or made smaller.

use super::{Growth, Progress};
use crate::crd::Reason;
use crate::observed::Observed;
use crate::units;
use crate::validate::Desired;

/// What the volumes need.
#[derive(Debug)]
pub(super) struct Volumes {
    pub(super) grow: Vec<Growth>,
    pub(super) replace_set: bool,
    /// What the claim template says, for now.
    pub(super) claim_size: String,
    pub(super) progress: Option<Progress>,
}

pub(super) fn plan(desired: &Desired, observed: &Observed) -> Volumes {
    let wanted = &desired.spec.storage.size.0;
    let behind = observed.claims.values().filter(|claim| claim.requested < desired.storage_bytes);
    let grow: Vec<Growth> = behind.map(|claim| Growth { claim: claim.name.clone(), size: wanted.clone() }).collect();
    let template = observed.set().map(|set| set.claim_size);
    let differs = template.as_ref().is_some_and(|size| units::quantity(size) != Some(desired.storage_bytes));
    let replace_set = differs && grow.is_empty();
    Volumes {
        replace_set,
        claim_size: template.filter(|_| differs).unwrap_or_else(|| wanted.clone()),
        progress: progress(desired, observed),
        grow,
    }
}

fn progress(desired: &Desired, observed: &Observed) -> Option<Progress> {
    let growing = observed.claims.values().filter(|claim| {
        claim.requested < desired.storage_bytes || claim.capacity.is_some_and(|bytes| bytes < claim.requested)
    });
    let names: Vec<&str> = growing.map(|claim| claim.name.as_str()).collect();
    let message = || format!("{} grow to {}", names.join(", "), desired.spec.storage.size.0);
    (!names.is_empty()).then(|| Progress::new(Reason::Growing, message()))
}
