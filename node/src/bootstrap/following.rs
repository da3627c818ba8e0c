//! A follower of a leader that is named: it registers itself as a learner, with back-off, and again
//! whenever whoever leads does not know it. Runs for the life of the node.

use std::time::Duration;

use kv_core::contract::View;
use kv_core::status::{NodeStatus, Role};
use tokio::time::Instant;

use super::remote::RemoteError;
use super::{BootstrapError, Pauses, Problem, Remote, own_info, own_status};
use crate::driver::Handle;

/// How long a registration may take to show: the leader connects, and sends what is missing.
const TAKEN_UP: Duration = Duration::from_secs(3);
/// How often a member that is followed up looks whether it still is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Registers with whoever leads; `urls` are asked first, then the nodes that this one has met.
pub(super) async fn follow(handle: &Handle, remote: &Remote, urls: &[String]) -> Result<(), BootstrapError> {
    let mut pauses = Pauses::new();
    let mut last_problem = None;
    // Asked at least once: a volume that leads a group of its own must not go on unnoticed.
    let mut has_asked = false;
    loop {
        if has_asked && is_member(&handle.view()) {
            pauses = Pauses::new();
            let _changed = handle.wait_view(Instant::now() + LOOK_EVERY, |view| !is_member(view)).await;
            continue;
        }
        match register(handle, remote, urls).await {
            Ok(()) => {
                has_asked = true;
                last_problem = None;
                let _taken_up = handle.wait_view(Instant::now() + TAKEN_UP, is_member).await;
            }
            Err(Problem::Final(error)) => return Err(error),
            Err(Problem::Passing(problem)) if last_problem.as_ref() != Some(&problem) => {
                tracing::info!(%problem, "not registered with a leader yet, trying again");
                last_problem = Some(problem);
            }
            Err(Problem::Passing(_)) => {}
        }
        pauses.pause().await;
    }
}

/// A leader feeds this node: it has caught up with one that it hears.
fn is_member(view: &View) -> bool {
    view.role == Role::Leader || view.caught_up
}

async fn register(handle: &Handle, remote: &Remote, urls: &[String]) -> Result<(), Problem> {
    let own = own_status(handle).await.map_err(|error| Problem::Final(error.into()))?;
    let me = own_info(handle).await.map_err(|error| Problem::Final(error.into()))?;
    let (url, leader) = find_leader(handle, remote, urls).await?;
    if let (Some(mine), Some(theirs)) = (&own.cluster_id, &leader.replica.cluster_id)
        && mine != theirs
    {
        let (mine, theirs) = (mine.clone(), theirs.clone());
        return Err(Problem::Final(BootstrapError::ForeignLeader { url, mine, theirs }));
    }
    let known = leader.replica.members.iter().any(|m| m.member_id == me.member_id && m.voter);
    if !known {
        remote.join(&url, &leader.replica, &me).await?;
    }
    Ok(())
}

/// Asks the named nodes and those met since for the one that leads.
async fn find_leader(handle: &Handle, remote: &Remote, urls: &[String]) -> Result<(String, NodeStatus), RemoteError> {
    let met = handle.view();
    let candidates = urls.iter().chain(met.urls.values());
    let mut problem = RemoteError::Unreachable { url: urls.first().cloned().unwrap_or_default() };
    for url in candidates {
        match remote.status(url).await {
            Ok(status) if status.replica.role == Role::Leader => return Ok((url.clone(), status)),
            Ok(status) => {
                let Some(named) = status.replica.leader.and_then(|leader| leader.url) else { continue };
                match remote.status(&named).await {
                    Ok(status) if status.replica.role == Role::Leader => return Ok((named, status)),
                    Ok(_) => {}
                    Err(error) => problem = error,
                }
            }
            Err(error) => problem = error,
        }
    }
    Err(problem)
}
