//! What breaks, by the means of each kind of cluster: processes by a pod that sees its host's, anywhere where
//! such pods may run; hosts and the API server by what the cluster was made with. What a cluster cannot
//! do is said and never passed over in silence.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use serde_json::json;
use tokio::process::Command;

use crate::kube::{Kube, from_json, output};
use crate::load::IMAGE;
use crate::store::Store;
use crate::waiting::eventually;

/// For pods that signal others; the only namespace of the suite that is not restricted.
const NAMESPACE: &str = "e2e-signals";

/// What is signalled.
const PROGRAM: &str = "kv-node";

/// What the cluster runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Machine {
    /// Network namespaces of this machine, made by a tool
    Bare,
    /// Docker containers, made by kind
    Kind,
    /// Nothing that the suite knows how to break
    Other,
}

/// What a scenario may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    /// Processes of pods are signalled.
    Signals,
    /// Hosts are stopped, paused and cut off.
    Hosts,
    /// The API server is stopped.
    ApiServer,
    /// Volumes of the default class grow.
    Growth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Kill,
    Stop,
    Cont,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostFault {
    Stop,
    Pause,
    Cut,
}

pub(crate) struct Faults {
    machine: Machine,
    /// With [`Machine::Bare`], the tool; with [`Machine::Kind`], the cluster's name.
    tool: String,
    broken: Mutex<Broken>,
}

/// What has to be mended when a scenario ends before it has done so.
#[derive(Default)]
struct Broken {
    hosts: Vec<(HostFault, String)>,
    api_server: bool,
    cordoned: Vec<String>,
}

impl Faults {
    pub(crate) fn new(machine: Machine, tool: String) -> Self {
        Self { machine, tool, broken: Mutex::default() }
    }

    fn broken(&self) -> MutexGuard<'_, Broken> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mends whatever is broken.
    pub(crate) async fn mend(&self, kube: &Kube) {
        let Broken { hosts, api_server, cordoned } = std::mem::take(&mut *self.broken());
        for (fault, host) in hosts {
            self.mend_host(fault, &host).await;
        }
        if api_server {
            self.start_api_server().await;
        }
        for host in cordoned {
            kube.must("kubectl", &["uncordon", &host]).await;
        }
    }

    /// As an administrator does it before work on a host.
    pub(crate) async fn drain(&self, kube: &Kube, host: &str) {
        self.broken().cordoned.push(host.to_owned());
        let options = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
        kube.must("kubectl", &[&["drain", host], &options[..]].concat()).await;
    }

    /// Takes no more pods; what runs there stays.
    pub(crate) async fn cordon(&self, kube: &Kube, host: &str) {
        self.broken().cordoned.push(host.to_owned());
        kube.must("kubectl", &["cordon", host]).await;
    }

    pub(crate) async fn uncordon(&self, kube: &Kube, host: &str) {
        kube.must("kubectl", &["uncordon", host]).await;
        self.broken().cordoned.retain(|cordoned| cordoned != host);
    }

