//! What must be true when all workers have ended: every acknowledged write is there, as it was answered,
//! and the history of all that was seen can be explained.

use std::sync::Arc;

use kv_tests::history::{Action, Call, Operation};
use kv_tests::linearizability::{Bounds, check};
use kv_tests::pass;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::worker::{Acknowledged, Field, SHARED_KEYS, WORKERS, connection, shared_key};

/// Attempts to read one key back, and the pause between them: the cluster is healthy by then.
const ATTEMPTS: (usize, std::time::Duration) = (100, std::time::Duration::from_millis(100));
/// Of what is wrong, so much is told.
const TOLD_MAX: usize = 20;

/// What the suite is told at the end.
#[derive(Serialize)]
pub(crate) struct Verdict {
    /// Acknowledged writes that were read back.
    acknowledged: usize,
    /// Of these, how many are not there or differ.
    lost: usize,
    operations: usize,
    /// Whatever breaks a promise; empty when all hold.
    wrong: Vec<String>,
}

/// Once no worker runs any more.
pub(crate) async fn verdict(field: &Arc<Field>) -> Verdict {
    let acknowledged = std::mem::take(&mut *field.acknowledged.lock().expect("nobody panics with it"));
    let total = acknowledged.len();
    let mut readers = JoinSet::new();
    for part in acknowledged.chunks(total.div_ceil(WORKERS).max(1)) {
        readers.spawn(read_back(Arc::clone(field), part.to_vec()));
    }
    let mut wrong: Vec<String> = readers.join_all().await.into_iter().flatten().collect();
    let lost = wrong.len();
    for key in (0..SHARED_KEYS).map(|number| shared_key(field.seed, number)) {
        let action = Action::Read { min_id: None };
        let call = Call { client: "end".into(), node: field.url.clone(), key, action, request: None };
        field.caller.ask(&field.url, call).await;
    }
    wrong.extend(field.caller.take_strange());
    let operations = field.caller.recorder.operations();
    let count = operations.len();
    // It may take seconds of processor time.
    wrong
        .extend(tokio::task::spawn_blocking(move || explained(&operations)).await.expect("the checker does not panic"));
    wrong.truncate(TOLD_MAX);
    Verdict { acknowledged: total, lost, operations: count, wrong }
}

fn explained(operations: &[Operation]) -> Option<String> {
    check(operations, &Bounds::default()).err().map(|failure| failure.to_string())
}

async fn read_back(field: Arc<Field>, writes: Vec<Acknowledged>) -> Vec<String> {
    let http = connection();
    let mut wrong = Vec::new();
    for written in writes {
        let Acknowledged { key, value, id } = &written;
        let expected = json!({"key": key, "value": serde_json::from_str::<Value>(value).ok(), "version": 1});
        match read(&http, &format!("{}/key/{key}?consistency=linearizable", field.url)).await {
            Some((tag, body)) if tag == format!("\"{id}\"") && body == expected => {}
            found => wrong.push(format!("the acknowledged write {written:?} was read back as {found:?}")),
        }
    }
    wrong
}

/// The entity tag and the body; None: nobody answered.
async fn read(http: &reqwest::Client, url: &str) -> Option<(String, Value)> {
    for _ in 0..ATTEMPTS.0 {
        if let Ok(answer) = http.get(url).timeout(crate::worker::ATTEMPT_TIMEOUT).send().await
            && !answer.status().is_server_error()
        {
            let tag = answer.headers().get("etag").and_then(|tag| tag.to_str().ok()).unwrap_or_default().to_owned();
            if let Ok(body) = answer.json().await {
                return Some((tag, body));
            }
        }
        pass(ATTEMPTS.1).await;
    }
    None
}
