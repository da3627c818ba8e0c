//! A copy of a pod's volume, made and put back as people do it with snapshots of volumes: by a pod beside it on
//! the same host, restricted as everybody else. Breaks nothing by itself; `scenarios::copies` decides what is put
//! back when.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, LogParams, PostParams};
use serde_json::{Value, json};

use crate::faults::{Signal, signal};
use crate::kube::from_json;
use crate::load::{IMAGE, restricted};
use crate::store::Store;
use crate::suite::Suite;
use crate::waiting::eventually;

/// Where a node has its data, on its volume.
const DATA_DIR: &str = "node";

pub(crate) struct Copy {
    store: Store,
    /// Whose volume it is a copy of.
    pod: String,
    host: String,
}

impl Copy {
    /// The node stands still meanwhile, so that the copy is of one moment.
    pub(crate) async fn of(store: &Store, pod: &str) -> Self {
        let copy = Self { store: store.clone(), pod: pod.to_owned(), host: store.host(pod).await };
        let claim: PersistentVolumeClaim = from_json(json!({
            "metadata": {"name": copy.claim()},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }));
        store.claim_api().create(&PostParams::default(), &claim).await.expect("the claim is accepted");
        signal(store, pod, Signal::Stop).await;
        copy.carry(&format!("data-{pod}"), &copy.claim()).await;
        signal(store, pod, Signal::Cont).await;
        copy
    }

    fn claim(&self) -> String {
        format!("copy-of-{}", self.pod)
    }

    /// The pod goes, and its volume is as it was: what it held since is gone. It does not start yet.
    pub(crate) async fn put_back(&self, suite: &Suite) {
        suite.faults.cordon(&suite.kube, &self.host).await;
        self.store.replace_pod(&self.pod, &DeleteParams::default()).await;
        self.carry(&self.claim(), &format!("data-{}", self.pod)).await;
    }

    pub(crate) async fn start(&self, suite: &Suite) {
        suite.faults.uncordon(&suite.kube, &self.host).await;
    }

    /// From one claim to another, which a pod may do on a host that takes none from the scheduler.
    async fn carry(&self, from: &str, to: &str) {
        let pod: Pod = from_json(carrier(from, to, &self.host));
        let api = self.store.pod_api();
        let name = api.create(&PostParams::default(), &pod).await.expect("the pod is accepted").name_any();
        let phase = eventually("the volume is copied", 60, || async {
            let phase = api.get(&name).await.map_err(|error| error.to_string())?.status.and_then(|s| s.phase);
            phase.filter(|phase| ["Succeeded", "Failed"].contains(&phase.as_str())).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        let said = api.logs(&name, &LogParams::default()).await.unwrap_or_default();
        assert_eq!(phase, "Succeeded", "the volume was not copied: {said}");
        self.store.delete_pod(&name, &DeleteParams::default().grace_period(0)).await;
    }
}

fn carrier(from: &str, to: &str, host: &str) -> Value {
    let volume = |name: &str, claim: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}});
    let directory = |mount: &str| format!("{mount}/{DATA_DIR}");
    json!({
        "metadata": {"generateName": "copy-"},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": {"kubernetes.io/hostname": host},
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "copy",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["copy", "--from", directory("/from"), "--to", directory("/to")],
                "securityContext": restricted(),
                "volumeMounts": [{"name": "from", "mountPath": "/from"}, {"name": "to", "mountPath": "/to"}],
            }],
            "volumes": [volume("from", from), volume("to", to)],
        },
    })
}
