//! How fresh a read must be, and whether this node may answer it: the lease of a leader, `min_id`,
//! `consistency=linearizable`. Never reads a value itself. Called by the handlers that do.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::response::Response;
use kv_core::contract::{Refusal, Reply, Request};
use kv_core::entry::EntryId;
use kv_core::status::Role;
use tokio::time::Instant;

use super::App;
use super::error::{Asked, Code, Failure};
use super::forward::{self, Done, LeaderRequest, Repeat};
use super::query::Query;
use crate::driver::Handle;

/// How long a leader without a lease is given to renew it before a default read is refused, and one that was
/// deposed to hear its successor: a new leader needs one round for its first.
const LEASE_WAIT: Duration = Duration::from_millis(500);

/// The names of the parameters that every read of a key knows.
pub(crate) const FRESHNESS: [&str; 2] = ["consistency", "min_id"];

/// What a read asks of the state it is answered from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) consistency: Consistency,
    pub(crate) min_id: Option<EntryId>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// Committed state of this node.
    #[default]
    Local,
    Linearizable,
}

impl Freshness {
    pub(crate) fn of(query: &Query<'_>) -> Result<Self, Failure> {
        let consistency = match query.text("consistency") {
            None | Some("local") => Consistency::Local,
            Some("linearizable") => Consistency::Linearizable,
            Some(_) => return Err(Failure::invalid("query", "consistency", "Must be local or linearizable")),
        };
        Ok(Self { consistency, min_id: query.number("min_id")?.map(EntryId) })
    }
}

/// Where a read is answered.
pub(crate) enum Admitted {
    /// Read now.
    Here,
    /// The leader has answered instead.
    Relayed(Response),
}

/// Waits until this node may answer, or lets the leader answer. May be cancelled.
pub(crate) async fn admit(
    app: &App,
    handle: &Handle,
    parts: &Parts,
    freshness: Freshness,
) -> Result<Admitted, Failure> {
    let view = handle.view();
    if freshness == Freshness::default() && handle.answers_default_reads(&view) {
        return Ok(Admitted::Here);
    }
    let deadline = app.deadline();
    match freshness.consistency {
        Consistency::Linearizable => {
            if let Some(relayed) = confirm(app, handle, parts, deadline).await? {
                return Ok(Admitted::Relayed(relayed));
            }
        }
        Consistency::Local if !view.serves => {
            return Err(Failure::not_ready("The node has no complete state to read from yet"));
        }
        Consistency::Local if view.role == Role::Leader => await_lease(handle, deadline).await?,
        Consistency::Local if view.deposed => await_successor(handle, deadline).await?,
        Consistency::Local => {}
    }
    if let Some(id) = freshness.min_id {
        await_applied(handle, id, deadline).await?;
    }
    Ok(Admitted::Here)
}

/// None: everything that was committed when the read arrived is applied here now.
async fn confirm(app: &App, handle: &Handle, parts: &Parts, deadline: Instant) -> Result<Option<Response>, Failure> {
    let request = LeaderRequest { parts, body: &Bytes::new(), repeat: Repeat::Harmless, asked: Asked::Read };
    match forward::carry_out(app, handle, request, Request::ReadIndex, deadline).await? {
        Done::Relayed(response) => Ok(Some(response)),
        Done::Here(Reply::ReadAt(id)) => await_applied(handle, id, deadline).await.map(|()| None),
        Done::Here(Reply::Refused(refusal)) => Err(refusal.into()),
        Done::Here(other) => Err(forward::unexpected(&other)),
    }
}

/// A leader whose lease has run out asks for one confirmed round, which renews it.
async fn await_lease(handle: &Handle, deadline: Instant) -> Result<(), Failure> {
    if handle.answers_default_reads(&handle.view()) {
        return Ok(());
    }
    let lease_deadline = deadline.min(Instant::now() + LEASE_WAIT);
    match handle.request(Request::ReadIndex, lease_deadline).await {
        Ok(Reply::ReadAt(id)) => await_applied(handle, id, lease_deadline).await,
        Ok(Reply::Refused(Refusal::NotLeader { .. })) => await_successor(handle, deadline).await,
        _ => Err(unconfirmed()),
    }
}

/// Whoever led a moment ago soon hears who leads now, unless it is cut off.
async fn await_successor(handle: &Handle, deadline: Instant) -> Result<(), Failure> {
    let deadline = deadline.min(Instant::now() + LEASE_WAIT);
    let heard = handle.wait_view(deadline, |view| handle.answers_default_reads(view)).await;
    heard.map(drop).ok_or_else(unconfirmed)
}

fn unconfirmed() -> Failure {
    Failure::new(Code::NoLeader, "No majority has confirmed this leader lately")
}

async fn await_applied(handle: &Handle, id: EntryId, deadline: Instant) -> Result<(), Failure> {
    if handle.wait_applied(id, deadline).await {
        return Ok(());
    }
    Err(Failure::new(Code::Timeout, format!("Id {id} was not applied on this node in time")))
}
