//! `/openapi.json` and `/docs`: the contract in OpenAPI, gathered from the handlers, and Swagger UI
//! with its assets inside the binary. The types here only describe; nothing is parsed or written
//! with them.

use axum::Router;
use serde::Serialize;
use serde_json::Value as Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};
use utoipa_swagger_ui::SwaggerUi;

use super::{App, cluster, compaction, deduplication, history, keys, probes, status};

#[derive(OpenApi)]
#[openapi(
    info(title = "kvcluster", description = "A durable, replicated key-value store: JSON in, JSON out.\n\n\
        Every answer carries `X-Kv-Id`, the id applied on the node that answers. Every error carries a stable code \
        in `X-Kv-Error`. The same request is answered on any node: what only the leader can do is forwarded to it.\n\n\
        Only what is no request yet is answered below all this, with a bare 400, 414 or 431: a head that is \
        malformed or too long. One of 64 KiB is always taken."),
    paths(
        keys::get, keys::put, keys::delete, history::history, history::versions, keys::list,
        deduplication::stats, deduplication::request_status,
        compaction::segments, compaction::run, compaction::status, compaction::configure,
        status::cluster_status, status::status, status::snapshot,
        cluster::lead, cluster::bootstrap, cluster::add_member, cluster::remove_member, cluster::change_settings,
        cluster::recover, cluster::tune,
        probes::livez, probes::readyz, probes::metrics,
    ),
    // Named by answers and parameters alone, where they are not gathered from.
    components(schemas(
        Consistency, ErrorDocument, VersionConflictDocument, OperationName, status::LeaderView,
        status::FollowerView,
    )),
    modifiers(&Token, &CommonHeader),
    tags(
        (name = "keys", description = "Values, versions, history"),
        (name = "requests", description = "Idempotent receiver"),
        (name = "log", description = "Segments and compaction of the node asked"),
        (name = "cluster", description = "Members, leadership, settings, backup"),
        (name = "probes", description = "For Kubernetes and Prometheus"),
    ),
)]
struct ApiDoc;

/// Declares the bearer token.
struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// Adds the headers that every answer carries.
struct CommonHeader;

impl Modify for CommonHeader {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::{HeaderBuilder, RefOr};
        let operations = openapi.paths.paths.values_mut().flat_map(|item| {
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete].into_iter().filter_map(Option::as_mut)
        });
        for response in operations.flat_map(|operation| operation.responses.responses.iter_mut()) {
            let (status, RefOr::T(response)) = response else { continue };
            let described = |text: &str| HeaderBuilder::new().description(Some(text)).build();
            response.headers.insert("X-Kv-Id".into(), described("The id applied on the node that answers"));
            if status.starts_with(['4', '5']) {
                response.headers.insert("X-Kv-Error".into(), described("The error's stable code"));
            }
        }
    }
}

pub(super) fn router() -> Router<App> {
    SwaggerUi::new("/docs").url("/openapi.json", ApiDoc::openapi()).into()
}

/// `{key}` in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct KeyParam {
    /// Percent-decoded UTF-8, 1 to 1,024 bytes, any characters (`/` as `%2F`).
    #[param(min_length = 1)]
    #[expect(dead_code, reason = "only described")]
    key: String,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct FreshnessParams {
    /// `local` (default): committed state of the node asked. `linearizable`: confirmed by a majority.
    consistency: Option<Consistency>,
    /// Answer when this id is applied here; 504 when that takes too long.
    min_id: Option<u64>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct ReadParams {
    /// Read this version.
    version: Option<u64>,
    /// `local` (default): committed state of the node asked. `linearizable`: confirmed by a majority.
    consistency: Option<Consistency>,
    /// Answer when this id is applied here; 504 when that takes too long.
    min_id: Option<u64>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only described")]
pub(crate) struct RequestParams {
    /// With `request_id`: the same request again gets the first result again.
    #[param(min_length = 1, max_length = 256)]
    client_id: Option<String>,
    #[param(min_length = 1, max_length = 256)]
    request_id: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "only described")]
enum Consistency {
    Local,
    Linearizable,
}

/// The three operations that deduplication tells apart.
#[derive(ToSchema)]
#[schema(rename_all = "UPPERCASE")]
#[expect(dead_code, reason = "only described")]
pub(crate) enum OperationName {
    Set,
    Delete,
    Get,
}

/// Declares schemas that mirror what handlers write by hand or take from the replica.
macro_rules! described {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $member:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(ToSchema, Serialize)]
        pub(crate) struct $name {
            $($(#[$about])* $member: $type,)*
        }
    )*};
}

