//! How the suite steers the client: `POST /window` begins to count, `GET /window` tells what was counted,
//! `POST /finish` ends the workers and judges, `GET /verdict` tells the judgement once there is one,
//! `GET /history` is all that was recorded, one operation a line.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use kv_tests::Caller;
use kv_tests::history::write_json_lines;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::verdict::verdict;
use crate::window::{Counted, Window};
use crate::worker::{ATTEMPT_TIMEOUT, Field, WORKERS, Worker, connection, reach};

/// The workers, until they have been told to finish; and the judgement of what they did.
struct Client {
    field: Arc<Field>,
    workers: Mutex<Option<JoinSet<()>>>,
    verdict: Mutex<Option<Value>>,
}

type Shared = State<Arc<Client>>;

/// Works from the start, once so many nodes are reached, and serves until the pod is deleted.
pub(crate) async fn serve(listen: SocketAddr, url: String, nodes: usize, seed: u64) -> ExitCode {
    reach(&url, nodes).await;
    let http = connection();
    let field = Arc::new(Field {
        caller: Caller::new(http, ATTEMPT_TIMEOUT),
        url,
        seed,
        stop: AtomicBool::new(false),
        window: Window::new(WORKERS),
        acknowledged: Mutex::default(),
    });
    let workers = (0..WORKERS).map(|index| Worker::new(Arc::clone(&field), index).run()).collect();
    let client = Client { field, workers: Mutex::new(Some(workers)), verdict: Mutex::default() };
    let router = Router::new()
        .route("/window", get(counted).post(open))
        .route("/finish", post(finish))
        .route("/verdict", get(judged))
        .route("/history", get(history))
        .with_state(Arc::new(client));
    let listener = tokio::net::TcpListener::bind(listen).await.expect("the port of a pod is free");
    match axum::serve(listener, router).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn counted(State(client): Shared) -> Json<Counted> {
    Json(client.field.window.counted())
}

async fn open(State(client): Shared) {
    client.field.window.open();
}

/// Judges in the background: it may take longer than a request should. A second one changes nothing.
async fn finish(State(client): Shared) {
    let Some(workers) = client.workers.lock().expect("nobody panics with it").take() else { return };
    client.field.stop.store(true, Ordering::Relaxed);
    tokio::spawn(async move {
        workers.join_all().await;
        let verdict = verdict(&client.field).await;
        let verdict = serde_json::to_value(verdict).expect("plain data");
        *client.verdict.lock().expect("nobody panics with it") = Some(verdict);
    });
}

async fn judged(State(client): Shared) -> Response {
    match client.verdict.lock().expect("nobody panics with it").clone() {
        Some(verdict) => Json(verdict).into_response(),
        None => StatusCode::ACCEPTED.into_response(),
    }
}

async fn history(State(client): Shared) -> Vec<u8> {
    let mut lines = Vec::new();
    write_json_lines(&client.field.caller.recorder.operations(), &mut lines).expect("memory can be written to");
    lines
}
