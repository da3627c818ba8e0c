//! Nodes that answer on addresses of the loopback network: one group, whose rules are as simple as they can
//! be. What a node refuses here is what a real one would refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::request::Parts;
use axum::http::{Method, Request, Response, Uri};
use k8s_openapi::ByteString;
use kv_core::group::{ClusterId, MemberId, MemberInfo};
use kv_core::status::{CompactionSchedule, Failover, Health, MemberStatus, NodeStatus, Role, Tuning};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::writes::Write;
use super::{Fate, State, World};
use crate::names::CLIENT_PORT;
use crate::plan::scene;

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
    /// Whose volumes hold data; the others are empty.
    members: BTreeSet<MemberId>,
    pub(crate) voters: BTreeSet<MemberId>,
    learners: BTreeSet<MemberId>,
    /// By ordinal.
    pub(crate) leader: Option<u32>,
    epoch: u64,
    config_id: u64,
    history_limit: Option<u32>,
    /// By ordinal.
    runs: BTreeMap<u32, Runs>,
    /// Volumes that each pod has lost.
    lost: BTreeMap<u32, u64>,
    pub(crate) says: BTreeMap<u32, Says>,
    /// Directives that no good operator sends.
    pub(crate) refused: Vec<String>,
}

/// With what a node runs until it is told otherwise.
#[derive(Clone, Copy)]
struct Runs {
    tuning: Tuning,
    compaction: CompactionSchedule,
    limit_bytes: Option<u64>,
}

/// Member ids of one pod: each volume has one of its own.
const VOLUMES_APART: u64 = 0x100;

impl Nodes {
    pub(crate) fn address(&self, ordinal: u32) -> String {
        format!("{}.{}", self.network, ordinal + 1)
    }

    fn id(&self, ordinal: u32) -> MemberId {
        let lost = self.lost.get(&ordinal).copied().unwrap_or_default();
        MemberId(scene::member_id(ordinal).0 + lost * VOLUMES_APART)
    }

    fn status(&self, ordinal: u32) -> NodeStatus {
        let id = self.id(ordinal);
        let role = match () {
            () if !self.members.contains(&id) => Role::Uninitialised,
            () if self.leader == Some(ordinal) => Role::Leader,
            () if self.voters.contains(&id) => Role::Follower,
            () => Role::Learner,
        };
        let leader = self.leader.filter(|_| role != Role::Uninitialised);
        let mut status = scene::status(ordinal, role, leader, &[]);
        status.replica.member_id = id;
        if let Some((leader, ordinal)) = status.replica.leader.as_mut().zip(leader) {
            leader.member_id = self.id(ordinal);
        }
        if role != Role::Uninitialised {
            status.replica.cluster_id = self.cluster_id.as_deref().map(|id| ClusterId::new(id).unwrap());
            (status.replica.epoch.0, status.replica.config_id.0) = (self.epoch, self.config_id);
            let voters = self.voters.iter().map(|voter| self.record(*voter, true));
            status.replica.members = voters.chain(self.learners.iter().map(|id| self.record(*id, false))).collect();
        }
        if let Some(runs) = self.runs.get(&ordinal) {
            (status.replica.tuning, status.compaction) = (runs.tuning, runs.compaction);
            status.disk.limit_bytes = runs.limit_bytes;
        }
        status.replica.settings.history_limit = self.history_limit.unwrap_or(status.replica.settings.history_limit);
        status
    }

    fn record(&self, id: MemberId, voter: bool) -> MemberStatus {
        let ordinal = ordinal_of(id);
        let mut record = scene::record(ordinal, self.leader == Some(ordinal), voter);
        record.health = if self.members.contains(&id) { Health::Healthy } else { Health::Down };
        record.member_id = id;
        record
    }