described! {
    /// The body of a PUT.
    PutDocument {
        /// Any JSON; kept exactly as sent apart from insignificant whitespace.
        value: Json,
        /// The version that the client read; 0: the key must not exist.
        version: Option<u64>,
    }
    SetDocument {
        #[schema(examples("ok"))]
        status: String,
        id: u64,
        key: String,
        version: u64,
    }
    DeletedDocument {
        #[schema(examples("ok"))]
        status: String,
        id: u64,
    }
    ValueDocument {
        key: String,
        value: Json,
        version: u64,
    }
    VersionDocument {
        version: u64,
        value: Json,
    }
    HistoryDocument {
        key: String,
        versions: Vec<u64>,
        history: Vec<VersionDocument>,
    }
    VersionsDocument {
        key: String,
        versions: Vec<u64>,
        latest_version: u64,
    }
    KeysDocument {
        keys: Vec<String>,
        /// Of this page.
        count: u64,
    }
    RequestStatusDocument {
        processed: bool,
        /// What the request was answered, when it was processed.
        #[schema(required = false)]
        result: Option<Json>,
    }
    OkDocument {
        #[schema(examples("ok"))]
        status: String,
    }
    /// An error.
    ErrorDocument {
        detail: Detail,
    }
    /// One thing wrong with a request.
    ProblemDocument {
        /// Where: body, query, path or header, then the member.
        loc: Vec<String>,
        msg: String,
        r#type: String,
    }
    VersionConflictDocument {
        #[schema(examples("error"))]
        status: String,
        #[schema(examples("Version conflict: provided version 1 is outdated"))]
        message: String,
        /// 0: the key is absent.
        current_version: u64,
    }
    /// What a directive was decided on. Without a configured token, `/cluster/lead` and
    /// `/cluster/settings` may omit all three.
    TargetDocument {
        cluster_id: Option<String>,
        /// The node asked, or the leader for what only the leader can do.
        target_member_id: Option<String>,
        if_config_id: Option<u64>,
    }
    MemberDocument {
        name: String,
        /// 16 hexadecimal digits.
        member_id: String,
        peer_url: String,
    }
    BootstrapDocument {
        cluster_id: String,
        voters: Vec<MemberDocument>,
        target_member_id: Option<String>,
        /// 0: nothing came after the bootstrap.
        if_config_id: Option<u64>,
        /// What the nodes were configured with when absent.
        settings: Option<SettingsDocument>,
    }
    AddMemberDocument {
        cluster_id: String,
        target_member_id: String,
        if_config_id: u64,
        name: String,
        member_id: String,
        peer_url: String,
        /// learner or voter
        role: String,
    }
    SettingsDocument {
        history_limit: u32,
        dedup_expiry_seconds: u64,
        dedup_limit: u64,
    }
    SettingsChangeDocument {
        history_limit: Option<u32>,
        dedup_expiry_seconds: Option<u64>,
        dedup_limit: Option<u64>,
    }
    ChangeSettingsDocument {
        cluster_id: Option<String>,
        target_member_id: Option<String>,
        if_config_id: Option<u64>,
        settings: SettingsChangeDocument,
    }
    RecoverDocument {
        cluster_id: String,
        target_member_id: String,
        if_config_id: u64,
        accept_data_loss_at_epoch: u64,
        /// Made up when absent.
        new_cluster_id: Option<String>,
    }
    TuneDocument {
        /// Seconds, fractions allowed.
        heartbeat_interval: Option<f64>,
        heartbeat_timeout: Option<f64>,
        /// manual or automatic
        failover: Option<String>,
        /// Bytes; null: none.
        storage_limit: Option<u64>,
    }
    LeaderDocument {
        name: String,
        member_id: String,
        url: Option<String>,
    }
    MemberStatusDocument {
        name: String,
        member_id: String,
        peer_url: String,
        url: Option<String>,
        role: String,
        voter: bool,
        /// healthy or down
        health: String,
        heard_ms_ago: Option<u64>,
        last_id: u64,
        durable_id: u64,
        applied_id: u64,
        lag: u64,
        storage_full: bool,
        unfit: bool,
    }
    DiskDocument {
        used_bytes: u64,
        available_bytes: Option<u64>,
        full: bool,
        limit_bytes: Option<u64>,
    }
    TuningDocument {
        heartbeat_interval_ms: u64,
        heartbeat_timeout_ms: u64,
        /// manual or automatic
        failover: String,
    }
    CompactionScheduleDocument {
        enabled: bool,
        interval_seconds: u64,
        min_interval_seconds: u64,
    }
    DamagedPlaceDocument {
        file: String,
        offset: Option<u64>,
        reason: String,
    }
    MissingIdsDocument {
        first: u64,
        last: u64,
    }
    TornTailDocument {
        file: String,
        offset: u64,
        bytes: u64,
        saved_as: String,
    }
    CorruptionDocument {
        damaged_places: u64,
        places: Vec<DamagedPlaceDocument>,
        unrepaired: Vec<String>,
        missing: Vec<MissingIdsDocument>,
        torn_tail: Option<TornTailDocument>,
        orphans: Vec<String>,
    }
    /// The body of `/status`.
    NodeDocument {
        name: String,
        member_id: String,
        cluster_id: Option<String>,
        /// leader, follower, candidate, learner or uninitialised
        role: String,
        epoch: u64,
        leader: Option<LeaderDocument>,
        last_id: u64,
        durable_id: u64,
        committed_id: u64,
        applied_id: u64,
        lag: u64,
        config_id: u64,
        members: Vec<MemberStatusDocument>,
        settings: SettingsDocument,
        tuning: TuningDocument,
        feature_level: u32,
        incarnation: u64,
        quarantined: Option<String>,
        leader_heard_ms_ago: Option<u64>,
        lease_held: bool,
        url: String,
        peer_url: String,
        start_id: String,
        version: String,
        ready: bool,
        draining: bool,
        disk: DiskDocument,
        corruption: CorruptionDocument,
        compaction: CompactionScheduleDocument,
    }
}

