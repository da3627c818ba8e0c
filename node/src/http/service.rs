//! What holds for every request, whatever its route: `X-Kv-Id` on the answer, counting, an answer to
//! a handler that panicked, and to paths and methods that do not exist. Wraps the router; called for
//! each request by the server.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::{HeaderValue, Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::App;
use super::answer::{self, X_KV_ID};
use super::error::{Code, Failure, X_KV_ERROR};
use super::{forward, keys};
use crate::metrics::Route;

#[derive(Clone)]
pub(crate) struct Service {
    app: App,
    router: Router,
}

impl Service {
    pub(crate) fn new(app: App, router: Router) -> Self {
        Self { app, router }
    }
}

impl tower::Service<Request<Body>> for Service {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        forward::restore_path(&mut request);
        let route = route_of(&request);
        let Self { app, router } = self.clone();
        Box::pin(async move {
            let answered = AssertUnwindSafe(answer(&app, router, request)).catch_unwind().await;
            let mut response = answered.unwrap_or_else(|_| panicked());
            finish(&app, &mut response);
            app.metrics().count_request(route, response.status().as_u16());
            Ok(response)
        })
    }
}

/// Reading and writing one key is nearly all that clients ask for, and the way through the router would be a seventh of
/// the node's own work for it: these three go straight to their handlers.
async fn answer(app: &App, mut router: Router, request: Request<Body>) -> Response {
    let app = || State(app.clone());
    let key = request.uri().path().strip_prefix("/key/").filter(|key| !key.is_empty() && !key.contains('/'));
    match (key, request.method()) {
        (Some(_), &Method::GET) => keys::get(app(), request).await.into_response(),
        (Some(_), &Method::PUT) => keys::put(app(), request).await.into_response(),
        (Some(_), &Method::DELETE) => keys::delete(app(), request).await.into_response(),
        _ => tower::Service::call(&mut router, request).await.unwrap_or_else(|never| match never {}),
    }
}

/// The panic itself was reported by the panic hook.
fn panicked() -> Response {
    Failure::internal("The request could not be handled; the node's log says why").into_response()
}

fn finish(app: &App, response: &mut Response) {
    if response.status() == StatusCode::NOT_FOUND && !response.headers().contains_key(X_KV_ERROR) {
        *response = nothing_there().into_response(); // of the files under /docs, which are not ours
    }
    if !response.headers().contains_key(X_KV_ID) {
        response.headers_mut().insert(X_KV_ID, answer::number(app.applied().0));
    }
    if app.handle().is_ok_and(|handle| handle.is_draining()) {
        // So that no client finds its idle connection closed under its next request.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Metrics tell routes apart by a short fixed list.
fn route_of(request: &Request<Body>) -> Route {
    let path = request.uri().path();
    let first = path[1.min(path.len())..].split('/').next().unwrap_or_default();
    match (first, request.method()) {
        ("key", &Method::PUT) => Route::KeyPut,
        ("key", &Method::DELETE) => Route::KeyDelete,
        ("key", _) => Route::KeyGet,
        ("keys", _) => Route::Keys,
        ("segments" | "compaction" | "deduplication_stats" | "request_status" | "snapshot", _) => Route::Log,
        ("cluster" | "cluster_status" | "status" | "settings", _) => Route::Cluster,
        ("livez" | "readyz" | "metrics", _) => Route::Probe,
        _ => Route::Other,
    }
}

pub(crate) async fn unknown_route() -> Failure {
    nothing_there()
}

fn nothing_there() -> Failure {
    Failure::new(Code::NotFound, "Not Found")
}

/// The router adds `Allow`. OPTIONS of a path that exists is answered by that alone.
pub(crate) async fn method_not_allowed(method: Method) -> Response {
    if method != Method::OPTIONS {
        return Failure::new(Code::MethodNotAllowed, "Method Not Allowed").into_response();
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().remove(CONTENT_LENGTH);
    response
}
