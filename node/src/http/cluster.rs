//! Administrators' calls: leadership, bootstrap, members, settings, recovery. Bodies are strict; what
//! they ask is decided by the replica. Members and group settings go to the leader, the rest is for
//! the node asked.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::Request;
use axum::http::request::Parts;
use axum::response::Response;
use kv_core::contract::{self, Failover, Reply, SettingsChange, Target, TuningChange};
use kv_core::entry::{EntryId, Epoch};
use kv_core::group::{self, ClusterId, MemberId, MemberInfo, NodeName, Settings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::App;
use super::answer;
use super::auth::{self, Access};
use super::body::{self, CALL_BYTES_MAX};
use super::error::{Asked, Failure};
use super::forward::{self, Done, LeaderRequest, Repeat};
use super::query::Query;
use crate::config::bounds::HEARTBEAT_SECONDS;

/// Random bytes of a cluster id that a recovery makes up.
const CLUSTER_ID_BYTES: usize = 8;

/// Declares a body that carries what it was decided on besides its own members.
macro_rules! directive {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $member:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            cluster_id: Option<ClusterId>,
            target_member_id: Option<MemberId>,
            if_config_id: Option<EntryId>,
            $($(#[$attribute])* $member: $type,)*
        }

        impl $name {
            fn ids(&self) -> Ids {
                let Self { cluster_id, target_member_id, if_config_id, .. } = self;
                Ids(cluster_id.clone(), *target_member_id, *if_config_id)
            }
        }
    };
}

/// What a directive was decided on, as far as its body says.
struct Ids(Option<ClusterId>, Option<MemberId>, Option<EntryId>);

/// Whether a directive may leave out what it was decided on while no token is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Omission {
    AllowedWhenOpen,
    Never,
}

impl Ids {
    fn target(self, omission: Omission, access: Access) -> Result<Option<Target>, Failure> {
        match self {
            Self(None, None, None) if omission == Omission::AllowedWhenOpen && access == Access::Open => Ok(None),
            Self(Some(cluster_id), Some(target_member_id), Some(if_config_id)) => {
                Ok(Some(Target { cluster_id, target_member_id, if_config_id }))
            }
            Self(None, _, _) => Err(Failure::missing("body", "cluster_id")),
            Self(_, None, _) => Err(Failure::missing("body", "target_member_id")),
            Self(_, _, None) => Err(Failure::missing("body", "if_config_id")),
        }
    }
}

directive!(LeadCall {});
directive!(AddMemberCall { name: NodeName, member_id: MemberId, peer_url: String, role: JoinRole });
directive!(RemoveMemberCall {});
directive!(ChangeSettingsCall { settings: SettingsChange });
directive!(RecoverCall {
    accept_data_loss_at_epoch: Epoch,
    /// Made up when absent; whoever names one can tell afterwards whether it was this call that recovered the node.
    new_cluster_id: Option<ClusterId>,
});

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum JoinRole {
    Learner,
    Voter,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootstrapCall {
    cluster_id: ClusterId,
    voters: Vec<MemberInfo>,
    /// The member that is asked; checked when it is there, as is `if_config_id`, which can only be 0.
    target_member_id: Option<MemberId>,
    if_config_id: Option<EntryId>,
    /// Of the new group; what this node was configured with when absent.
    settings: Option<Settings>,
}

/// The body of a directive that was carried out.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct DoneDocument {
    #[schema(examples("ok"))]
    status: &'static str,
    /// The id of the last CONFIG entry; 0 after bootstrap.
    config_id: u64,
}

fn done(reply: Reply) -> Result<Response, Failure> {
    match reply {
        Reply::Done { config_id } => Ok(answer::document(&DoneDocument { status: "ok", config_id: config_id.0 })),
        Reply::Refused(refusal) => Err(refusal.into()),
        other => Err(forward::unexpected(&other)),
    }
}

/// An administrator's call with its body read.
struct Call {
    parts: Parts,
    bytes: Bytes,
    access: Access,
}