    /// A pod starts, with what its ConfigMap says.
    pub(super) fn start(&mut self, ordinal: u32, settings: &Value) {
        let text = |name: &str| settings[name].as_str().unwrap_or_default();
        let seconds = |name: &str| text(name).parse().unwrap_or_default();
        let ms = |name: &str| u64::try_from(Duration::from_secs_f64(seconds(name)).as_millis()).unwrap();
        let whole = |name: &str| text(name).parse().unwrap_or_default();
        let tuning = Tuning {
            heartbeat_interval_ms: ms("HEARTBEAT_INTERVAL"),
            heartbeat_timeout_ms: ms("HEARTBEAT_TIMEOUT"),
            failover: text("FAILOVER").parse().unwrap_or(Failover::Automatic),
        };
        let compaction = CompactionSchedule {
            enabled: text("COMPACTION_ENABLED") == "true",
            interval_seconds: whole("COMPACTION_INTERVAL"),
            min_interval_seconds: whole("MIN_COMPACTION_INTERVAL"),
        };
        self.runs.insert(ordinal, Runs { tuning, compaction, limit_bytes: text("STORAGE_LIMIT").parse().ok() });
    }

    /// The volume is gone for good, and another one in its place.
    pub(crate) fn lose_volume(&mut self, ordinal: u32) {
        self.members.remove(&self.id(ordinal));
        *self.lost.entry(ordinal).or_default() += 1;
        self.elect();
    }

    /// A learner with a voter's name takes its place, which the leader sees to by itself.
    pub(super) fn replace_lost(&mut self) {
        for learner in self.learners.clone() {
            let namesake = self.voters.iter().copied().find(|voter| ordinal_of(*voter) == ordinal_of(learner));
            if let Some(voter) = namesake.filter(|_| self.leader.is_some()) {
                self.voters.remove(&voter);
                self.learners.remove(&learner);
                self.voters.insert(learner);
                self.config_id += 2;
            }
        }
    }

    /// Ordinals of the voters that hold what the group holds, if they are a majority.
    fn majority(&self) -> Vec<u32> {
        let there: Vec<u32> = self.voters.intersection(&self.members).map(|voter| ordinal_of(*voter)).collect();
        if there.len() * 2 > self.voters.len() { there } else { Vec::new() }
    }

    /// Takes no time, and is nobody's own idea in manual failover.
    fn elect(&mut self) {
        let is_automatic = |ordinal: &u32| self.runs[ordinal].tuning.failover == Failover::Automatic;
        let led = self.leader.is_some_and(|leader| self.majority().contains(&leader));
        if !led {
            self.leader = self.majority().into_iter().find(is_automatic);
            self.epoch += u64::from(self.leader.is_some());
        }
    }

    /// Whether a directive is about this node as it is.
    fn is_meant(&self, ordinal: u32, body: &Value) -> bool {
        let same = |member: &str, own: Value| body[member].is_null() || body[member] == own;
        let of_group = body["if_config_id"].is_null() || same("cluster_id", json!(self.cluster_id));
        of_group && same("target_member_id", json!(self.id(ordinal))) && same("if_config_id", json!(self.config_id))
    }

