//! The HTTP layer: routes, limits and answers, as the contract page shows them. Handlers read the
//! keyspace directly and ask the driver for everything else through [`Handle`]; they never see the
//! replica, and print epochs without judging by them. Started by main before recovery ends, so that
//! `/livez` answers from the first moment.
//!
//! Reading order: this file, `keys`, `reads`, `forward`, `error` (the only table of statuses).

mod answer;
mod auth;
pub(crate) mod body;
mod cluster;
mod compaction;
mod deduplication;
pub(crate) mod entity_tag;
mod error;
mod forward;
mod history;
mod keys;
mod leader_name;
mod openapi;
mod probes;
pub(crate) mod query;
pub(crate) mod reads;
mod results;
pub mod server;
mod service;
mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::routing::{delete, get, post};
use kv_core::entry::EntryId;
use kv_core::group::{NodeName, Settings};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::auth_token::AuthToken;
use crate::compactor::Compactor;
use crate::driver::Handle;
use crate::metrics::Metrics;
use deduplication::Counters;
use error::Failure;
use leader_name::LeaderName;
use results::Results;
pub use server::ClientTimeouts;

/// A node whose recovery is done.
#[derive(Clone)]
pub struct Running {
    pub handle: Handle,
    pub compactor: Compactor,
}

/// Where main puts the node when recovery is done; until then all but `/livez` is 503 `not_ready`.
pub type Slot = Arc<OnceLock<Running>>;

/// What the HTTP layer is told at start.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `service_name` in documents that are given before the handle is there, too.
    pub name: NodeName,
    /// This node's own URL for clients.
    pub url: String,
    /// Where the cluster file says that clients reach its members: shown until they say so themselves.
    pub listed_urls: BTreeMap<NodeName, String>,
    /// The longest wait for commit, forwarding or `min_id`.
    pub api_timeout: Duration,
    pub value_bytes_max: usize,
    pub segment_bytes_max: u64,
    /// What `/cluster/bootstrap` founds a group with when its body names no settings.
    pub seed_settings: Settings,
    /// Some: mutating `/cluster/*`, `/settings` and `/snapshot` need `Authorization: Bearer <it>`.
    pub auth_token: Option<AuthToken>,
    pub timeouts: ClientTimeouts,
}

/// What all handlers share. Clones are the same.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

struct Shared {
    config: HttpConfig,
    slot: Slot,
    metrics: Arc<Metrics>,
    client: reqwest::Client,
    results: Results,
    counters: Counters,
}

impl App {
    pub(crate) fn new(config: HttpConfig, slot: Slot, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared {
            results: Results::default(),
            client: forward::client(LeaderName::new(slot.clone())),
            config,
            slot,
            metrics,
            counters: Counters::default(),
        }))
    }

    pub(crate) fn running(&self) -> Result<&Running, Failure> {
        self.0.slot.get().ok_or_else(|| Failure::not_ready("The node is still reading its log"))
    }

    pub(crate) fn handle(&self) -> Result<&Handle, Failure> {
        self.running().map(|running| &running.handle)
    }

    /// What `X-Kv-Id` says when an answer is about no key.
    pub(crate) fn applied(&self) -> EntryId {
        self.0.slot.get().map_or(EntryId::ZERO, |running| running.handle.applied())
    }

    /// When a request that arrives now must have its answer.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.0.config.api_timeout
    }

    pub(crate) fn config(&self) -> &HttpConfig {
        &self.0.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn client(&self) -> &reqwest::Client {
        &self.0.client
    }

    pub(crate) fn results(&self) -> &Results {
        &self.0.results
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// The limits of a body whose largest part is `bytes_max` long.
    pub(crate) fn body_limits(&self, bytes_max: usize) -> body::Limits {
        body::Limits { bytes_max, timeout: self.0.config.timeouts.body }
    }
}

/// Serves clients on `listener` until `stop` is cancelled and what was in flight is answered.
pub async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    slot: Slot,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let timeouts = config.timeouts;
    let app = App::new(config, slot, metrics);
    let service = service::Service::new(app.clone(), router(app));
    server::run(listener, service, timeouts, stop).await;
}

/// Every route of the contract. What each answers besides is in `service`.
fn router(app: App) -> Router {
    Router::new()
        .route("/key/", get(keys::empty_key).put(keys::empty_key).delete(keys::empty_key))
        .route("/key/{key}", get(keys::get).put(keys::put).delete(keys::delete))
        .route("/key/{key}/history", get(history::history))
        .route("/key/{key}/versions", get(history::versions))
        .route("/keys", get(keys::list))
        .route("/deduplication_stats", get(deduplication::stats))
        .route("/request_status", get(deduplication::request_status))
        .route("/segments", get(compaction::segments))
        .route("/compaction/run", post(compaction::run))
        .route("/compaction/status", get(compaction::status))
        .route("/compaction/configure", post(compaction::configure))
        .route("/cluster_status", get(status::cluster_status))
        .route("/status", get(status::status))
        .route("/cluster/lead", post(cluster::lead))
        .route("/cluster/bootstrap", post(cluster::bootstrap))
        .route("/cluster/members", post(cluster::add_member))
        .route("/cluster/members/{member_id}", delete(cluster::remove_member))
        .route("/cluster/settings", post(cluster::change_settings))
        .route("/cluster/recover", post(cluster::recover))
        .route("/settings", post(cluster::tune))
        .route("/snapshot", get(status::snapshot))
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .merge(openapi::router())
        .method_not_allowed_fallback(service::method_not_allowed)
        .fallback(service::unknown_route)
        .with_state(app)
}

#[cfg(test)]
mod tests;
