//! The replica's notes as log events: names as people know them, one event each. What a person must
//! look at is WARN; the rest are routine transitions.

use kv_core::contract::Note;
use kv_core::group::NodeName;

/// A full disk is a condition that a person must end; the node recovers by itself when it has ended.
pub(crate) fn log_storage(full: bool) {
    if full {
        tracing::warn!("storage is full: writes are refused until there is room again");
    } else {
        tracing::info!("storage has room again");
    }
}

pub(crate) fn log(note: Note) {
    match note {
        Note::BecameLeader { epoch } => tracing::info!(%epoch, "leads"),
        Note::Deposed { by, unknown_outcomes } => tracing::info!(by_epoch = %by, unknown_outcomes, "leads no more"),
        Note::Unheard { epoch } => tracing::info!(%epoch, "steps down: no majority was heard within the time-out"),
        Note::Follows { leader, epoch } => tracing::info!(%leader, %epoch, "follows"),
        Note::Campaigns { epoch } => tracing::info!(%epoch, "campaigns"),
        Note::Behind { ahead } => tracing::info!(%ahead, "cannot lead: another member is ahead"),
        Note::PeerDown(peer) => tracing::info!(%peer, "peer is down"),
        Note::PeerHealthy(peer) => tracing::info!(%peer, "peer is healthy"),
        Note::TailCut { keep, last } => tracing::info!(%keep, %last, "cut what the leader does not have; saved aside"),
        Note::ConfigurationApplied { id, configuration } => {
            let names: Vec<_> = configuration.voters.iter().map(|v| NodeName::as_str(&v.name)).collect();
            tracing::info!(%id, voters = names.join(","), "configuration in force");
        }
        Note::Quarantined { reason } => tracing::warn!(reason, "quarantined: serves nothing until it is refilled"),
        Note::Superseded { reason } => tracing::error!(reason, "quarantined until the next start"),
        Note::Refilled => tracing::info!("refilled: out of quarantine"),
        Note::MemberReplaced { old, new } => tracing::info!(%old, %new, "replaced a member that lost its volume"),
    }
}
