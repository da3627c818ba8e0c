//! Founding a group: alone, or together with the members of a cluster file. The member that is to
//! lead collects the member ids, writes the body durably by bootstrapping itself first, and sends the
//! same body to the others until each has it; a start in between resumes with the body on disk.

use kv_core::contract::{Reply, Request};
use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberInfo, NodeName, Settings};
use kv_core::status::{NodeStatus, ReplicaStatus};
use tokio::time::Instant;

use super::remote::RemoteError;
use super::{
    BootstrapError, ListedMember, OWN_ANSWER, Pauses, Problem, Remote, following, new_cluster_id, own_info, own_status,
};
use crate::driver::Handle;

pub(super) async fn alone(handle: &Handle, settings: Settings) -> Result<(), BootstrapError> {
    if own_status(handle).await?.cluster_id.is_some() {
        return Ok(());
    }
    let me = own_info(handle).await?;
    bootstrap_own(handle, new_cluster_id(), vec![me], settings).await
}

pub(super) async fn together(
    handle: &Handle,
    remote: &Remote,
    members: &[ListedMember],
    leader: &NodeName,
    settings: Settings,
) -> Result<(), BootstrapError> {
    let me = own_info(handle).await?;
    if !members.iter().any(|member| member.name == me.name) {
        return Err(BootstrapError::NotListed(me.name));
    }
    let mut pauses = Pauses::new();
    let mut last_problem = None;
    loop {
        let own = own_status(handle).await?;
        let step = match &own.cluster_id {
            Some(_) if me.name == *leader => resume(remote, members, &own).await,
            Some(_) => Ok(Step::Done),
            None if me.name == *leader => found(handle, remote, members, &me, settings).await,
            None => wait_or_return(remote, members, &me).await,
        };
        match step {
            Ok(Step::Done) => return Ok(()),
            Ok(Step::GoOn) => {}
            Ok(Step::Register) => {
                let urls: Vec<String> = members.iter().map(|member| member.url.clone()).collect();
                match following::follow(handle, remote, &urls).await? {}
            }
            Err(Problem::Final(error)) => return Err(error),
            Err(Problem::Passing(problem)) => {
                if last_problem.as_ref() != Some(&problem) {
                    tracing::info!(%problem, "the group is not founded yet, trying again");
                    last_problem = Some(problem);
                }
            }
        }
        pauses.pause().await;
    }
}

enum Step {
    Done,
    GoOn,
    /// The group exists without this volume: it comes back as a learner.
    Register,
}

async fn bootstrap_own(
    handle: &Handle,
    cluster_id: ClusterId,
    voters: Vec<MemberInfo>,
    settings: Settings,
) -> Result<(), BootstrapError> {
    let request = Request::Bootstrap { target_member_id: None, if_config_id: None, cluster_id, voters, settings };
    match handle.request(request, Instant::now() + OWN_ANSWER).await? {
        Reply::Done { .. } => Ok(()),
        Reply::Refused(refusal) => Err(BootstrapError::Refused(format!("{refusal:?}"))),
        other => unreachable!("a bootstrap is done or refused, not {other:?}"),
    }
}

fn others<'a>(members: &'a [ListedMember], me: &NodeName) -> impl Iterator<Item = &'a ListedMember> {
    members.iter().filter(move |member| member.name != *me)
}

/// Every other member must answer before anything is written.
async fn found(
    handle: &Handle,
    remote: &Remote,
    members: &[ListedMember],
    me: &MemberInfo,
    settings: Settings,
) -> Result<Step, Problem> {
    let mut voters = vec![me.clone()];
    for member in others(members, &me.name) {
        let NodeStatus { replica, peer_url, .. } = remote.status(&member.url).await?;
        if replica.cluster_id.is_some() {
            return Ok(Step::Register);
        }
        if replica.name != member.name {
            let (url, found) = (member.url.clone(), replica.name);
            return Err(RemoteError::OtherName { url, found, listed: member.name.clone() }.into());
        }
        let peer_url = if member.peer_url.is_empty() { peer_url } else { member.peer_url.clone() };
        voters.push(MemberInfo { name: member.name.clone(), member_id: replica.member_id, peer_url });
    }
    bootstrap_own(handle, new_cluster_id(), voters, settings).await.map_err(Problem::Final)?;
    Ok(Step::GoOn)
}

/// Sends the body on disk to all that are still empty. Once a CONFIG entry exists, all have it.
async fn resume(remote: &Remote, members: &[ListedMember], own: &ReplicaStatus) -> Result<Step, Problem> {
    let Some(cluster_id) = own.cluster_id.clone().filter(|_| own.config_id == EntryId::ZERO) else {
        return Ok(Step::Done);
    };
    let voters: Vec<MemberInfo> = own.members.iter().filter(|m| m.voter).map(info).collect();
    for member in others(members, &own.name) {
        let status = remote.status(&member.url).await?;
        match status.replica.cluster_id {
            Some(theirs) if theirs == cluster_id => {}
            // Not worth stopping for: the group that this node is a member of may do without.
            Some(theirs) => tracing::warn!(member = %member.name, %theirs, "is in another cluster, not in this one"),
            // A volume that was lost since: it registers itself, and the leader replaces it.
            None if !voters.iter().any(|v| v.member_id == status.replica.member_id) => {}
            None => {
                let target = status.replica.member_id;
                remote.bootstrap(&member.url, target, &cluster_id, &voters, own.settings).await?;
            }
        }
    }
    Ok(Step::Done)
}

fn info(member: &kv_core::status::MemberStatus) -> MemberInfo {
    MemberInfo { name: member.name.clone(), member_id: member.member_id, peer_url: member.peer_url.clone() }
}

/// A member that does not lead waits for its bootstrap. When the group exists and does not know its
/// member id, its volume was lost: it comes back as a learner.
async fn wait_or_return(remote: &Remote, members: &[ListedMember], me: &MemberInfo) -> Result<Step, Problem> {
    for member in others(members, &me.name) {
        let Ok(status) = remote.status(&member.url).await else { continue };
        let voters = status.replica.members.iter().filter(|m| m.voter);
        let mut namesakes = voters.filter(|m| m.name == me.name);
        if status.replica.cluster_id.is_some() && namesakes.all(|m| m.member_id != me.member_id) {
            return Ok(Step::Register);
        }
    }
    Ok(Step::GoOn)
}