impl Call {
    async fn receive(app: &App, request: Request<Body>) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let access = auth::check(app, &parts.headers)?;
        Query::parse(parts.uri.query(), &[])?;
        let bytes = body::read(&parts.headers, body, app.body_limits(CALL_BYTES_MAX)).await?;
        Ok(Self { parts, bytes, access })
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        body::call(&self.bytes)
    }

    /// For the node asked.
    async fn here(&self, app: &App, request: contract::Request) -> Result<Response, Failure> {
        let reply = app.handle()?.request(request, app.deadline()).await;
        done(reply.map_err(|error| Failure::call(error, Asked::Write))?)
    }

    /// For the leader.
    async fn at_leader(&self, app: &App, request: contract::Request) -> Result<Response, Failure> {
        let Self { parts, bytes, access: _ } = self;
        let call = LeaderRequest { parts, body: bytes, repeat: Repeat::Never, asked: Asked::Write };
        match forward::carry_out(app, app.handle()?, call, request, app.deadline()).await? {
            Done::Relayed(response) => Ok(response),
            Done::Here(reply) => done(reply),
        }
    }
}

#[utoipa::path(post, path = "/cluster/lead", tag = "cluster", summary = "Lead now: by transfer, or by campaign",
    security(("token" = [])), request_body = Option<super::openapi::TargetDocument>,
    responses((status = 200, body = DoneDocument, description = "This node leads"), super::openapi::DirectiveErrors))]
pub(crate) async fn lead(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let target = call.parse::<LeadCall>()?.ids().target(Omission::AllowedWhenOpen, call.access)?;
    call.here(&app, contract::Request::Lead { target }).await
}

