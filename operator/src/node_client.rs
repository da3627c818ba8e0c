//! The nodes' HTTP API, as far as the operator speaks it: status, and directives that carry what they
//! were decided on. Every call has a short deadline; nothing is tried again here. What a node says is
//! checked for form and believed about nobody's safety.

use std::time::Duration;

use kv_core::contract::SettingsChange;
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{ClusterId, MemberId, MemberInfo, Settings};
use kv_core::status::{CompactionSchedule, Failover, NodeStatus};
use reqwest::{Client, ClientBuilder};
use serde::Serialize;
use serde_json::Value;

use crate::error::NodeError;
use crate::group::Addressee;
use crate::plan::{Assignment, Founder, NodeTuning};

/// A status comes from memory; whoever is slower than this is unknown for now.
const STATUS_MAX: Duration = Duration::from_secs(1);
/// A directive waits for a hand-over (1.5 s) or for an entry to be committed.
const DIRECTIVE_MAX: Duration = Duration::from_secs(4);
const CONNECT_MAX: Duration = Duration::from_millis(500);
/// Longest answer that is read, in bytes: a status of seven members is a few thousand.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Longest refusal that is repeated, in characters.
const DETAIL_CHARACTERS_MAX: usize = 300;

/// Speaks to the nodes of all clusters; the connections are kept.
#[derive(Debug, Clone)]
pub struct NodeClient(Client);

/// The nodes of one cluster, with their token.
#[derive(Debug)]
pub struct Nodes<'a> {
    client: &'a Client,
    token: Option<String>,
}

#[derive(Serialize)]
struct Target<'a> {
    cluster_id: &'a ClusterId,
    target_member_id: MemberId,
    if_config_id: EntryId,
}

#[derive(Serialize)]
struct JoinBody<'a> {
    #[serde(flatten)]
    target: Target<'a>,
    #[serde(flatten)]
    member: &'a MemberInfo,
    role: &'static str,
}

#[derive(Serialize)]
struct SettingsBody<'a> {
    #[serde(flatten)]
    target: Target<'a>,
    settings: &'a SettingsChange,
}

#[derive(Serialize)]
struct BootstrapBody<'a> {
    cluster_id: &'a ClusterId,
    voters: &'a [MemberInfo],
    target_member_id: MemberId,
    settings: Settings,
}

#[derive(Serialize)]
struct RecoverBody<'a> {
    #[serde(flatten)]
    target: Target<'a>,
    accept_data_loss_at_epoch: Epoch,
    new_cluster_id: &'a ClusterId,
}

/// Of `POST /settings`; what is absent stays as it is.
#[derive(Debug, Default, PartialEq, Serialize)]
struct TuneBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_interval: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<Failover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_limit: Option<u64>,
}

/// A client for nodes, whoever asks them: they speak plain HTTP, and an image needs no CA roots.
pub(crate) fn plain_http(configure: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
    let builder = configure(Client::builder()).no_proxy().tls_certs_only([]);
    builder.build().expect("nothing in this configuration depends on the machine")
}

impl Default for NodeClient {
    fn default() -> Self {
        Self(plain_http(|builder| builder.connect_timeout(CONNECT_MAX)))
    }
}

impl NodeClient {
    pub fn with_token(&self, token: Option<String>) -> Nodes<'_> {
        Nodes { client: &self.0, token }
    }
}

