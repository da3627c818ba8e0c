//! `/status`, `/cluster_status` and `/snapshot` of the node asked: the replica's own status with what
//! the node adds, and the original's document made from it.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Request};
use axum::response::{IntoResponse, Response};
use kv_core::contract::{self, Reply};
use kv_core::group::NodeName;
use kv_core::message::Hello;
use kv_core::status::{
    CorruptionReport, DamagedPlace, DiskStatus, Health, MemberStatus, MissingIds, NodeStatus, ReplicaStatus, Role,
    TornTail,
};
use serde::Serialize;

use super::answer::{self, X_KV_ID};
use super::auth;
use super::error::{Asked, Failure};
use super::forward;
use super::query::Query;
use super::{App, Running};
use crate::driver::{Clock, DamageAtRest, Handle};
use crate::wal::RecoveryReport;

/// What the node knows of itself, all of it.
pub(crate) async fn node_status(app: &App) -> Result<NodeStatus, Failure> {
    let Running { handle, compactor } = app.running()?;
    let replica = replica_status(app, handle).await?;
    let hello = hello(app, handle).await?;
    let asked = handle.clone();
    let report = tokio::task::spawn_blocking(move || asked.status_extra()).await;
    let report = report.map_err(|_| Failure::internal("The node could not look at its volume"))?;
    let own = replica.members.iter().find(|member| member.member_id == replica.member_id);
    Ok(NodeStatus {
        url: hello.url,
        peer_url: hello.peer_url,
        start_id: format!("{:016x}", hello.start_id),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: report.ready,
        draining: report.draining,
        disk: DiskStatus {
            used_bytes: report.disk_used_bytes,
            available_bytes: report.disk_available_bytes,
            full: own.is_some_and(|member| member.storage_full),
            limit_bytes: handle.reader().storage_limit_bytes(),
        },
        corruption: corruption(&report.recovery, report.at_rest),
        compaction: compactor.schedule(),
        replica,
    })
}

fn corruption(recovery: &RecoveryReport, at_rest: DamageAtRest) -> CorruptionReport {
    let place = |damage: &crate::wal::Damage| DamagedPlace {
        file: damage.file.clone(),
        offset: damage.offset,
        reason: damage.reason.clone(),
    };
    CorruptionReport {
        damaged_places: recovery.damage_total + at_rest.places_total,
        places: recovery.damage.iter().chain(&at_rest.places).map(place).collect(),
        unrepaired: at_rest.unrepaired.into_iter().collect(),
        missing: recovery.missing.iter().map(|ids| MissingIds { first: ids.first, last: ids.last }).collect(),
        torn_tail: recovery.torn_tail.clone().map(|tail| TornTail {
            file: tail.file,
            offset: tail.offset,
            bytes: tail.bytes,
            saved_as: tail.saved_as,
        }),
        orphans: recovery.orphans.clone(),
    }
}

pub(crate) async fn replica_status(app: &App, handle: &Handle) -> Result<ReplicaStatus, Failure> {
    match ask(app, handle, contract::Request::Status).await? {
        Reply::Status(status) => Ok(with_listed_urls(*status, &app.config().listed_urls)),
        other => Err(forward::unexpected(&other)),
    }
}

/// A member that was not heard since the start has the URL that the cluster file says.
fn with_listed_urls(mut status: ReplicaStatus, listed: &BTreeMap<NodeName, String>) -> ReplicaStatus {
    for member in status.members.iter_mut().filter(|member| member.url.is_none()) {
        member.url = listed.get(&member.name).cloned();
    }
    if let Some(leader) = status.leader.as_mut().filter(|leader| leader.url.is_none()) {
        leader.url = listed.get(&leader.name).cloned();
    }
    status
}

async fn hello(app: &App, handle: &Handle) -> Result<Hello, Failure> {
    match ask(app, handle, contract::Request::Hello).await? {
        Reply::Hello(hello) => Ok(*hello),
        other => Err(forward::unexpected(&other)),
    }
}

async fn ask(app: &App, handle: &Handle, request: contract::Request) -> Result<Reply, Failure> {
    match handle.request(request, app.deadline()).await {
        Ok(Reply::Refused(refusal)) => Err(refusal.into()),
        Ok(reply) => Ok(reply),
        Err(error) => Err(Failure::call(error, Asked::Read)),
    }
}

#[utoipa::path(get, path = "/status", tag = "cluster", summary = "Everything this node knows of itself",
    responses((status = 200, body = super::openapi::NodeDocument), super::openapi::LocalErrors))]
pub(crate) async fn status(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    Ok(answer::document(&node_status(&app).await?))
}

/// A server without heartbeats: the node itself.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct SelfDocument {
    id: String,
    url: String,
    #[schema(value_type = String, examples("healthy"))]
    status: Health,
}

/// A server as its heartbeats show it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct PeerDocument {
    /// Only of a leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    url: Option<String>,
    #[schema(value_type = String, examples("healthy", "down"))]
    status: Health,
    /// Unix seconds; null: never.
    last_heartbeat: Option<f64>,
    seconds_since_last_heartbeat: Option<f64>,
}

/// Seconds; whole ones are shown without a fraction, as the original's setting is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Seconds {
    Whole(u64),
    Fraction(f64),
}

