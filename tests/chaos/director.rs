//! Who directs a group with manual failover, as the operator does: when no node hears a leader, the voter with the
//! longest log is told to lead, or the next one when that is refused. Knows the nodes by their `/status` alone.

use std::cmp::Reverse;
use std::time::Duration;

use kv_tests::{pass, target_of};
use serde_json::Value;
use tokio::task::JoinHandle;

const INTERVAL: Duration = Duration::from_millis(200);
/// A follower that heard its leader more recently has one.
const SILENCE_MS: u64 = 1_000;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends when dropped.
pub(crate) struct Director(JoinHandle<()>);

impl Director {
    pub(crate) fn start(client: reqwest::Client, urls: Vec<String>) -> Self {
        Self(tokio::spawn(direct(client, urls)))
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn direct(client: reqwest::Client, urls: Vec<String>) {
    let mut refused = 0;
    loop {
        pass(INTERVAL).await;
        let mut seen = Vec::new();
        for url in &urls {
            seen.extend(status(&client, url).await.map(|status| (url, status)));
        }
        if seen.len() * 2 <= urls.len() || seen.iter().any(|(_, status)| has_leader(status)) {
            refused = 0;
            continue;
        }
        seen.sort_by_key(|(_, status)| Reverse(status["last_id"].as_u64()));
        let (url, status) = &seen[refused % seen.len()];
        let order = client.post(format!("{url}/cluster/lead")).header("content-type", "application/json");
        let answer = order.body(target_of(status).to_string()).timeout(ANSWER_TIMEOUT).send().await;
        let is_refused = answer.is_ok_and(|answer| answer.status() == 409);
        refused = if is_refused { refused + 1 } else { 0 };
    }
}

async fn status(client: &reqwest::Client, url: &str) -> Option<Value> {
    let answer = client.get(format!("{url}/status")).timeout(ANSWER_TIMEOUT).send().await.ok()?;
    serde_json::from_slice(&answer.bytes().await.ok()?).ok()
}

/// A leader without a lease may be cut off from all others.
fn has_leader(status: &Value) -> bool {
    if status["role"] == "leader" {
        return status["lease_held"] == true;
    }
    status["leader_heard_ms_ago"].as_u64().is_some_and(|ago| ago < SILENCE_MS)
}
