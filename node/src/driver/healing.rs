//! A member that finds sealed files damaged at its start, before it takes part: it asks the others for the lines,
//! and makes the files what they were. Cut off behind the damage, it would need a leader to be refilled; and when a
//! majority found damage at the same time, there would be none. Nothing is decided here: the log is opened afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kv_core::entry::{EntryId, Epoch, LogPosition};
use kv_core::group::FEATURE_LEVEL;
use kv_core::message::{Hello, Message};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::PEER_EVENTS_MAX;
use super::boot::BootOptions;
use super::gathering::{Gathering, Missing};
use super::learners::{REPEAT_AFTER, answer};
use crate::auth_token::AuthToken;
use crate::transport::{Transport, TransportConfig, TransportEvent};
use crate::wal::ailing::Ailing;
use crate::wal::repair::Found;
use crate::wal::{FileStorage, WalError};

/// How long the others have for coming up and answering.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the rest of them has when one has answered all and it was not enough.
const REST_PATIENCE: Duration = Duration::from_secs(3);

/// Asks until all files are whole, or nobody is left to ask. May be cancelled: each file is put back at once or not.
/// An error of the disk ends it: another start may do better.
pub async fn heal(
    ailing: Ailing<FileStorage>,
    listener: TcpListener,
    secret: Option<AuthToken>,
    options: &BootOptions,
) -> Result<Ailing<FileStorage>, WalError> {
    let Some(cluster_id) = ailing.hard().cluster_id.clone() else { return Ok(ailing) };
    tracing::warn!(missing = ?ailing.missing(), "sealed files are damaged: asking the other members before taking part");
    let hello = Arc::new(ArcSwap::from_pointee(hello(&ailing, options)));
    let (events, mut received) = mpsc::channel(PEER_EVENTS_MAX);
    let transport = Transport::start(TransportConfig { listener, hello, secret }, events);
    transport.set_peers(ailing.others());
    let missing = ailing.missing().into_iter().map(|range| Missing { range, epoch_above: Epoch::default() });
    let mut gathering = Gathering::new(cluster_id, missing.collect(), EntryId::ZERO);
    let mut ailing = put_back(ailing, Found::new()).await?;
    let mut connected = BTreeMap::new();
    let mut give_up_at = Instant::now() + PATIENCE;
    let mut repeat_at = Instant::now() + REPEAT_AFTER;
    while !ailing.is_whole() && Instant::now() < give_up_at {
        match timeout_at(give_up_at.min(repeat_at), received.recv()).await {
            Ok(Some(event)) => {
                let is_answer = matches!(&event, TransportEvent::Received { message: Message::Lines { .. }, .. });
                let question = answer(&mut gathering, &mut connected, event);
                if let Some((member, question)) = question {
                    transport.send(member, question);
                } else if is_answer && gathering.unanswered().is_empty() {
                    ailing = put_back(ailing, gathering.lines_found()).await?;
                    give_up_at = give_up_at.min(Instant::now() + REST_PATIENCE);
                }
            }
            Ok(None) => break,
            Err(_elapsed) => {
                repeat_at = Instant::now() + REPEAT_AFTER;
                gathering.unanswered().into_iter().for_each(|(member, question)| transport.send(member, question));
            }
        }
    }
    transport.shutdown().await;
    tracing::warn!(is_whole = ailing.is_whole(), "the other members were asked");
    Ok(ailing)
}

/// As somebody who asks and is nobody's member yet: a start shows itself when its log is open.
fn hello(ailing: &Ailing<FileStorage>, options: &BootOptions) -> Hello {
    let hard = ailing.hard();
    Hello {
        name: hard.name.clone(),
        member_id: hard.member_id,
        cluster_id: None,
        incarnation: hard.incarnation,
        start_id: options.start_id,
        promise: hard.promise,
        durable: LogPosition::default(),
        baseline: None,
        feature_level: FEATURE_LEVEL,
        url: options.url.clone(),
        peer_url: options.peer_url.clone(),
    }
}

async fn put_back(ailing: Ailing<FileStorage>, found: Found) -> Result<Ailing<FileStorage>, WalError> {
    tokio::task::spawn_blocking(move || ailing.put_back(&found)).await.expect("no panic")
}
