//! The client pod of a scenario: started, steered and asked through the API server. What it does and how it
//! judges is in `client/`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kube::api::{DeleteParams, PostParams};
use kv_tests::pass;
use serde::Deserialize;
use serde_json::json;

use crate::store::{NAME, Store};
use crate::waiting::eventually;

/// The pod, with its port as the API server's proxy wants it.
const POD: &str = "client";
const ADDRESS: &str = "client:8080";
/// Built and loaded by `tests/e2e/run`.
pub(crate) const IMAGE: &str = "kvcluster/kv-e2e-client:e2e";
/// Successes that show that a load flows.
const FLOWING: u64 = 100;
/// Without a success for so long nobody takes writes.
const RESTING: Duration = Duration::from_secs(2);

/// No two clients of a run ask alike or use the same keys.
static SEEDS: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Load {
    store: Store,
}

/// What was counted since [`Load::open`].
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Counted {
    pub(crate) written: u64,
    pub(crate) pause_ms: u64,
    pub(crate) worst_worker_ms: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    /// Operations that were not answered within half a second of their first failure.
    pub(crate) unhidden: u64,
    pub(crate) longest_operation_ms: u64,
}

/// What held at the end.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: u64,
    pub(crate) lost: u64,
    pub(crate) operations: u64,
    pub(crate) wrong: Vec<String>,
}

impl Load {
    /// Starts a client of all that is ready, on this host if one is named, and waits until writes flow.
    pub(crate) async fn start(store: &Store, host: Option<&str>) -> Self {
        let load = Self { store: store.clone() };
        let nodes = store.status().await.ready_replicas;
        let pod = crate::kube::from_json(pod(&store.namespace, host, nodes));
        store.pod_api().create(&PostParams::default(), &pod).await.expect("the client's pod is accepted");
        eventually("the client's pod answers", 60, || load.try_counted()).await;
        load.open().await;
        load.flows(30).await;
        load
    }

    pub(crate) async fn open(&self) {
        self.post("window").await;
    }

    async fn post(&self, path: &str) {
        let (kube, namespace) = (&self.store.kube, &self.store.namespace);
        eventually("the client's pod answers", 30, || kube.pod_http("POST", namespace, ADDRESS, path, Vec::new()))
            .await;
    }

    pub(crate) async fn counted(&self) -> Counted {
        eventually("the client's pod answers", 30, || self.try_counted()).await
    }

    async fn try_counted(&self) -> Result<Counted, String> {
        let told = self.store.kube.pod_get(&self.store.namespace, ADDRESS, "window").await?;
        serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))
    }

    /// Waits until writes succeed, from now on.
    pub(crate) async fn flows(&self, seconds: u64) {
        let before = self.counted().await.written;
        eventually("writes go on", seconds, || async {
            let now = self.try_counted().await?;
            if now.written >= before + FLOWING { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }

    /// Waits until nothing has been written for a moment, from now on.
    pub(crate) async fn rests(&self, seconds: u64) {
        eventually("writes come to an end", seconds, || async {
            let before = self.try_counted().await?.written;
            pass(RESTING).await;
            let now = self.try_counted().await?.written;
            if now == before { Ok(()) } else { Err(format!("{before} writes, and then {now}")) }
        })
        .await;
    }

    /// Ends the workers, and has everything checked.
    pub(crate) async fn finish(self) -> Verdict {
        let (kube, namespace) = (&self.store.kube, &self.store.namespace);
        self.post("finish").await;
        let told = eventually("the client has judged", 120, || async {
            let told = kube.pod_get(namespace, ADDRESS, "verdict").await?;
            if told.is_empty() { Err("it is still at it".to_owned()) } else { Ok(told) }
        })
        .await;
        serde_json::from_str(&told).expect("a verdict is JSON")
    }

    /// All that was recorded, for whoever looks into a failure.
    pub(crate) async fn history(store: &Store) -> Option<String> {
        store.kube.pod_get(&store.namespace, ADDRESS, "history").await.ok()
    }

    /// Takes the client away, so that another can be started.
    pub(crate) async fn remove(store: &Store) {
        let at_once = DeleteParams::default().grace_period(0);
        let began = Instant::now();
        let _ = store.pod_api().delete(POD, &at_once).await;
        eventually("the client's pod is gone", 30, || async {
            let pod = store.pod_api().get_opt(POD).await.map_err(|error| error.to_string())?;
            pod.map_or(Ok(()), |_| Err(format!("still there after {:?}", began.elapsed())))
        })
        .await;
    }
}

/// As restricted as everybody else.
fn pod(namespace: &str, host: Option<&str>, nodes: i32) -> serde_json::Value {
    let (url, nodes) = (format!("http://{NAME}.{namespace}.svc:8000"), nodes.to_string());
    let seed = SEEDS.fetch_add(1, Ordering::Relaxed).to_string();
    let selector = host.map(|host| json!({ "kubernetes.io/hostname": host }));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "nodeSelector": selector,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "client",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["load", "--url", url, "--nodes", nodes, "--seed", seed],
                "securityContext": restricted(),
            }],
        },
    })
}

/// What a namespace that enforces `restricted` asks of a container.
pub(crate) fn restricted() -> serde_json::Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}
