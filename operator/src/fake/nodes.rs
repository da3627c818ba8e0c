//! Nodes that answer on addresses of the loopback network: one group, whose rules are as simple as they can
//! be. What a node refuses here is what a real one would refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::{Method, Request, Response};
use k8s_openapi::ByteString;
use kv_core::group::{ClusterId, MemberInfo};
use kv_core::status::{Failover, NodeStatus, Role};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Fate, State, World};
use crate::names::CLIENT_PORT;
use crate::plan::scene::{self, record};

/// How many nodes are served.
const SERVED: u32 = 5;

/// From 127.8.0 to 127.15.255, spread so that processes rarely try the same one.
const NETWORKS: u32 = 8 << 8;
const SPREAD: u32 = 2_654_435_761;

static NEXT_NETWORK: AtomicU32 = AtomicU32::new(0);

/// What a node says of itself instead of its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Says {
    Garbage,
    Nothing,
}

#[derive(Default, Clone)]
pub(crate) struct Nodes {
    /// The first three bytes of the addresses of this test.
    network: String,
    pub(crate) cluster_id: Option<String>,
    /// Who was told of the group; the others are empty.
    pub(crate) members: BTreeSet<u32>,
    pub(crate) voters: BTreeSet<u32>,
    learners: BTreeSet<u32>,
    pub(crate) leader: Option<u32>,
    epoch: u64,
    history_limit: Option<u32>,
    tuned: BTreeMap<u32, NodeStatus>,
    pub(crate) says: BTreeMap<u32, Says>,
    /// Directives that no good operator sends.
    pub(crate) refused: Vec<String>,
}

impl Nodes {
    pub(crate) fn address(&self, ordinal: u32) -> String {
        format!("{}.{}", self.network, ordinal + 1)
    }

    fn status(&self, ordinal: u32) -> NodeStatus {
        let voters: Vec<u32> = self.voters.iter().copied().collect();
        let role = match () {
            () if !self.members.contains(&ordinal) => Role::Uninitialised,
            () if self.leader == Some(ordinal) => Role::Leader,
            () if self.voters.contains(&ordinal) => Role::Follower,
            () => Role::Learner,
        };
        let known: &[u32] = if role == Role::Uninitialised { &[] } else { &voters };
        let mut status = scene::status(ordinal, role, self.leader, known);
        if role != Role::Uninitialised {
            status.replica.cluster_id = self.cluster_id.as_deref().map(|id| ClusterId::new(id).unwrap());
            status.replica.epoch.0 = self.epoch;
            status.replica.members.extend(self.learners.iter().map(|learner| record(*learner, false, false)));
        }
        if let Some(tuned) = self.tuned.get(&ordinal) {
            (status.replica.tuning, status.compaction) = (tuned.replica.tuning, tuned.compaction);
            status.disk.limit_bytes = tuned.disk.limit_bytes;
        }
        status.replica.settings.history_limit = self.history_limit.unwrap_or(status.replica.settings.history_limit);
        status
    }

    /// An election that takes no time.
    fn elect(&mut self) {
        let led = self.leader.is_some_and(|leader| self.voters.contains(&leader));
        if !led && self.members.len() * 2 > self.voters.len() {
            self.leader = self.members.intersection(&self.voters).next().copied();
            self.epoch += 1;
        }
    }

    fn directive(&mut self, ordinal: u32, path: &str, method: &str, body: &Value) {
        match (method, path) {
            ("POST", "/cluster/bootstrap") => {
                let id = body["cluster_id"].as_str().unwrap().to_owned();
                if *self.cluster_id.get_or_insert_with(|| id.clone()) != id {
                    self.refused.push(format!("demo-{ordinal} belongs to another cluster than {id}"));
                    return;
                }
                let voters: Vec<MemberInfo> = serde_json::from_value(body["voters"].clone()).unwrap();
                self.voters = voters.iter().map(|voter| ordinal_of(voter.name.as_str())).collect();
                self.members.insert(ordinal);
                self.elect();
            }
            ("POST", "/cluster/lead") if self.leader != Some(ordinal) => {
                (self.leader, self.epoch) = (Some(ordinal), self.epoch + 1);
            }
            ("POST", "/cluster/members") => {
                let member = ordinal_of(body["name"].as_str().unwrap());
                self.members.insert(member);
                if body["role"] == "voter" {
                    self.learners.remove(&member);
                    self.voters.insert(member);
                } else if !self.voters.contains(&member) {
                    self.learners.insert(member);
                }
            }
            ("DELETE", path) => {
                let id = path.rsplit('/').next().unwrap();
                self.voters.retain(|voter| scene::member_id(*voter).to_string() != id);
                self.elect();
            }
            ("POST", "/cluster/settings") => {
                let limit = body["settings"]["history_limit"].as_u64();
                self.history_limit = limit.and_then(|limit| u32::try_from(limit).ok()).or(self.history_limit);
            }
            ("POST", "/settings") => self.tune(ordinal, body),
            _ => {}
        }
    }