    fn directive(&mut self, ordinal: u32, write: Write, uri: &Uri, body: &Value) -> Result<(), &'static str> {
        if !self.is_meant(ordinal, body) {
            return Err("it is meant for another node or group");
        }
        match write {
            Write::Bootstrap => self.bootstrap(ordinal, body)?,
            // A campaign without a majority comes to nothing.
            Write::Lead if self.leader != Some(ordinal) && self.majority().contains(&ordinal) => {
                (self.leader, self.epoch) = (Some(ordinal), self.epoch + 1);
            }
            Write::AddLearner => {
                let member = member_of(body);
                self.members.insert(member);
                if !self.voters.contains(&member) {
                    self.learners.insert(member);
                }
            }
            Write::Promote => {
                let member = member_of(body);
                if !self.learners.remove(&member) && !self.voters.contains(&member) {
                    return Err("it is no learner");
                }
                self.config_id += u64::from(self.voters.insert(member));
            }
            Write::RemoveMember => self.remove(uri.path().rsplit('/').next().unwrap()),
            Write::ChangeSettings => {
                let limit = body["settings"]["history_limit"].as_u64();
                self.history_limit = limit.and_then(|limit| u32::try_from(limit).ok()).or(self.history_limit);
            }
            Write::Recover => self.recover(ordinal, body)?,
            Write::Tune => self.tune(ordinal, body),
            Write::ConfigureCompaction => self.configure_compaction(ordinal, uri.query().unwrap()),
            _ => {}
        }
        Ok(())
    }

    fn bootstrap(&mut self, ordinal: u32, body: &Value) -> Result<(), &'static str> {
        let id = body["cluster_id"].as_str().unwrap().to_owned();
        if *self.cluster_id.get_or_insert_with(|| id.clone()) != id {
            return Err("the group has another id");
        }
        let voters: Vec<MemberInfo> = serde_json::from_value(body["voters"].clone()).unwrap();
        self.voters = voters.iter().map(|voter| voter.member_id).collect();
        self.members.insert(self.id(ordinal));
        self.elect();
        Ok(())
    }

    fn remove(&mut self, member: &str) {
        let before = self.voters.len();
        self.voters.retain(|voter| voter.to_string() != member);
        self.config_id += u64::from(self.voters.len() != before);
        self.elect();
    }

    /// The node goes on alone, as another group.
    fn recover(&mut self, ordinal: u32, body: &Value) -> Result<(), &'static str> {
        if self.leader.is_some() || !self.majority().is_empty() {
            return Err("nothing is lost for good");
        }
        if body["accept_data_loss_at_epoch"] != json!(self.epoch) {
            return Err("another epoch was accepted");
        }
        self.cluster_id = Some(body["new_cluster_id"].as_str().unwrap().to_owned());
        (self.voters, self.epoch) = ([self.id(ordinal)].into(), self.epoch + 1);
        self.learners.clear();
        self.elect();
        Ok(())
    }

    fn tune(&mut self, ordinal: u32, body: &Value) {
        let ms = |member: &str| body[member].as_f64().map(Duration::from_secs_f64);
        let ms = |member: &str| ms(member).and_then(|time| u64::try_from(time.as_millis()).ok());
        let runs = self.runs.get_mut(&ordinal).unwrap();
        let tuning = &mut runs.tuning;
        tuning.heartbeat_interval_ms = ms("heartbeat_interval").unwrap_or(tuning.heartbeat_interval_ms);
        tuning.heartbeat_timeout_ms = ms("heartbeat_timeout").unwrap_or(tuning.heartbeat_timeout_ms);
        let failover = body["failover"].as_str().map(|text| text.parse().unwrap());
        tuning.failover = failover.unwrap_or(tuning.failover);
        runs.limit_bytes = body["storage_limit"].as_u64().or(runs.limit_bytes);
    }

    fn configure_compaction(&mut self, ordinal: u32, query: &str) {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let said: BTreeMap<&str, &str> = pairs.collect();
        self.runs.get_mut(&ordinal).unwrap().compaction = CompactionSchedule {
            enabled: said["enabled"] == "true",
            interval_seconds: said["interval"].parse().unwrap(),
            min_interval_seconds: said["min_interval"].parse().unwrap(),
        };
    }
}

fn ordinal_of(member: MemberId) -> u32 {
    u32::try_from(member.0 % VOLUMES_APART - scene::member_id(0).0).unwrap()
}

/// Whom a call to the leader is about.
fn member_of(body: &Value) -> MemberId {
    serde_json::from_value(body["member_id"].clone()).unwrap()
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
        true => respond(&mut state, ordinal, &parts, &body),
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

fn respond(state: &mut State, ordinal: u32, parts: &Parts, body: &Value) -> (u16, Value) {
    // A node lives as long as its pod.
    if state.get("pods", &format!("demo-{ordinal}")).is_none() {
        return (503, json!({ "detail": "no such pod" }));
    }
    if parts.method == Method::GET {
        return (200, serde_json::to_value(state.nodes.status(ordinal)).unwrap());
    }
    let (path, write) = (parts.uri.path(), Write::of_node(parts.method.as_str(), parts.uri.path(), body));
    let what = format!("{} demo-{ordinal}{path}", parts.method);
    let Fate { happens, answer } = state.fate(what.clone(), Some(write));
    let done = if happens { state.nodes.directive(ordinal, write, &parts.uri, body) } else { Ok(()) };
    state.nodes.refused.extend(done.err().map(|why| format!("{what}: {why}")));
    match (answer, done) {
        (Some(code), _) => (code, json!({ "detail": "as the test wants it" })),
        (None, Err(why)) => (409, json!({ "detail": why })),
        (None, Ok(())) => (200, json!({ "status": "ok", "config_id": state.nodes.config_id })),
    }
}
