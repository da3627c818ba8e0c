//! Clients that write without pause, retry with their request ids until they are answered, and
//! remember every acknowledged write; afterwards each must be there, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::{JoinHandle, JoinSet};

use crate::node::Node;
use crate::site::Site;
use crate::wait::{back_off, wait_until};

/// A client gives an attempt up after this, and asks another node with the same request id.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Keeps the keys and client ids of one load apart from those of the next.
static LOADS: AtomicU64 = AtomicU64::new(0);

/// Concurrent reads while checking.
const CHECKERS: usize = 16;

/// One write that was answered 200.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub key: String,
    pub value: String,
    pub id: u64,
}

/// What a load did.
#[derive(Default)]
pub struct LoadReport {
    pub acknowledged: Vec<Acknowledged>,
    /// Attempts that were not answered 200, by status; 0: no answer at all.
    pub failed_attempts: Vec<u16>,
    /// Writes that never got an answer before their client's patience ended.
    pub lost: Vec<String>,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<LoadReport>>,
}

struct Writer {
    client: reqwest::Client,
    urls: Vec<String>,
    name: String,
    next_url: usize,
    patience: Duration,
    report: LoadReport,
}

impl Load {
    /// Starts `clients` writers over these nodes; each write must succeed within `patience`.
    pub fn start(site: &Site, urls: &[String], clients: usize, patience: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let load = LOADS.fetch_add(1, Ordering::Relaxed);
        let tasks = (0..clients).map(|index| {
            let writer = Writer {
                client: site.client().clone(),
                urls: urls.to_vec(),
                name: format!("load-{load}-client-{index}"),
                next_url: index,
                patience,
                report: LoadReport::default(),
            };
            tokio::spawn(writer.run(Arc::clone(&stop), Arc::clone(&count)))
        });
        let tasks = tasks.collect();
        Self { stop, count, tasks }
    }

    /// Writes acknowledged so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until `more` writes were acknowledged from now on.
    pub async fn progress(&self, more: u64) {
        let goal = self.count() + more;
        wait_until("the load makes progress", 60, || async { self.count() >= goal }).await;
    }

    /// Lets every client finish its write, and returns what they did.
    pub async fn stop(self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = LoadReport::default();
        for task in self.tasks {
            let report = task.await.expect("a load's client does not panic");
            whole.acknowledged.extend(report.acknowledged);
            whole.failed_attempts.extend(report.failed_attempts);
            whole.lost.extend(report.lost);
        }
        whole
    }
}

impl Writer {
    async fn run(mut self, stop: Arc<AtomicBool>, count: Arc<AtomicU64>) -> LoadReport {
        let mut n = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            n += 1;
            if self.write(n).await {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.report
    }

    /// One write, tried on one node after the other until it is answered.
    async fn write(&mut self, n: u64) -> bool {
        let key = format!("{}-{n}", self.name);
        let value = format!("value {n} of {}", self.name);
        let query = format!("client_id={}&request_id={n}", self.name);
        let begin = Instant::now();
        while begin.elapsed() < self.patience {
            let url = format!("{}/key/{key}?{query}", self.urls[self.next_url % self.urls.len()]);
            match self.attempt(&url, &value).await {
                Ok(id) => {
                    self.report.acknowledged.push(Acknowledged { key, value, id });
                    return true;
                }
                Err(status) => self.report.failed_attempts.push(status),
            }
            self.next_url += 1;
            back_off().await;
        }
        self.report.lost.push(key);
        false
    }

    async fn attempt(&self, url: &str, value: &str) -> Result<u64, u16> {
        let body = serde_json::json!({"value": value}).to_string();
        let sent = self.client.put(url).timeout(ATTEMPT_TIMEOUT).body(body).send().await.map_err(|_| 0_u16)?;
        let status = sent.status().as_u16();
        let body = sent.bytes().await.map_err(|_| 0_u16)?;
        if status != 200 {
            assert!(status >= 500, "a write of a new key is refused: {status} {}", String::from_utf8_lossy(&body));
            return Err(status);
        }
        let body: Value = serde_json::from_slice(&body).expect("an answer is JSON");
        assert_eq!(body["version"], 1, "a write of a new key took effect twice: {body}");
        Ok(body["id"].as_u64().expect("an id is a number"))
    }
}

impl LoadReport {
    /// Every acknowledged write is on this node with its value, its id and version 1.
    pub async fn check(&self, node: &Node) {
        let mut ids: Vec<u64> = self.acknowledged.iter().map(|a| a.id).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "two writes were given one id");
        let mut checkers = JoinSet::new();
        for part in self.acknowledged.chunks(self.acknowledged.len().div_ceil(CHECKERS).max(1)) {
            let requests: Vec<_> =
                part.iter().map(|a| (a.clone(), node.request("GET", &format!("/key/{}", a.key)))).collect();
            checkers.spawn(check_part(node.name().to_owned(), requests));
        }
        while let Some(done) = checkers.join_next().await {
            if let Err(error) = done {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    #[track_caller]
    pub fn nothing_lost(&self) -> &Self {
        assert!(self.lost.is_empty(), "never answered: {:?} (failed attempts: {:?})", self.lost, self.failed_attempts);
        self
    }
}

async fn check_part(node: String, requests: Vec<(Acknowledged, reqwest::RequestBuilder)>) {
    for (written, request) in requests {
        let answer = request.send().await.expect("the node answers");
        let etag = answer.headers().get("etag").and_then(|e| e.to_str().ok()).unwrap_or("").to_owned();
        let body: Value = answer.json().await.expect("an answer is JSON");
        let expected = serde_json::json!({"key": written.key, "value": written.value, "version": 1});
        assert_eq!(body, expected, "{node} lost or changed the acknowledged write {}", written.id);
        assert_eq!(etag, format!("\"{}\"", written.id), "{node} holds {} under another id", written.key);
    }
}