#[utoipa::path(post, path = "/cluster/bootstrap", tag = "cluster", summary = "Make empty nodes a group",
    security(("token" = [])), request_body = super::openapi::BootstrapDocument,
    responses((status = 200, body = DoneDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn bootstrap(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let BootstrapCall { cluster_id, voters, target_member_id, if_config_id, settings } = call.parse()?;
    for (index, voter) in voters.iter().enumerate() {
        check_peer_url(&format!("voters.{index}.peer_url"), &voter.peer_url)?;
    }
    let settings = settings.unwrap_or(app.config().seed_settings);
    let request = contract::Request::Bootstrap { target_member_id, if_config_id, cluster_id, voters, settings };
    call.here(&app, request).await
}

fn check_peer_url(member: &str, url: &str) -> Result<(), Failure> {
    group::check_peer_url(url).map_err(|error| Failure::invalid("body", member, error.to_string()))
}

#[utoipa::path(post, path = "/cluster/members", tag = "cluster", summary = "Add a learner, or make it a voter",
    security(("token" = [])), request_body = super::openapi::AddMemberDocument,
    responses((status = 200, body = DoneDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn add_member(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let body: AddMemberCall = call.parse()?;
    let target = body.ids().target(Omission::Never, call.access)?;
    let AddMemberCall { name, member_id, peer_url, role, .. } = body;
    check_peer_url("peer_url", &peer_url)?;
    let member = MemberInfo { name, member_id, peer_url };
    let voter = role == JoinRole::Voter;
    call.at_leader(&app, contract::Request::AddMember { target, member, voter }).await
}

#[utoipa::path(delete, path = "/cluster/members/{member_id}", tag = "cluster", summary = "Remove a member",
    security(("token" = [])), params(("member_id" = String, Path, description = "16 hexadecimal digits")),
    request_body = super::openapi::TargetDocument,
    responses((status = 200, body = DoneDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn remove_member(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let last = call.parts.uri.path().rsplit('/').next().unwrap_or_default();
    let member_id = last.parse().map_err(|e| Failure::invalid("path", "member_id", format!("{e}")))?;
    let target = call.parse::<RemoveMemberCall>()?.ids().target(Omission::Never, call.access)?;
    call.at_leader(&app, contract::Request::RemoveMember { target, member_id }).await
}

#[utoipa::path(post, path = "/cluster/settings", tag = "cluster", summary = "Change the group's settings",
    security(("token" = [])), request_body = super::openapi::ChangeSettingsDocument,
    responses((status = 200, body = DoneDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn change_settings(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let body: ChangeSettingsCall = call.parse()?;
    let target = body.ids().target(Omission::AllowedWhenOpen, call.access)?;
    call.at_leader(&app, contract::Request::ChangeSettings { target, settings: body.settings }).await
}

#[utoipa::path(post, path = "/cluster/recover", tag = "cluster", summary = "Majority lost for good: a new group of one",
    description = "409 unless the epoch is the node's own, and while it hears a leader, or enough voters to elect one.",
    security(("token" = [])), request_body = super::openapi::RecoverDocument,
    responses((status = 200, body = DoneDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn recover(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let body: RecoverCall = call.parse()?;
    let target = body.ids().target(Omission::Never, call.access)?;
    let RecoverCall { accept_data_loss_at_epoch, new_cluster_id, .. } = body;
    let new_cluster_id = new_cluster_id.map_or_else(drawn_cluster_id, Ok)?;
    call.here(&app, contract::Request::Recover { target, accept_data_loss_at_epoch, new_cluster_id }).await
}

fn drawn_cluster_id() -> Result<ClusterId, Failure> {
    let mut random = [0; CLUSTER_ID_BYTES];
    getrandom::fill(&mut random).map_err(|_| Failure::internal("The system gave no random bytes"))?;
    let text = format!("{:016x}", u64::from_be_bytes(random));
    Ok(ClusterId::new(&text).expect("hexadecimal digits are legal in an id"))
}

/// The body of `/settings`: this node's, until it restarts.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TuneCall {
    heartbeat_interval: Option<f64>,
    heartbeat_timeout: Option<f64>,
    failover: Option<String>,
    /// The outer None: absent; the inner: null, no limit.
    #[serde(default, deserialize_with = "present")]
    storage_limit: Option<Option<u64>>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[utoipa::path(post, path = "/settings", tag = "cluster", summary = "Tune this node until it restarts",
    security(("token" = [])), request_body = super::openapi::TuneDocument,
    responses((status = 200, body = super::openapi::OkDocument), super::openapi::DirectiveErrors))]
pub(crate) async fn tune(State(app): State<App>, request: Request<Body>) -> Result<Response, Failure> {
    let call = Call::receive(&app, request).await?;
    let TuneCall { heartbeat_interval, heartbeat_timeout, failover, storage_limit } = call.parse()?;
    if storage_limit == Some(Some(0)) {
        return Err(Failure::invalid("body", "storage_limit", "Must be 1 byte or more, or null: no limit"));
    }
    let tuning = TuningChange {
        heartbeat_interval_ms: milliseconds("heartbeat_interval", heartbeat_interval)?,
        heartbeat_timeout_ms: milliseconds("heartbeat_timeout", heartbeat_timeout)?,
        failover: failover.map(|text| failover_of(&text)).transpose()?,
    };
    call.here(&app, contract::Request::Tune { tuning }).await?;
    if let Some(bytes) = storage_limit {
        let limited = app.handle()?.limit_storage(bytes, app.deadline()).await;
        limited.map_err(|error| Failure::call(error, Asked::Write))?;
    }
    Ok(answer::json(r#"{"status":"ok"}"#))
}

fn failover_of(text: &str) -> Result<Failover, Failure> {
    text.parse().map_err(|reason: &str| Failure::invalid("body", "failover", reason))
}

fn milliseconds(member: &str, seconds: Option<f64>) -> Result<Option<u64>, Failure> {
    let Some(seconds) = seconds else { return Ok(None) };
    if !HEARTBEAT_SECONDS.contains(&seconds) {
        let (least, most) = (HEARTBEAT_SECONDS.start(), HEARTBEAT_SECONDS.end());
        return Err(Failure::invalid("body", member, format!("Must be {least} to {most} seconds")));
    }
    Ok(u64::try_from(std::time::Duration::from_secs_f64(seconds).as_millis()).ok())
}