impl Seconds {
    fn of_ms(ms: u64) -> Self {
        if ms.is_multiple_of(1000) { Self::Whole(ms / 1000) } else { Self::Fraction(seconds(ms)) }
    }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}

/// `/cluster_status` of a leader.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct LeaderView {
    leader: SelfDocument,
    followers: BTreeMap<String, PeerDocument>,
    #[schema(value_type = f64)]
    heartbeat_interval: Seconds,
}

/// `/cluster_status` of any other node.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct FollowerView {
    follower: SelfDocument,
    /// null: not known.
    leader: Option<PeerDocument>,
    /// The other members that it exchanges heartbeats with.
    followers: BTreeMap<String, PeerDocument>,
    #[schema(value_type = f64)]
    heartbeat_interval: Seconds,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub(crate) enum ClusterStatusDocument {
    Leader(LeaderView),
    Follower(FollowerView),
}

#[utoipa::path(get, path = "/cluster_status", tag = "cluster", summary = "Who is healthy, as this node hears it",
    responses((status = 200, body = ClusterStatusDocument), super::openapi::LocalErrors))]
pub(crate) async fn cluster_status(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    Query::parse(request.uri().query(), &[])?;
    let handle = app.handle()?;
    let replica = replica_status(&app, handle).await?;
    Ok(answer::document(&cluster_document(&replica, &app.config().url, handle.clock())))
}

fn cluster_document(replica: &ReplicaStatus, own_url: &str, clock: Clock) -> ClusterStatusDocument {
    let heartbeat_interval = Seconds::of_ms(replica.tuning.heartbeat_interval_ms);
    let own = SelfDocument { id: replica.name.to_string(), url: own_url.to_owned(), status: Health::Healthy };
    let leader_id = replica.leader.as_ref().map(|leader| leader.member_id);
    let is_other = |m: &&MemberStatus| m.member_id != replica.member_id && Some(m.member_id) != leader_id;
    let others = replica.members.iter().filter(is_other);
    let heard = Heard { clock, at_mono_ms: replica.at_mono_ms };
    let followers = others.map(|member| (member.name.to_string(), peer(member, heard))).collect();
    if replica.role == Role::Leader {
        return ClusterStatusDocument::Leader(LeaderView { leader: own, followers, heartbeat_interval });
    }
    let leader = leader_document(replica, heard);
    ClusterStatusDocument::Follower(FollowerView { follower: own, leader, followers, heartbeat_interval })
}

/// What turns "so long before the status was told" into a time of day: the same for the same heartbeat, whenever it is
/// asked for.
#[derive(Clone, Copy)]
struct Heard {
    clock: Clock,
    at_mono_ms: u64,
}

impl Heard {
    fn unix_seconds(self, ms_ago: u64) -> f64 {
        seconds(self.clock.unix_ms_at(self.at_mono_ms.saturating_sub(ms_ago)))
    }
}

fn peer(member: &MemberStatus, heard: Heard) -> PeerDocument {
    let ms_ago = member.heard_ms_ago;
    PeerDocument {
        id: None,
        url: member.url.clone(),
        status: if ms_ago.is_none() { Health::Down } else { member.health },
        last_heartbeat: ms_ago.map(|ms_ago| heard.unix_seconds(ms_ago)),
        seconds_since_last_heartbeat: ms_ago.map(seconds),
    }
}

fn leader_document(replica: &ReplicaStatus, heard: Heard) -> Option<PeerDocument> {
    let leader = replica.leader.as_ref()?;
    let member = replica.members.iter().find(|member| member.member_id == leader.member_id);
    // The first is forgotten when its connection is refused: its absence says that nobody leads, not never.
    let heard_ms_ago = replica.leader_heard_ms_ago.or(member.and_then(|member| member.heard_ms_ago));
    let health = member.map_or(Health::Healthy, |member| member.health);
    Some(PeerDocument {
        id: Some(leader.name.to_string()),
        url: leader.url.clone(),
        status: if heard_ms_ago.is_none() { Health::Down } else { health },
        last_heartbeat: heard_ms_ago.map(|ms_ago| heard.unix_seconds(ms_ago)),
        seconds_since_last_heartbeat: heard_ms_ago.map(seconds),
    })
}

#[utoipa::path(get, path = "/snapshot", tag = "cluster", summary = "The whole state at one applied id, as a stream",
    security(("token" = [])),
    responses((status = 200, content_type = "application/x-ndjson", body = String,
            description = "Lines with checksums, for `kv-node restore`"),
        super::openapi::GuardedErrors))]
pub(crate) async fn snapshot(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    auth::check(&app, request.headers())?;
    Query::parse(request.uri().query(), &[])?;
    let handle = app.handle()?;
    if !handle.view().serves {
        return Err(Failure::not_ready("The node has no complete state yet"));
    }
    let (position, mut chunks) = handle.snapshot().await.map_err(Failure::internal)?;
    let body = Body::from_stream(futures::stream::poll_fn(move |context| chunks.poll_recv(context)));
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    let headers = [(CONTENT_TYPE, ndjson), (X_KV_ID, answer::number(position.id.0))];
    Ok((headers, body).into_response())
}
