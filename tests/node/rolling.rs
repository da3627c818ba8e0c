//! Planned work is invisible: nodes are restarted one after the other under writes that carry no request
//! ids, so that nothing can be repeated and every failure shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kv_tests::{Cluster, ClusterSpec, wait_until};
use tokio::task::JoinSet;

const CLIENTS: usize = 8;

/// Clients that ask only nodes that say they are ready, as a Service's endpoints do.
struct PlainLoad {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    clients: JoinSet<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    acknowledged: Vec<String>,
    /// Answered otherwise than 200.
    refused: Vec<String>,
    /// Not answered at all.
    unanswered: Vec<String>,
}

impl PlainLoad {
    fn start(cluster: &Cluster) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (http, urls) = (cluster.site.client().clone(), cluster.urls());
            clients.spawn(write(client, http, urls, Arc::clone(&stop), Arc::clone(&count)));
        }
        Self { stop, count, clients }
    }

    async fn progress(&self, more: u64) {
        let goal = self.count.load(Ordering::Relaxed) + more;
        wait_until("writes go on", 60, || async { self.count.load(Ordering::Relaxed) >= goal }).await;
    }

    async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = Outcome::default();
        for outcome in self.clients.join_all().await {
            whole.acknowledged.extend(outcome.acknowledged);
            whole.refused.extend(outcome.refused);
            whole.unanswered.extend(outcome.unanswered);
        }
        whole
    }
}

async fn write(
    client: usize,
    http: reqwest::Client,
    urls: Vec<String>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut n = client;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let url = &urls[n % urls.len()];
        let ready = http.get(format!("{url}/readyz")).send().await;
        if !ready.is_ok_and(|answer| answer.status() == 200) {
            tokio::task::yield_now().await;
            continue;
        }
        let key = format!("plain-{client}-{n}");
        match http.put(format!("{url}/key/{key}")).body(r#"{"value":1}"#).send().await {
            Ok(answer) if answer.status() == 200 => {
                count.fetch_add(1, Ordering::Relaxed);
                outcome.acknowledged.push(key);
            }
            Ok(answer) => {
                let code = answer.headers().get("x-kv-error").cloned();
                outcome.refused.push(format!("{key} at {url}: {} {code:?}", answer.status()));
            }
            Err(error) => outcome.unanswered.push(format!("{key} at {url}: {error:?}")),
        }
    }
    outcome
}

/// Every node twice, one after the other: the leader is among them at least twice.
async fn roll(drain_delay: &str) -> Outcome {
    let mut cluster = ClusterSpec::new(3).automatic().arg("--drain-delay", drain_delay).start().await;
    cluster.allow("");
    let load = PlainLoad::start(&cluster);
    cluster.roll(&[0, 1, 2, 0, 1, 2], async || load.progress(100).await).await;
    let outcome = load.stop().await;
    cluster.settle().await;
    for key in &outcome.acknowledged {
        cluster.nodes[0].get(&format!("/key/{key}")).await.ok();
    }
    outcome
}

#[tokio::test]
async fn a_rolling_restart_fails_no_write_though_none_can_be_repeated() {
    let Outcome { refused, unanswered, .. } = roll("0.5").await;
    assert!(refused.is_empty() && unanswered.is_empty(), "failed: {refused:#?} {unanswered:#?}");
}

/// A connection to the node that ends may then break before it answers; the other nodes answer everything.
#[tokio::test]
async fn without_a_drain_delay_no_node_fails_a_write_that_it_answers() {
    let Outcome { refused, .. } = roll("0").await;
    assert!(refused.is_empty(), "failed: {refused:#?}");
}

/// How long they wait for each other, stories of the core tell.
#[tokio::test]
async fn nodes_that_are_stopped_at_once_all_end() {
    let mut cluster = Cluster::automatic().await;
    cluster.allow("");
    cluster.nodes[0].put("a", "1").await.ok();
    cluster.settle().await;
    cluster.nodes.iter().for_each(kv_tests::Node::terminate);
    for node in &mut cluster.nodes {
        assert!(node.wait_exit().await.status.success());
    }
}
