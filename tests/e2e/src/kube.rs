//! How the cluster under test is reached: a client, and the two programs that users have, kubectl and helm.
//! Never the current context of whoever runs the suite: the kubeconfig is a file of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::http::Request;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use crate::waiting::eventually;

/// On everything of the suite that is in no namespace of it, its namespaces included.
pub(crate) const LABEL: &str = "kvcluster.dev/e2e";
/// Says which class is the default one.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The API server is given up after this; it is on the same machine or one that is near.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than the longest wait that kubectl or helm is asked for: whoever takes more hangs.
const PROGRAM_MAX: Duration = Duration::from_secs(400);

#[derive(Clone)]
pub(crate) struct Kube {
    pub(crate) client: Client,
    pub(crate) kubeconfig: PathBuf,
}

impl Kube {
    pub(crate) async fn connect(kubeconfig: &Path) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig can be read");
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options).await.expect("the kubeconfig has a context");
        // What is refused is seen, and asked again only where a scenario says so: an eviction would wait for room.
        (config.read_timeout, config.default_retry) = (Some(ANSWER_TIMEOUT), false);
        config.proxy_url = None;
        let client = Client::try_from(config).expect("the kubeconfig's certificates are valid");
        Self { client, kubeconfig: kubeconfig.to_owned() }
    }

    /// A namespace with restricted pod security, empty.
    pub(crate) async fn namespace(&self, name: &str) {
        self.namespace_enforcing(name, "restricted").await;
    }

    pub(crate) async fn namespace_enforcing(&self, name: &str, level: &str) {
        let namespace: Namespace = from_json(json!({
            "metadata": {
                "name": name,
                "labels": { LABEL: "true", "pod-security.kubernetes.io/enforce": level },
            },
        }));
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.create(&PostParams::default(), &namespace).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("namespace {name}: {error}"),
        }
        // Pods need the account that a controller makes in each namespace.
        eventually("the namespace has its default account", 30, || async {
            let api: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.client.clone(), name);
            api.get("default").await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// The suite's namespaces, those of a run that was broken off included.
    pub(crate) async fn namespaces(&self) -> Vec<String> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = api.list(&ListParams::default().labels(LABEL)).await.expect("namespaces can be listed");
        found.items.iter().map(ResourceExt::name_any).collect()
    }

    /// Deletes a namespace and waits until it is gone, with its volumes.
    pub(crate) async fn delete_namespace(&self, name: &str) {
        let at_once = ["delete", "pods", "--all", "--grace-period=0", "--force", "--namespace", name];
        let api: Api<Namespace> = Api::all(self.client.clone());
        let _ = self.program("kubectl", &["delete", "kvclusters", "--all", "--wait=false", "--namespace", name]).await;
        let _ = self.program("kubectl", &at_once).await;
        let _ = api.delete(name, &DeleteParams::default()).await;
        eventually(&format!("namespace {name} is gone"), 120, || async {
            match api.get_opt(name).await {
                Ok(None) => Ok(()),
                Ok(Some(namespace)) => Err(format!("{:?}", namespace.status)),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    async fn default_class(&self) -> StorageClass {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        let classes = api.list(&ListParams::default()).await.expect("classes can be listed").items;
        let is_default = |class: &StorageClass| class.annotations().get(DEFAULT_CLASS).is_some_and(|is| is == "true");
        classes.into_iter().find(is_default).expect("there is a default class")
    }

    /// Whether volumes of the default class do; those of kind, for one, cannot.
    pub(crate) async fn volumes_grow(&self) -> bool {
        self.default_class().await.allow_volume_expansion == Some(true)
    }

    /// A class as the default one, but for volumes that do not grow.
    pub(crate) async fn fixed_storage_class(&self, name: &str) {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        let mut class = self.default_class().await;
        class.metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        class.allow_volume_expansion = Some(false);
        match api.create(&PostParams::default(), &class).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("class {name}: {error}"),
        }
    }

    /// Runs kubectl or helm against this cluster; Err: with what it said.
    pub(crate) async fn program(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        output(command).await
    }

    /// The same, which must succeed.
    pub(crate) async fn must(&self, program: &str, arguments: &[&str]) -> String {
        let ended = self.program(program, arguments).await;
        ended.unwrap_or_else(|said| panic!("{program} {}: {said}", arguments.join(" ")))
    }

    /// A request to the port of a pod (`name:port`), by way of the API server. Err: the status and what was said.
    pub(crate) async fn pod_http(
        &self,
        method: &str,
        namespace: &str,
        pod: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<String, String> {
        self.http(method, &format!("{namespace}/pods/{pod}/proxy/{path}"), body).await
    }

    /// The same to the port of a Service: the API server chooses one of its ready pods.
    pub(crate) async fn service_http(
        &self,
        method: &str,
        namespace: &str,
        service: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<String, String> {
        self.http(method, &format!("{namespace}/services/{service}/proxy/{path}"), body).await
    }

    async fn http(&self, method: &str, place: &str, body: Vec<u8>) -> Result<String, String> {
        let uri = format!("/api/v1/namespaces/{place}");
        let request = Request::builder().method(method).uri(uri).body(Body::from(body));
        let request = request.expect("names are legal in a path");
        let answer = self.client.send(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let said = answer.into_body().collect_bytes().await.map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&said).into_owned();
        if status.is_success() { Ok(said) } else { Err(format!("{status}: {said}")) }
    }

    /// Asks the port of a pod.
    pub(crate) async fn pod_get(&self, namespace: &str, pod: &str, path: &str) -> Result<String, String> {
        self.pod_http("GET", namespace, pod, path, Vec::new()).await
    }
}

/// What a command said; Err: with what it said, when it failed.
pub(crate) async fn output(mut command: Command) -> Result<String, String> {
    let ended = timeout(PROGRAM_MAX, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output =
        ended.map_err(|_| format!("it did not end within {PROGRAM_MAX:?}"))?.map_err(|error| error.to_string())?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(said)
}

/// An object as it is written down.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("the object is of its kind")
}

pub(crate) fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    tests.and_then(Path::parent).expect("tests/e2e is in the repository").to_owned()
}
