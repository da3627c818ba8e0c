//! A new user's first minute: the README's own lines, typed one after the other.

use std::sync::Arc;

use tokio::process::Command;

use crate::kube::{output, repository};
use crate::operator;
use crate::scenario::Report;
use crate::store::Store;
use crate::suite::{Suite, namespace};
use crate::trial::timed;
use crate::waiting::eventually;

/// The section, and how the block begins that is typed.
const SECTION: &str = "## On Kubernetes in five minutes";
const FIRST: &str = "helm install ";

pub(crate) async fn as_the_readme_says(suite: Arc<Suite>, name: &'static str) -> Report {
    let lines = lines(&std::fs::read_to_string(repository().join("README.md")).expect("there is a README"));
    // Restricted, as everywhere; the user's own namespace is the kubeconfig's.
    suite.kube.namespace(operator::NAMESPACE).await;
    suite.kube.namespace(&namespace(name)).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::copy(&suite.kube.kubeconfig, &kubeconfig).expect("the kubeconfig can be copied");
    let mut set = Command::new("kubectl");
    let here = format!("--namespace={}", namespace(name));
    set.args(["config", "set-context", "--current", &here]).env("KUBECONFIG", &kubeconfig);
    output(set).await.expect("the namespace is set");

    let mut shell = Command::new("bash");
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p)' EXIT\n{lines}");
    shell.args(["-c", &script]).env("KUBECONFIG", &kubeconfig).current_dir(repository());
    let mut said = String::new();
    let took = timed(async { said = output(shell).await.unwrap_or_else(|said| panic!("{lines}\n{said}")) }).await;
    assert!(said.contains(r#"{"status":"ok","id":1,"key":"hello","version":1}"#), "the write was answered: {said}");

    let store = Store::new(&suite.kube, &namespace(name));
    store.healthy(60).await;
    let read = suite.kube.pod_get(&store.namespace, "demo-1:8000", "key/hello").await;
    assert_eq!(read.expect("a node answers"), r#"{"key":"hello","value":"world","version":1}"#);
    let mut report = Report::default();
    report.note(format!("from the first line to the answer: {:.1} s", took.as_secs_f64()));
    report
}

/// The clusters that docs/operations.md shows, and the chart's own test beside them.
pub(crate) async fn examples(suite: Arc<Suite>, name: &'static str) -> Report {
    suite.operator_runs().await;
    let namespace = namespace(name);
    suite.kube.namespace(&namespace).await;
    let files = repository().join("charts/examples");
    let files = files.to_str().expect("the path is text");
    let kubectl = async |arguments: &[&str]| {
        suite.kube.must("kubectl", &[arguments, &["--namespace", &namespace]].concat()).await
    };
    kubectl(&["apply", "--validate=strict", "--filename", files]).await;
    kubectl(&["wait", "kvcluster", "--all", "--for=condition=Available", "--timeout=120s"]).await;
    let assigned = kubectl(&["get", "kvcluster", "ledger", "--output=jsonpath={.spec.leader} {.status.leader}"]).await;
    assert_eq!(assigned, "ledger-0 ledger-0", "an order is followed");
    let test = ["test", operator::RELEASE, "--logs", "--namespace", operator::NAMESPACE];
    let mut said = String::new();
    let took = timed(async { said = suite.kube.must("helm", &test).await }).await;
    assert!(said.contains("read through"), "helm shows what the test said: {said}");
    let left = ["get", "kvclusters,persistentvolumeclaims", "--namespace", operator::NAMESPACE, "--output=name"];
    eventually("the chart's test leaves nothing", 30, || async {
        let left = suite.kube.must("kubectl", &left).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let mut report = Report::default();
    report.note(format!("helm test took {:.1} s", took.as_secs_f64()));
    report
}

/// The first block of the section that installs the operator.
fn lines(readme: &str) -> String {
    let section = readme.split_once(SECTION).expect("the README has the section").1;
    let section = section.split("\n## ").next().expect("a split has a first part");
    let blocks = section.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').map_or("", |b| b.1));
    let block = blocks.into_iter().find(|block| block.contains(FIRST)).expect("the section installs the operator");
    block[block.find(FIRST).expect("it was just found")..].to_owned()
}