/// Text, or what is wrong member by member.
#[derive(ToSchema, Serialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum Detail {
    Text(String),
    Problems(Vec<ProblemDocument>),
}

/// Errors of reads.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum ReadErrors {
    #[response(status = 404, description = "not_found")]
    NotFound(ErrorDocument),
    #[response(status = 422, description = "invalid_request, request_reused")]
    Invalid(ErrorDocument),
    #[response(status = 500, description = "internal: damage on disk, or a bug")]
    Internal(ErrorDocument),
    #[response(status = 503, description = "no_leader, overloaded, not_ready; with Retry-After")]
    Unavailable(ErrorDocument),
    #[response(status = 504, description = "timeout")]
    Timeout(ErrorDocument),
}

/// Errors of reads that find something in any case.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum ListErrors {
    #[response(status = 422, description = "invalid_request")]
    Invalid(ErrorDocument),
    #[response(status = 503, description = "no_leader, overloaded, not_ready; with Retry-After")]
    Unavailable(ErrorDocument),
    #[response(status = 504, description = "timeout")]
    Timeout(ErrorDocument),
}

/// Errors of writes.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum WriteErrors {
    #[response(status = 404, description = "not_found: DELETE of an absent key")]
    NotFound(ErrorDocument),
    #[response(status = 408, description = "timeout: the body did not arrive in time")]
    SlowClient(ErrorDocument),
    #[response(status = 409, description = "version_conflict")]
    VersionConflict(VersionConflictDocument),
    #[response(status = 412, description = "precondition_failed")]
    PreconditionFailed(ErrorDocument),
    #[response(status = 413, description = "too_large")]
    TooLarge(ErrorDocument),
    #[response(status = 422, description = "invalid_request, request_reused")]
    Invalid(ErrorDocument),
    #[response(status = 503, description = "no_leader, overloaded, not_ready, outcome_unknown; with Retry-After")]
    Unavailable(ErrorDocument),
    #[response(status = 507, description = "storage_full")]
    StorageFull(ErrorDocument),
}

/// Errors of what speaks of the node asked.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum LocalErrors {
    #[response(status = 422, description = "invalid_request")]
    Invalid(ErrorDocument),
    #[response(status = 500, description = "internal: damage on disk, or a bug")]
    Internal(ErrorDocument),
    #[response(status = 503, description = "not_ready, overloaded; with Retry-After")]
    Unavailable(ErrorDocument),
    #[response(status = 504, description = "timeout")]
    Timeout(ErrorDocument),
}

/// Errors of local endpoints that need the token.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum GuardedErrors {
    #[response(status = 401, description = "unauthorized")]
    Unauthorized(ErrorDocument),
    #[response(status = 422, description = "invalid_request")]
    Invalid(ErrorDocument),
    #[response(status = 500, description = "internal: damage on disk, or a bug")]
    Internal(ErrorDocument),
    #[response(status = 503, description = "not_ready; with Retry-After")]
    Unavailable(ErrorDocument),
}

/// Errors of administrators' calls.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described")]
pub(crate) enum DirectiveErrors {
    #[response(status = 401, description = "unauthorized")]
    Unauthorized(ErrorDocument),
    #[response(status = 408, description = "timeout: the body did not arrive in time")]
    SlowClient(ErrorDocument),
    #[response(status = 409, description = "behind, identity_mismatch, name_taken, conflict")]
    Conflict(ErrorDocument),
    #[response(status = 413, description = "too_large")]
    TooLarge(ErrorDocument),
    #[response(status = 422, description = "invalid_request")]
    Invalid(ErrorDocument),
    #[response(status = 503, description = "no_leader, overloaded, not_ready, outcome_unknown; with Retry-After")]
    Unavailable(ErrorDocument),
    #[response(status = 507, description = "storage_full")]
    StorageFull(ErrorDocument),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(node: &Json) -> Vec<String> {
        match node {
            Json::Object(members) => {
                let own = members.get("$ref").and_then(Json::as_str).map(str::to_owned);
                own.into_iter().chain(members.values().flat_map(references)).collect()
            }
            Json::Array(items) => items.iter().flat_map(references).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document = serde_json::to_value(ApiDoc::openapi()).unwrap();
        let all = references(&document);
        assert!(all.len() > 100, "{}", all.len());
        let missing: Vec<_> =
            all.iter().filter(|name| document.pointer(name.trim_start_matches('#')).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
