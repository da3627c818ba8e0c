//! A damaged group of one before it serves: what it lost is asked of its learners and put back. What
//! remains is declared lost only when nothing speaks for a learner knowing more.

use kv_core::entry::{Entry, EntryId};
use kv_core::message::Hello;
use tokio::sync::mpsc;

use super::gathering::{Gathered, Gathering, Missing};
use super::learners::{self, Asked};
use crate::transport::{Transport, TransportEvent};
use crate::wal::{FileStorage, IdRange, Recovered, Wal, WalError};

/// The log as it is served.
pub(crate) struct Mended {
    pub(crate) wal: Wal<FileStorage>,
    pub(crate) recovered: Recovered,
    /// To be declared by LOST entries.
    pub(crate) undeclared: Vec<(EntryId, EntryId)>,
    /// Peers that have connected meanwhile.
    pub(crate) connected: Vec<Hello>,
}

/// Returns at once when nothing is missing. May be cancelled.
pub(crate) async fn mend(
    wal: Wal<FileStorage>,
    recovered: Recovered,
    transport: &Transport,
    events: &mut mpsc::Receiver<TransportEvent>,
) -> Result<Mended, WalError> {
    let Some(gathering) = gathering(&recovered) else {
        return Ok(Mended { wal, recovered, undeclared: Vec::new(), connected: Vec::new() });
    };
    tracing::warn!(missing = ?recovered.missing(), "lines are missing: asking learners before anything is served");
    let Asked { gathered, connected } = learners::ask(transport, events, gathering).await;
    let Gathered { found, unclear_up_to } = gathered;
    let has_found = !found.is_empty();
    let refilled = tokio::task::spawn_blocking(move || refill(wal, recovered, &found)).await.expect("no panic")?;
    let (wal, recovered, refill) = refilled;
    let missing = recovered.missing();
    // A LOST entry makes all learners take a snapshot: never while one may hold more than this log.
    let may_be_known = missing.iter().any(|range| range.first <= unclear_up_to);
    let is_unclear = may_be_known || refill == Refill::NoRoom;
    tracing::warn!(has_found, ?refill, still_missing = ?missing, is_unclear, "learners were asked");
    let undeclared = if is_unclear { Vec::new() } else { missing };
    let undeclared = undeclared.iter().map(|range| (range.first, range.last)).collect();
    Ok(Mended { wal, recovered, undeclared, connected })
}

/// None: nothing is missing.
fn gathering(recovered: &Recovered) -> Option<Gathering> {
    let cluster_id = recovered.hard.cluster_id.clone()?;
    let promised = recovered.hard.promise.epoch;
    let missing =
        |range: IdRange| Missing { epoch_above: recovered.epoch_above(range.last).unwrap_or(promised), range };
    let missing: Vec<_> = recovered.undeclared().into_iter().map(missing).collect();
    let base_up_to = if recovered.lacks_of_base() { recovered.base.horizon.id } else { EntryId::ZERO };
    let is_whole = missing.is_empty() && base_up_to == EntryId::ZERO;
    (recovered.is_alone() && !is_whole).then(|| Gathering::new(cluster_id, missing, base_up_to))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refill {
    Done,
    /// The next start asks again.
    NoRoom,
}

fn refill(
    mut wal: Wal<FileStorage>,
    recovered: Recovered,
    found: &[Entry],
) -> Result<(Wal<FileStorage>, Recovered, Refill), WalError> {
    if found.is_empty() {
        return Ok((wal, recovered, Refill::Done));
    }
    match wal.refill(found, &recovered.report) {
        Ok(recovered) => Ok((wal, recovered, Refill::Done)),
        Err(WalError::Full) => Ok((wal, recovered, Refill::NoRoom)),
        Err(error) => Err(error),
    }
}
