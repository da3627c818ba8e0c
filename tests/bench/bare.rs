//! The bare route that the node is held against: the node's own connection handling, the same runtime,
//! router, wrapping and headers; it parses the same body and formats the same answers, and stores nothing.
//! Runs as a process of its own: `kv-bench bare --listen ...`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use futures::FutureExt;
use kv_node::http::server::{self, ClientTimeouts};
use serde::Deserialize;
use serde_json::value::RawValue;

/// What the GET route shows for every key.
const VALUE: &str = "\"0123456789abcdef\"";

#[derive(Deserialize)]
struct PutBody<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    version: Option<u64>,
}

/// Serves until the process is killed.
pub(crate) async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let ids: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
    let router = Router::new().route("/key/{key}", get(show).put(take)).with_state(ids);
    server::run(listener, Wrapped(router), ClientTimeouts::default(), Default::default()).await;
    Ok(())
}

async fn take(State(ids): State<&'static AtomicU64>, Path(key): Path<String>, body: Bytes) -> Response<Body> {
    let Ok(put) = serde_json::from_slice::<PutBody<'_>>(&body) else {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    };
    std::hint::black_box((put.value.get(), put.version));
    let id = ids.fetch_add(1, Ordering::Relaxed) + 1;
    json(id, format!("{{\"status\":\"ok\",\"id\":{id},\"key\":\"{key}\",\"version\":1}}"))
}

async fn show(State(ids): State<&'static AtomicU64>, Path(key): Path<String>) -> Response<Body> {
    let id = ids.load(Ordering::Relaxed);
    json(id, format!("{{\"key\":\"{key}\",\"value\":{VALUE},\"version\":1}}"))
}

fn json(id: u64, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-kv-id", HeaderValue::from(id));
    headers.insert(ETAG, HeaderValue::from_str(&format!("\"{id}\"")).expect("digits in quotes"));
    response
}

/// What the node wraps around its router: one boxed future that survives a panic.
#[derive(Clone)]
struct Wrapped(Router);

impl tower::Service<Request<Body>> for Wrapped {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = tower::Service::call(&mut self.0, request);
        Box::pin(async move {
            let answered = AssertUnwindSafe(answer).catch_unwind().await;
            Ok(answered.map_or_else(
                |_| StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                |a| a.unwrap_or_else(|n| match n {}),
            ))
        })
    }
}
