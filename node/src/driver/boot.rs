//! From what recovery found to what a replica is started from; damage was judged by recovery. Used at
//! start and after an installed snapshot, by the driver and by the simulator.

use kv_core::contract::{Boot, Limits, Lost, Tuning};
use kv_core::entry::{EntryId, LogPosition};
use kv_core::group::FEATURE_LEVEL;
use kv_core::message::Hello;

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

/// `seed` decides the election time-outs.
pub fn boot(recovered: Recovered, options: &BootOptions, seed: u64) -> Boot {
    let Recovered { hard, base, state, epoch_runs, configurations, tail, gaps, report: _ } = recovered;
    let declared_at = gaps.iter().filter(|gap| gap.is_declared).map(|gap| gap.known_from).max();
    Boot {
        hard,
        base,
        start_id: options.start_id,
        url: options.url.clone(),
        peer_url: options.peer_url.clone(),
        tuning: options.tuning,
        seed,
        state,
        epoch_runs,
        configurations,
        tail,
        lost: Lost { undeclared: Vec::new(), declared_at: declared_at.unwrap_or(EntryId::ZERO) },
        lead_at_start: options.lead_at_start,
        limits: options.limits,
    }
}

/// What a node shows of itself before there is a replica: what that one will show.
pub fn hello(recovered: &Recovered, options: &BootOptions) -> Hello {
    let Recovered { hard, base, state, epoch_runs, tail, .. } = recovered;
    let epoch = epoch_runs.last().unwrap_or(&base.horizon).epoch;
    let durable = tail.last().map_or(state.applied(), |entry| entry.id);
    Hello {
        name: hard.name.clone(),
        member_id: hard.member_id,
        cluster_id: hard.cluster_id.clone(),
        incarnation: hard.incarnation,
        start_id: options.start_id,
        promise: hard.promise,
        durable: LogPosition { epoch, id: durable },
        baseline: None,
        feature_level: FEATURE_LEVEL,
        url: options.url.clone(),
        peer_url: options.peer_url.clone(),
    }
}
