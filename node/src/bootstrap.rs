//! How a volume becomes a member of a group: alone, as a learner of a leader that is named, or
//! together with the members of a cluster file. Flags and files only name peers: who votes is decided
//! by the bodies that the members wrote durably. Started once by `serve`; asks the replica through
//! [`Handle`] and other nodes by HTTP.

mod following;
mod founding;
mod remote;

use std::convert::Infallible;
use std::time::Duration;

use kv_core::contract::{Reply, Request};
use kv_core::group::{ClusterId, MemberInfo, NodeName, Settings};
use kv_core::message::Hello;
use kv_core::status::ReplicaStatus;
use tokio::time::Instant;

use crate::auth_token::AuthToken;
use crate::driver::{CallError, Handle, random_u64};
pub use remote::Remote;
use remote::RemoteError;

/// How long the own replica may take to answer.
const OWN_ANSWER: Duration = Duration::from_secs(10);
/// Shortest and longest pause between two tries.
const PAUSE_MS: (u64, u64) = (50, 1000);

/// How an empty volume becomes a member; an initialised one only goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    Alone,
    /// A learner of whoever leads; this URL is asked first.
    Follow {
        leader_url: String,
    },
    /// Founded together by the member that is to lead.
    Cluster {
        members: Vec<ListedMember>,
        leader: NodeName,
    },
    /// Waits for somebody else to bootstrap or add it.
    Join,
}

/// A member as a cluster file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedMember {
    pub name: NodeName,
    pub url: String,
    pub peer_url: String,
}

/// What the node is to become, and what it has to show for it.
#[derive(Clone)]
pub struct Bootstrap {
    pub start: Start,
    /// Seeds the settings of a group that is founded here.
    pub settings: Settings,
    pub auth_token: Option<AuthToken>,
}

/// Why a node can never become what it was told to.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error(
        "the data directory belongs to cluster {mine}, the leader at {url} to {theirs}: empty the directory or name the right leader"
    )]
    ForeignLeader { url: String, mine: ClusterId, theirs: ClusterId },
    #[error("the cluster file does not name this node, {0}")]
    NotListed(NodeName),
    #[error("the node refused to be bootstrapped: {0}")]
    Refused(String),
    #[error(transparent)]
    Node(#[from] CallError),
}

/// Why a try did not succeed: another may, or none ever will.
enum Problem {
    Passing(RemoteError),
    Final(BootstrapError),
}

impl From<RemoteError> for Problem {
    fn from(error: RemoteError) -> Self {
        Self::Passing(error)
    }
}

/// Makes the node what it was told to be, then sees to it that a learner stays known to whoever leads: runs until
/// the process ends. May be cancelled: what was begun is resumed at the next start.
pub async fn run(bootstrap: Bootstrap, handle: Handle) -> Result<Infallible, BootstrapError> {
    let remote = Remote::new(bootstrap.auth_token.clone());
    match &bootstrap.start {
        Start::Join => {}
        Start::Alone => founding::alone(&handle, bootstrap.settings).await?,
        Start::Follow { leader_url } => {
            return following::follow(&handle, &remote, std::slice::from_ref(leader_url)).await;
        }
        Start::Cluster { members, leader } => {
            founding::together(&handle, &remote, members, leader, bootstrap.settings).await?;
        }
    }
    following::again(&handle, &remote).await
}

async fn own_status(handle: &Handle) -> Result<ReplicaStatus, CallError> {
    match handle.request(Request::Status, Instant::now() + OWN_ANSWER).await? {
        Reply::Status(status) => Ok(*status),
        other => unreachable!("a status was asked for, not {other:?}"),
    }
}

async fn own_info(handle: &Handle) -> Result<MemberInfo, CallError> {
    own_hello(handle).await.map(info)
}

fn info(hello: Hello) -> MemberInfo {
    MemberInfo { name: hello.name, member_id: hello.member_id, peer_url: hello.peer_url }
}

async fn own_hello(handle: &Handle) -> Result<Hello, CallError> {
    match handle.request(Request::Hello, Instant::now() + OWN_ANSWER).await? {
        Reply::Hello(hello) => Ok(*hello),
        other => unreachable!("a hello was asked for, not {other:?}"),
    }
}

/// A name for a new group that no other group has.
fn new_cluster_id() -> ClusterId {
    ClusterId::new(&format!("{:016x}{:016x}", random_u64(), random_u64())).expect("hexadecimal digits are legal")
}

/// Pauses that grow from try to try, each a random part of its length.
struct Pauses(u64);

impl Pauses {
    fn new() -> Self {
        Self(PAUSE_MS.0)
    }

    async fn pause(&mut self) {
        let jittered = self.0 / 2 + random_u64() % (self.0 / 2 + 1);
        tokio::time::sleep(Duration::from_millis(jittered)).await;
        self.0 = (self.0 * 2).min(PAUSE_MS.1);
    }
}