    fn tune(&mut self, ordinal: u32, body: &Value) {
        let mut status = self.status(ordinal);
        let ms = |member: &str| body[member].as_f64().map(std::time::Duration::from_secs_f64);
        let ms = |member: &str| ms(member).and_then(|time| u64::try_from(time.as_millis()).ok());
        let tuning = &mut status.replica.tuning;
        tuning.heartbeat_interval_ms = ms("heartbeat_interval").unwrap_or(tuning.heartbeat_interval_ms);
        tuning.heartbeat_timeout_ms = ms("heartbeat_timeout").unwrap_or(tuning.heartbeat_timeout_ms);
        if body["failover"] == "manual" {
            tuning.failover = Failover::Manual;
        }
        status.disk.limit_bytes = body["storage_limit"].as_u64().or(status.disk.limit_bytes);
        self.tuned.insert(ordinal, status);
    }
}

fn ordinal_of(name: &str) -> u32 {
    name.rsplit('-').next().unwrap().parse().unwrap()
}

/// Serves as many nodes as a test may need, until the test ends.
pub(crate) async fn serve(world: &World) {
    let (network, listeners) = listen().await;
    world.state().nodes.network = network;
    for (ordinal, listener) in (0..).zip(listeners) {
        let router = Router::new().fallback(answer).with_state((world.clone(), ordinal));
        tokio::spawn(async move { axum::serve(listener, router).await });
    }
}

/// On a network that no other test has, in this process or another one.
async fn listen() -> (String, Vec<TcpListener>) {
    let port = u16::try_from(CLIENT_PORT).unwrap();
    for _ in 0..NETWORKS {
        let drawn = std::process::id().wrapping_mul(SPREAD).wrapping_add(NEXT_NETWORK.fetch_add(1, Ordering::Relaxed));
        let network = format!("127.{}.{}", 8 + drawn % NETWORKS / 256, drawn % 256);
        let bind = |node| TcpListener::bind((format!("{network}.{node}"), port));
        if let Ok(listeners) = futures::future::try_join_all((1..=SERVED).map(bind)).await {
            return (network, listeners);
        }
    }
    panic!("no loopback network is free");
}

async fn answer(Shared((world, ordinal)): Shared<(World, u32)>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let says = world.state().nodes.says.get(&ordinal).copied().filter(|_| parts.method == Method::GET);
    match says {
        Some(Says::Garbage) => return Response::new(Body::from("{\"replica\": 7}")),
        Some(Says::Nothing) => std::future::pending().await,
        None => {}
    }
    let token = parts.headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut state = world.state();
    let (status, document) = match parts.method == Method::GET || token == state.token().as_deref() {
        true => respond(&mut state, ordinal, parts.method.as_str(), parts.uri.path(), &body),
        false => (401, json!({ "detail": "this call needs the token" })),
    };
    Response::builder().status(status).body(Body::from(document.to_string())).unwrap()
}

impl State {
    /// Whatever the Secret says, as soon as it says it.
    fn token(&self) -> Option<String> {
        let secret = self.get("secrets", "demo-auth")?;
        let token: ByteString = serde_json::from_value(secret["data"]["token"].clone()).ok()?;
        Some(String::from_utf8(token.0).unwrap())
    }
}

fn respond(state: &mut State, ordinal: u32, method: &str, path: &str, body: &Value) -> (u16, Value) {
    // A node lives as long as its pod.
    if state.get("pods", &format!("demo-{ordinal}")).is_none() {
        return (503, json!({ "detail": "no such pod" }));
    }
    if method == "GET" {
        return (200, serde_json::to_value(state.nodes.status(ordinal)).unwrap());
    }
    let Fate { happens, answer } = state.fate(format!("{method} demo-{ordinal}{path}"));
    if happens {
        state.nodes.directive(ordinal, path, method, body);
    }
    match answer {
        Some(code) => (code, json!({ "detail": "as the test wants it" })),
        None => (200, json!({ "status": "ok", "config_id": 0 })),
    }
}
