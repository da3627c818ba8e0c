//! Before a damaged group of one serves: its learners may hold what it lost. They connect by
//! themselves; each that does is asked. Runs before there is a replica, on the transport it will have.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::group::MemberId;
use kv_core::message::{Hello, Message};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::gathering::{Gathered, Gathering};
use crate::transport::{Transport, TransportEvent};

/// How long a learner has for connecting: its back-off between two attempts is at most a second.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// A question without an answer is repeated after this time.
pub(super) const REPEAT_AFTER: Duration = Duration::from_millis(500);

/// What came of asking.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) gathered: Gathered,
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
    let mut repeat_at = Instant::now() + REPEAT_AFTER;
    while !gathering.is_complete() && Instant::now() < give_up_at {
        match timeout_at(give_up_at.min(repeat_at), events.recv()).await {
            Ok(Some(event)) => {
                if let Some((learner, question)) = answer(&mut gathering, &mut connected, event) {
                    give_up_at = give_up_at.max(Instant::now() + ANSWER_PATIENCE);
                    repeat_at = Instant::now() + REPEAT_AFTER;
                    transport.send(learner, question);
                }
            }
            Ok(None) => break,
            Err(_elapsed) => {
                repeat_at = Instant::now() + REPEAT_AFTER;
                gathering.unanswered().into_iter().for_each(|(learner, question)| transport.send(learner, question));
            }
        }
    }
    Asked { gathered: gathering.finish(), connected: connected.into_values().collect() }
}

pub(super) fn answer(
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
        TransportEvent::Received { from, message: Message::Lines { first: _, last, compacted, entries } } => {
            gathering.lines(from, last, compacted, entries).map(|question| (from, question))
        }
        // The replica to come asks again for all that matters.
        TransportEvent::Received { .. }
        | TransportEvent::UnknownLine { .. }
        | TransportEvent::SnapshotIncoming { .. } => None,
    }
}
