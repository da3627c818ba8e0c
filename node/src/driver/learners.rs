//! Before a damaged group of one serves: its learners may hold what it lost. They connect by
//! themselves; each that does is asked. Runs before there is a replica, on the transport it will have.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::entry::Entry;
use kv_core::group::MemberId;
use kv_core::message::{Hello, Message};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::gathering::Gathering;
use crate::transport::{Transport, TransportEvent};
use crate::wal::IdRange;

/// How long a learner has for connecting: its back-off between two attempts, with room.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// What came of asking.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Rising by id.
    pub(crate) found: Vec<Entry>,
    /// What nobody holds.
    pub(crate) lost: Vec<IdRange>,
    /// Who is connected, for the replica to come.
    pub(crate) connected: Vec<Hello>,
}

/// Asks every learner that connects, until all is found or nobody has more. May be cancelled.
pub(crate) async fn ask(
    transport: &Transport,
    events: &mut mpsc::Receiver<TransportEvent>,
    mut gathering: Gathering,
) -> Asked {
    let mut connected = BTreeMap::new();
    let mut give_up_at = Instant::now() + CONNECT_PATIENCE;
    while !gathering.is_complete() {
        let Ok(Some(event)) = timeout_at(give_up_at, events.recv()).await else { break };
        if let Some((learner, question)) = answer(&mut gathering, &mut connected, event) {
            give_up_at = give_up_at.max(Instant::now() + ANSWER_PATIENCE);
            transport.send(learner, question);
        }
    }
    let (found, lost) = gathering.finish();
    Asked { found, lost, connected: connected.into_values().collect() }
}

fn answer(
    gathering: &mut Gathering,
    connected: &mut BTreeMap<MemberId, Hello>,
    event: TransportEvent,
) -> Option<(MemberId, Message)> {
    match event {
        TransportEvent::Connected { hello } => {
            let learner = hello.member_id;
            let question = gathering.connected(&hello);
            connected.insert(learner, hello);
            question.map(|question| (learner, question))
        }
        TransportEvent::Disconnected { peer, .. } => {
            connected.remove(&peer);
            gathering.disconnected(peer);
            None
        }
        TransportEvent::Received { from, message: Message::Lines { first: _, last, entries } } => {
            gathering.lines(from, last, entries).map(|question| (from, question))
        }
        // The replica to come asks again for all that matters.
        TransportEvent::Received { .. }
        | TransportEvent::UnknownLine { .. }
        | TransportEvent::SnapshotIncoming { .. } => None,
    }
}
