//! From what recovery found to what a replica is started from; damage was judged by recovery. Draws what
//! must be random. Used at start and after an installed snapshot.

use kv_core::contract::{Boot, Limits, Tuning};

use crate::wal::Recovered;

/// What a node is told at start and does not keep on its volume.
#[derive(Debug, Clone)]
pub struct BootOptions {
    /// Where clients and peers reach this node.
    pub url: String,
    pub peer_url: String,
    pub tuning: Tuning,
    /// Whether this member is named to lead at start.
    pub lead_at_start: bool,
    pub limits: Limits,
    /// Drawn once for each start of the process: [`random_u64`].
    pub start_id: u64,
}

/// A number that nobody can guess.
///
/// # Panics
/// When the system has no randomness to give; nothing can be started safely then.
pub fn random_u64() -> u64 {
    getrandom::u64().expect("the system gives random numbers")
}

pub(crate) fn boot(recovered: Recovered, options: &BootOptions) -> Boot {
    let Recovered { hard, base, state, epoch_runs, configurations, tail, report: _ } = recovered;
    Boot {
        hard,
        base,
        start_id: options.start_id,
        url: options.url.clone(),
        peer_url: options.peer_url.clone(),
        tuning: options.tuning,
        seed: random_u64(),
        state,
        epoch_runs,
        configurations,
        tail,
        lead_at_start: options.lead_at_start,
        limits: options.limits,
    }
}