    /// Why this cluster cannot do something; None: it can.
    pub(crate) async fn cannot(&self, kube: &Kube, ability: Ability) -> Option<&'static str> {
        match (ability, self.machine) {
            (Ability::Growth, _) if kube.volumes_grow().await => None,
            (Ability::Growth, _) => Some("volumes of this cluster's default class cannot grow"),
            (Ability::Signals, _) | (_, Machine::Bare | Machine::Kind) => None,
            (Ability::Hosts, Machine::Other) => Some("this cluster's hosts cannot be broken by the suite"),
            (Ability::ApiServer, Machine::Other) => Some("this cluster's API server cannot be stopped by the suite"),
        }
    }

    pub(crate) async fn break_host(&self, fault: HostFault, host: &str) {
        let (bare, docker): (&str, Vec<&str>) = match fault {
            HostFault::Stop => ("stop", vec!["kill", host]),
            HostFault::Pause => ("pause", vec!["pause", host]),
            HostFault::Cut => ("cut", vec!["network", "disconnect", "kind", host]),
        };
        self.broken().hosts.push((fault, host.to_owned()));
        self.change_host(bare, &docker, host).await;
    }

    pub(crate) async fn mend_host(&self, fault: HostFault, host: &str) {
        let (bare, docker): (&str, Vec<&str>) = match fault {
            HostFault::Stop => ("start", vec!["start", host]),
            HostFault::Pause => ("resume", vec!["unpause", host]),
            HostFault::Cut => ("join", vec!["network", "connect", "kind", host]),
        };
        self.change_host(bare, &docker, host).await;
        self.broken().hosts.retain(|(_, broken)| broken != host);
    }

    async fn change_host(&self, bare: &str, docker: &[&str], host: &str) {
        match self.machine {
            Machine::Bare => run(&self.tool, &["node", bare, host]).await,
            Machine::Kind => run("docker", docker).await,
            Machine::Other => panic!("hosts of this cluster cannot be broken"),
        }
    }

    pub(crate) async fn stop_api_server(&self) {
        self.broken().api_server = true;
        self.change_api_server("stop", "pause").await;
    }

    pub(crate) async fn start_api_server(&self) {
        self.change_api_server("start", "unpause").await;
        self.broken().api_server = false;
    }

    async fn change_api_server(&self, bare: &str, docker: &str) {
        match self.machine {
            Machine::Bare => run(&self.tool, &["api", bare]).await,
            Machine::Kind => run("docker", &[docker, &format!("{}-control-plane", self.tool)]).await,
            Machine::Other => panic!("the API server of this cluster cannot be stopped"),
        }
    }
}

async fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    if let Err(said) = output(command).await {
        panic!("{program} {}: {said}", arguments.join(" "));
    }
}

/// Sends a signal to the node in a pod, and returns when it was sent.
pub(crate) async fn signal(store: &Store, pod: &str, signal: Signal) {
    let sending = Sending::start(store, pod, signal, Duration::ZERO).await;
    sending.phase(&["Succeeded", "Failed"]).await;
    sending.end().await;
}

/// A signal that is about to be sent.
pub(crate) struct Sending {
    api: Api<Pod>,
    name: String,
}

impl Sending {
    /// Returns when it will be sent without further help, the API server's included.
    pub(crate) async fn start(store: &Store, pod: &str, signal: Signal, after: Duration) -> Self {
        store.kube.namespace_enforcing(NAMESPACE, "privileged").await;
        let pod = store.pod(pod).await;
        let host = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).expect("the pod has a host");
        let sender = from_json(signaller(host, &pod.uid().expect("every pod has a uid"), signal, after));
        let api: Api<Pod> = Api::namespaced(store.kube.client.clone(), NAMESPACE);
        let name = api.create(&PostParams::default(), &sender).await.expect("the pod is accepted").name_any();
        let sending = Self { api, name };
        sending.phase(&["Running", "Succeeded", "Failed"]).await;
        sending
    }

    async fn phase(&self, wanted: &[&str]) -> String {
        eventually("the signal is sent", 30, || async {
            let sender = self.api.get(&self.name).await.map_err(|error| error.to_string())?;
            let phase = sender.status.and_then(|status| status.phase).unwrap_or_default();
            if wanted.contains(&phase.as_str()) { Ok(phase) } else { Err(phase) }
        })
        .await
    }

    /// Panics when it was not sent.
    pub(crate) async fn end(self) {
        let phase = self.phase(&["Succeeded", "Failed"]).await;
        let said = self.api.logs(&self.name, &LogParams::default()).await.unwrap_or_default();
        assert_eq!(phase, "Succeeded", "the signal was not sent: {said}");
        let _ = self.api.delete(&self.name, &DeleteParams::default().grace_period(0)).await;
    }
}

/// Runs as the user of the nodes, so that it needs no capability to signal them.
fn signaller(host: &str, pod_uid: &str, signal: Signal, after: Duration) -> serde_json::Value {
    let after = after.as_secs().to_string();
    let word = match signal {
        Signal::Kill => "kill",
        Signal::Stop => "stop",
        Signal::Cont => "cont",
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "signal-"},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeName": host,
            "hostPID": true,
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532},
            "containers": [{
                "name": "signal",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["signal", "--signal", word, "--pod-uid", pod_uid, "--program", PROGRAM, "--after-seconds", after],
            }],
        },
    })
}
