//! Learners: the follower of a leader that is named registers itself, with back-off, and any learner again
//! whenever whoever leads does not know it; who was removed stays away. Runs for the life of the node.

use std::convert::Infallible;
use std::time::Duration;

use kv_core::contract::View;
use kv_core::status::{NodeStatus, Role};
use tokio::time::Instant;

use super::remote::RemoteError;
use super::{BootstrapError, Pauses, Problem, Remote, info, own_hello, own_status};
use crate::driver::Handle;

/// How long a registration may take to show: the leader connects, and sends what is missing.
const TAKEN_UP: Duration = Duration::from_secs(3);
/// How often a member that is followed up looks whether it still is.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Registers with whoever leads; `urls` are asked first, then the nodes that this one has met.
pub(super) async fn follow(handle: &Handle, remote: &Remote, urls: &[String]) -> Result<Infallible, BootstrapError> {
    // Asked at least once: a volume that leads a group of its own must not go on unnoticed.
    stay_registered(handle, remote, urls, Asked::Never, |view| !is_member(view) && !view.let_go).await
}

/// Registers a learner again with a leader that does not know it: each leader keeps its own. Nobody is named, so
/// only nodes that this one has met are asked.
pub(super) async fn again(handle: &Handle, remote: &Remote) -> Result<Infallible, BootstrapError> {
    let mut pauses = Pauses::new();
    loop {
        match stay_registered(handle, remote, &[], Asked::Before, |view| view.forgotten).await {
            Err(error @ BootstrapError::ForeignLeader { .. }) => {
                tracing::info!(%error, "not registered again yet");
                pauses.pause().await;
            }
            ended => return ended,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Asked {
    Never,
    Before,
}

/// Registers whenever `is_needed`, for the life of the node.
async fn stay_registered(
    handle: &Handle,
    remote: &Remote,
    urls: &[String],
    mut asked: Asked,
    is_needed: impl Fn(&View) -> bool,
) -> Result<Infallible, BootstrapError> {
    let mut pauses = Pauses::new();
    let mut last_problem = None;
    loop {
        if asked == Asked::Before && !is_needed(&handle.view()) {
            pauses = Pauses::new();
            let _changed = handle.wait_view(Instant::now() + LOOK_EVERY, &is_needed).await;
            continue;
        }
        match register(handle, remote, urls).await {
            Ok(()) => {
                asked = Asked::Before;
                last_problem = None;
                let _taken_up = handle.wait_view(Instant::now() + TAKEN_UP, |view| !is_needed(view)).await;
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
    let hello = own_hello(handle).await.map_err(|error| Problem::Final(error.into()))?;
    let (url, leader) = find_leader(handle, remote, urls, &hello.url).await?;
    let me = info(hello);
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

/// Asks the named nodes and those met since for the one that leads. The first problem is told: that of the node that
/// was named.
async fn find_leader(
    handle: &Handle,
    remote: &Remote,
    urls: &[String],
    own_url: &str,
) -> Result<(String, NodeStatus), RemoteError> {
    let met = handle.view();
    let candidates = urls.iter().chain(met.urls.values()).filter(|url| *url != own_url);
    let mut problem = None;
    for url in candidates {
        match remote.status(url).await {
            Ok(status) if status.replica.role == Role::Leader => return Ok((url.clone(), status)),
            Ok(status) => {
                let Some(named) = status.replica.leader.and_then(|leader| leader.url) else { continue };
                match remote.status(&named).await {
                    Ok(status) if status.replica.role == Role::Leader => return Ok((named, status)),
                    Ok(_) => {}
                    Err(error) => drop(problem.get_or_insert(error)),
                }
            }
            Err(error) => drop(problem.get_or_insert(error)),
        }
    }
    Err(problem.unwrap_or(RemoteError::NoLeader))
}
