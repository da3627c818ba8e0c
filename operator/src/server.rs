//! The operator's own port: metrics and probes. Ready means that the process runs: whoever waits for the
//! Lease watches nothing, and is as good a successor as any.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use kube::runtime::reflector::Store;

use crate::controller::Clusters;
use crate::metrics::Metrics;

#[derive(Clone)]
struct App {
    metrics: Arc<Metrics>,
    clusters: Vec<Clusters>,
}

/// Serves until the process ends.
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>, clusters: Vec<Clusters>) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(async || "ok"))
        .route("/metrics", get(render))
        .with_state(App { metrics, clusters });
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).await
}

async fn render(State(app): State<App>) -> impl IntoResponse {
    let clusters: Vec<_> = app.clusters.iter().flat_map(Store::state).collect();
    let text = app.metrics.render(clusters.iter().map(|guarded| guarded.0.as_ref().ok()));
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
