//! Other nodes, asked by HTTP: their status, and to take part. Knows no roles.

use std::time::Duration;

use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberId, MemberInfo, NodeName, Settings};
use kv_core::status::{NodeStatus, ReplicaStatus};
use serde::Serialize;

use crate::auth_token::AuthToken;
use crate::http_client;

/// The longest wait for one answer of another node.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest refusal that is repeated in a log line, in bytes.
const REFUSAL_BYTES_MAX: usize = 300;

pub struct Remote {
    client: reqwest::Client,
    auth_token: Option<AuthToken>,
}

/// Why another node did not do what it was asked; fit for a log line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("{url} cannot be reached")]
    Unreachable { url: String },
    #[error("nobody who was asked leads, or names a leader")]
    NoLeader,
    #[error("{url} is node {found}, the cluster file says {listed}")]
    OtherName { url: String, found: NodeName, listed: NodeName },
    #[error("{url} answered {status}: {text}")]
    Refused { url: String, status: u16, text: String },
}

#[derive(Serialize)]
struct JoinBody<'a> {
    name: &'a str,
    member_id: MemberId,
    peer_url: &'a str,
    role: &'static str,
    cluster_id: Option<&'a ClusterId>,
    target_member_id: MemberId,
    if_config_id: EntryId,
}

#[derive(Serialize)]
struct BootstrapBody<'a> {
    target_member_id: MemberId,
    cluster_id: &'a ClusterId,
    voters: &'a [MemberInfo],
    settings: Settings,
}

impl Remote {
    pub fn new(auth_token: Option<AuthToken>) -> Self {
        let client = http_client::build(|builder| builder.timeout(ANSWER));
        Self { client, auth_token }
    }

    pub(super) async fn status(&self, url: &str) -> Result<NodeStatus, RemoteError> {
        let response = self.send(self.client.get(at(url, "/status")), url).await?;
        response.json().await.map_err(|_| RemoteError::Unreachable { url: url.to_owned() })
    }

    /// Asks `leader` to take `me` as a learner.
    pub(super) async fn join(&self, url: &str, leader: &ReplicaStatus, me: &MemberInfo) -> Result<(), RemoteError> {
        let body = JoinBody {
            name: me.name.as_str(),
            member_id: me.member_id,
            peer_url: &me.peer_url,
            role: "learner",
            cluster_id: leader.cluster_id.as_ref(),
            target_member_id: leader.member_id,
            if_config_id: leader.config_id,
        };
        self.send(self.client.post(at(url, "/cluster/members")).json(&body), url).await.map(drop)
    }

    pub(super) async fn bootstrap(
        &self,
        url: &str,
        target_member_id: MemberId,
        cluster_id: &ClusterId,
        voters: &[MemberInfo],
        settings: Settings,
    ) -> Result<(), RemoteError> {
        let body = BootstrapBody { target_member_id, cluster_id, voters, settings };
        self.send(self.client.post(at(url, "/cluster/bootstrap")).json(&body), url).await.map(drop)
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &str) -> Result<reqwest::Response, RemoteError> {
        let token = self.auth_token.as_ref().map(|token| String::from_utf8_lossy(&token.load()).into_owned());
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let response = request.send().await.map_err(|_| RemoteError::Unreachable { url: url.to_owned() })?;
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let text = text.chars().take(REFUSAL_BYTES_MAX).collect();
        Err(RemoteError::Refused { url: url.to_owned(), status, text })
    }
}

fn at(url: &str, path: &str) -> String {
    format!("{}{path}", url.trim_end_matches('/'))
}
