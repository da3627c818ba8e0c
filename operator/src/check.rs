//! The test of an installation, `kv-operator check`: makes a cluster, writes and reads through its Services
//! as a client does, and removes it with its data, whatever came of it. Never touches another cluster.
//! Called by the program alone; `helm test` runs it in a pod.

use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, PostParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::crd::{ConditionType, KvCluster};
use crate::names::{CLIENT_PORT, MANAGER_LABEL};
use crate::node_client::plain_http;

/// Marks the clusters that may be removed here.
const MANAGER: &str = "kv-operator-check";
const KEY: &str = "check";
/// Between two looks at what is waited for.
const EVERY: Duration = Duration::from_millis(500);
/// Pods drain for 5 s and may be killed after 30.
const REMOVAL_MAX: Duration = Duration::from_secs(60);
/// Of one request; it is sent again until the whole time is up.
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Why an installation does not pass.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("there is a KvCluster {0} that was made by somebody else: choose another name")]
    Taken(String),
    #[error("not done after {0} s; what was waited for is above")]
    Late(u64),
    #[error("{service} answers {answer}, but {written} was written")]
    Wrong { service: String, answer: Value, written: Value },
    #[error("{0} is still there {max} s after its deletion", max = REMOVAL_MAX.as_secs())]
    Stays(String),
    #[error(transparent)]
    Kubernetes(#[from] kube::Error),
}

/// The cluster that is made.
#[derive(clap::Args)]
pub struct Check {
    /// The name of the cluster.
    #[arg(long, default_value = "kv-operator-check")]
    name: String,
    /// Its namespace, which an operator must look after.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Its nodes.
    #[arg(long, default_value_t = 3)]
    replicas: i32,
    /// The size of each volume.
    #[arg(long, default_value = "1Gi")]
    storage_size: String,
    /// The class of its volumes; the default class when it is not set.
    #[arg(long)]
    storage_class: Option<String>,
    /// Seconds until it must have answered.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Must not be cancelled: the cluster would stay.
pub async fn run(client: Client, check: &Check) -> Result<(), CheckError> {
    let api: Api<KvCluster> = Api::namespaced(client, &check.namespace);
    // What an earlier check could not remove.
    remove(&api, check).await?;
    let ended = tokio::time::timeout(Duration::from_secs(check.timeout), write_and_read(&api, check)).await;
    let removed = remove(&api, check).await;
    ended.map_err(|_| CheckError::Late(check.timeout))??;
    removed
}

async fn write_and_read(api: &Api<KvCluster>, check: &Check) -> Result<(), CheckError> {
    let (name, namespace, began) = (&check.name, &check.namespace, Instant::now());
    let created = api.create(&PostParams::default(), &cluster(check)).await?;
    let mut said = String::new();
    while let Some(why) = not_available(&api.get(name).await?) {
        if why != said {
            tracing::info!("{why}");
            said = why;
        }
        tokio::time::sleep(EVERY).await;
    }
    tracing::info!("{namespace}/{name} is Available after {:.1} s", began.elapsed().as_secs_f64());
    let client = plain_http(|builder| builder.timeout(REQUEST_MAX));
    // Nobody else has ever written it.
    let value = Value::String(created.uid().unwrap_or_default());
    let url = |service: &str| format!("http://{service}.{namespace}.svc:{CLIENT_PORT}/key/{KEY}");
    let written = answered(client.put(url(name)).json(&json!({ "value": value }))).await;
    tracing::info!("written through {name}: {written}");
    for service in [name.clone(), format!("{name}-leader")] {
        let answer = answered(client.get(format!("{}?consistency=linearizable", url(&service)))).await;
        if answer["value"] != value {
            return Err(CheckError::Wrong { service, answer, written: value });
        }
        tracing::info!("read through {service}: {answer}");
    }
    Ok(())
}

fn cluster(check: &Check) -> KvCluster {
    let Check { name, namespace: _, replicas, storage_size, storage_class, timeout: _ } = check;
    let mut spec = json!({ "replicas": replicas, "storage": { "size": storage_size, "retainPolicy": "Delete" } });
    if let Some(class) = storage_class {
        spec["storage"]["storageClassName"] = json!(class);
    }
    let spec = serde_json::from_value(spec).expect("numbers and text are where the schema has them");
    let mut cluster = KvCluster::new(name, spec);
    cluster.labels_mut().insert(MANAGER_LABEL.to_owned(), MANAGER.to_owned());
    cluster
}

/// None: it is. What the operator says of it is the best there is to wait by.
fn not_available(cluster: &KvCluster) -> Option<String> {
    let mut conditions = cluster.status.iter().flat_map(|status| &status.conditions);
    match conditions.find(|condition| condition.type_ == ConditionType::Available.as_str()) {
        Some(condition) if condition.status == "True" => None,
        Some(condition) => Some(format!("{}: {}", condition.reason, condition.message)),
        None => Some("no operator has looked at it yet".to_owned()),
    }
}

/// Sent until it is answered well: a Service needs a moment until everybody knows of it. Ends with the time-out.
async fn answered(request: reqwest::RequestBuilder) -> Value {
    loop {
        let again = request.try_clone().expect("the body is in memory");
        match again.send().await.and_then(reqwest::Response::error_for_status) {
            Ok(response) => match response.json().await {
                Ok(document) => return document,
                Err(error) => tracing::info!(%error, "the answer makes no sense"),
            },
            Err(error) => tracing::info!(%error, "sent again"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// With its pods and volumes. A cluster that is no check's is left alone.
async fn remove(api: &Api<KvCluster>, check: &Check) -> Result<(), CheckError> {
    let (name, began) = (&check.name, Instant::now());
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    while let Some(cluster) = api.get_opt(name).await? {
        if cluster.labels().get(MANAGER_LABEL).is_none_or(|manager| manager != MANAGER) {
            return Err(CheckError::Taken(name.clone()));
        }
        if began.elapsed() >= REMOVAL_MAX {
            return Err(CheckError::Stays(name.clone()));
        }
        if cluster.metadata.deletion_timestamp.is_none() {
            api.delete(name, &parameters).await?;
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::crd::{KvClusterStatus, RetainPolicy};
    use crate::validate::validate;

    fn check() -> Check {
        Check {
            name: "trial".to_owned(),
            namespace: "apps".to_owned(),
            replicas: 3,
            storage_size: "1Gi".to_owned(),
            storage_class: Some("fast".to_owned()),
            timeout: 1,
        }
    }

    #[test]
    fn the_cluster_of_a_check_is_valid_and_leaves_no_volumes() {
        let cluster = cluster(&check());
        assert!(validate(&cluster).problems.is_empty());
        assert_eq!(cluster.spec.storage.retain_policy, RetainPolicy::Delete);
        assert_eq!(cluster.spec.storage.storage_class_name.as_deref(), Some("fast"));
    }

    #[test]
    fn what_is_waited_for_is_told_in_the_operators_words() {
        let mut cluster = cluster(&check());
        assert!(not_available(&cluster).unwrap().contains("no operator"));
        for (status, expected) in [("False", Some("NoLeader: why".to_owned())), ("True", None)] {
            let condition = Condition {
                type_: "Available".to_owned(),
                status: status.to_owned(),
                reason: "NoLeader".to_owned(),
                message: "why".to_owned(),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                observed_generation: None,
            };
            cluster.status = Some(KvClusterStatus { conditions: vec![condition], ..KvClusterStatus::default() });
            assert_eq!(not_available(&cluster), expected);
        }
    }
}