impl Nodes<'_> {
    pub async fn status(&self, pod: &str, url: &str) -> Result<NodeStatus, NodeError> {
        let request = self.client.get(format!("{url}/status")).timeout(STATUS_MAX);
        let body = answer(pod, request).await?;
        let garbage = |why: String| NodeError::Garbage { pod: pod.to_owned(), why };
        let status: NodeStatus = serde_json::from_slice(&body).map_err(|error| garbage(error.to_string()))?;
        // An address is given to another pod as soon as it is free.
        match status.replica.name.as_str() == pod {
            true => Ok(status),
            false => Err(garbage(format!("it calls itself {}", status.replica.name))),
        }
    }

    pub async fn bootstrap(&self, node: &Founder, founding: &Assignment, settings: Settings) -> Result<(), NodeError> {
        let Assignment { cluster_id, voters } = founding;
        let body = BootstrapBody { cluster_id, voters, target_member_id: node.member_id, settings };
        self.post(&node.pod, &node.url, "/cluster/bootstrap", &body).await
    }

    pub async fn add_learner(&self, leader: &Addressee, member: &MemberInfo) -> Result<(), NodeError> {
        let body = JoinBody { target: target(leader), member, role: "learner" };
        self.post(&leader.pod, &leader.url, "/cluster/members", &body).await
    }

    pub async fn promote(&self, leader: &Addressee, member: &MemberInfo) -> Result<(), NodeError> {
        let body = JoinBody { target: target(leader), member, role: "voter" };
        self.post(&leader.pod, &leader.url, "/cluster/members", &body).await
    }

    pub async fn remove(&self, leader: &Addressee, member_id: MemberId) -> Result<(), NodeError> {
        let request = self.client.delete(format!("{}/cluster/members/{member_id}", leader.url));
        self.direct(&leader.pod, request.json(&target(leader))).await
    }

    pub async fn lead(&self, node: &Addressee) -> Result<(), NodeError> {
        self.post(&node.pod, &node.url, "/cluster/lead", &target(node)).await
    }

    pub async fn change_settings(&self, leader: &Addressee, settings: &SettingsChange) -> Result<(), NodeError> {
        let body = SettingsBody { target: target(leader), settings };
        self.post(&leader.pod, &leader.url, "/cluster/settings", &body).await
    }

    pub async fn recover(&self, node: &Addressee, epoch: Epoch, new_cluster_id: &ClusterId) -> Result<(), NodeError> {
        let body = RecoverBody { target: target(node), accept_data_loss_at_epoch: epoch, new_cluster_id };
        self.post(&node.pod, &node.url, "/cluster/recover", &body).await
    }

    /// Only what is to change.
    pub async fn tune(&self, tuning: &NodeTuning) -> Result<(), NodeError> {
        let NodeTuning { pod, url, heartbeat_interval_ms, heartbeat_timeout_ms, .. } = tuning;
        let NodeTuning { failover, storage_limit_bytes, compaction, .. } = tuning;
        let seconds = |ms: &Option<u64>| ms.map(|ms| Duration::from_millis(ms).as_secs_f64());
        let body = TuneBody {
            heartbeat_interval: seconds(heartbeat_interval_ms),
            heartbeat_timeout: seconds(heartbeat_timeout_ms),
            failover: *failover,
            storage_limit: *storage_limit_bytes,
        };
        if body != TuneBody::default() {
            self.post(pod, url, "/settings", &body).await?;
        }
        let Some(CompactionSchedule { enabled, interval_seconds, min_interval_seconds }) = compaction else {
            return Ok(());
        };
        let query = format!("enabled={enabled}&interval={interval_seconds}&min_interval={min_interval_seconds}");
        self.direct(pod, self.client.post(format!("{url}/compaction/configure?{query}"))).await
    }

    async fn post(&self, pod: &str, url: &str, path: &str, body: &impl Serialize) -> Result<(), NodeError> {
        self.direct(pod, self.client.post(format!("{url}{path}")).json(body)).await
    }

    async fn direct(&self, pod: &str, request: reqwest::RequestBuilder) -> Result<(), NodeError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        answer(pod, request.timeout(DIRECTIVE_MAX)).await.map(drop)
    }
}

fn target(node: &Addressee) -> Target<'_> {
    let Addressee { pod: _, url: _, cluster_id, member_id, config_id } = node;
    Target { cluster_id, target_member_id: *member_id, if_config_id: *config_id }
}

async fn answer(pod: &str, request: reqwest::RequestBuilder) -> Result<Vec<u8>, NodeError> {
    let unreachable = |_| NodeError::Unreachable { pod: pod.to_owned() };
    let mut response = request.send().await.map_err(unreachable)?;
    let (status, code) = (response.status(), error_code(&response));
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(NodeError::Garbage { pod: pod.to_owned(), why: format!("over {ANSWER_BYTES_MAX} bytes") });
        }
        body.extend_from_slice(&chunk);
    }
    if status.is_success() {
        return Ok(body);
    }
    Err(NodeError::Refused { pod: pod.to_owned(), code, detail: detail(&body) })
}

fn error_code(response: &reqwest::Response) -> String {
    let code = response.headers().get("x-kv-error").and_then(|value| value.to_str().ok());
    code.map_or_else(|| response.status().as_u16().to_string(), str::to_owned)
}

fn detail(body: &[u8]) -> String {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = document["detail"].as_str().map(str::to_owned);
    let text = text.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.chars().take(DETAIL_CHARACTERS_MAX).collect()
}
