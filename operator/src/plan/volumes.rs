//! Growing volumes: first every claim, then the StatefulSet, whose claim template cannot be changed, is
//! deleted without its pods and written again. Comes before any guard of health: a full disk must be able
//! to grow. No claim is ever deleted or made smaller; one that was kept when its pod was removed grows when
//! that is back, since only a pod that uses it can end its growth.

use super::{Growth, Progress};
use crate::crd::Reason;
use crate::observed::{ClaimSeen, Observed};
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
    let behind = in_use(observed).filter(|claim| claim.requested < desired.storage_bytes);
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

/// Claims of pods that there are, or are to be.
fn in_use(observed: &Observed) -> impl Iterator<Item = &ClaimSeen> {
    let replicas = observed.set().map_or(0, |set| set.replicas);
    let claims = observed.claims.iter();
    let in_use = claims.filter(move |(ordinal, _)| **ordinal < replicas || observed.pods.contains_key(ordinal));
    in_use.map(|(_, claim)| claim)
}

fn progress(desired: &Desired, observed: &Observed) -> Option<Progress> {
    let growing = in_use(observed).filter(|claim| {
        claim.requested < desired.storage_bytes || claim.capacity.is_some_and(|bytes| bytes < claim.requested)
    });
    let names: Vec<&str> = growing.map(|claim| claim.name.as_str()).collect();
    let message = || format!("{} grow to {}", names.join(", "), desired.spec.storage.size.0);
    (!names.is_empty()).then(|| Progress::new(Reason::Growing, message()))
}
